//! Part of stage 2: pages as the destination holds them, as far as there is memory for them.
//!
//! A page that changes again can then be sent as what changed. Each page has one place, which it shares with
//! others; who changed last has it. In the first round a page takes a free place only: most pages never
//! change, and those that do come again.

use std::sync::{Mutex, PoisonError};

use dwcp_simd::{Fingerprint, PAGE_BYTES, Page};

/// Parts with a lock each, so that workers do not wait for each other.
const SHARDS: u64 = 64;

/// Pages that follow each other and share a part: a word of the dirty bitmap.
const STRETCH_PAGES: u64 = 64;

/// Pages of a migration's source, within a set memory.
#[derive(Debug)]
pub struct RememberedPages {
    shards: Vec<Mutex<Shard>>,
    /// Places of each part.
    places: u64,
}

#[derive(Debug)]
struct Shard {
    tags: Vec<Tag>,
    /// The system gives memory as it is written.
    pages: Vec<u8>,
}

/// Which page a place has. The numbers begin at 1; a fingerprint says which content.
#[derive(Clone, Copy, Debug, Default)]
struct Tag {
    number: u64,
    fingerprint: Fingerprint,
}

/// A page that leaves.
#[derive(Clone, Copy, Debug)]
pub(super) struct Leaving<'a> {
    /// Its number in all of RAM.
    pub(super) number: u64,
    pub(super) content: &'a Page,
    pub(super) fingerprint: Fingerprint,
    /// It is sent for the first time.
    pub(super) is_first: bool,
}

impl RememberedPages {
    /// Remembers as many pages as `bytes` have room for; `None` when that is too few to be of use.
    #[must_use]
    pub fn new(bytes: u64) -> Option<Self> {
        let place_bytes = PAGE_BYTES as u64 + size_of::<Tag>() as u64;
        let places = bytes / place_bytes / SHARDS;
        let shard = || Shard {
            tags: vec![Tag::default(); places as usize],
            pages: vec![0; places as usize * PAGE_BYTES],
        };
        (places > 0).then(|| Self {
            shards: std::iter::repeat_with(|| Mutex::new(shard()))
                .take(SHARDS as usize)
                .collect(),
            places,
        })
    }

    /// Remembers a page that leaves, and puts to `old` what it was, if that is what the destination holds:
    /// `held`. Returns whether it is.
    pub(super) fn exchange(
        &self,
        page: &Leaving<'_>,
        held: Option<Fingerprint>,
        old: &mut Page,
    ) -> bool {
        let (stretch, within) = (page.number / STRETCH_PAGES, page.number % STRETCH_PAGES);
        let shard = &self.shards[(stretch % SHARDS) as usize];
        let place = (stretch / SHARDS * STRETCH_PAGES + within) % self.places;
        // A worker that panicked has left a whole tag: the copy of a page below cannot.
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let Shard { tags, pages } = &mut *shard;
        let tag = &mut tags[place as usize];
        let content = &mut pages.as_chunks_mut::<PAGE_BYTES>().0[place as usize];
        let is_own = tag.number == page.number + 1;
        let is_known = is_own && held == Some(tag.fingerprint);
        if is_known {
            old.copy_from_slice(content);
        }
        if is_own || tag.number == 0 || !page.is_first {
            content.copy_from_slice(page.content);
            *tag = Tag {
                number: page.number + 1,
                fingerprint: page.fingerprint,
            };
        }
        is_known
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fingerprint(lo: u64) -> Fingerprint {
        Fingerprint { lo, hi: 1 }
    }

    /// A page with `byte` leaves; what it was, as far as that is known.
    fn leave(
        pages: &RememberedPages,
        number: u64,
        byte: u8,
        held: Option<u64>,
        is_first: bool,
    ) -> Option<u8> {
        let content = [byte; PAGE_BYTES];
        let leaving = Leaving {
            number,
            content: &content,
            fingerprint: fingerprint(byte.into()),
            is_first,
        };
        let mut old = [0; PAGE_BYTES];
        let is_known = pages.exchange(&leaving, held.map(fingerprint), &mut old);
        assert!(!is_known || old == [old[0]; PAGE_BYTES]);
        is_known.then_some(old[0])
    }

    #[test]
    fn a_page_is_known_by_what_the_destination_holds() {
        let pages = RememberedPages::new(32 << 20).unwrap();
        for number in 0..2000 {
            assert_eq!(leave(&pages, number, 3, None, true), None);
        }
        for number in 0..2000 {
            assert_eq!(leave(&pages, number, 4, Some(3), false), Some(3));
        }
        // The destination holds something else: it was damaged on the way, or is of before.
        assert_eq!(leave(&pages, 7, 5, Some(3), false), None);
        assert_eq!(leave(&pages, 7, 6, None, false), None);
        assert_eq!(leave(&pages, 7, 7, Some(6), false), Some(6));
    }

    #[test]
    fn in_the_first_round_nobody_is_driven_out() {
        let pages = RememberedPages::new(2 << 20).unwrap();
        // More pages than places.
        for number in 0..4000 {
            leave(&pages, number, 1, None, true);
        }
        let known = |number: &u64| leave(&pages, *number, 2, Some(1), true).is_some();
        let first: Vec<u64> = (0..4000).filter(known).collect();
        assert!(first.len() > 400 && first.len() < 520, "{}", first.len());
        // A page that changed takes the place of another.
        let other = (0..4000).find(|number| !first.contains(number)).unwrap();
        assert_eq!(leave(&pages, other, 3, Some(1), false), None);
        assert_eq!(leave(&pages, other, 4, Some(3), false), Some(3));
    }

    #[test]
    fn without_memory_nothing_is_remembered() {
        assert!(RememberedPages::new(0).is_none());
        assert!(RememberedPages::new(100 << 10).is_none());
    }
}
