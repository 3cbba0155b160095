//! Part of stages 3 and 7: pages of numbers and pointers are shuffled before their window sees them.
//!
//! A codec of the LZ family has no notion of columns. Where a page is an array of words whose high bytes hardly
//! change, the first bytes of all words, then the second ones, and so on, are much smaller than the words in
//! order: 3% to 10% of the bytes of servers' RAM ([ADR 0032]). It is the shuffle filter of HDF5 and Blosc, for
//! words of four bytes, page by page: text and code stay as they are.
//!
//! [ADR 0032]: ../../../docs/adr/0032-neighbours-on-one-stream-words-shuffled.md

use dwcp_simd::{PAGE_BYTES, Page, kernels};
use dwcp_wire::limits::FRAME_DATA_PAGES_MAX;

/// A shuffled page should be guessed to save more than so many of 4096 bytes: what lies further back in the window
/// looks like the page as it is.
const GAIN_MIN: i32 = 400;

/// A bit for each page of a frame's window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Shuffled([u8; FRAME_DATA_PAGES_MAX / 8]);

impl Shuffled {
    /// Bytes of the bits of so many pages.
    pub(super) const fn bytes(pages: usize) -> usize {
        pages.div_ceil(8)
    }

    /// Shuffles those of `pages` that get smaller by it, at most a frame's. `None` when none does.
    pub(super) fn shuffle(pages: &mut [Page]) -> Option<Self> {
        let (kernels, mut shuffled) = (kernels(), Self::default());
        let mut out = [0; PAGE_BYTES];
        for (index, page) in pages.iter_mut().enumerate() {
            if kernels.shuffle_gain(page) > GAIN_MIN {
                kernels.shuffle(page, &mut out);
                *page = out;
                shuffled.0[index / 8] |= 1 << (index % 8);
            }
        }
        (shuffled != Self::default()).then_some(shuffled)
    }

    /// Reads the bits of `pages` pages, of a frame at most, from the front of `data`. Returns what is behind them, or
    /// `None` when they are not all there, or name a page that is not.
    pub(super) fn read(data: &[u8], pages: usize) -> Option<(Self, &[u8])> {
        let (bits, rest) = data.split_at_checked(Self::bytes(pages))?;
        let mut shuffled = Self::default();
        shuffled.0.get_mut(..bits.len())?.copy_from_slice(bits);
        let are_pages = (pages..8 * bits.len()).all(|index| !shuffled.contains(index));
        are_pages.then_some((shuffled, rest))
    }

    /// The bits of `pages` pages.
    pub(super) fn bits(&self, pages: usize) -> &[u8] {
        &self.0[..Self::bytes(pages)]
    }

    const fn contains(&self, index: usize) -> bool {
        self.0[index / 8] >> (index % 8) & 1 == 1
    }

    /// Has pages be as they were.
    pub(super) fn unshuffle(&self, pages: &mut [Page]) {
        let mut out = [0; PAGE_BYTES];
        for (index, page) in pages.iter_mut().enumerate() {
            if self.contains(index) {
                kernels().unshuffle(page, &mut out);
                *page = out;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::path::testing::{noise, words_page};

    #[test]
    fn pages_of_words_are_shuffled_and_others_are_not() {
        let mut text = [0; PAGE_BYTES];
        for (index, byte) in text.iter_mut().enumerate() {
            *byte =
                b"what a guest writes into its log, line by line; "[(index * 5 + index / 90) % 48];
        }
        let pages = [
            text,
            words_page(1),
            noise(3),
            [0; PAGE_BYTES],
            words_page(9),
        ];
        let mut sent = pages;
        let shuffled = Shuffled::shuffle(&mut sent).expect("two of them");
        assert_eq!(shuffled.bits(5), [0b10010]);
        assert_eq!((sent[0], sent[2], sent[3]), (text, pages[2], pages[3]));
        assert_ne!(sent[1], pages[1]);
        shuffled.unshuffle(&mut sent);
        assert_eq!(sent, pages);
        assert_eq!(Shuffled::shuffle(&mut [text, noise(4)]), None);
    }

    #[test]
    fn bits_of_pages_that_are_not_there_are_refused() {
        let read = |data: &[u8], pages| Shuffled::read(data, pages).map(|(_, rest)| rest.len());
        assert_eq!(read(&[0b1_1111, 7, 7], 5), Some(2));
        assert_eq!(read(&[0b10_0000, 7], 5), None);
        assert_eq!(read(&[0xff], 9), None, "a byte is missing");
        assert_eq!(read(&[0xff; 16], FRAME_DATA_PAGES_MAX), Some(0));
        assert_eq!(read(&[0xff; 17], FRAME_DATA_PAGES_MAX + 8), None);
    }
}
