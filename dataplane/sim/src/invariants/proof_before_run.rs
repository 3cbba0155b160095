//! The destination runs a guest only from proven RAM, with device state loaded, owning it durably.

use crate::vmm::{DestinationVm, DestinationVmm};
use crate::world::World;

pub(crate) const NAME: &str = "proof_before_run";

/// The VMM is about to run the guest.
pub(crate) fn check_run(world: &mut World, attempt: usize) {
    let committed = world.destination.journal.is_committed(attempt);
    if let Some(what) = find(&world.destination.vmm, committed) {
        world.break_invariant(NAME, what);
    }
}

pub(crate) fn find(vmm: &DestinationVmm, committed: bool) -> Option<String> {
    let vm = vmm.vm;
    if !matches!(vm, DestinationVm::Loaded | DestinationVm::Running) {
        Some(format!("told to run a VM that is {vm:?}"))
    } else if !vmm.proven {
        Some("told to run a VM whose RAM is not proven".to_owned())
    } else if !committed {
        Some("told to run a VM that is not durably owned here".to_owned())
    } else {
        None
    }
}
