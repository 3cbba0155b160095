//! Stage 3 of 8: make pages smaller, where that is worth it.
//!
//! In: raw pages where they lie in the frame. Out: a run in the same place, compressed or as it was;
//! or pages kept for the data of a window, which the frame ends with.

use dwcp_api::Codec;
use dwcp_simd::{PAGE_BYTES, Page};
use zstd_safe::{CCtx, CParameter};

use super::delta::DeltaEncoder;
use super::effort::Effort;
use super::window::{WindowData, WindowEncoder, looks_random};

/// Pages compressed together: 64 KiB. Larger blocks gain little, single pages lose a sixth.
pub(super) const RUN_PAGES_MAX: usize = 16;

/// A run's new size, or that it stays raw.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EncodedRun {
    /// The pages as they are.
    Raw,
    /// One zstd frame of so many bytes, at the start of the run's place.
    Zstd(usize),
}

/// A stream's codec.
pub struct Encoder {
    kind: Kind,
    /// Pages for the window are sent raw for now.
    rests: bool,
}

enum Kind {
    Raw,
    Runs {
        context: CCtx<'static>,
        scratch: Vec<u8>,
    },
    Window(Box<Window>),
}

/// All pages of a frame together: against what the stream has carried, or against what they were.
struct Window {
    pages: WindowEncoder,
    delta: DeltaEncoder,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let kind = match self.kind {
            Kind::Raw => "raw",
            Kind::Runs { .. } => "zstd",
            Kind::Window(_) => "window",
        };
        f.debug_tuple("Encoder").field(&kind).finish()
    }
}

impl Encoder {
    /// An encoder for one of `streams` streams by `codec`.
    #[must_use]
    pub fn new(codec: Codec, streams: usize) -> Self {
        let kind = match codec {
            Codec::Raw => Kind::Raw,
            Codec::Zstd { level } => Kind::runs(level),
            Codec::Window {
                level,
                window_bytes,
            } => Kind::window(level, window_bytes, streams),
            // The effort says how; its window's memory is the same.
            Codec::Auto { window_bytes, .. } => Kind::window(1, window_bytes, streams),
        };
        Self { kind, rests: false }
    }

    /// Tries so hard from now on, if its codec is one that can.
    pub fn set_effort(&mut self, effort: Effort) {
        let Kind::Window(window) = &mut self.kind else {
            return;
        };
        match effort {
            Effort::Raw => self.rests = true,
            Effort::Zstd { level, far } => {
                self.rests = false;
                window.pages.set_effort(level, far);
                window.delta.set_level(level);
            }
        }
    }

    /// The same for a destination that knows shuffled pages, or does not.
    #[must_use]
    pub fn shuffling(mut self, shuffles: bool) -> Self {
        if let Kind::Window(window) = &mut self.kind {
            window.pages.set_shuffles(shuffles);
        }
        self
    }

    /// Longest run that this encoder takes.
    #[must_use]
    pub const fn run_pages_max(&self) -> usize {
        match self.kind {
            Kind::Runs { .. } => RUN_PAGES_MAX,
            Kind::Raw | Kind::Window(_) => usize::MAX,
        }
    }

    /// Compresses the pages in `run` in place if that saves an eighth.
    pub fn encode(&mut self, run: &mut [u8]) -> EncodedRun {
        let Kind::Runs { context, scratch } = &mut self.kind else {
            return EncodedRun::Raw;
        };
        match context.compress2(&mut scratch[..], run) {
            Ok(bytes) if bytes < run.len() - run.len() / 8 => {
                run[..bytes].copy_from_slice(&scratch[..bytes]);
                EncodedRun::Zstd(bytes)
            }
            _ => EncodedRun::Raw,
        }
    }

    /// Whether it has a use for what pages were.
    #[must_use]
    pub const fn takes_changes(&self) -> bool {
        matches!(self.kind, Kind::Window(_)) && !self.rests
    }

    /// Keeps a page that was `old` for the delta; of an encoder that takes changes.
    pub(super) fn keep_changed(&mut self, old: &Page, page: &Page) {
        if let Kind::Window(window) = &mut self.kind {
            window.delta.push(old, page);
        }
    }

    /// Keeps a page for the window, unless there is none or it would not get smaller.
    pub(super) fn keep(&mut self, page: &Page) -> bool {
        let Kind::Window(window) = &mut self.kind else {
            return false;
        };
        let is_kept = !self.rests && !looks_random(page);
        if is_kept {
            window.pages.push(page);
        }
        is_kept
    }

    /// Puts the data of the pages that were kept to `out`; `None` when no page was kept.
    pub(super) fn finish(&mut self, out: &mut [u8]) -> Option<WindowData> {
        match &mut self.kind {
            Kind::Window(window) if !window.pages.is_empty() => Some(window.pages.finish(out)),
            _ => None,
        }
    }

    /// Puts the delta of the pages that were kept for it to `out`; returns its bytes.
    pub(super) fn finish_delta(&mut self, out: &mut [u8]) -> usize {
        match &mut self.kind {
            Kind::Window(window) if !window.delta.is_empty() => window.delta.finish(out),
            _ => 0,
        }
    }

    /// Forgets what the stream has carried: the destination may not hold it.
    pub fn restart(&mut self) {
        if let Kind::Window(window) = &mut self.kind {
            window.pages.restart();
        }
    }
}

impl Kind {
    fn window(level: i32, bytes: u64, streams: usize) -> Self {
        Self::Window(Box::new(Window {
            pages: WindowEncoder::new(level, bytes, streams),
            delta: DeltaEncoder::new(level),
        }))
    }

    fn runs(level: i32) -> Self {
        let mut context = CCtx::create();
        let run_bytes = RUN_PAGES_MAX * PAGE_BYTES;
        // Both hold for every level in zstd's range; an error leaves the default level.
        let _ = context.set_parameter(CParameter::CompressionLevel(level));
        let _ = context.set_parameter(CParameter::ContentSizeFlag(true));
        Self::Runs {
            context,
            scratch: vec![0; zstd_safe::compress_bound(run_bytes)],
        }
    }
}
