//! Never do both sides' vCPUs run; and from the durable commit on, never the source's.

use crate::journal::Journal;
use crate::vmm::{DestinationVm, SourceVm};
use crate::world::World;

pub(crate) const NAME: &str = "single_runner";

pub(crate) fn check(world: &mut World) {
    let (here, there) = (world.source.vmm.vm, world.destination.vmm.vm);
    if let Some(what) = find(here, there, &world.destination.journal) {
        world.break_invariant(NAME, what);
    }
}

pub(crate) fn find(here: SourceVm, there: DestinationVm, journal: &Journal) -> Option<String> {
    if here != SourceVm::Running {
        return None;
    }
    if there == DestinationVm::Running {
        return Some("the guest runs on both nodes".to_owned());
    }
    let taken = (0..journal.attempts()).find(|&at| journal.is_committed(at));
    taken.map(|attempt| format!("attempt {attempt} is committed and the guest runs at the source"))
}
