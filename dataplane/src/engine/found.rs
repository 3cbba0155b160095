//! Destination: pages that the source asks for are looked for in the waiting VM's RAM, where a transfer that
//! broke off may have left them, and in what the node holds besides; those that have not changed since the VM left, in its
//! baseline.
//!
//! Nothing is believed: each page that is found was read and hashed now. From then on it is like a page
//! that was applied, by its digest and in the root.

use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::{KnownPages, PageQuestion, WantedPages};

use super::Session;
use crate::ram::RamError;

/// Pages by the hash of their content.
pub trait PageLibrary {
    /// Puts a page with this hash to `out`, if there is one.
    fn find(&mut self, hash: u64, out: &mut Page) -> bool;

    /// Puts pages of a RAM block, from `page` on, to `out`, as they were when the VM left; false when that is not known.
    fn read_as_it_left(&mut self, block: usize, page: u32, out: &mut [Page]) -> bool;
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

/// Looks for pages, and puts those that are found elsewhere into RAM. Nothing else may write RAM meanwhile.
///
/// # Errors
/// [`FindError`].
pub fn find_pages(
    session: &Session,
    question: &PageQuestion,
    content_key: &FingerprintKey,
    library: &mut dyn PageLibrary,
) -> Result<Found, FindError> {
    match question {
        PageQuestion::Wanted(wanted) => find_wanted(session, wanted, content_key, library),
        PageQuestion::Unchanged(known) => find_unchanged(session, known, library),
    }
}

fn not_there((ram_block, page, pages): (u32, u32, usize)) -> FindError {
    FindError::NotThere {
        ram_block,
        page,
        end: u64::from(page) + pages as u64,
    }
}

fn find_wanted(
    session: &Session,
    wanted: &WantedPages,
    content_key: &FingerprintKey,
    library: &mut dyn PageLibrary,
) -> Result<Found, FindError> {
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
        if session.digests.known(global).is_some() {
            return Err(not_there());
        }
        let is_unknown = session.digests.is_unknown(global);
        // A page without memory is not looked at: that would allocate it.
        if is_unknown {
            block.read_page(number, &mut content);
        }
        if is_unknown && kernels().fingerprint(content_key, &content).lo == hash {
            found.in_ram += 1;
        } else if library.find(hash, &mut content) && !kernels().is_zero(&content) {
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
fn find_unchanged(
    session: &Session,
    known: &KnownPages,
    library: &mut dyn PageLibrary,
) -> Result<Found, FindError> {
    let (ram_block, first) = (known.ram_block, known.page);
    let not_there = || not_there((ram_block, first, known.pages()));
    let index = ram_block as usize;
    let block = session.layout.blocks().get(index).ok_or_else(not_there)?;
    let asked: Vec<u32> = (0..known.pages())
        .filter(|at| known.contains(*at))
        .map(|at| first.saturating_add(at as u32))
        .collect();
    let global = |page: u32| session.layout.global_page(index, page);
    let is_free = |page: u32| page < block.pages() && session.digests.known(global(page)).is_none();
    if !asked.iter().all(|page| is_free(*page)) {
        return Err(not_there());
    }
    let mut found = Found::nothing(ram_block, first, known.pages());
    let mut fingerprints = Vec::with_capacity(asked.len());
    let (mut root, mut is_zero) = (RamRoot::default(), false);
    let mut content = vec![[0; PAGE_BYTES]; READ_PAGES];
    for run in runs(&asked) {
        let pages = &mut content[..run.len()];
        if !library.read_as_it_left(index, run[0], pages) {
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

/// Pages that follow each other, so many at once.
fn runs(pages: &[u32]) -> impl Iterator<Item = &[u32]> {
    let together = |one: &u32, next: &u32| one + 1 == *next;
    pages
        .chunk_by(together)
        .flat_map(|run| run.chunks(READ_PAGES))
}

#[cfg(test)]
mod tests;
