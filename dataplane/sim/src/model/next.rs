//! Which steps are possible, and what each does.

use dwcp_proto::{DestinationEvent, Phase, SourceEvent};

use super::destination::DestinationProcess;
use super::source::SourceProcess;
use super::step::{Death, DestinationDone, Fault, SourceDone, Step};
use super::wire::Heard;
use super::world::{NOW, Question, SILENT, SILENT_FOR_LONG, SOON, World};
use crate::faults::{JournalFault, Side};
use crate::link::DeviceStream;
use crate::vmm::{DestinationVm, SourceVm};

const SIDES: [Side; 2] = [Side::Source, Side::Destination];

impl World {
    /// All that can happen next; faults only while some are left. Some of it may change nothing.
    pub(super) fn steps(&self) -> Vec<Step> {
        let mut steps = vec![];
        self.on_either_side(&mut steps);
        self.at_the_source(&mut steps);
        self.at_the_destination(&mut steps);
        self.questions_under_way(&mut steps);
        if self.faults_left > 0 {
            self.faults(&mut steps);
        }
        steps
    }

    fn on_either_side(&self, steps: &mut Vec<Step>) {
        for side in SIDES {
            let dead = self.is_dead(side);
            if self.wire.to(side).speaks() && !dead {
                steps.push(Step::Hears(side));
            }
            if self.under_way(side).is_some() {
                steps.push(Step::Writes(side));
            }
            let busy = match side {
                Side::Source => !self.source.commands.is_empty(),
                Side::Destination => !self.destination.orders.is_empty(),
            };
            if busy {
                steps.push(Step::VmmObeys(side));
            }
            // A successor first waits until its VMM has nothing of the predecessor's to do.
            if dead && !busy {
                steps.push(Step::Restarts(side));
            }
            if self.is_poisoned(side) && !dead {
                steps.extend(self.deaths(side).into_iter().map(Step::Exits));
            }
        }
    }

    fn at_the_source(&self, steps: &mut Vec<Step>) {
        if let SourceProcess::Moves(run) = &self.source.process {
            let mut done = run.done.clone();
            done.dedup();
            steps.extend(done.into_iter().map(Step::SourceTold));
            steps.push(Step::Ticks(Side::Source));
        }
        let gives = self.source.vmm.vm == SourceVm::Giving;
        match self.wire.device {
            DeviceStream::Flowing if gives => steps.push(Step::DeviceGiven),
            DeviceStream::InFlight | DeviceStream::Arrived if gives => {
                steps.push(Step::DeviceStands);
            }
            _ => {}
        }
        if gives && self.source.stream_lost {
            steps.push(Step::RunsByItself);
        }
        if self.source.process == SourceProcess::Asks && self.questions.is_empty() {
            steps.push(Step::Asks);
        }
        if self.can_return() {
            steps.push(Step::Returns);
        }
    }

    fn at_the_destination(&self, steps: &mut Vec<Step>) {
        let hears = !self.wire.to(Side::Destination).is_over();
        if self.wire.device == DeviceStream::InFlight && hears {
            steps.push(Step::DeviceArrives);
        }
        if self.can_load() {
            steps.push(Step::DeviceLoads);
        }
        let DestinationProcess::Takes(run) = &self.destination.process else {
            return;
        };
        if self.wire.round.is_some() {
            steps.push(Step::RoundArrives);
        }
        let mut done = run.done.clone();
        done.dedup();
        steps.extend(done.into_iter().map(Step::DestinationTold));
        steps.push(Step::Ticks(Side::Destination));
        if run.machine.phase() != Phase::Postcopy {
            return;
        }
        let missing = !self.destination.vmm.missing.is_empty();
        if !run.is_told && (!missing || self.serves()) {
            steps.push(Step::Fetches);
        }
        if run.is_told && self.source.process == SourceProcess::Idle {
            steps.push(Step::WaitsInVain);
        }
    }

    fn questions_under_way(&self, steps: &mut Vec<Step>) {
        let mut questions = self.questions.clone();
        questions.dedup();
        steps.extend(questions.into_iter().filter_map(|question| match question {
            Question::Asked => Some(Step::QuestionArrives),
            Question::Waits => None,
            Question::Answered(committed) => Some(Step::AnswerArrives { committed }),
        }));
    }

    fn faults(&self, steps: &mut Vec<Step>) {
        let mut faults = vec![];
        for side in SIDES {
            self.faults_at(side, &mut faults);
        }
        let (to_source, to_destination) =
            (self.wire.to(Side::Source), self.wire.to(Side::Destination));
        if to_source.is_open() || to_destination.is_open() {
            for kept in 0..=to_source.len() {
                faults.extend((0..=to_destination.len()).map(|there| Fault::Cut {
                    to_source: kept,
                    to_destination: there,
                }));
            }
        }
        if self.wire.device != DeviceStream::Broken {
            faults.push(Fault::CutDevice);
        }
        if self.can_load() {
            faults.push(Fault::FailLoad);
        }
        if self.wire.round.is_some_and(|round| round.sends_pages)
            && !self.is_dead(Side::Destination)
        {
            faults.push(Fault::Damage);
        }
        if let SourceProcess::Moves(run) = &self.source.process
            && run.done.contains(&SourceDone::SampleRead)
        {
            faults.push(Fault::Missed);
        }
        if let DestinationProcess::Takes(run) = &self.destination.process {
            if run.done.contains(&DestinationDone::PostcopyPrepared) {
                faults.push(Fault::NoPostcopy);
            }
            if run.is_told {
                faults.push(Fault::LongSilence);
            }
        }
        self.faults_of_questions(&mut faults);
        steps.extend(faults.into_iter().map(Step::Fault));
    }

    fn faults_at(&self, side: Side, faults: &mut Vec<Fault>) {
        if !self.is_dead(side) {
            faults.extend(self.deaths(side).into_iter().map(Fault::Kill));
        }
        let (there, runs, busy) = match side {
            Side::Source => (
                !matches!(self.source.vmm.vm, SourceVm::Gone | SourceVm::Empty),
                matches!(self.source.process, SourceProcess::Moves(_)),
                !self.source.commands.is_empty(),
            ),
            Side::Destination => (
                self.destination.vmm.vm != DestinationVm::Gone,
                matches!(self.destination.process, DestinationProcess::Takes(_)),
                !self.destination.orders.is_empty(),
            ),
        };
        if there {
            faults.extend([false, true].map(|replaced| Fault::KillVmm { side, replaced }));
        }
        if runs {
            faults.extend([Fault::Silence(side), Fault::Cancel(side)]);
        }
        if busy {
            faults.push(Fault::FailVmm(side));
        }
        if self.under_way(side).is_some() && !self.is_poisoned(side) {
            let kinds = [
                JournalFault::NotWritten { times: 1 },
                JournalFault::UnknownButThere,
                JournalFault::UnknownAndLost,
            ];
            faults.extend(kinds.map(|kind| Fault::FailJournal(side, kind)));
        }
    }

    fn faults_of_questions(&self, faults: &mut Vec<Fault>) {
        let mut questions = self.questions.clone();
        questions.dedup();
        for question in questions {
            match question {
                Question::Asked => faults.push(Fault::LoseAnswer { answered: None }),
                Question::Waits => {}
                Question::Answered(committed) => faults.push(Fault::LoseAnswer {
                    answered: Some(committed),
                }),
            }
        }
        if self.questions == [Question::Asked] {
            faults.push(Fault::RepeatQuestion);
        }
    }

    /// The ways in which a data plane can die now.
    fn deaths(&self, side: Side) -> Vec<Death> {
        let sent = self.wire.to(side.other()).len();
        let commands = match side {
            Side::Source => self.source.commands.len(),
            Side::Destination => self.destination.orders.len(),
        };
        let durable: &[bool] = if self.under_way(side).is_some() {
            &[false, true]
        } else {
            &[false]
        };
        let mut deaths = vec![];
        for sent in 0..=sent {
            for commands in 0..=commands {
                deaths.extend(durable.iter().map(|&durable| Death {
                    side,
                    sent,
                    commands,
                    durable,
                }));
            }
        }
        deaths
    }

    /// Takes a step.
    pub(super) fn take(&mut self, step: Step) {
        match step {
            Step::Hears(side) => self.hears(side),
            Step::SourceTold(done) => self.source_told(done, 0),
            Step::DestinationTold(done) => self.destination_told(done),
            Step::VmmObeys(side) => self.vmm_obeys(side, false),
            Step::Writes(side) => self.writes(side, None),
            Step::DeviceGiven => self.device_given(),
            Step::DeviceStands => self.device_stands(),
            Step::RunsByItself => self.runs_by_itself(),
            Step::DeviceArrives => self.wire.device = DeviceStream::Arrived,
            Step::DeviceLoads => self.device_loads(false),
            Step::RoundArrives => self.round_arrives(false),
            Step::Ticks(Side::Source) => self.feed_source(SOON, SourceEvent::Tick),
            Step::Ticks(Side::Destination) => self.feed_destination(SOON, DestinationEvent::Tick),
            Step::Asks => self.ask(Question::Asked),
            Step::QuestionArrives => self.question_arrives(),
            Step::AnswerArrives { committed } => self.answer_arrives(committed),
            Step::Returns => self.return_source(),
            Step::Fetches => self.fetch(),
            Step::WaitsInVain => self.feed_destination(SILENT_FOR_LONG, DestinationEvent::Tick),
            Step::Restarts(Side::Source) => self.restart_source(),
            Step::Restarts(Side::Destination) => self.restart_destination(),
            Step::Exits(death) => self.die(death),
            Step::Fault(fault) => {
                self.faults_left -= 1;
                self.strike(fault);
            }
        }
        self.check();
    }

    fn strike(&mut self, fault: Fault) {
        match fault {
            Fault::Cut {
                to_source,
                to_destination,
            } => {
                self.wire.to_mut(Side::Source).cut(to_source);
                self.wire.to_mut(Side::Destination).cut(to_destination);
                self.break_device();
            }
            Fault::CutDevice => self.break_device(),
            Fault::Kill(death) => self.die(death),
            Fault::KillVmm {
                side: Side::Source,
                replaced,
            } => self.kill_source_vmm(replaced),
            Fault::KillVmm {
                side: Side::Destination,
                replaced,
            } => self.kill_destination_vmm(replaced),
            Fault::FailVmm(side) => self.vmm_obeys(side, true),
            Fault::FailLoad => self.device_loads(true),
            Fault::FailJournal(side, how) => self.writes(side, Some(how)),
            Fault::Silence(Side::Source) => self.feed_source(SILENT, SourceEvent::Tick),
            Fault::Silence(Side::Destination) => {
                self.feed_destination(SILENT, DestinationEvent::Tick);
            }
            Fault::LongSilence => {
                self.feed_destination(SILENT_FOR_LONG, DestinationEvent::Tick);
            }
            Fault::Cancel(Side::Source) => self.feed_source(NOW, SourceEvent::Cancel),
            Fault::Cancel(Side::Destination) => {
                self.feed_destination(NOW, DestinationEvent::Cancel);
            }
            Fault::Damage => self.round_arrives(true),
            Fault::Missed => self.source_told(SourceDone::SampleRead, 1),
            Fault::NoPostcopy => self.no_postcopy(),
            Fault::LoseAnswer { answered } => {
                self.take_question(answered.map_or(Question::Asked, Question::Answered));
            }
            Fault::RepeatQuestion => self.ask(Question::Asked),
        }
    }

    fn hears(&mut self, side: Side) {
        let Some(heard) = self.wire.to_mut(side).hear() else {
            return;
        };
        match (side, heard) {
            (Side::Source, Heard::Message(message)) => {
                self.feed_source(NOW, SourceEvent::Peer(message));
            }
            (Side::Source, Heard::Lost) => {
                self.feed_source(NOW, SourceEvent::PeerLost(String::new()));
            }
            (Side::Destination, Heard::Message(message)) => {
                self.feed_destination(NOW, DestinationEvent::Peer(message));
            }
            (Side::Destination, Heard::Lost) => {
                self.feed_destination(NOW, DestinationEvent::PeerLost(String::new()));
            }
        }
    }

    fn vmm_obeys(&mut self, side: Side, fails: bool) {
        match side {
            Side::Source => self.source_obeys(fails),
            Side::Destination => self.destination_obeys(fails),
        }
    }

    fn writes(&mut self, side: Side, fault: Option<JournalFault>) {
        match side {
            Side::Source => self.source_writes(fault),
            Side::Destination => self.destination_writes(fault),
        }
    }
}
