//! What the destination's engine does with its VMM: proof, device state, running and discarding.

use dwcp_proto::{DestinationEvent, RESUME_TRIES_MAX};
use dwcp_wire::AbortCode;

use crate::faults::Side;
use crate::invariants;
use crate::link::DeviceStream;
use crate::mutation::Mutation;
use crate::vmm::DestinationVm;
use crate::world::{Happening, World};

impl World {
    /// Whether the VMM is still the process that this attempt prepared.
    pub(crate) fn holds_vmm(&self, attempt: usize) -> bool {
        let run = self.destination.runs.get(attempt).and_then(Option::as_ref);
        run.is_some_and(|run| run.instance == Some(self.destination.vmm.instance))
    }

    pub(crate) fn prove(&mut self, attempt: usize) {
        let wait = self.action_time();
        let pages = self.plan.pages;
        let count = if self.plan.verify_full {
            pages
        } else {
            self.plan.sample_pages as usize
        };
        let full = self.plan.verify_full;
        let sample: Vec<usize> = (0..count)
            .map(|at| if full { at } else { self.rng.index(pages) })
            .collect();
        let holds = self.holds_vmm(attempt);
        let Some(run) = self.destination.runs[attempt].as_ref() else {
            return;
        };
        let ram = &self.destination.vmm.ram;
        let wrong = sample
            .iter()
            .any(|&page| ram[page] != run.receiver.credited[page]);
        let skips = self.mutation == Mutation::SkipProof;
        let event = if (wrong || !holds) && !skips {
            let reason = "a page is not what was applied".to_owned();
            DestinationEvent::Failed(AbortCode::ProofFailed, reason)
        } else {
            self.destination.vmm.proven = !skips;
            let pages = count as u64;
            DestinationEvent::Proven { pages }
        };
        self.destination_to(attempt, wait, event);
    }

    pub(crate) fn load_device(&mut self, attempt: usize) {
        if let Some(run) = self.destination_run(attempt) {
            run.loads = true;
        }
        if self.mutation == Mutation::HandoverWithoutDevice {
            self.destination_to(attempt, 1_000, DestinationEvent::DeviceLoaded);
        }
        match self.links[attempt].device {
            DeviceStream::Arrived => self.device_to_vmm(attempt),
            DeviceStream::Broken => self.device_lost_at_destination(attempt),
            DeviceStream::Idle | DeviceStream::Flowing | DeviceStream::InFlight => {}
        }
    }

    pub(crate) fn device_arrives(&mut self, attempt: usize) {
        let open = self.links[attempt].is_open(Side::Destination);
        if self.links[attempt].device != DeviceStream::InFlight || !open {
            return;
        }
        self.links[attempt].device = DeviceStream::Arrived;
        if self.destination_run(attempt).is_some_and(|run| run.loads) {
            self.device_to_vmm(attempt);
        }
    }

    fn device_to_vmm(&mut self, attempt: usize) {
        let instance = self.destination.vmm.instance;
        let wait = self.action_time();
        self.destination.vmm.busy_until = self.now + wait;
        if self.holds_vmm(attempt) {
            self.after(wait, Happening::DeviceLoads { attempt, instance });
        }
    }

    pub(crate) fn device_loads(&mut self, attempt: usize, instance: u32) {
        let vmm = &mut self.destination.vmm;
        if vmm.instance != instance || vmm.vm != DestinationVm::Incoming {
            return;
        }
        let fails = std::mem::take(&mut vmm.fail_next);
        vmm.vm = DestinationVm::Loaded;
        self.note(
            "destination VMM",
            [attempt as u64, u64::from(fails)],
            |_| format!("loads device state, fails: {fails}"),
        );
        if fails {
            self.destination_vmm_dies(true);
        } else if self.mutation != Mutation::HandoverWithoutDevice {
            let wait = self.rng.skewed(1_000, 200_000);
            self.destination_to(attempt, wait, DestinationEvent::DeviceLoaded);
        }
    }

    /// A VMM whose incoming device state ends too early exits.
    pub(crate) fn device_lost_at_destination(&mut self, attempt: usize) {
        let loads = self.destination_run(attempt).is_some_and(|run| run.loads);
        if loads && self.holds_vmm(attempt) && self.destination.vmm.vm == DestinationVm::Incoming {
            self.destination_vmm_dies(true);
        }
    }

    pub(crate) fn run_destination(&mut self, attempt: usize) {
        let run = self.destination.runs[attempt].as_ref();
        let instance = run.and_then(|run| run.instance).unwrap_or(u32::MAX);
        self.order_destination_run(attempt, instance);
    }

    pub(crate) fn order_destination_run(&mut self, attempt: usize, instance: u32) {
        let wait = self.action_time();
        let at = self.destination.vmm.busy_until.max(self.now) + wait;
        self.destination.vmm.busy_until = at;
        let boot = self.destination.boot;
        self.schedule.put(
            at,
            Happening::DestinationRuns {
                boot,
                attempt,
                instance,
            },
        );
    }

    pub(crate) fn destination_runs(&mut self, boot: u32, attempt: usize, instance: u32) {
        let vmm = &mut self.destination.vmm;
        let there = vmm.instance == instance && vmm.vm != DestinationVm::Gone;
        let obeys = there && !std::mem::take(&mut vmm.fail_next);
        self.note(
            "destination VMM",
            [attempt as u64, u64::from(obeys)],
            |world| format!("run: {obeys}, was {:?}", world.destination.vmm.vm),
        );
        if obeys {
            invariants::proof_before_run::check_run(self, attempt);
            invariants::no_lost_write::check_run(self);
            self.destination.vmm.vm = DestinationVm::Running;
        }
        if boot != self.destination.boot {
            return;
        }
        if self.destination.resuming == Some(attempt) {
            let again = self.destination.resume_failures + 1 < RESUME_TRIES_MAX;
            if there && !obeys && again {
                self.destination.resume_failures += 1;
                return self.order_destination_run(attempt, instance);
            }
            return self.destination_recovery_resumed(attempt, obeys);
        }
        let event = if obeys {
            DestinationEvent::Resumed
        } else {
            DestinationEvent::Failed(AbortCode::Vmm, "the VMM did not run the guest".to_owned())
        };
        let wait = self.rng.skewed(1_000, 200_000);
        self.destination_to(attempt, wait, event);
    }

    /// The VMM process ends, and is started again empty, so that another attempt finds it.
    pub(crate) fn discard(&mut self, attempt: usize) {
        if !self.holds_vmm(attempt) {
            return;
        }
        if self.mutation == Mutation::DiscardRuns {
            self.run_destination(attempt);
            return;
        }
        if self.mutation != Mutation::ForgetDiscard {
            self.destination_vmm_dies(true);
        }
    }

    pub(crate) fn destination_vmm_dies(&mut self, replaced: bool) {
        let attempt = self.destination.held_by;
        let told = attempt.is_some_and(|attempt| self.holds_vmm(attempt));
        self.destination.vmm.die();
        let instance = self.destination.vmm.instance;
        self.note("destination VMM", [7, u64::from(replaced)], |_| {
            "is gone".to_owned()
        });
        if let (Some(attempt), true) = (attempt, told) {
            let wait = self.action_time();
            let reason = "the VMM is gone".to_owned();
            let event = DestinationEvent::Failed(AbortCode::Vmm, reason);
            self.destination_to(attempt, wait, event);
        }
        if replaced {
            let wait = self.action_time();
            self.after(wait, Happening::DestinationReplaced { instance });
        }
    }

    pub(crate) fn destination_replaced(&mut self, instance: u32) {
        let vmm = &mut self.destination.vmm;
        if vmm.instance == instance && vmm.vm == DestinationVm::Gone {
            vmm.replace();
        }
    }
}
