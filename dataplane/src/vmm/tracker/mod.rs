//! Dirty trackers: what has the guest written since we last asked?
//!
//! | tracker | exact | needs | cost |
//! |---|---|---|---|
//! | [`Userfaultfd`] | yes, atomic get-and-clear | Linux 6.7, a userfaultfd from the VMM | 1-2 ms a GiB |
//! | [`SoftDirty`] | no: a write between read and clear is lost | CONFIG_MEM_SOFT_DIRTY | 10 ms a GiB |
//! | fingerprints | yes | nothing | a read of all RAM |
//!
//! With a tracker that is not exact, the last round compares all of RAM with what was sent.

mod pagemap;
pub(crate) mod soft_dirty;
mod userfaultfd;

use dwcp_api::TrackerChoice;

use super::{Vm, VmmError};
use crate::ram::{RamBitmap, RamLayout};

pub use soft_dirty::SoftDirty;
pub use userfaultfd::Userfaultfd;

/// What a tracker found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Collected {
    /// Only marked pages can differ from when they were last collected.
    Marked,
    /// It cannot tell: every page must be compared.
    Everything,
}

/// Records what a guest writes.
pub trait DirtyTracker: Send + std::fmt::Debug {
    /// `userfaultfd`, `soft-dirty` or `fingerprint`.
    fn name(&self) -> &'static str;

    /// Whether a page that it does not mark cannot have changed.
    fn is_exact(&self) -> bool;

    /// Starts recording; nothing is dirty.
    ///
    /// # Errors
    /// When the kernel refuses.
    fn arm(&mut self) -> Result<(), VmmError>;

    /// Marks what was written since the last call in `dirty`, and begins anew.
    ///
    /// # Errors
    /// When the VMM is gone.
    fn collect(&mut self, dirty: &mut RamBitmap) -> Result<Collected, VmmError>;

    /// Pages written since the last call of [`Self::collect`]; they stay marked. `None` where that cannot be
    /// told at little cost.
    fn written(&mut self) -> Option<u64> {
        None
    }

    /// Stops recording.
    fn disarm(&mut self);
}

/// Compares with what was sent: needs nothing of the kernel.
#[derive(Debug, Default)]
pub struct Fingerprints;

impl DirtyTracker for Fingerprints {
    fn name(&self) -> &'static str {
        "fingerprint"
    }

    fn is_exact(&self) -> bool {
        true
    }

    fn arm(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn collect(&mut self, _dirty: &mut RamBitmap) -> Result<Collected, VmmError> {
        Ok(Collected::Everything)
    }

    fn disarm(&mut self) {}
}

/// A tracker, and why a better one was not taken.
#[derive(Debug)]
pub struct Chosen {
    /// The tracker, not yet armed.
    pub tracker: Box<dyn DirtyTracker>,
    /// Fallbacks, in words.
    pub notes: Vec<String>,
}

/// What [`choose`] would choose by itself. The VM must be the caller's alone: a migration that tracks
/// it would lose what the guest writes.
///
/// # Errors
/// When the VM's RAM cannot be reached.
pub fn probe(vm: &mut dyn Vm, pid: i32) -> Result<&'static str, VmmError> {
    let layout = vm.ram()?;
    let tracked = vm
        .userfaultfd()
        .and_then(|handed| Userfaultfd::probe(handed.fd, pid, &layout));
    if tracked.is_ok() {
        return Ok("userfaultfd");
    }
    Ok(SoftDirty::new(pid, &layout).map_or("fingerprint", |_| "soft-dirty"))
}

/// Chooses a tracker for a VM.
///
/// # Errors
/// When the one that was asked for by name cannot be had.
pub fn choose(
    choice: TrackerChoice,
    vm: &mut dyn Vm,
    layout: &RamLayout,
    pid: i32,
) -> Result<Chosen, VmmError> {
    let mut notes = vec![];
    if matches!(choice, TrackerChoice::Auto | TrackerChoice::Userfaultfd) {
        match vm
            .userfaultfd()
            .and_then(|handed| Userfaultfd::new(handed.fd, pid, layout))
        {
            Ok(tracker) => {
                return Ok(Chosen {
                    tracker: Box::new(tracker),
                    notes,
                });
            }
            Err(error) if choice == TrackerChoice::Userfaultfd => return Err(error),
            Err(error) => notes.push(format!("no userfaultfd tracking: {error}")),
        }
    }
    if matches!(choice, TrackerChoice::Auto | TrackerChoice::SoftDirty) {
        match SoftDirty::new(pid, layout) {
            Ok(tracker) => {
                notes.push("soft-dirty tracking: the last round compares all of RAM".into());
                return Ok(Chosen {
                    tracker: Box::new(tracker),
                    notes,
                });
            }
            Err(error) if choice == TrackerChoice::SoftDirty => return Err(error),
            Err(error) => notes.push(format!("no soft-dirty tracking: {error}")),
        }
    }
    if choice == TrackerChoice::Auto {
        notes.push("comparing fingerprints: every round reads all of RAM".into());
    }
    Ok(Chosen {
        tracker: Box::new(Fingerprints),
        notes,
    })
}
