//! Source: which of its pages the destination has already, asked by their hashes before round 0.
//!
//! A page is read once, and known by two values of that read: its hash, under the destination's seed,
//! asks for it; its fingerprint, under this migration's key, is what the destination then holds. The
//! destination answers with what the pages that it found add to the root under that key. So a page that only
//! has the hash of another is noticed, and sent like any other.

use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_simd::{Fingerprint, FingerprintKey, PAGE_BYTES, RamRoot, kernels};
use dwcp_wire::limits::WANTED_PAGES_MAX;
use dwcp_wire::{FoundPages, PageRange, WantedPages};

use super::Session;
use crate::ram::{RamBitmap, RamError};

/// A question, and what the pages were when they were asked for.
#[derive(Debug)]
pub struct Question {
    /// What is asked.
    pub wanted: WantedPages,
    /// Of each page; the default where none is asked for.
    fingerprints: Vec<Fingerprint>,
}

impl Question {
    /// Pages asked for.
    #[must_use]
    pub fn pages(&self) -> u64 {
        let asked = self.wanted.hashes().filter(|&hash| hash != 0);
        asked.count() as u64
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

/// Asks for all pages of RAM that hold something, a chunk at a time, and hands the questions to `ask`,
/// until that says no. The chunks come from all over RAM, so that the first answers tell of the rest.
///
/// # Errors
/// [`RamError`]: what of RAM is in use cannot be found out.
pub fn ask_for_pages(
    session: &Session,
    seed: u64,
    stop: &AtomicBool,
    mut ask: impl FnMut(Question) -> bool,
) -> Result<(), RamError> {
    let mut in_use = session.layout.empty_bitmap();
    session.layout.mark_data(&mut in_use)?;
    let content_key = FingerprintKey::new(seed);
    for (block, first) in scattered(chunks(&in_use)) {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let question = question(session, &content_key, &in_use, block, first);
        if question.is_some_and(|question| !ask(question)) {
            break;
        }
    }
    Ok(())
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
fn scattered<T: Copy>(chunks: Vec<T>) -> impl Iterator<Item = T> {
    let count = chunks.len();
    let near = (count as f64 * 0.618) as usize;
    let is_coprime = |step: &usize| gcd(*step, count) == 1;
    let step = (near.max(1)..).find(is_coprime).unwrap_or(1);
    (0..count).map(move |n| chunks[n * step % count])
}

const fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// Reads the pages of a chunk; `None` when all are zero.
fn question(
    session: &Session,
    content_key: &FingerprintKey,
    in_use: &RamBitmap,
    index: usize,
    first: u32,
) -> Option<Question> {
    let block = &session.layout.blocks()[index];
    let end = block.pages().min(first + WANTED_PAGES_MAX as u32);
    let (mut hashes, mut fingerprints) = (vec![], vec![]);
    let mut content = [0; PAGE_BYTES];
    for page in first..end {
        let (mut hash, mut fingerprint) = (0, Fingerprint::default());
        if in_use.blocks[index].contains(page) {
            block.read_page(page, &mut content);
            fingerprint = kernels().fingerprint(&session.key, &content);
            if !session.key.is_zero(fingerprint) {
                hash = kernels().fingerprint(content_key, &content).lo;
            }
        }
        hashes.push(hash);
        fingerprints.push(fingerprint);
    }
    let told = hashes.iter().rposition(|&hash| hash != 0)? + 1;
    fingerprints.truncate(told);
    Some(Question {
        wanted: WantedPages::new(index as u32, first, &hashes[..told]),
        fingerprints,
    })
}

/// Takes the answer to a question: the digests then hold what the destination holds.
///
/// # Errors
/// [`NotAsked`]: it answers another question.
pub fn take_found(
    session: &Session,
    question: &Question,
    found: &FoundPages,
) -> Result<Taken, NotAsked> {
    let wanted = &question.wanted;
    let (ram_block, page) = (wanted.ram_block, wanted.page);
    let refused = NotAsked {
        ram_block: found.ram_block,
        page: found.page,
    };
    if (found.ram_block, found.page) != (ram_block, page) || !found.is_about(wanted.pages()) {
        return Err(refused);
    }
    let first = session.layout.global_page(ram_block as usize, page);
    let (mut there, mut root) = (vec![], RamRoot::default());
    for (at, hash) in wanted
        .hashes()
        .enumerate()
        .filter(|(at, _)| found.contains(*at))
    {
        if hash == 0 {
            return Err(refused);
        }
        there.push(at);
        root.add(first + at as u64, question.fingerprints[at]);
    }
    if root.0 != found.root {
        let count = wanted.pages() as u32;
        return Ok(Taken::Doubtful(PageRange {
            ram_block,
            page,
            count,
        }));
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
            let mut order: Vec<usize> = scattered((0..count).collect()).collect();
            let near = order
                .windows(2)
                .filter(|pair| pair[0].abs_diff(pair[1]) < count / 4);
            assert_eq!(near.count(), 0, "{count}: {order:?}");
            order.sort_unstable();
            assert_eq!(order, (0..count).collect::<Vec<_>>());
        }
    }
}
