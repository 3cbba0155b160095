//! The destination runs a guest only from proven RAM, with device state loaded, owning it durably.

use crate::vmm::DestinationVm;
use crate::world::World;

const NAME: &str = "proof_before_run";

/// The VMM is about to run the guest.
pub(crate) fn check_run(world: &mut World, attempt: usize) {
    let vmm = &world.destination.vmm;
    let (vm, proven) = (vmm.vm, vmm.proven);
    let committed = world.destination.journal.is_committed(attempt);
    if !matches!(vm, DestinationVm::Loaded | DestinationVm::Running) {
        world.break_invariant(NAME, format!("told to run a VM that is {vm:?}"));
    } else if !proven {
        world.break_invariant(NAME, "told to run a VM whose RAM is not proven");
    } else if !committed {
        world.break_invariant(NAME, "told to run a VM that is not durably owned here");
    }
}
