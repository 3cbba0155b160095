//! States in which nothing is left to be done, and what must hold there.

use dwcp_proto::{Ending, Phase};

use super::destination::DestinationProcess;
use super::source::SourceProcess;
use super::world::{ATTEMPT, World};
use crate::invariants::{Violation, abort_restores, never_neither, no_copy_stays};
use crate::vmm::{DestinationVm, SourceVm};

impl World {
    /// Where the guest is in the end.
    ///
    /// # Errors
    /// It is nowhere, and its owner's VMM was not killed; or something hangs, or is left.
    pub(super) fn end(&self) -> Result<&'static str, Violation> {
        let broken = |invariant, what: String| Err(Violation { invariant, what });
        let here = self.source.vmm.vm == SourceVm::Running;
        let there = self.destination.vmm.vm == DestinationVm::Running;
        let waits = there && !self.destination.vmm.missing.is_empty();
        // The pages that the guest waits for are gone with the source's VMM.
        let in_vain = waits && self.source.killed;
        if let Some(hangs) = self.hangs(in_vain) {
            return broken(never_neither::NAME, hangs);
        }
        if self.source.ended == Some(Ending::Aborted) && !here && !self.source.killed {
            let what = "the guest was given back and does not run".to_owned();
            return broken(abort_restores::NAME, what);
        }
        if no_copy_stays::stays(self.destination.vmm.vm, &self.destination.journal) {
            return broken(no_copy_stays::NAME, no_copy_stays::WHAT.to_owned());
        }
        let owned_there = self.destination.journal.is_committed(ATTEMPT);
        let (killed, ended) = if owned_there {
            (self.destination.killed, self.destination.ended)
        } else {
            (self.source.killed, self.source.ended)
        };
        match (here, there) {
            (true, _) => Ok("runs at the source"),
            (_, true) if in_vain => Ok("waits for pages of a source VMM that was killed"),
            (_, true) if waits => broken(
                never_neither::NAME,
                "the guest waits for a page that nobody brings".to_owned(),
            ),
            (_, true) => Ok("runs at the destination"),
            _ if killed => Ok("its owner's VMM was killed"),
            _ if ended == Some(Ending::Failed) => Ok("stands, and its node says why"),
            _ => broken(
                never_neither::NAME,
                "the guest runs nowhere and nobody has said why".to_owned(),
            ),
        }
    }

    fn hangs(&self, in_vain: bool) -> Option<String> {
        match &self.source.process {
            SourceProcess::Idle => {}
            SourceProcess::Moves(run) => {
                let phase = run.machine.phase();
                if !(in_vain && phase == Phase::Postcopy) {
                    return Some(format!("the source hangs in {phase:?}"));
                }
            }
            process => return Some(format!("the source hangs: {process:?}")),
        }
        match &self.destination.process {
            DestinationProcess::Idle => None,
            DestinationProcess::Takes(run) => {
                let phase = run.machine.phase();
                let waits = in_vain && phase == Phase::Postcopy;
                (!waits).then(|| format!("the destination hangs in {phase:?}"))
            }
            process => Some(format!("the destination hangs: {process:?}")),
        }
    }
}
