//! Part of stages 3 and 7: the pages of a stream as one long zstd stream.
//!
//! A page finds again what its stream has carried lately, not only what stands in its own frame: that
//! saves an eighth of what blocks of 256 KiB need. The data of a frame ends with a flush, so that it
//! yields its pages as soon as it is there; it can be read only after all frames before it. A flag in
//! the header of a frame says that a new window begins with it.
//!
//! Damage in a window is found by the fingerprints of the pages, but it stays: the source begins new
//! windows when pages are to be sent again. See zstd's manual, "Streaming compression", and RFC 8878.

use dwcp_simd::{PAGE_BYTES, Page};
use dwcp_wire::limits::{FRAME_DATA_PAGES_MAX, WINDOW_BYTES_MAX};
use zstd_safe::zstd_sys::ZSTD_EndDirective::ZSTD_e_flush;
use zstd_safe::{CCtx, CParameter, DCtx, DParameter, InBuffer, OutBuffer, ResetDirective};

use super::shuffle::Shuffled;

/// Smallest window, as a power of two: a frame's data.
const WINDOW_LOG_MIN: u32 = 19;

/// log2 of the window of each of `streams` streams that share `bytes`.
fn window_log(bytes: u64, streams: usize) -> u32 {
    let each = bytes.min(WINDOW_BYTES_MAX) / streams.max(1) as u64;
    each.max(1).ilog2().max(WINDOW_LOG_MIN)
}

/// Whether a page is not worth a codec's time, by a sample of every sixteenth byte: whether values
/// repeat in it no more than chance repeats them.
pub(super) fn looks_random(page: &Page) -> bool {
    const SAMPLE: usize = PAGE_BYTES / 16;
    // Equal bytes give 65536, all different ones 256; chance gives 511 with a deviation of 23.
    const SQUARES_MAX: u32 = 640;
    let mut counts = [0u16; 256];
    for at in 0..SAMPLE {
        // Not a multiple of 16 everywhere: structures lie at those.
        counts[usize::from(page[at * 16 + at % 16])] += 1;
    }
    let squares: u32 = counts.iter().map(|&n| u32::from(n) * u32::from(n)).sum();
    squares < SQUARES_MAX
}

/// The sending end of a window.
pub(super) struct WindowEncoder {
    context: CCtx<'static>,
    /// Of the frame that is being built.
    pages: Vec<Page>,
    shuffles: bool,
    starts: bool,
}

/// The data of a frame's window pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WindowData {
    pub(super) bytes: usize,
    /// A window begins with it.
    pub(super) starts: bool,
    /// A bit for each page is in front: whether it is shuffled.
    pub(super) shuffles: bool,
}

impl WindowEncoder {
    /// A window of a share of `bytes`, compressed at a zstd level.
    ///
    /// # Panics
    /// Without memory for it.
    pub(super) fn new(level: i32, bytes: u64, streams: usize) -> Self {
        let mut context = CCtx::create();
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::WindowLog(window_log(bytes, streams)),
            CParameter::EnableLongDistanceMatching(true),
        ] {
            let set = context.set_parameter(parameter);
            set.expect("the level and the size of the window are in zstd's range");
        }
        let mut encoder = Self {
            context,
            pages: Vec::with_capacity(FRAME_DATA_PAGES_MAX),
            shuffles: false,
            starts: true,
        };
        // zstd takes its memory now: later it cannot fail.
        encoder.push(&[0; PAGE_BYTES]);
        encoder.finish(&mut [0; PAGE_BYTES]);
        encoder.restart();
        encoder
    }

    /// Shuffles pages that get smaller by it, or not: the destination must know that.
    pub(super) const fn set_shuffles(&mut self, shuffles: bool) {
        self.shuffles = shuffles;
    }

    pub(super) const fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    pub(super) fn push(&mut self, page: &Page) {
        self.pages.extend_from_slice(std::slice::from_ref(page));
    }

    /// Puts the frame's pages to `out`, compressed.
    ///
    /// # Panics
    /// When `out` has less room than the pages and `WINDOW_OVERHEAD_BYTES_MAX` take.
    pub(super) fn finish(&mut self, out: &mut [u8]) -> WindowData {
        let shuffled = match self.shuffles {
            true => Shuffled::shuffle(&mut self.pages),
            false => None,
        };
        let bits = shuffled
            .as_ref()
            .map_or(&[][..], |s| s.bits(self.pages.len()));
        let (front, out) = out.split_at_mut(bits.len());
        front.copy_from_slice(bits);
        let mut out = OutBuffer::around(out);
        let mut pages = InBuffer::around(self.pages.as_flattened());
        loop {
            let left = self
                .context
                .compress_stream2(&mut out, &mut pages, ZSTD_e_flush)
                .expect("zstd has its memory, and room for what cannot be compressed");
            if left == 0 {
                break;
            }
            assert!(out.pos() < out.capacity(), "room for the window's data");
        }
        self.pages.clear();
        WindowData {
            bytes: bits.len() + out.pos(),
            starts: std::mem::take(&mut self.starts),
            shuffles: shuffled.is_some(),
        }
    }

    /// Compresses at another level, looking `far` behind or not, in a new window.
    pub(super) fn set_effort(&mut self, level: i32, far: bool) {
        self.restart();
        for parameter in [
            CParameter::CompressionLevel(level),
            CParameter::EnableLongDistanceMatching(far),
        ] {
            // In zstd's range, and between two frames.
            let _ = self.context.set_parameter(parameter);
        }
    }

    /// The next frame begins a new window.
    pub(super) fn restart(&mut self) {
        // Fails for changed parameters only, and none are.
        let _ = self.context.reset(ResetDirective::SessionOnly);
        self.starts = true;
    }
}

/// The receiving end of a window.
pub(super) struct WindowDecoder {
    /// Made when the first data comes: most streams have no window.
    context: Option<DCtx<'static>>,
    pages: Vec<u8>,
    window_log_max: u32,
    /// What comes cannot be read before a window begins.
    is_lost: bool,
}

impl WindowDecoder {
    /// For one of `streams` streams, which share what a node gives to the windows of a migration.
    pub(super) fn new(streams: usize) -> Self {
        Self {
            context: None,
            pages: vec![],
            window_log_max: window_log(WINDOW_BYTES_MAX, streams),
            is_lost: true,
        }
    }

    /// The `count` pages of a frame's data, if that yields exactly those; `shuffles` and `starts` as of
    /// [`WindowData`]. Output and window are bounded: no bomb goes off.
    pub(super) fn decode(
        &mut self,
        data: &[u8],
        count: usize,
        starts: bool,
        shuffles: bool,
    ) -> Option<&[Page]> {
        let log = self.window_log_max;
        let context = self.context.get_or_insert_with(|| {
            let mut context = DCtx::create();
            // In zstd's range; otherwise its own limit holds, which is as large.
            let _ = context.set_parameter(DParameter::WindowLogMax(log));
            context
        });
        if starts {
            let _ = context.reset(ResetDirective::SessionOnly);
            self.is_lost = false;
        }
        if self.is_lost {
            return None;
        }
        let read = match shuffles {
            true => Shuffled::read(data, count),
            false => Some((Shuffled::default(), data)),
        };
        let Some((shuffled, data)) = read else {
            self.is_lost = true;
            return None;
        };
        // A byte more than there should be, to see that it stays free.
        self.pages.resize(count * PAGE_BYTES + 1, 0);
        if inflate(context, data, &mut self.pages) != Some(count * PAGE_BYTES) {
            self.is_lost = true;
            return None;
        }
        self.pages.truncate(count * PAGE_BYTES);
        let (pages, _) = self.pages.as_chunks_mut();
        shuffled.unshuffle(pages);
        Some(pages)
    }
}

/// The bytes that all of `data` gives, as far as there is room for them.
fn inflate(context: &mut DCtx<'static>, data: &[u8], out: &mut [u8]) -> Option<usize> {
    let mut out = OutBuffer::around(out);
    let mut data_left = InBuffer::around(data);
    loop {
        let before = (out.pos(), data_left.pos());
        context.decompress_stream(&mut out, &mut data_left).ok()?;
        if before == (out.pos(), data_left.pos()) {
            return (data_left.pos() == data.len()).then_some(out.pos());
        }
    }
}

#[cfg(test)]
mod tests {
    use dwcp_wire::limits::WINDOW_OVERHEAD_BYTES_MAX;
    use proptest::prelude::*;

    use super::*;
    use crate::path::testing::{noise, words_page};

    fn text_page(seed: u64) -> Page {
        let mut page = [0; PAGE_BYTES];
        for (index, byte) in page.iter_mut().enumerate() {
            *byte = b"the guest writes its pages "[(index * 7 + seed as usize) % 27];
        }
        page
    }

    /// Sends frames of pages through a window; returns their data.
    fn frames(encoder: &mut WindowEncoder, frames: &[Vec<Page>]) -> Vec<(Vec<u8>, WindowData)> {
        let mut room = vec![0; FRAME_DATA_PAGES_MAX * PAGE_BYTES + WINDOW_OVERHEAD_BYTES_MAX];
        let frame = |pages: &Vec<Page>| {
            pages.iter().for_each(|page| encoder.push(page));
            let data = encoder.finish(&mut room);
            (room[..data.bytes].to_vec(), data)
        };
        frames.iter().map(frame).collect()
    }

    #[test]
    fn a_page_is_found_again_far_behind() {
        let mut encoder = WindowEncoder::new(3, WINDOW_BYTES_MAX, 4);
        let pages: Vec<Page> = (0..1024).map(noise).collect();
        let once: Vec<Vec<Page>> = pages.chunks(64).map(<[Page]>::to_vec).collect();
        let first = frames(&mut encoder, &once);
        let again = frames(&mut encoder, &once);
        let bytes =
            |frames: &[(Vec<u8>, WindowData)]| frames.iter().map(|(d, _)| d.len()).sum::<usize>();
        assert!(bytes(&first) >= 1024 * PAGE_BYTES);
        assert!(bytes(&again) < bytes(&first) / 100, "{}", bytes(&again));
        let starts = [&first[0], &first[1], &again[0]].map(|(_, data)| data.starts);
        assert_eq!(starts, [true, false, false]);
    }

    #[test]
    fn what_cannot_be_compressed_fits_in_a_frame() {
        let mut encoder = WindowEncoder::new(1, WINDOW_BYTES_MAX, 1);
        let full: Vec<Page> = (0..FRAME_DATA_PAGES_MAX as u64).map(noise).collect();
        frames(&mut encoder, &[full.clone(), full]);
    }

    #[test]
    fn nothing_is_read_between_damage_and_a_new_window() {
        let mut encoder = WindowEncoder::new(3, WINDOW_BYTES_MAX, 1);
        let pages: Vec<Page> = (0..8).map(text_page).collect();
        let sent = frames(&mut encoder, &vec![pages.clone(); 3]);
        let mut decoder = WindowDecoder::new(1);
        assert_eq!(decoder.decode(&sent[0].0, 8, true, false), Some(&pages[..]));
        assert_eq!(
            decoder.decode(&sent[1].0, 9, false, false),
            None,
            "one page too few"
        );
        assert_eq!(decoder.decode(&sent[2].0, 8, false, false), None);
        encoder.restart();
        let sent = frames(&mut encoder, std::slice::from_ref(&pages));
        assert!(sent[0].1.starts);
        assert_eq!(decoder.decode(&sent[0].0, 8, true, false), Some(&pages[..]));
        // More pages than the table names.
        let sent = frames(&mut encoder, &[pages]);
        assert_eq!(decoder.decode(&sent[0].0, 7, false, false), None);
    }

    #[test]
    fn shuffled_pages_are_smaller_and_come_back() {
        let pages: Vec<Page> = (0..32).map(words_page).collect();
        let bytes = [false, true].map(|shuffles| {
            let mut encoder = WindowEncoder::new(1, WINDOW_BYTES_MAX, 1);
            encoder.set_shuffles(shuffles);
            let (sent, data) = frames(&mut encoder, std::slice::from_ref(&pages)).remove(0);
            assert_eq!(data.shuffles, shuffles);
            let mut decoder = WindowDecoder::new(1);
            let decoded = decoder.decode(&sent, 32, true, shuffles);
            assert_eq!(decoded, Some(&pages[..]));
            data.bytes
        });
        assert!(bytes[1] < bytes[0] * 4 / 5, "{bytes:?}");
    }

    #[test]
    fn a_window_larger_than_a_streams_share_is_refused() {
        let pages = vec![text_page(1); 4];
        let mut encoder = WindowEncoder::new(3, WINDOW_BYTES_MAX, 1);
        let sent = frames(&mut encoder, &[pages]);
        assert!(
            WindowDecoder::new(1)
                .decode(&sent[0].0, 4, true, false)
                .is_some()
        );
        assert!(
            WindowDecoder::new(2)
                .decode(&sent[0].0, 4, true, false)
                .is_none()
        );
    }

    #[test]
    fn only_chance_looks_random() {
        for seed in 0..200 {
            assert!(looks_random(&noise(seed)), "{seed}");
            assert!(!looks_random(&text_page(seed)));
        }
        let mut half = noise(7);
        half[..PAGE_BYTES / 2].fill(0);
        assert!(!looks_random(&half));
    }

    proptest! {
        #[test]
        fn frames_yield_their_pages(
            sizes in prop::collection::vec(1usize..=FRAME_DATA_PAGES_MAX, 1..6),
            level in -5i32..=6,
            seed: u64,
            shuffles: bool,
        ) {
            let mut encoder = WindowEncoder::new(level, 1 << 20, 2);
            let mut decoder = WindowDecoder::new(2);
            encoder.set_shuffles(shuffles);
            let page = |n: u64| match n % 3 {
                0 => noise(n % 50),
                1 => text_page(n),
                _ => words_page(n as u32 % 4),
            };
            let wanted: Vec<Vec<Page>> = sizes
                .iter()
                .map(|&size| (0..size as u64).map(|n| page(n.wrapping_add(seed) % 1000)).collect())
                .collect();
            for ((bytes, data), pages) in frames(&mut encoder, &wanted).iter().zip(&wanted) {
                prop_assert!(shuffles || !data.shuffles);
                let decoded = decoder.decode(bytes, pages.len(), data.starts, data.shuffles);
                prop_assert_eq!(decoded, Some(&pages[..]));
            }
        }

        #[test]
        fn hostile_data_gives_the_pages_asked_for_or_none(
            data in prop::collection::vec(any::<u8>(), 0..600),
            count in 0usize..8,
            shuffles: bool,
        ) {
            let mut decoder = WindowDecoder::new(4);
            if let Some(pages) = decoder.decode(&data, count, true, shuffles) {
                prop_assert_eq!(pages.len(), count);
            }
        }
    }
}
