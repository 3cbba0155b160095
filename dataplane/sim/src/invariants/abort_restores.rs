//! After an abort the guest runs at the source, and all its pages are what it wrote.

use dwcp_proto::{Ending, Outcome};

use crate::vmm::SourceVm;
use crate::world::World;

const NAME: &str = "abort_restores";

/// At the moment when the source says how it ended.
pub(crate) fn check_outcome(world: &mut World, outcome: &Outcome) {
    let runs = world.source.vmm.vm == SourceVm::Running;
    match outcome.result {
        Ending::Aborted if !runs && !world.source.killed => {
            let what = format!("aborted, but the guest is {:?}", world.source.vmm.vm);
            world.break_invariant(NAME, what);
        }
        Ending::Failed if runs => {
            let what = format!("the guest runs, but the end is {outcome:?}");
            world.break_invariant(NAME, what);
        }
        Ending::Aborted | Ending::Completed | Ending::Failed => {}
    }
    if !world.guest.is_intact() {
        world.break_invariant(NAME, "a page at the source is not what the guest wrote");
    }
}

/// A guest given back keeps running.
pub(crate) fn check_end(world: &mut World) {
    let last = world.source.outcomes.last().cloned().flatten();
    let stays = last.is_some_and(|outcome| outcome.result == Ending::Aborted);
    let runs = world.source.vmm.vm == SourceVm::Running;
    if stays && world.source.run.is_none() && !runs && !world.source.killed {
        world.break_invariant(NAME, "the guest was given back and does not run");
    }
}
