//! At the end the guest runs on one side; or the source is in doubt because the destination cannot
//! be reached; or somebody has ended `Failed` and said why. Nothing hangs.

use dwcp_proto::Phase;

use crate::faults::Side;
use crate::vmm::{DestinationVm, SourceVm};
use crate::world::World;

pub(crate) const NAME: &str = "never_neither";

pub(crate) fn check(world: &mut World) {
    let here = world.source.vmm.vm == SourceVm::Running;
    let there = world.destination.vmm.vm == DestinationVm::Running;
    let silent = world.destination.gone;
    let run = world.source.run.as_ref();
    let in_doubt = run.is_some_and(|run| run.machine.is_in_doubt());
    if let Some(phase) = world.source.phase()
        && !(in_doubt && silent)
        && !(phase == Phase::Postcopy && silent)
    {
        world.break_invariant(NAME, format!("the source hangs in {phase:?}"));
    }
    if world.source.asking.is_some() && !silent {
        world.break_invariant(
            NAME,
            "the source asks for ever although somebody could answer",
        );
    }
    // The pages that its guest waits for are gone with the source's VMM.
    let nobody_serves = world.source.killed && world.source.run.is_none();
    let hanging = hanging_destination(world)
        .filter(|(_, phase)| !(*phase == Phase::Postcopy && nobody_serves));
    if let Some((attempt, _)) = hanging {
        world.break_invariant(NAME, format!("the destination hangs, attempt {attempt}"));
    }
    let doubt = in_doubt || world.source.asking.is_some();
    if !here && !there && !doubt && !is_explained(world) {
        world.break_invariant(NAME, "the guest runs nowhere and nobody has said why");
    }
    if world.plan.must_complete() && !there {
        world.break_invariant(NAME, "nothing went wrong and the guest was not moved");
    }
}

fn hanging_destination(world: &World) -> Option<(usize, Phase)> {
    let mut runs = world.destination.runs.iter().enumerate();
    runs.find_map(|(attempt, run)| {
        let run = run.as_ref().filter(|run| !run.finished)?;
        Some((attempt, run.machine.phase()))
    })
}

fn is_explained(world: &World) -> bool {
    let failed = |side| world.stats.has_failed(side);
    let vmm_died = world.source.killed || world.destination.killed;
    let journaled = world.source.journal.has_failed() || world.destination.journal.has_failed();
    let told = failed(Side::Source) || failed(Side::Destination) || journaled;
    told || vmm_died || world.destination.gone
}
