//! The self-describing page that every DWCP test guest writes and checks.
//!
//! A page is a function of (kind, index, generation). The guest keeps the generation of each page in
//! a table, so a page that was lost, is stale, was torn or went to another place is found: by its
//! header, its trailer or its body.
//!
//! | word    | what                                                       |
//! |--------:|------------------------------------------------------------|
//! | 0       | [`MAGIC`]                                                  |
//! | 1       | index of the page                                          |
//! | 2       | generation, 1 when filled, one more with each rewrite      |
//! | 3..509  | body, see [`Kind`]                                         |
//! | 509     | generation again                                           |
//! | 510     | index again                                                |
//! | 511     | `!MAGIC`                                                   |
//!
//! Generation [`UNWRITTEN`] stands for a page of zeros that nobody wrote.
//!
//! No allocation, no dependency and no `std`: the bare guest kernel uses the same code.
#![no_std]

/// First word of every written page.
pub const MAGIC: u64 = 0xD1C7_D1C7_D1C7_D1C7;

/// Words of 8 bytes in a page.
pub const WORDS: usize = 512;

/// Bytes in a page.
pub const PAGE_BYTES: usize = WORDS * 8;

/// Generation of a page that still holds zeros.
pub const UNWRITTEN: u32 = 0;

/// First word of the trailer.
const TRAILER: usize = WORDS - 3;

/// Words between the header and the trailer.
const BODY: core::ops::Range<usize> = 3..TRAILER;

/// Words of the body that a rewrite of a [`Kind::Sparse`] page changes: one cache line.
const SPARSE: core::ops::Range<usize> = 8..16;

/// What the body of a page looks like to a compressor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kind {
    /// Incompressible; every rewrite changes every word.
    Random,
    /// Text-like, 16 random bits in every word: shrinks about 3 times; a rewrite changes every word.
    #[default]
    Text,
    /// Text-like, but a rewrite changes 64 bytes (and the generations) only: good for deltas.
    Sparse,
}

impl Kind {
    /// The name in options and on command lines.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Random => "random",
            Self::Text => "text",
            Self::Sparse => "sparse",
        }
    }

    /// The kind of that name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Random, Self::Text, Self::Sparse]
            .into_iter()
            .find(|kind| kind.name() == name)
    }
}

/// One step of a pseudo-random sequence; never 0 for a state that is not 0.
#[must_use]
pub fn next_random(state: u64) -> u64 {
    let mut x = state;
    x ^= x << 13;
    x ^= x >> 7;
    x ^ (x << 17)
}

/// The words of a body. As few operations a word as will do: guests run it under emulation.
struct Body {
    weyl: u64,
}

impl Body {
    fn new(index: u64, generation: u32) -> Self {
        let seed = index.wrapping_mul(0x9E37_79B9_7F4A_7C15)
            ^ u64::from(generation).wrapping_mul(0xD1B5_4A32_D192_ED03);
        // One multiplication spreads what little two neighbouring pages differ in.
        Self {
            weyl: (seed ^ (seed >> 31)).wrapping_mul(0xBF58_476D_1CE4_E5B9),
        }
    }

    #[inline(always)]
    fn random(&mut self) -> u64 {
        self.weyl = self.weyl.wrapping_add(0x9E37_79B9_7F4A_7C15);
        (self.weyl ^ (self.weyl >> 32)).wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    #[inline(always)]
    fn text(&mut self) -> u64 {
        0x6060_6060_2020_2020 | (self.random() >> 32 & 0x0000_0F0F) | (self.random_low() << 32)
    }

    #[inline(always)]
    fn random_low(&self) -> u64 {
        self.weyl >> 40 & 0x0F0F
    }
}

/// Calls `each(word index, word)` for every word of a page, or until it returns false.
#[inline(always)]
fn for_each_word(
    kind: Kind,
    index: u64,
    generation: u32,
    mut each: impl FnMut(usize, u64) -> bool,
) -> bool {
    let generation_word = u64::from(generation);
    if !(each(0, MAGIC) && each(1, index) && each(2, generation_word)) {
        return false;
    }
    let mut body = Body::new(index, if kind == Kind::Sparse { 0 } else { generation });
    let mut changing = Body::new(index, generation);
    for at in BODY {
        let word = match kind {
            Kind::Random => body.random(),
            Kind::Text => body.text(),
            Kind::Sparse if SPARSE.contains(&at) => changing.random(),
            Kind::Sparse => body.text(),
        };
        if !each(at, word) {
            return false;
        }
    }
    each(TRAILER, generation_word) && each(TRAILER + 1, index) && each(TRAILER + 2, !MAGIC)
}

/// Writes the page of that index and generation.
///
/// `before` is the generation that the page holds now; it decides how much of a sparse page has to
/// be written.
///
/// # Safety
/// `page` is aligned to 8 and valid for writes of [`PAGE_BYTES`]. Others may read it meanwhile.
pub unsafe fn write_page(page: *mut u64, kind: Kind, index: u64, before: u32, generation: u32) {
    let touch_all = kind != Kind::Sparse || before == UNWRITTEN;
    for_each_word(kind, index, generation, |at, word| {
        if touch_all || !BODY.contains(&at) || SPARSE.contains(&at) {
            // SAFETY: `at` is below WORDS, and the caller vouches for that many words. Volatile: a
            // mover in another process may read at the same time.
            unsafe { page.add(at).write_volatile(word) };
        }
        true
    });
}

/// Whether the page is exactly what its index and generation say.
///
/// # Safety
/// `page` is aligned to 8 and valid for reads of [`PAGE_BYTES`]. Others may write it meanwhile.
#[must_use]
pub unsafe fn check_page(page: *const u64, kind: Kind, index: u64, generation: u32) -> bool {
    // SAFETY: as for the words of `write_page`.
    let read = |at: usize| unsafe { page.add(at).read_volatile() };
    if generation == UNWRITTEN {
        return (0..WORDS).all(|at| read(at) == 0);
    }
    for_each_word(kind, index, generation, |at, word| read(at) == word)
}

/// Options that a guest reads from its kernel command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GuestOptions {
    /// `dwcp.fill_mib=`: RAM to fill; 0 = as much as is sensible.
    pub fill_mib: u64,
    /// `dwcp.hot_mib=`: the window that is rewritten, from the first page on.
    pub hot_mib: u64,
    /// `dwcp.rate=`: pages rewritten per second.
    pub rate: u64,
    /// `dwcp.verify=`: pages checked per second, besides those checked before each rewrite.
    pub verify_rate: u64,
    /// `dwcp.kind=`: `random`, `text` or `sparse`.
    pub kind: Kind,
}

impl Default for GuestOptions {
    fn default() -> Self {
        Self {
            fill_mib: 0,
            hot_mib: 16,
            rate: 300,
            verify_rate: 20_000,
            kind: Kind::Text,
        }
    }
}

impl GuestOptions {
    /// Reads the `dwcp.` words of a command line; what is unknown or malformed keeps its default.
    #[must_use]
    pub fn from_command_line(line: &str) -> Self {
        let mut options = Self::default();
        for word in line.split_ascii_whitespace() {
            let Some((key, value)) = word.strip_prefix("dwcp.").and_then(|w| w.split_once('='))
            else {
                continue;
            };
            let number = value.parse::<u64>();
            match (key, number) {
                ("fill_mib", Ok(number)) => options.fill_mib = number,
                ("hot_mib", Ok(number)) => options.hot_mib = number,
                ("rate", Ok(number)) => options.rate = number,
                ("verify", Ok(number)) => options.verify_rate = number,
                ("kind", _) => options.kind = Kind::from_name(value).unwrap_or(options.kind),
                _ => {}
            }
        }
        options
    }
}

/// Turns a rate into pages due, with a bounded memory: after a pause at most one second is caught up.
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    rate: u64,
    /// Pages due, times one million.
    credit: u64,
}

impl Pace {
    /// A pace of `rate` pages per second, at most a thousand million.
    #[must_use]
    pub fn new(rate: u64) -> Self {
        Self {
            rate: if rate > 1_000_000_000 {
                1_000_000_000
            } else {
                rate
            },
            credit: 0,
        }
    }

    /// Adds what `elapsed_us` more microseconds make due and returns the whole pages due in all.
    pub fn advance(&mut self, elapsed_us: u64) -> u64 {
        let elapsed_us = if elapsed_us > 1_000_000 {
            1_000_000
        } else {
            elapsed_us
        };
        let limit = self.rate * 1_000_000;
        let credit = self.credit.saturating_add(self.rate * elapsed_us);
        self.credit = if credit > limit { limit } else { credit };
        self.credit / 1_000_000
    }

    /// Takes `pages` that were done off what is due.
    pub fn take(&mut self, pages: u64) {
        self.credit = self.credit.saturating_sub(pages.saturating_mul(1_000_000));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(kind: Kind, index: u64, before: &[u64; WORDS], old: u32, new: u32) -> [u64; WORDS] {
        let mut page = *before;
        // SAFETY: the array has WORDS words and is ours alone.
        unsafe { write_page(page.as_mut_ptr(), kind, index, old, new) };
        page
    }

    fn is_good(page: &[u64; WORDS], kind: Kind, index: u64, generation: u32) -> bool {
        // SAFETY: the array has WORDS words.
        unsafe { check_page(page.as_ptr(), kind, index, generation) }
    }

    #[test]
    fn any_changed_word_stale_generation_or_wrong_place_is_found() {
        for kind in [Kind::Random, Kind::Text, Kind::Sparse] {
            let zero = [0; WORDS];
            assert!(is_good(&zero, kind, 7, UNWRITTEN) && !is_good(&zero, kind, 7, 1));
            let first = written(kind, 7, &zero, UNWRITTEN, 1);
            let second = written(kind, 7, &first, 1, 2);
            assert!(is_good(&first, kind, 7, 1) && is_good(&second, kind, 7, 2));
            assert!(!is_good(&first, kind, 7, 2) && !is_good(&second, kind, 8, 2));
            for at in 0..WORDS {
                let mut broken = second;
                broken[at] ^= 1 << (at % 64);
                assert!(!is_good(&broken, kind, 7, 2), "{kind:?} word {at}");
            }
        }
    }

    #[test]
    fn a_sparse_rewrite_changes_a_cache_line_and_the_generations() {
        let first = written(Kind::Sparse, 3, &[0; WORDS], UNWRITTEN, 1);
        let second = written(Kind::Sparse, 3, &first, 1, 2);
        let changed = (0..WORDS).filter(|&at| first[at] != second[at]).count();
        assert_eq!(changed, SPARSE.len() + 2);
    }

    #[test]
    fn options_come_from_any_command_line() {
        let line =
            "console=ttyS0 dwcp.fill_mib=64 dwcp.rate=x dwcp.kind=sparse dwcp.hot_mib=4 dwcp.";
        let options = GuestOptions::from_command_line(line);
        assert_eq!(
            (options.fill_mib, options.hot_mib, options.rate),
            (64, 4, 300)
        );
        assert_eq!(options.kind, Kind::Sparse);
    }

    #[test]
    fn a_pause_is_caught_up_for_one_second_at_most() {
        let mut pace = Pace::new(500);
        assert_eq!(pace.advance(10_000), 5);
        pace.take(5);
        assert_eq!(pace.advance(60_000_000), 500);
        assert_eq!(pace.advance(u64::MAX), 500);
        assert_eq!(Pace::new(0).advance(1_000_000), 0);
    }
}
