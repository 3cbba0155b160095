//! What must hold, a file for each.
//!
//! | invariant | checked | statement |
//! |---|---|---|
//! | [`single_runner`] | every step | never do both sides' vCPUs run |
//! | [`no_lost_write`] | at RESUME | every page is the source's page at the pause |
//! | [`abort_restores`] | source's end, end of run | an aborted guest runs at the source, intact |
//! | [`never_neither`] | end of run | it runs on one side, or somebody has said why not |
//! | [`bounded`] | every step | window, actions, queues |
//! | [`conservation`] | every round | classes add up, both ends' counters equal the wire |
//! | [`proof_before_run`] | at RESUME | proven RAM, loaded device state, durable commit |
//! | [`no_copy_stays`] | end of run | a copy that will never run is not loaded at the destination |
//! | [`owner_agrees`] | every step | the journals never both claim the VM |

pub(crate) mod abort_restores;
pub(crate) mod bounded;
pub(crate) mod conservation;
pub(crate) mod never_neither;
pub(crate) mod no_copy_stays;
pub(crate) mod no_lost_write;
pub(crate) mod owner_agrees;
pub(crate) mod proof_before_run;
pub(crate) mod single_runner;

use crate::world::World;

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Violation {
    /// Its name.
    pub invariant: &'static str,
    /// What was found.
    pub what: String,
}

pub(crate) fn after_step(world: &mut World) {
    single_runner::check(world);
    owner_agrees::check(world);
    bounded::check(world);
}

pub(crate) fn at_end(world: &mut World) {
    never_neither::check(world);
    abort_restores::check_end(world);
    no_copy_stays::check(world);
}
