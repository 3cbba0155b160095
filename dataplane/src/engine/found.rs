//! Destination: pages that the source asks for are looked for in the waiting VM's RAM, where a transfer that
//! broke off may have left them, and in what the node holds besides; those that have not changed since the VM left, in its
//! baseline.
//!
//! Nothing is believed: each page that is found was read and hashed now. From then on it is like a page
//! that was applied, by its digest and in the root.

use std::sync::atomic::{AtomicU64, Ordering};

use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::{KnownPages, PageQuestion, WantedPages};

use super::Session;
use crate::ram::RamError;

/// Pages by the hash of their content. Several threads look at once.
pub trait PageLibrary: Sync {
    /// Puts a page with this hash to `out`, if there is one.
    fn find(&self, hash: u64, out: &mut Page) -> bool;

    /// Puts pages of a RAM block, from `page` on, to `out`, as they were when the VM left; false when that is not known.
    fn read_as_it_left(&self, block: usize, page: u32, out: &mut [Page]) -> bool;
}

/// Why pages were not looked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FindError {
    /// The question is not possible.
    #[error(
        "the source asks for pages {page}..{end} of RAM block {ram_block}, which are not there or asked for already"
    )]
    NotThere {
        /// Block.
        ram_block: u32,
        /// First page.
        page: u32,
        /// Behind the last.
        end: u64,
    },
    /// RAM cannot be written.
    #[error(transparent)]
    Ram(#[from] RamError),
}

/// What was found for a question.
#[derive(Debug, PartialEq, Eq)]
pub struct Found {
    /// The answer.
    pub answer: KnownPages,
    /// Part of the root.
    pub root: RamRoot,
    /// Pages that were in RAM.
    pub in_ram: u64,
    /// Pages from elsewhere.
    pub elsewhere: u64,
}

impl Found {
    fn nothing(ram_block: u32, page: u32, pages: usize) -> Self {
        Self {
            answer: KnownPages::none(ram_block, page, pages),
            root: RamRoot::default(),
            in_ram: 0,
            elsewhere: 0,
        }
    }
}

/// Pages of a baseline that are read at once.
const READ_PAGES: usize = 64;

/// Looks for pages, and puts those that are found elsewhere into RAM. Nothing else may write those meanwhile.
///
/// Several threads may look, each for other pages: none is looked for twice.
#[derive(Debug)]
pub struct Finder<'a, L> {
    session: &'a Session,
    content_key: FingerprintKey,
    library: &'a L,
    /// A bit for each page that has been asked for.
    asked: Vec<AtomicU64>,
}

impl<'a, L: PageLibrary> Finder<'a, L> {
    /// One that finds pages by hashes of this seed.
    #[must_use]
    pub fn new(session: &'a Session, content_seed: u64, library: &'a L) -> Self {
        let words = session.layout.pages().div_ceil(64) as usize;
        Self {
            session,
            content_key: FingerprintKey::new(content_seed),
            library,
            asked: std::iter::repeat_with(AtomicU64::default)
                .take(words)
                .collect(),
        }
    }

    /// Answers a question.
    ///
    /// # Errors
    /// [`FindError`].
    pub fn find(&self, question: &PageQuestion) -> Result<Found, FindError> {
        match question {
            PageQuestion::Wanted(wanted) => self.find_wanted(wanted),
            PageQuestion::Unchanged(known) => self.find_unchanged(known),
        }
    }

    /// Whether a page may be looked for: it was not before, and nothing was applied to it.
    fn is_new(&self, global: u64) -> bool {
        let bit = 1 << (global % 64);
        let before = self.asked[(global / 64) as usize].fetch_or(bit, Ordering::Relaxed);
        before & bit == 0 && self.session.digests.known(global).is_none()
    }

    fn find_wanted(&self, wanted: &WantedPages) -> Result<Found, FindError> {
        let session = self.session;
        let (ram_block, page) = (wanted.ram_block, wanted.page);
        let not_there = || not_there((ram_block, page, wanted.pages()));
        let index = ram_block as usize;
        let block = session.layout.blocks().get(index).ok_or_else(not_there)?;
        if u64::from(page) + wanted.pages() as u64 > u64::from(block.pages()) {
            return Err(not_there());
        }
        let mut found = Found::nothing(ram_block, page, wanted.pages());
        let mut content = [0; PAGE_BYTES];
        for (at, hash) in wanted.hashes().enumerate().filter(|(_, hash)| *hash != 0) {
            let number = page + at as u32;
            let global = session.layout.global_page(index, number);
            if !self.is_new(global) {
                return Err(not_there());
            }
            let is_unknown = session.digests.is_unknown(global);
            // A page without memory is not looked at: that would allocate it.
            if is_unknown {
                block.read_page(number, &mut content);
            }
            if is_unknown && kernels().fingerprint(&self.content_key, &content).lo == hash {
                found.in_ram += 1;
            } else if self.library.find(hash, &mut content) && !kernels().is_zero(&content) {
                block.write_pages(number, std::slice::from_ref(&content))?;
                found.elsewhere += 1;
            } else {
                continue;
            }
            let fingerprint = kernels().fingerprint(&session.key, &content);
            session
                .digests
                .set(global, Some(fingerprint), &mut found.root);
            found.answer.set(at);
        }
        found.answer.root = found.root.0;
        Ok(found)
    }

    /// All of them, or none: only together they can be compared with what the source has.
    fn find_unchanged(&self, known: &KnownPages) -> Result<Found, FindError> {
        let session = self.session;
        let (ram_block, first) = (known.ram_block, known.page);
        let not_there = || not_there((ram_block, first, known.pages()));
        let index = ram_block as usize;
        let block = session.layout.blocks().get(index).ok_or_else(not_there)?;
        let asked: Vec<u32> = (0..known.pages())
            .filter(|at| known.contains(*at))
            .map(|at| first.saturating_add(at as u32))
            .collect();
        let global = |page: u32| session.layout.global_page(index, page);
        if !asked
            .iter()
            .all(|page| *page < block.pages() && self.is_new(global(*page)))
        {
            return Err(not_there());
        }
        let mut found = Found::nothing(ram_block, first, known.pages());
        let mut fingerprints = Vec::with_capacity(asked.len());
        let (mut root, mut is_zero) = (RamRoot::default(), false);
        let mut content = vec![[0; PAGE_BYTES]; READ_PAGES];
        for run in runs(&asked) {
            let pages = &mut content[..run.len()];
            if !self.library.read_as_it_left(index, run[0], pages) {
                break;
            }
            for (page, content) in run.iter().zip(&*pages) {
                let fingerprint = kernels().fingerprint(&session.key, content);
                root.add(global(*page), fingerprint);
                // No source says so of a zero page.
                is_zero |= session.key.is_zero(fingerprint);
                fingerprints.push(fingerprint);
            }
            // Until it is known to be right nobody knows what the pages hold.
            run.iter()
                .for_each(|page| session.digests.set_unknown(global(*page)));
            block.write_pages(run[0], pages)?;
        }
        if fingerprints.len() < asked.len() || root.0 != known.root || is_zero {
            return Ok(found);
        }
        for (page, fingerprint) in asked.iter().zip(fingerprints) {
            session
                .digests
                .set(global(*page), Some(fingerprint), &mut found.root);
        }
        found.elsewhere = asked.len() as u64;
        found.answer = known.clone();
        Ok(found)
    }
}

fn not_there((ram_block, page, pages): (u32, u32, usize)) -> FindError {
    FindError::NotThere {
        ram_block,
        page,
        end: u64::from(page) + pages as u64,
    }
}

/// Pages that follow each other, so many at once.
fn runs(pages: &[u32]) -> impl Iterator<Item = &[u32]> {
    let together = |one: &u32, next: &u32| one + 1 == *next;
    pages
        .chunk_by(together)
        .flat_map(|run| run.chunks(READ_PAGES))
}

#[cfg(test)]
mod tests;
