//! Source: which of its pages the destination has already, asked before round 0.
//!
//! A page is read once, and known by values of that read. Of a VM that comes back to a node which has its RAM as it left, a
//! bit says that a page has not changed since it came from there. Any other is asked for by its hash, under the
//! destination's seed. Its fingerprint, under this migration's key, is what the destination then holds: what the
//! pages add to the root under that key is in the question or the answer. So a page that only has the hash of another
//! is noticed, and sent like any other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use dwcp_simd::{Fingerprint, FingerprintKey, PAGE_BYTES, RamRoot, kernels};
use dwcp_wire::limits::WANTED_PAGES_MAX;
use dwcp_wire::{KnownPages, PageQuestion, PageRange, WantedPages};

use super::{AsItCame, Session};
use crate::ram::{RamBitmap, RamError};

/// A question, and what the pages were when it was asked.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub asked: PageQuestion,
    /// Of each page; the default where none is asked for.
    fingerprints: Vec<Fingerprint>,
}

impl Question {
    /// Pages asked for.
    #[must_use]
    pub fn pages(&self) -> u64 {
        self.asked_pages().count() as u64
    }

    /// The pages asked for, with their blocks.
    pub fn asked_pages(&self) -> impl Iterator<Item = (usize, u32)> {
        let (ram_block, first, _) = self.asked.chunk();
        let asked = (first..).zip(&self.fingerprints);
        asked
            .filter(|(_, of)| **of != Fingerprint::default())
            .map(move |(page, _)| (ram_block as usize, page))
    }

    /// The pages spoken of.
    #[must_use]
    pub fn range(&self) -> PageRange {
        let (ram_block, page, pages) = self.asked.chunk();
        PageRange {
            ram_block,
            page,
            count: self.fingerprints.len().min(pages) as u32,
        }
    }

    /// Whether it is asked by hashes.
    #[must_use]
    pub const fn is_by_hash(&self) -> bool {
        matches!(self.asked, PageQuestion::Wanted(_))
    }
}

/// What came of a question.
#[derive(Debug, PartialEq, Eq)]
pub enum Taken {
    /// So many pages are there, and in the digests; their part of the root.
    Found {
        /// Pages.
        pages: u64,
        /// Part of the root.
        root: RamRoot,
    },
    /// What was found is not what was asked for: these pages must be sent in any case.
    Doubtful(PageRange),
}

/// An answer that fits no question.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the destination has found pages of RAM block {ram_block} from {page} on that it was not asked for"
)]
pub struct NotAsked {
    ram_block: u32,
    page: u32,
}

/// How pages are asked for.
#[derive(Debug)]
pub struct Asking<'a> {
    /// Seed of the hashes.
    pub content_seed: u64,
    /// What RAM was when it came from the destination, which has kept it.
    pub came: Option<&'a AsItCame>,
    /// What is asked by hash while this is set.
    pub by_hash: &'a AtomicBool,
    /// Nothing more is asked.
    pub stop: &'a AtomicBool,
}

/// Asks for all pages of RAM that hold something, a chunk at a time. The chunks come from all over RAM, so that the
/// first answers tell of the rest. Several threads may ask, each about chunks of its own.
#[derive(Debug)]
pub struct Asker<'a> {
    session: &'a Session,
    asking: &'a Asking<'a>,
    in_use: RamBitmap,
    chunks: Vec<(usize, u32)>,
    /// The first of them that no thread has taken.
    next: AtomicUsize,
}

impl<'a> Asker<'a> {
    /// One that has yet to ask.
    ///
    /// # Errors
    /// [`RamError`]: what of RAM is in use cannot be found out.
    pub fn new(session: &'a Session, asking: &'a Asking<'a>) -> Result<Self, RamError> {
        let mut in_use = session.layout.empty_bitmap();
        session.layout.mark_data(&mut in_use)?;
        Ok(Self {
            session,
            asking,
            chunks: scattered(&chunks(&in_use)),
            in_use,
            next: AtomicUsize::new(0),
        })
    }

    /// Hands questions to `ask`, until that says no or none is left.
    pub fn ask(&self, mut ask: impl FnMut(Question) -> bool) {
        let content_key = FingerprintKey::new(self.asking.content_seed);
        while let Some((block, first)) = self.next_chunk() {
            let by_hash = self.asking.by_hash.load(Ordering::Relaxed);
            let asks = self.asking.came.is_some() || by_hash;
            if self.asking.stop.load(Ordering::Relaxed) || !asks {
                break;
            }
            let chunk = Chunk {
                session: self.session,
                in_use: &self.in_use,
                came: self.asking.came,
                content_key: by_hash.then_some(&content_key),
            };
            let questions = chunk.questions(block, first);
            if !questions.into_iter().flatten().all(&mut ask) {
                break;
            }
        }
    }

    fn next_chunk(&self) -> Option<(usize, u32)> {
        let at = self.next.fetch_add(1, Ordering::Relaxed);
        self.chunks.get(at).copied()
    }
}

/// The first page of each chunk that holds something.
fn chunks(in_use: &RamBitmap) -> Vec<(usize, u32)> {
    let of_block = |(index, bitmap): (usize, &crate::ram::DirtyBitmap)| {
        let starts = (0..bitmap.pages()).step_by(WANTED_PAGES_MAX);
        let words = bitmap.words().chunks(WANTED_PAGES_MAX / 64);
        let used = starts
            .zip(words)
            .filter(|(_, words)| words.iter().any(|&word| word != 0));
        used.map(|(first, _)| (index, first)).collect::<Vec<_>>()
    };
    in_use
        .blocks
        .iter()
        .enumerate()
        .flat_map(of_block)
        .collect()
}

/// All of `chunks`, each far from the one before: by steps of about the golden ratio of their number.
fn scattered<T: Copy>(chunks: &[T]) -> Vec<T> {
    let count = chunks.len();
    let near = (count as f64 * 0.618) as usize;
    let is_coprime = |step: &usize| gcd(*step, count) == 1;
    let step = (near.max(1)..).find(is_coprime).unwrap_or(1);
    (0..count).map(|n| chunks[n * step % count]).collect()
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// What its pages are compared with.
struct Chunk<'a> {
    session: &'a Session,
    in_use: &'a RamBitmap,
    came: Option<&'a AsItCame>,
    /// Pages that are not as they came are asked for by their hashes under this key.
    content_key: Option<&'a FingerprintKey>,
}

impl Chunk<'_> {
    /// Reads the pages of a chunk: what has not changed, and what is asked for by hash.
    fn questions(&self, index: usize, first: u32) -> [Option<Question>; 2] {
        let session = self.session;
        let block = &session.layout.blocks()[index];
        let end = block.pages().min(first + WANTED_PAGES_MAX as u32);
        let pages = (end - first) as usize;
        let none = vec![Fingerprint::default(); pages];
        let (mut of_unchanged, mut of_wanted) = (none.clone(), none);
        let mut hashes = vec![0; pages];
        let mut unchanged = KnownPages::none(index as u32, first, pages);
        let (mut root, mut content) = (RamRoot::default(), [0; PAGE_BYTES]);
        for (at, page) in (first..end).enumerate() {
            if !self.in_use.blocks[index].contains(page) {
                continue;
            }
            block.read_page(page, &mut content);
            let fingerprint = kernels().fingerprint(&session.key, &content);
            if session.key.is_zero(fingerprint) {
                continue;
            }
            let global = session.layout.global_page(index, page);
            if self
                .came
                .is_some_and(|came| came.is_still(global, &content))
            {
                of_unchanged[at] = fingerprint;
                unchanged.set(at);
                root.add(global, fingerprint);
            } else if let Some(key) = self.content_key {
                of_wanted[at] = fingerprint;
                hashes[at] = kernels().fingerprint(key, &content).lo;
            }
        }
        unchanged.root = root.0;
        let told = hashes.iter().rposition(|&hash| hash != 0);
        let wanted = told.map(|last| WantedPages::new(index as u32, first, &hashes[..=last]));
        let is_unchanged = unchanged.count() > 0;
        [
            is_unchanged.then_some((PageQuestion::Unchanged(unchanged), of_unchanged)),
            wanted.map(|wanted| (PageQuestion::Wanted(wanted), of_wanted)),
        ]
        .map(|question| {
            question.map(|(asked, fingerprints)| Question {
                asked,
                fingerprints,
            })
        })
    }
}

/// Takes the answer to a question: the digests then hold what the destination holds.
///
/// # Errors
/// [`NotAsked`]: it answers another question.
pub fn take_found(
    session: &Session,
    question: &Question,
    found: &KnownPages,
) -> Result<Taken, NotAsked> {
    let (ram_block, page, pages) = question.asked.chunk();
    let refused = NotAsked {
        ram_block: found.ram_block,
        page: found.page,
    };
    // Round 0 has left the others out, and no root would miss them.
    let is_part_of = |known: &KnownPages| ![0, known.count()].contains(&found.count());
    let is_part = matches!(&question.asked, PageQuestion::Unchanged(known) if is_part_of(known));
    if (found.ram_block, found.page) != (ram_block, page) || !found.is_about(pages) || is_part {
        return Err(refused);
    }
    let first = session.layout.global_page(ram_block as usize, page);
    let (mut there, mut root) = (vec![], RamRoot::default());
    for at in (0..question.fingerprints.len()).filter(|at| found.contains(*at)) {
        if question.fingerprints[at] == Fingerprint::default() {
            return Err(refused);
        }
        there.push(at);
        root.add(first + at as u64, question.fingerprints[at]);
    }
    if root.0 != found.root {
        return Ok(Taken::Doubtful(question.range()));
    }
    for &at in &there {
        let fingerprint = Some(question.fingerprints[at]);
        let global = first + at as u64;
        session
            .digests
            .set(global, fingerprint, &mut RamRoot::default());
    }
    let pages = there.len() as u64;
    Ok(Taken::Found { pages, root })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_chunks_come_and_neighbours_far_apart() {
        for count in [0, 1, 2, 3, 10, 64, 1000] {
            let mut order = scattered(&(0..count).collect::<Vec<usize>>());
            let near = order
                .windows(2)
                .filter(|pair| pair[0].abs_diff(pair[1]) < count / 4);
            assert_eq!(near.count(), 0, "{count}: {order:?}");
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
    }
}
