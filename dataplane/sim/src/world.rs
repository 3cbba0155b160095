//! The world of one run: clock, both nodes, the network between them, and what happens next.

use dwcp_proto::{DestinationEvent, Instant, JournalEntry, SourceEvent};

use crate::destination_node::DestinationNode;
use crate::faults::Side;
use crate::guest::Guest;
use crate::invariants::{self, Violation};
use crate::journal::Written;
use crate::link::{Item, Link};
use crate::mutation::Mutation;
use crate::plan::{FAULTS_END_NS, LIVENESS_NS, MS, Plan};
use crate::rng::Rng;
use crate::schedule::Schedule;
use crate::shape::Shape;
use crate::source_node::SourceNode;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::vmm::SourceCommand;

/// After an end, so long is looked at what still happens by itself.
const GRACE_NS: u64 = 3_000 * MS;

/// Something to happen. What belongs to a process carries its `boot`: it dies with it.
#[derive(Debug)]
pub(crate) enum Happening {
    Tick(Side),
    GuestWrites,
    FaultStrikes(usize),
    AttemptStarts,
    ControlArrives {
        attempt: usize,
        to: Side,
    },
    ConnectionLost {
        attempt: usize,
        side: Side,
    },
    StreamArrives {
        attempt: usize,
        stream: usize,
    },
    AckArrives {
        attempt: usize,
        bytes: u64,
    },
    StreamResumes {
        attempt: usize,
        stream: usize,
        lost: Vec<Item>,
    },
    SourceActs {
        boot: u32,
    },
    DestinationActs {
        boot: u32,
        attempt: usize,
    },
    ToSource {
        boot: u32,
        attempt: usize,
        event: Box<SourceEvent>,
    },
    ToDestination {
        boot: u32,
        attempt: usize,
        event: Box<DestinationEvent>,
    },
    SenderSteps {
        boot: u32,
        attempt: usize,
    },
    JournalReaches {
        side: Side,
        boot: u32,
        attempt: usize,
        entry: JournalEntry,
    },
    JournalAnswers {
        side: Side,
        boot: u32,
        attempt: usize,
        entry: JournalEntry,
        written: Written,
    },
    SourceObeys {
        boot: u32,
        attempt: usize,
        instance: u32,
        command: SourceCommand,
    },
    DeviceGiven {
        attempt: usize,
        instance: u32,
    },
    DeviceStands {
        attempt: usize,
        instance: u32,
    },
    DeviceArrives {
        attempt: usize,
    },
    SelfResumes {
        instance: u32,
    },
    DeviceLoads {
        attempt: usize,
        instance: u32,
    },
    DestinationRuns {
        boot: u32,
        attempt: usize,
        instance: u32,
    },
    DestinationReplaced {
        instance: u32,
    },
    SourceReplaced,
    QueryArrives {
        attempt: usize,
    },
    AnswerArrives {
        attempt: usize,
        committed: bool,
    },
    Restarts(Side),
    PageFetched {
        boot: u32,
        attempt: usize,
    },
    SourceReturns {
        boot: u32,
        attempt: usize,
    },
}

/// One run.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) now: u64,
    pub(crate) rng: Rng,
    pub(crate) plan: Plan,
    pub(crate) mutation: Mutation,
    pub(crate) trace: Trace,
    pub(crate) stats: Stats,
    pub(crate) schedule: Schedule<Happening>,
    pub(crate) source: SourceNode,
    pub(crate) destination: DestinationNode,
    pub(crate) guest: Guest,
    pub(crate) links: Vec<Link>,
    pub(crate) stalled_until: [u64; 2],
    pub(crate) network_down_until: u64,
    pub(crate) queries_to_lose: u32,
    pub(crate) damage_next: Option<crate::faults::Damage>,
    pub(crate) events: u64,
    pub(crate) faults_fired: Vec<bool>,
    pub(crate) calm: bool,
    settled_since: Option<u64>,
    violation: Option<Violation>,
}

impl World {
    /// The world of a seed, before anything has happened.
    #[must_use]
    pub(crate) fn new(seed: u64, mutation: Mutation, shape: Option<Shape>, traced: bool) -> Self {
        let mut rng = Rng::new(seed);
        let plan = Plan::draw(&mut rng, shape);
        let guest = Guest::new(&plan, &mut rng);
        let mut world = Self {
            now: MS,
            guest,
            mutation,
            trace: Trace::new(traced),
            stats: Stats::default(),
            schedule: Schedule::new(),
            source: SourceNode::new(),
            destination: DestinationNode::new(plan.pages),
            links: vec![],
            stalled_until: [0; 2],
            network_down_until: 0,
            queries_to_lose: 0,
            damage_next: None,
            events: 0,
            faults_fired: vec![false; plan.faults.len()],
            calm: false,
            settled_since: None,
            violation: None,
            rng,
            plan,
        };
        world.note("plan", [0, 0], |world| format!("{:?}", world.plan));
        world.after(0, Happening::AttemptStarts);
        world.after(0, Happening::GuestWrites);
        world.after(world.plan.silence_ns / 5, Happening::Tick(Side::Source));
        world.after(
            world.plan.silence_ns / 6,
            Happening::Tick(Side::Destination),
        );
        world.fire_faults();
        world
    }

    /// Runs to the end: first with faults, then without them.
    ///
    /// # Errors
    /// The first invariant that does not hold.
    pub(crate) fn run(&mut self) -> Result<(), Violation> {
        let deadline = FAULTS_END_NS + LIVENESS_NS;
        while let Some((at, happening)) = self.schedule.take() {
            self.now = self.now.max(at);
            if self.now > deadline {
                break;
            }
            if self.now > FAULTS_END_NS && !self.calm {
                self.calm_down();
            }
            self.happen(happening);
            invariants::after_step(self);
            if let Some(violation) = self.violation.take() {
                return Err(violation);
            }
            if self.is_over() {
                break;
            }
        }
        invariants::at_end(self);
        self.stats.close(&self.source, &self.destination);
        self.violation.take().map_or(Ok(()), Err)
    }

    /// What was recorded.
    #[must_use]
    pub(crate) const fn trace(&self) -> &Trace {
        &self.trace
    }

    /// What was counted.
    #[must_use]
    pub(crate) const fn stats(&self) -> &Stats {
        &self.stats
    }

    pub(crate) fn break_invariant(&mut self, invariant: &'static str, what: impl Into<String>) {
        let what = what.into();
        self.note("INVARIANT", [0, 0], |_| format!("{invariant}: {what}"));
        if self.violation.is_none() {
            self.violation = Some(Violation { invariant, what });
        }
    }

    pub(crate) fn note(
        &mut self,
        tag: &'static str,
        numbers: [u64; 2],
        detail: impl FnOnce(&Self) -> String,
    ) {
        let mut trace = std::mem::take(&mut self.trace);
        trace.note(self.now, tag, numbers, || detail(self));
        self.trace = trace;
    }

    pub(crate) fn after(&mut self, delay_ns: u64, happening: Happening) {
        self.schedule.put(self.now + delay_ns, happening);
    }

    /// Time of an action on a node.
    pub(crate) fn action_time(&mut self) -> u64 {
        self.rng.skewed(1_000, self.plan.action_ns_max)
    }

    /// One way through the network.
    pub(crate) fn network_time(&mut self) -> u64 {
        let (least, most) = self.plan.delay_ns;
        self.rng.range(least, most)
    }

    /// A node's own clock.
    pub(crate) const fn clock(&self, side: Side) -> Instant {
        let ahead = match side {
            Side::Source => self.source.clock_ahead,
            Side::Destination => self.destination.clock_ahead,
        };
        Instant(self.now + ahead)
    }

    /// Nothing is left to be done: wait a little for surprises, then stop.
    fn is_over(&mut self) -> bool {
        if !(self.source.is_settled(self) && self.destination.is_settled()) {
            self.settled_since = None;
            return false;
        }
        if self.fire_at_end() {
            self.settled_since = None;
            return false;
        }
        let since = *self.settled_since.get_or_insert(self.now);
        self.now - since > GRACE_NS
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Tick(side) => self.tick(side),
            Happening::GuestWrites => self.guest_writes(),
            Happening::FaultStrikes(index) => self.fault_strikes(index),
            Happening::AttemptStarts => self.attempt_starts(),
            Happening::Restarts(side) => self.restart(side),
            Happening::ControlArrives { attempt, to } => self.control_arrives(attempt, to),
            Happening::ConnectionLost { attempt, side } => self.connection_lost(attempt, side),
            Happening::StreamArrives { attempt, stream } => self.stream_arrives(attempt, stream),
            Happening::AckArrives { attempt, bytes } => self.ack_arrives(attempt, bytes),
            Happening::StreamResumes {
                attempt,
                stream,
                lost,
            } => self.stream_resumes(attempt, stream, lost),
            Happening::QueryArrives { attempt } => self.query_arrives(attempt),
            Happening::AnswerArrives { attempt, committed } => {
                self.answer_arrives(attempt, committed);
            }
            other => self.happen_in_process(other),
        }
    }

    fn happen_in_process(&mut self, happening: Happening) {
        let (source, destination) = (self.source.boot, self.destination.boot);
        match happening {
            Happening::SourceActs { boot } if boot == source => self.source_acts(),
            Happening::DestinationActs { boot, attempt } if boot == destination => {
                self.destination_acts(attempt);
            }
            Happening::ToSource {
                boot,
                attempt,
                event,
            } if boot == source => self.feed_source(attempt, *event),
            Happening::ToDestination {
                boot,
                attempt,
                event,
            } if boot == destination => self.feed_destination(attempt, *event),
            Happening::PageFetched { boot, attempt } if boot == destination => {
                self.page_fetched(attempt);
            }
            Happening::SourceReturns { boot, attempt } if boot == source => {
                self.source_returns(attempt);
            }
            Happening::SenderSteps { boot, attempt } if boot == source => {
                self.sender_steps(attempt);
            }
            Happening::JournalReaches {
                side,
                boot,
                attempt,
                entry,
            } if boot == self.boot(side) => self.journal_reaches(side, attempt, entry),
            Happening::JournalAnswers {
                side,
                boot,
                attempt,
                entry,
                written,
            } if boot == self.boot(side) => self.journal_answers(side, attempt, entry, written),
            other => self.happen_in_vmm(&other),
        }
    }

    /// VMMs go on when a data plane is gone; what is left belongs to a process that is no more.
    fn happen_in_vmm(&mut self, happening: &Happening) {
        match *happening {
            Happening::SourceObeys {
                boot,
                attempt,
                instance,
                command,
            } => self.source_obeys(boot, attempt, instance, command),
            Happening::DeviceGiven { attempt, instance } => self.device_given(attempt, instance),
            Happening::DeviceStands { attempt, instance } => self.device_stands(attempt, instance),
            Happening::DeviceArrives { attempt } => self.device_arrives(attempt),
            Happening::SelfResumes { instance } => self.self_resumes(instance),
            Happening::DeviceLoads { attempt, instance } => self.device_loads(attempt, instance),
            Happening::DestinationRuns {
                boot,
                attempt,
                instance,
            } => self.destination_runs(boot, attempt, instance),
            Happening::DestinationReplaced { instance } => self.destination_replaced(instance),
            Happening::SourceReplaced => self.source_replaced(),
            _ => {}
        }
    }

    pub(crate) const fn boot(&self, side: Side) -> u32 {
        match side {
            Side::Source => self.source.boot,
            Side::Destination => self.destination.boot,
        }
    }

    fn guest_writes(&mut self) {
        let runs = self.source.vmm.vm == crate::vmm::SourceVm::Running;
        if runs && self.source.run.is_some() {
            let page = self.guest.write(&self.plan, &mut self.rng);
            let content = self.guest.memory[page];
            self.note("guest writes", [page as u64, content], |_| {
                format!("page {page} = {content}")
            });
        }
        // While no migration looks, nobody needs the writes.
        let busy = self.source.run.is_some();
        let mean = self.plan.write_ns * if busy { 1 } else { 20 };
        let wait = self.rng.range(mean / 2, mean * 3 / 2);
        self.after(wait, Happening::GuestWrites);
    }

    fn tick(&mut self, side: Side) {
        match side {
            Side::Source => self.source_tick(),
            Side::Destination => self.destination_tick(),
        }
        self.after(self.plan.silence_ns / 5, Happening::Tick(side));
    }
}
