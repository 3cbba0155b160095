//! Reading RAM again at the pause: does it hold what was sent, or applied?
//!
//! At the source this catches a tracker that missed a write, at the destination anything that went
//! wrong between the proof of a page and its place in RAM.

use dwcp_simd::{PAGE_BYTES, Page, kernels};

use super::Session;

/// What reading again found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Reread {
    /// Pages read.
    pub pages: u64,
    /// Pages that are not what the digests say.
    pub differing: u64,
}

/// Reads `sample` pages, spread over all of RAM. `turn` shifts the sample, so that no page is left
/// out for ever.
#[must_use]
pub fn read_again(session: &Session, sample: u32, turn: u64) -> Reread {
    let pages = session.layout.pages();
    let stride = (pages / u64::from(sample.max(1))).max(1);
    let first = turn % stride;
    read(session, (first..pages).step_by(stride as usize))
}

/// Reads every page, on all cores that this process may use.
#[must_use]
pub fn read_everything(session: &Session) -> Reread {
    let threads = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let pages = session.layout.pages();
    let share = pages.div_ceil(threads);
    std::thread::scope(|scope| {
        let parts: Vec<_> = (0..threads)
            .map(|n| scope.spawn(move || read(session, n * share..pages.min((n + 1) * share))))
            .collect();
        parts.into_iter().fold(Reread::default(), |sum, part| {
            let part = part.join().unwrap_or(Reread {
                pages: 0,
                differing: 1,
            });
            Reread {
                pages: sum.pages + part.pages,
                differing: sum.differing + part.differing,
            }
        })
    })
}

fn read(session: &Session, pages: impl Iterator<Item = u64>) -> Reread {
    let kernels = kernels();
    let mut copy: Page = [0; PAGE_BYTES];
    let mut found = Reread::default();
    let (mut block, mut first) = (0, 0);
    for global in pages {
        let blocks = session.layout.blocks();
        while global - first >= u64::from(blocks[block].pages()) {
            first += u64::from(blocks[block].pages());
            block += 1;
        }
        blocks[block].read_page((global - first) as u32, &mut copy);
        let held = session.digests.get(global);
        let holds = if kernels.is_zero(&copy) {
            held.is_none()
        } else {
            held == Some(kernels.fingerprint(&session.key, &copy))
        };
        found.pages += 1;
        found.differing += u64::from(!holds);
    }
    found
}
