//! What the destination gave up is not loaded there: somebody could run it by hand.

use crate::vmm::DestinationVm;
use crate::world::World;

const NAME: &str = "no_copy_stays";

pub(crate) fn check(world: &mut World) {
    let node = &world.destination;
    let owned = |attempt| node.journal.is_committed(attempt);
    let stays = node.vmm.vm == DestinationVm::Loaded && !node.journal.newest().is_some_and(owned);
    if stays && !node.gone {
        world.break_invariant(NAME, "a copy that will never run is still loaded");
    }
}
