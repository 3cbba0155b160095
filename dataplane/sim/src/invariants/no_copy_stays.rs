//! What the destination gave up is not loaded there: somebody could run it by hand.

use crate::journal::Journal;
use crate::vmm::DestinationVm;
use crate::world::World;

pub(crate) const NAME: &str = "no_copy_stays";

pub(crate) fn check(world: &mut World) {
    let node = &world.destination;
    if stays(node.vmm.vm, &node.journal) && !node.gone {
        world.break_invariant(NAME, WHAT);
    }
}

pub(crate) const WHAT: &str = "a copy that will never run is still loaded";

pub(crate) fn stays(vm: DestinationVm, journal: &Journal) -> bool {
    let owned = |attempt| journal.is_committed(attempt);
    vm == DestinationVm::Loaded && !journal.newest().is_some_and(owned)
}
