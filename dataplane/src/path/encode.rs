//! Stage 3 of 8: make a run of pages smaller, where that is worth it.
//!
//! In: raw pages where they lie in the frame. Out: the same place, compressed or as it was.

use dwcp_api::Codec;
use dwcp_simd::PAGE_BYTES;
use zstd_safe::{CCtx, CParameter};

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

/// A worker's codec.
pub struct Encoder {
    context: Option<CCtx<'static>>,
    scratch: Vec<u8>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("zstd", &self.context.is_some())
            .finish()
    }
}

impl Encoder {
    /// An encoder for `codec`.
    #[must_use]
    pub fn new(codec: Codec) -> Self {
        let Codec::Zstd { level } = codec else {
            return Self {
                context: None,
                scratch: vec![],
            };
        };
        let mut context = CCtx::create();
        let run_bytes = RUN_PAGES_MAX * PAGE_BYTES;
        // Both hold for every level in zstd's range; an error leaves the default level.
        let _ = context.set_parameter(CParameter::CompressionLevel(level));
        let _ = context.set_parameter(CParameter::ContentSizeFlag(true));
        Self {
            context: Some(context),
            scratch: vec![0; zstd_safe::compress_bound(run_bytes)],
        }
    }

    /// Whether pages leave as they are: then they need not be copied either.
    #[must_use]
    pub const fn is_raw(&self) -> bool {
        self.context.is_none()
    }

    /// Longest run that this encoder takes.
    #[must_use]
    pub const fn run_pages_max(&self) -> usize {
        if self.context.is_some() {
            RUN_PAGES_MAX
        } else {
            usize::MAX
        }
    }

    /// Compresses the pages in `run` in place if that saves an eighth.
    pub fn encode(&mut self, run: &mut [u8]) -> EncodedRun {
        let Some(context) = &mut self.context else {
            return EncodedRun::Raw;
        };
        match context.compress2(&mut self.scratch[..], run) {
            Ok(bytes) if bytes < run.len() - run.len() / 8 => {
                run[..bytes].copy_from_slice(&self.scratch[..bytes]);
                EncodedRun::Zstd(bytes)
            }
            _ => EncodedRun::Raw,
        }
    }
}
