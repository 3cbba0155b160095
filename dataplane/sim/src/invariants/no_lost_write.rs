//! When the destination runs the guest, every page is what the source's page was at the pause.
//!
//! With a tracker that misses writes, what the sample did not catch may be lost: that is what a
//! sample means. Reading all of RAM again at the pause makes it exact.

use dwcp_proto::{Ending, Outcome};

use crate::plan::TrackerKind;
use crate::vmm::DestinationVm;
use crate::world::World;

pub(crate) const NAME: &str = "no_lost_write";

pub(crate) fn check_run(world: &mut World) {
    let here = &world.destination.vmm.ram;
    let wrong: Vec<usize> = (0..world.plan.pages)
        .filter(|&page| here[page] != world.guest.memory[page])
        // What is missing is told, and comes before it is used.
        .filter(|page| !world.destination.vmm.missing.contains(page))
        .collect();
    let exact = matches!(world.plan.tracker, TrackerKind::Exact) || world.plan.verify_full;
    if wrong.is_empty() {
        return;
    }
    // Whatever a tracker misses, a page is some whole version that the guest once wrote.
    let torn = wrong.iter().any(|&page| here[page] >> 62 != 0);
    if exact || torn {
        let what = format!("pages {wrong:?} differ from the source's at the pause");
        world.break_invariant(NAME, what);
    } else {
        world.stats.lost_by_tracker += wrong.len() as u64;
    }
}

/// A destination that says that it is whole lacks no page.
pub(crate) fn check_whole(world: &mut World, outcome: &Outcome) {
    let missing = &world.destination.vmm.missing;
    let there = world.destination.vmm.vm == DestinationVm::Running;
    if outcome.result == Ending::Completed && there && !missing.is_empty() {
        let what = format!("whole, but pages {missing:?} are missing");
        world.break_invariant(NAME, what);
    } else if outcome.result == Ending::Completed && there {
        check_run(world);
    }
}
