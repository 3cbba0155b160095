//! What the destination's engine does with its VMM and RAM: pages, proof, device state, running and discarding.

use dwcp_proto::{DestinationEvent, JournalEntry, RESUME_TRIES_MAX};
use dwcp_wire::{PageRange, RoundSummary};

use super::begin::{GUEST, STALE};
use super::destination::{DestinationProcess, DestinationRun};
use super::source::last_entry;
use super::step::DestinationDone;
use super::world::{ATTEMPT, NOW, World};
use crate::invariants::{never_neither, no_lost_write, proof_before_run};
use crate::link::DeviceStream;
use crate::mutation::Mutation;
use crate::vmm::DestinationVm;

impl World {
    pub(super) fn round_arrives(&mut self, damaged: bool) {
        let Some(round) = self.wire.round.take() else {
            return;
        };
        let mut suspects = vec![];
        if round.sends_pages && self.mutation != Mutation::SkipLastRound {
            self.destination.vmm.ram[0] = if damaged { STALE } else { GUEST };
        }
        if damaged && self.mutation != Mutation::ForgetSuspect {
            suspects.push(PageRange {
                ram_block: 0,
                page: 0,
                count: 1,
            });
        }
        let event = DestinationEvent::RoundApplied {
            round: round.number,
            applied: RoundSummary::default(),
            suspects,
            root: 0,
        };
        self.feed_destination(NOW, event);
    }

    pub(super) fn take_missing(&mut self) {
        let names = self.mutation != Mutation::ForgetMissing;
        let holds = self.destination_run().is_some_and(|run| run.holds);
        if names && holds {
            self.destination.vmm.missing.insert(0);
        }
        self.destination_done(DestinationDone::MissingTaken);
    }

    pub(super) fn prove(&mut self) {
        let skips = self.mutation == Mutation::SkipProof;
        let holds = self.destination_run().is_some_and(|run| run.holds);
        self.destination.vmm.proven = holds && !skips;
        self.destination_done(if holds || skips {
            DestinationDone::Proven
        } else {
            DestinationDone::ProofFailed
        });
    }

    pub(super) fn load_device(&mut self) {
        if let Some(run) = self.destination_run() {
            run.loads = true;
        }
        if self.mutation == Mutation::HandoverWithoutDevice {
            self.destination_done(DestinationDone::DeviceLoaded);
        }
        if self.wire.device == DeviceStream::Broken {
            self.device_ends_early();
        }
    }

    /// Device state has come and may be loaded.
    pub(super) fn can_load(&self) -> bool {
        let DestinationProcess::Takes(run) = &self.destination.process else {
            return false;
        };
        let waits = self.destination.vmm.vm == DestinationVm::Incoming;
        run.loads && run.holds && waits && self.wire.device == DeviceStream::Arrived
    }

    pub(super) fn device_loads(&mut self, fails: bool) {
        if fails {
            return self.destination_vmm_exits();
        }
        self.destination.vmm.vm = DestinationVm::Loaded;
        if self.mutation != Mutation::HandoverWithoutDevice {
            self.destination_done(DestinationDone::DeviceLoaded);
        }
    }

    /// A VMM whose incoming device state ends too early exits.
    pub(super) fn device_ends_early(&mut self) {
        let waits = self.destination.vmm.vm == DestinationVm::Incoming;
        let loads = |run: &mut DestinationRun| run.loads && run.holds;
        if waits && self.destination_run().is_some_and(loads) {
            self.destination_vmm_exits();
        }
    }

    fn destination_vmm_exits(&mut self) {
        self.destination_vmm_is_gone();
        self.destination_done(DestinationDone::VmmFailed);
    }

    fn destination_vmm_is_gone(&mut self) {
        let node = &mut self.destination;
        node.vmm.replace();
        node.vmm.vm = DestinationVm::Gone;
        node.vmm.instance = 0;
        node.orders.iter_mut().for_each(|order| *order = false);
        if let Some(run) = self.destination_run() {
            run.holds = false;
        }
    }

    pub(super) fn kill_destination_vmm(&mut self, replaced: bool) {
        self.destination.killed = true;
        self.destination_vmm_exits();
        if replaced {
            self.destination.vmm.vm = DestinationVm::Incoming;
        }
    }

    pub(super) fn discard(&mut self) {
        if !self.destination_run().is_some_and(|run| run.holds) {
            return;
        }
        match self.mutation {
            Mutation::DiscardRuns => self.destination.orders.push_back(true),
            Mutation::ForgetDiscard => {}
            _ => self.discard_copy(),
        }
    }

    /// Ends what was loaded. A VMM that waits, and was given nothing, still does.
    pub(super) fn discard_copy(&mut self) {
        let vm = self.destination.vmm.vm;
        if vm == DestinationVm::Running {
            self.break_invariant(never_neither::NAME, "a running guest is discarded");
        }
        let loads = self.destination_run().is_some_and(|run| run.loads);
        self.destination_vmm_is_gone();
        if vm == DestinationVm::Incoming && !loads {
            self.destination.vmm.vm = DestinationVm::Incoming;
        }
    }

    pub(super) fn destination_obeys(&mut self, fails: bool) {
        let Some(there) = self.destination.orders.pop_front() else {
            return;
        };
        let obeys = there && !fails && self.destination.vmm.vm != DestinationVm::Gone;
        if obeys {
            self.check_run();
            self.destination.vmm.vm = DestinationVm::Running;
        }
        if let DestinationProcess::Resumes { failures } = self.destination.process {
            return self.destination_recovery_resumed((obeys, there), failures);
        }
        self.destination_done(if obeys {
            DestinationDone::Resumed
        } else {
            DestinationDone::VmmFailed
        });
    }

    /// Another VMM in the old one's place is not asked.
    fn destination_recovery_resumed(&mut self, (obeys, there): (bool, bool), failures: u32) {
        let gone = !there || self.destination.vmm.vm == DestinationVm::Gone;
        self.destination.process = if obeys {
            DestinationProcess::Writes(JournalEntry::Resumed)
        } else if gone || failures + 1 == RESUME_TRIES_MAX {
            DestinationProcess::Writes(last_entry(false))
        } else {
            self.destination.orders.push_back(true);
            DestinationProcess::Resumes {
                failures: failures + 1,
            }
        };
    }

    fn check_run(&mut self) {
        let vmm = &self.destination.vmm;
        let committed = self.destination.journal.is_committed(ATTEMPT);
        let lost = vmm.ram[0] != GUEST && !vmm.missing.contains(&0);
        if let Some(what) = proof_before_run::find(vmm, committed) {
            self.break_invariant(proof_before_run::NAME, what);
        } else if lost {
            self.break_invariant(
                no_lost_write::NAME,
                "a page is not what it was at the pause",
            );
        }
    }
}
