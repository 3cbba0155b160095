//! The destination's driver.

mod again;
mod begin;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::SyncSender;
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_api::counters::Counters;
use dwcp_api::{PhaseName, TransferSettings};
use dwcp_proto::{
    Destination, DestinationAction, DestinationEvent, Ending, Instant as ProtoInstant,
    JournalEntry, Outcome, Phase,
};
use dwcp_wire::{AbortCode, Capabilities, Control, HEADER_BYTES, Offer, StreamHello};

use super::admission::Turn;
use super::baseline;
use super::control_writer::ControlWriter;
use super::destination_found::{Finding, Looked};
use super::destination_postcopy::Postcopy;
use super::destination_streams::{LostConnection, StreamJoin};
use super::handle::MigrationHandle;
use super::node::{JournalScope, Node};
use super::postcopy::FetchEvent;
use super::recorder::{End, Fetching, Recorder, no_outcome};
use super::relay::Relay;
use crate::engine::{
    DestinationCommand, Found, Mailbox, NotWiped, Reread, Session, StreamRound, WorkerEvent,
    WorkerHandle,
};
use crate::tls::Connection;
use crate::transport::RdmaMemory;
use crate::vmm::Vm;

pub(super) use again::fetch_again;
pub(super) use begin::{listen_to_peer, run};

const TICK: Duration = Duration::from_millis(50);

/// A source that has heard the end closes the connection, after a few round trips at most.
const HEAR_OUT_TIME: Duration = Duration::from_secs(5);

/// Who comes in waits in the order in which they came.
const SAME_PRIORITY: u8 = 0;

/// Silence limit until an offer says another.
const FIRST_SILENCE: Duration = Duration::from_secs(10);

/// What reaches the driver.
#[derive(Debug)]
pub(super) enum DestinationInput {
    /// An event for the machine.
    Event(DestinationEvent),
    /// A worker speaks.
    Worker(WorkerEvent),
    /// A stream joins.
    Join(StreamJoin),
    /// The source asks on another connection who owns the VM.
    OwnerQuery(SyncSender<bool>),
    /// The device connection is over.
    DeviceLost(String),
    /// RAM was read again.
    Reread(Reread),
    /// It may come in: as many do at once as the node allows.
    Admitted,
    /// RAM holds nothing any more of what it held before; the pages that had to be looked at.
    Wiped(Result<u64, NotWiped>),
    /// Before that: keys that the source has are good no more.
    KeysGone,
    /// Whether there is anything to find is known.
    Looked(Looked),
    /// Missing pages come, or do not.
    Fetch(FetchEvent),
    /// The VM answers again, after a restart.
    VmIsBack(Box<dyn Vm>),
    /// The source connects again, in post-copy.
    SourceIsBack(Connection),
    /// Pages were looked for.
    Found(Result<Found, String>),
    /// The guest is not this node's any more, by an operator's word.
    GivenUp(String),
}

impl From<WorkerEvent> for DestinationInput {
    fn from(event: WorkerEvent) -> Self {
        Self::Worker(event)
    }
}

/// The driver and all it holds. Fields drop in order: connections before memory.
#[derive(Debug)]
pub(super) struct DestinationDriver {
    pub(super) node: Arc<Node>,
    pub(super) settings: TransferSettings,
    pub(super) offer: Offer,
    pub(super) handle: Arc<MigrationHandle>,
    pub(super) journal: JournalScope,
    pub(super) machine: Destination,
    pub(super) mailbox: Mailbox<DestinationInput>,
    pub(super) pending: VecDeque<DestinationEvent>,
    pub(super) recorder: Recorder,
    /// None until the source is back, where this data plane was started anew.
    pub(super) control: Option<ControlWriter>,
    /// What the source can do.
    pub(super) source_can: Capabilities,
    /// RAM as an adapter knows it, if streams may be queue pairs.
    pub(super) rdma: Option<Arc<RdmaMemory>>,
    pub(super) relay: Option<Relay>,
    pub(super) joined: Vec<StreamJoin>,
    pub(super) expected: Option<(u128, u16)>,
    pub(super) workers: Vec<WorkerHandle<DestinationCommand>>,
    pub(super) session: Option<Arc<Session>>,
    pub(super) vm: Option<Arc<Mutex<Box<dyn Vm>>>>,
    pub(super) vm_taken: bool,
    /// `Begin` is in the journal.
    pub(super) began: bool,
    /// The VMM could not be made to forget what was loaded.
    pub(super) copy_stays: bool,
    pub(super) vm_stop: Arc<AtomicBool>,
    pub(super) device_thread: Option<JoinHandle<()>>,
    /// Reads or writes RAM: it must have ended before the VM is given to anybody else.
    pub(super) ram_thread: Option<JoinHandle<()>>,
    /// Pages that the source asks for, until round 0 is here.
    pub(super) finding: Finding,
    pub(super) postcopy: Postcopy,
    pub(super) round: Vec<StreamRound>,
    pub(super) round_began: Instant,
    pub(super) questions: Vec<SyncSender<bool>>,
    /// The source, or the way to it, is gone: it may come again.
    pub(super) peer_lost: bool,
    /// When the source was heard last; `None` when the connection to it is known to be lost.
    pub(super) source_heard: Option<Instant>,
    /// Connections of each data stream so far.
    pub(super) generations: Vec<u16>,
    /// Connections that ended.
    pub(super) lost: Vec<LostConnection>,
    pub(super) outcome: Option<Outcome>,
    /// Its place among the migrations that come in, where there is a limit.
    pub(super) turn: Option<Turn>,
}

impl DestinationDriver {
    fn run(mut self) {
        let mut ticked = Instant::now();
        while self.outcome.is_none() {
            while let Some(event) = self.pending.pop_front() {
                self.feed(event);
            }
            if self.outcome.is_some() {
                break;
            }
            let control = self.control.as_mut();
            let most = control.map_or(TICK, |control| control.follow(TICK));
            if let Some(input) = self.mailbox.wait(most) {
                self.take(input);
            }
            // However much comes: the other side must hear that this one lives.
            if ticked.elapsed() >= TICK {
                ticked = Instant::now();
                self.feed(DestinationEvent::Tick);
            }
            if self.handle.take_cancel() {
                self.feed(DestinationEvent::Cancel);
            }
            if self.peer_lost {
                // It waits for the source, perhaps for ever: others may come in.
                self.turn = None;
            }
            self.end_fetching();
            if let Some(reason) = self.lost_for_good() {
                self.feed(DestinationEvent::PeerLost(reason));
            }
            self.publish();
        }
        self.finish();
    }

    fn take(&mut self, input: DestinationInput) {
        match input {
            DestinationInput::Event(DestinationEvent::Peer(Control::SourceListens { address })) => {
                self.journal.peer_address = address.to_string();
            }
            DestinationInput::Event(event) => {
                if let DestinationEvent::Peer(Control::RoundEnd { round: 0, .. }) = event
                    && self.machine.phase() == Phase::Precopy
                    && self.finding.is_open()
                {
                    self.first_round_ended();
                }
                self.feed(event);
            }
            DestinationInput::Admitted => self.prepare_vm(),
            DestinationInput::GivenUp(reason) => {
                let result = Ending::Failed;
                self.outcome = Some(Outcome { result, reason });
            }
            DestinationInput::Worker(event) => self.worker_event(event),
            DestinationInput::DeviceLost(reason) => self.connection_lost(None, reason),
            DestinationInput::Reread(read) => self.was_reread(read),
            DestinationInput::Wiped(wiped) => self.was_wiped(wiped),
            DestinationInput::KeysGone => self.send(&Control::RdmaKeysGone),
            DestinationInput::Looked(looked) => self.was_looked_at(looked),
            DestinationInput::Found(found) => self.found_pages(found),
            DestinationInput::Fetch(event) => self.fetch_event(event),
            DestinationInput::VmIsBack(vm) => self.vm_is_back(vm),
            DestinationInput::SourceIsBack(connection) => self.source_is_back(connection),
            DestinationInput::Join(join) => {
                // Its hello was read before it was known to be ours.
                let hello_bytes = HEADER_BYTES + StreamHello::BYTES;
                self.recorder.meter.count_bytes(hello_bytes);
                self.join(join);
            }
            DestinationInput::OwnerQuery(answer) => {
                self.questions.push(answer);
                self.feed(DestinationEvent::OwnerQuery);
            }
        }
    }

    pub(super) fn feed(&mut self, event: DestinationEvent) {
        tracing::debug!(vm = self.offer.vm, phase = ?self.machine.phase(), ?event);
        self.peer_lost |= match &event {
            DestinationEvent::PeerLost(_) => true,
            DestinationEvent::Peer(message) => message.tells_lost_connection(),
            _ => false,
        };
        match &event {
            DestinationEvent::PeerLost(_) => self.source_heard = None,
            DestinationEvent::Peer(_) | DestinationEvent::SourceIsBack => {
                self.source_heard = Some(Instant::now());
            }
            _ => {}
        }
        let now = ProtoInstant(self.recorder.started().elapsed().as_nanos() as u64 + 1);
        let actions = self.machine.on_event(now, event);
        // Silence, too: the machine tells it before it discards what came.
        self.peer_lost |= actions.iter().any(|action| {
            matches!(action, DestinationAction::Send(message) if message.tells_lost_connection())
        });
        for action in actions {
            tracing::debug!(vm = self.offer.vm, ?action);
            self.perform(action);
        }
        self.use_links();
    }

    fn perform(&mut self, action: DestinationAction) {
        match action {
            DestinationAction::PrepareVm(_) => self.queue(),
            DestinationAction::Send(message) => self.send(&message),
            DestinationAction::FindPages(wanted) => self.find_pages(wanted),
            DestinationAction::ExpectStreams { token, streams } => {
                self.expect_streams(token, streams);
            }
            DestinationAction::PreparePostcopy => self.prepare_postcopy(),
            DestinationAction::NoteMissing(missing) => self.note_missing(&missing),
            DestinationAction::TakeMissingAhead => self.take_missing_ahead(),
            DestinationAction::TakeMissing => self.take_missing(),
            DestinationAction::Prove => self.prove(),
            DestinationAction::LoadDeviceState => self.load_device_state(),
            DestinationAction::Journal(entry) => self.write(entry),
            DestinationAction::ResumeVm => self.resume_vm(),
            DestinationAction::DiscardVm => self.discard_vm(),
            DestinationAction::AnswerOwner { committed } => {
                for question in self.questions.drain(..) {
                    let _ = question.send(committed);
                }
            }
            DestinationAction::Finish(outcome) => self.outcome = Some(outcome),
        }
    }

    fn write(&mut self, entry: JournalEntry) {
        // What never began here (a dry run, a refusal) has nothing to end. What could not be
        // discarded is not ended: a question of the source, or a restart, tries again.
        let is_over = matches!(entry, JournalEntry::Aborted { .. });
        let commits = matches!(entry, JournalEntry::Committed { .. });
        let written = if !self.began || (self.copy_stays && is_over) {
            Ok(())
        } else if let (true, Err(error)) = (commits, self.check_loaded()) {
            Err(format!(
                "its VMM does not stand ready here any more: {error}"
            ))
        } else {
            self.journal.write_entry(&self.node, &entry)
        };
        match written {
            Ok(()) => self.pending.push_back(DestinationEvent::Journaled(entry)),
            Err(reason) => {
                tracing::error!(reason, ?entry, "journal");
                self.journal.write_at_last(&self.node, &entry);
                let failed = DestinationEvent::Failed(AbortCode::Journal, reason);
                self.pending.push_back(failed);
            }
        }
    }

    /// Waits for its turn in the loop, where the source is heard, and told that this end lives. A dry run moves nothing.
    fn queue(&mut self) {
        let most = self.node.options().incoming_at_once;
        if most == 0 || self.offer.dry_run {
            return self.prepare_vm();
        }
        let mailbox = self.mailbox.clone();
        let admitted = move || drop(mailbox.push(DestinationInput::Admitted));
        self.turn = Some(self.node.admission_in.queue(most, SAME_PRIORITY, admitted));
    }

    pub(super) fn send(&mut self, message: &Control) {
        if let Control::Whole { verified, summary } = message {
            self.recorder.fetched(summary, *verified);
        }
        if matches!(message, Control::Accept { .. }) {
            let first = [self.offer_rdma(), self.tell_baseline()];
            first.iter().flatten().for_each(|first| self.send(first));
        }
        // Another round may follow, unless RAM is proven.
        if let (
            Control::RoundReport {
                pages_proven: None, ..
            },
            Some(session),
        ) = (message, &self.session)
        {
            session.unseal();
        }
        let (phase, control) = (self.machine.phase(), self.control.as_mut());
        let sent = control.map(|control| control.send_in(phase, message));
        if let Some(Err(error)) = sent {
            let reason = format!("control connection: {error}");
            self.pending.push_back(DestinationEvent::PeerLost(reason));
        }
    }

    fn worker_event(&mut self, event: WorkerEvent) {
        match event {
            WorkerEvent::Started { transport, notes } => {
                self.recorder.transport = transport.to_owned();
                for note in notes {
                    self.recorder.note(note);
                }
            }
            WorkerEvent::KernelSeals => self.recorder.count_kernel_stream(),
            WorkerEvent::StreamRound(part) => {
                self.recorder.carried_by(part.transport);
                self.round_part(part);
            }
            WorkerEvent::StreamLost {
                stream,
                generation,
                reason,
                bytes,
            } => {
                self.recorder.stream_broke(format!(
                    "stream {stream} broke after {bytes} bytes: {reason}"
                ));
                self.stream_lost(stream, generation, format!("stream {stream}: {reason}"));
            }
            WorkerEvent::PeerBroke { stream, reason } => {
                let reason = format!("stream {stream}: {reason}");
                self.feed(DestinationEvent::Failed(AbortCode::Protocol, reason));
            }
            WorkerEvent::Failed(reason) => {
                self.feed(DestinationEvent::Failed(AbortCode::Other, reason));
            }
            WorkerEvent::RoundSent(_) | WorkerEvent::StreamResumed { .. } => {}
        }
    }

    fn publish(&mut self) {
        let session = self.session.as_deref();
        self.recorder.fetching = self.postcopy.fetching();
        let phase = self.machine.phase();
        let mut status = self.recorder.status(phase, false, session);
        if phase == Phase::Postcopy && self.lacks_pages_and_source() {
            status.phase = PhaseName::PostcopyPaused;
        }
        self.handle.publish(status);
        let Fetching { left, named, .. } = self.recorder.fetching.unwrap_or_default();
        let counters = Counters {
            round: u64::from(self.recorder.round),
            pages_in_round: named,
            pages_done: match named {
                0 => session.map_or(0, Session::pages_done),
                named => named - left,
            },
            wire_bytes: self.recorder.wire_bytes(session),
            in_flight_bytes: 0,
            elapsed_ns: self.recorder.started().elapsed().as_nanos() as u64,
        };
        self.node.publish_counters(&self.handle, counters);
    }

    /// Waits for the threads that use the VM or its RAM; `vm_stop` is set, so they end soon.
    pub(super) fn join_helpers(&mut self) {
        self.finding.questions = None;
        let threads = [self.device_thread.take(), self.ram_thread.take()];
        for thread in threads.into_iter().flatten() {
            let _ = thread.join();
        }
    }

    fn finish(mut self) {
        self.vm_stop.store(true, Ordering::Release);
        if let Some((token, _)) = self.expected {
            self.node.no_more_joins(token);
        }
        // What comes for this migration from now on is answered by the journal.
        self.node.incoming_ended(self.handle.id);
        let workers = self.workers.iter_mut().map(WorkerHandle::stop).sum::<u64>();
        self.relay = None;
        self.postcopy.stop();
        self.join_helpers();
        if let Some(control) = &self.control {
            control.end();
        }
        let outcome = self.outcome.take().unwrap_or_else(no_outcome);
        let (owner, epoch) = self.journal.owner_after(&self.node, outcome.result);
        let session = self.session.as_deref();
        let report = self.recorder.report(&End {
            outcome: &outcome,
            owner,
            epoch,
            wire_bytes: self.recorder.wire_bytes(session),
            cpu_ns: workers + crate::cpu_time::thread_cpu_ns(),
        });
        tracing::info!(vm = self.offer.vm, result = ?report.result, reason = report.reason, "ended");
        let status = self.recorder.status(self.machine.phase(), false, session);
        if self.vm_taken {
            self.node.give_vm(&self.offer.vm);
        }
        if let Some(session) = self.session.as_ref()
            && outcome.result == Ending::Completed
            && self.offer.reuse
        {
            let (node, id) = (&self.node, self.offer.migration);
            baseline::keep_arrival(node, &self.offer.vm, id, session);
        }
        self.handle.finish(status, report);
        let (control, mailbox) = (self.control.take(), self.mailbox.clone());
        // Of a refusal nothing hangs by the last word, and anybody can have as many as he likes.
        let is_heard = self.source_heard.is_some() && outcome.result == Ending::Completed;
        drop(self);
        if let Some(control) = control {
            if is_heard {
                hear_out(&mailbox);
            }
            control.shut();
        }
    }
}

/// Hears what the source still says, until it ends the connection: what this node has said last may have been lost on its way.
fn hear_out(mailbox: &Mailbox<DestinationInput>) {
    let is_end = |input| {
        matches!(
            input,
            DestinationInput::Event(DestinationEvent::PeerLost(_))
        )
    };
    let began = Instant::now();
    while let Some(left) = HEAR_OUT_TIME.checked_sub(began.elapsed()) {
        if mailbox.wait(left).is_some_and(is_end) {
            return;
        }
    }
}
