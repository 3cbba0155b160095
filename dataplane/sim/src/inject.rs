//! Faults strike.

use dwcp_proto::{DestinationEvent, SourceEvent};

use crate::faults::{Fault, Side, Trigger};
use crate::plan::{MS, TCP_TIMEOUT_NS};
use crate::vmm::SourceVm;
use crate::world::{Happening, World};

impl World {
    /// A machine took an event: planned faults count these.
    pub(crate) fn count_event(&mut self, counts: bool) {
        if counts {
            self.events += 1;
            self.fire_faults();
        }
    }

    pub(crate) fn fire_faults(&mut self) {
        let (events, phase) = (self.events, self.source.phase());
        self.fire(|trigger| match trigger {
            Trigger::Events(after) => after <= events,
            Trigger::Phase(at) => Some(at) == phase,
            Trigger::End => false,
        });
    }

    /// Everything has ended: what was to strike then, strikes. Whether anything did.
    pub(crate) fn fire_at_end(&mut self) -> bool {
        self.fire(|trigger| matches!(trigger, Trigger::End))
    }

    fn fire(&mut self, is_due: impl Fn(Trigger) -> bool) -> bool {
        let mut fired = false;
        for index in 0..self.plan.faults.len() {
            let planned = self.plan.faults[index];
            if !self.calm && !self.faults_fired[index] && is_due(planned.trigger) {
                fired = true;
                self.faults_fired[index] = true;
                self.after(planned.delay_ns, Happening::FaultStrikes(index));
            }
        }
        fired
    }

    pub(crate) fn fault_strikes(&mut self, index: usize) {
        if self.calm {
            return;
        }
        let fault = self.plan.faults[index].fault;
        let phase = self.source.phase();
        self.stats.fault(fault, phase);
        self.note("FAULT", [index as u64, 0], |_| {
            format!("{fault:?}, source in {phase:?}")
        });
        let newest = self.links.len().checked_sub(1);
        match fault {
            Fault::CutControl | Fault::CutStream => self.cut_newest(newest),
            Fault::BreakStream => {
                if let Some(attempt) = newest {
                    self.break_stream(attempt);
                }
            }
            Fault::CutDevice => {
                if let Some(attempt) = newest {
                    self.break_device(attempt);
                }
            }
            Fault::CutAll { for_ns } => {
                self.network_down_until = self.now + for_ns;
                self.cut_newest(newest);
            }
            Fault::Stall { to, for_ns } => self.stall(newest, to, for_ns),
            Fault::Crash {
                side,
                for_ns,
                flushed,
            } => self.crash(side, for_ns, flushed),
            Fault::Reboot {
                side,
                for_ns,
                replaced,
            } => {
                self.kill_vmm(side, replaced);
                self.crash(side, for_ns, false);
            }
            Fault::DestinationLost => self.lose_destination(newest),
            Fault::Cancel(Side::Source) => {
                if let Some(attempt) = self.source.run.as_ref().map(|run| run.attempt) {
                    self.feed_source(attempt, SourceEvent::Cancel);
                }
            }
            Fault::Cancel(Side::Destination) => {
                if let Some(attempt) = newest {
                    self.feed_destination(attempt, DestinationEvent::Cancel);
                }
            }
            Fault::KillVmm { side, replaced } => self.kill_vmm(side, replaced),
            Fault::FailVmm(Side::Source) => self.source.vmm.fail_next = true,
            Fault::FailVmm(Side::Destination) => self.destination.vmm.fail_next = true,
            Fault::FailJournal(Side::Source, how) => self.source.journal.fail_next(how),
            Fault::FailJournal(Side::Destination, how) => self.destination.journal.fail_next(how),
            Fault::Damage(damage) => self.damage_next = Some(damage),
            Fault::LoseQueries { count } => self.queries_to_lose = count,
            Fault::ClockJump { side, by_ns } => match side {
                Side::Source => self.source.clock_ahead += by_ns,
                Side::Destination => self.destination.clock_ahead += by_ns,
            },
        }
    }

    fn cut_newest(&mut self, newest: Option<usize>) {
        if let Some(attempt) = newest {
            self.cut(attempt);
        }
    }

    /// A stall that outlives the kernel's patience ends the connections.
    fn stall(&mut self, newest: Option<usize>, to: Side, for_ns: u64) {
        self.stalled_until[to as usize] = self.now + for_ns.min(TCP_TIMEOUT_NS);
        if for_ns > TCP_TIMEOUT_NS
            && let Some(attempt) = newest
        {
            let other = to.other();
            for side in [to, other] {
                self.after(TCP_TIMEOUT_NS, Happening::ConnectionLost { attempt, side });
            }
        }
    }

    fn lose_destination(&mut self, newest: Option<usize>) {
        self.destination.gone = true;
        self.destination.up = false;
        self.destination.boot += 1;
        self.destination.vmm.die();
        for run in &mut self.destination.runs {
            *run = None;
        }
        if let Some(attempt) = newest {
            self.close(attempt, Side::Destination, false);
        }
    }

    fn kill_vmm(&mut self, side: Side, replaced: bool) {
        match side {
            Side::Destination => self.destination_vmm_dies(replaced),
            Side::Source => {
                self.source.vmm.vm = SourceVm::Gone;
                self.source.vmm.instance += 1;
                self.source.killed = true;
                if let Some(attempt) = self.source.run.as_ref().map(|run| run.attempt) {
                    let reason = "the VMM is gone".to_owned();
                    let event = SourceEvent::Failed(dwcp_wire::AbortCode::Vmm, reason);
                    self.source_to(attempt, MS, event);
                }
                if replaced {
                    self.after(5 * MS, Happening::SourceReplaced);
                }
            }
        }
        if side == Side::Destination {
            self.destination.killed = true;
        }
    }

    pub(crate) fn source_replaced(&mut self) {
        if self.source.vmm.vm == SourceVm::Gone {
            self.source.vmm.vm = SourceVm::Empty;
        }
    }

    /// From now on nothing new goes wrong.
    pub(crate) fn calm_down(&mut self) {
        self.calm = true;
        self.network_down_until = 0;
        self.queries_to_lose = 0;
        self.damage_next = None;
        self.source.journal.calm();
        self.destination.journal.calm();
        self.source.vmm.fail_next = false;
        self.destination.vmm.fail_next = false;
        self.note("faults end", [0, 0], |_| String::new());
        // A journal that failed for good can promise nothing: its process is started again.
        if self.source.journal.is_poisoned() {
            self.crash(Side::Source, MS, true);
        }
        if self.destination.journal.is_poisoned() {
            self.crash(Side::Destination, MS, true);
        }
    }
}
