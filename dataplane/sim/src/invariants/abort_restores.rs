//! After an abort the guest runs at the source, and all its pages are what it wrote.

use dwcp_proto::{Ending, Outcome};

use crate::vmm::SourceVm;
use crate::world::World;

pub(crate) const NAME: &str = "abort_restores";

/// At the moment when the source says how it ended.
pub(crate) fn check_outcome(world: &mut World, outcome: &Outcome) {
    if let Some(what) = find(world.source.vmm.vm, outcome.result, world.source.killed) {
        world.break_invariant(NAME, format!("{what}: {outcome:?}"));
    }
    if !world.guest.is_intact() {
        world.break_invariant(NAME, "a page at the source is not what the guest wrote");
    }
}

pub(crate) fn find(vm: SourceVm, ending: Ending, killed: bool) -> Option<String> {
    let runs = vm == SourceVm::Running;
    match ending {
        Ending::Aborted if !runs && !killed => Some(format!("aborted, but the guest is {vm:?}")),
        Ending::Failed if runs => Some("the guest runs, but the end is another".to_owned()),
        Ending::Aborted | Ending::Completed | Ending::Failed => None,
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
