//! What the source's engine does with its VMM: pause, device state, resume; and the sample.

use dwcp_proto::SourceEvent;
use dwcp_wire::AbortCode;

use crate::link::DeviceStream;
use crate::mutation::Mutation;
use crate::vmm::{SourceCommand, SourceVm};
use crate::world::{Happening, World};

impl World {
    pub(crate) fn read_sample(&mut self, attempt: usize) {
        let count = if self.plan.verify_full {
            self.plan.pages
        } else {
            self.plan.sample_pages as usize
        };
        let full = self.plan.verify_full;
        let pages: Vec<usize> = (0..count)
            .map(|at| {
                if full {
                    at
                } else {
                    self.rng.index(self.plan.pages)
                }
            })
            .collect();
        let Some(run) = self.source.run.as_ref() else {
            return;
        };
        let missed = pages
            .iter()
            .filter(|&&page| !(run.has_forgotten && run.sent[page] == 0))
            .filter(|&&page| self.guest.memory[page] != run.sent[page])
            .count() as u64;
        let missed = if self.mutation == Mutation::SkipLastRound {
            0
        } else {
            missed
        };
        let wait = self.action_time();
        self.source_to(attempt, wait, SourceEvent::SampleRead { missed });
    }

    /// Gives a command to the VMM, behind those it has.
    pub(crate) fn source_command(&mut self, attempt: usize, command: SourceCommand) {
        let wait = self.action_time();
        let at = self.source.vmm.busy_until.max(self.now) + wait;
        self.source.vmm.busy_until = at;
        if let Some(run) = self.source.run.as_mut() {
            run.commands += 1;
        }
        let (boot, instance) = (self.source.boot, self.source.vmm.instance);
        self.schedule.put(
            at,
            Happening::SourceObeys {
                boot,
                attempt,
                instance,
                command,
            },
        );
    }

    pub(crate) fn source_obeys(
        &mut self,
        boot: u32,
        attempt: usize,
        instance: u32,
        command: SourceCommand,
    ) {
        let same = instance == self.source.vmm.instance;
        let obeyed = same && self.source.vmm.obey(command);
        self.note("source VMM", [attempt as u64, u64::from(obeyed)], |world| {
            format!("{command:?}: {obeyed}, now {:?}", world.source.vmm.vm)
        });
        if obeyed && command == SourceCommand::Resume && attempt < self.links.len() {
            self.break_device(attempt);
        }
        if obeyed && command == SourceCommand::GiveDeviceState {
            self.give_device(attempt);
        }
        if boot == self.source.boot {
            self.source_command_done(attempt, command, obeyed);
        }
    }

    fn source_command_done(&mut self, attempt: usize, command: SourceCommand, obeyed: bool) {
        if self.source.resuming == Some(attempt) {
            self.source_recovery_resumed(attempt, obeyed);
            return;
        }
        if let Some(run) = self.source.run.as_mut() {
            run.commands = run.commands.saturating_sub(1);
        }
        // The machine hears of device state when all of it is given.
        let event = match (command, obeyed) {
            (SourceCommand::GiveDeviceState, true) => return,
            (SourceCommand::Pause, true) => SourceEvent::Paused,
            (SourceCommand::Resume, true) => SourceEvent::Resumed,
            (_, false) => SourceEvent::Failed(AbortCode::Vmm, format!("{command:?} failed")),
        };
        let wait = self.rng.skewed(1_000, 200_000);
        self.source_to(attempt, wait, event);
    }

    fn give_device(&mut self, attempt: usize) {
        let instance = self.source.vmm.instance;
        if self.links[attempt].device != DeviceStream::Idle {
            self.device_lost_at_source();
            return;
        }
        self.links[attempt].device = DeviceStream::Flowing;
        let wait = self.action_time();
        self.after(wait, Happening::DeviceGiven { attempt, instance });
    }

    /// All bytes are with the relay; the VMM stands only a little later.
    pub(crate) fn device_given(&mut self, attempt: usize, instance: u32) {
        let gives = self.source.vmm.vm == SourceVm::Giving && instance == self.source.vmm.instance;
        if !gives || self.links[attempt].device != DeviceStream::Flowing {
            return;
        }
        self.links[attempt].device = DeviceStream::InFlight;
        let at = self.network_time();
        self.after(at, Happening::DeviceArrives { attempt });
        let wait = self.action_time();
        self.after(wait, Happening::DeviceStands { attempt, instance });
        if self.mutation == Mutation::DeviceSentEarly {
            self.source_to(attempt, 1_000, SourceEvent::DeviceSent);
        }
    }

    pub(crate) fn device_stands(&mut self, attempt: usize, instance: u32) {
        let gives = self.source.vmm.vm == SourceVm::Giving && instance == self.source.vmm.instance;
        if !gives || self.links[attempt].device == DeviceStream::Broken {
            return;
        }
        self.source.vmm.vm = SourceVm::Postmigrate;
        self.note("source VMM stands", [attempt as u64, 0], |_| String::new());
        if self.mutation != Mutation::DeviceSentEarly {
            let wait = self.rng.skewed(1_000, 200_000);
            self.source_to(attempt, wait, SourceEvent::DeviceSent);
        }
    }

    /// QEMU runs the guest again when its migration fails; nobody asks the data plane.
    pub(crate) fn device_lost_at_source(&mut self) {
        if self.source.vmm.vm == SourceVm::Giving {
            let instance = self.source.vmm.instance;
            let wait = self.action_time();
            self.after(wait, Happening::SelfResumes { instance });
        }
    }

    pub(crate) fn self_resumes(&mut self, instance: u32) {
        if self.source.vmm.vm != SourceVm::Giving || instance != self.source.vmm.instance {
            return;
        }
        self.source.vmm.vm = SourceVm::Running;
        self.note("source VMM", [9, 9], |_| "resumes by itself".to_owned());
        if let Some(attempt) = self.source.run.as_ref().map(|run| run.attempt) {
            let reason = "device state was not taken".to_owned();
            let wait = self.action_time();
            self.source_to(attempt, wait, SourceEvent::Failed(AbortCode::Vmm, reason));
        }
    }
}
