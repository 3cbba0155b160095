//! Never do both sides' vCPUs run; and from the durable commit on, never the source's.

use crate::vmm::{DestinationVm, SourceVm};
use crate::world::World;

const NAME: &str = "single_runner";

pub(crate) fn check(world: &mut World) {
    if world.source.vmm.vm != SourceVm::Running {
        return;
    }
    if world.destination.vmm.vm == DestinationVm::Running {
        world.break_invariant(NAME, "the guest runs on both nodes");
        return;
    }
    let journal = &world.destination.journal;
    if let Some(attempt) = (0..journal.attempts()).find(|&at| journal.is_committed(at)) {
        let what = format!("attempt {attempt} is committed and the guest runs at the source");
        world.break_invariant(NAME, what);
    }
}
