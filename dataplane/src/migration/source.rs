//! The source's driver: events into the machine, actions out of it, until it is finished.

mod again;
mod begin;
mod end;
mod pace;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_api::{MigrationId, TransferSettings};
use dwcp_proto::{
    Instant as ProtoInstant, Outcome, Phase, RoundLimits, Source, SourceAction, SourceEvent,
};
use dwcp_wire::{AbortCode, Capabilities, Control};

use super::admission::{Turn, at_once};
use super::control_writer::ControlWriter;
use super::handle::MigrationHandle;
use super::node::{JournalScope, Node, PeerNode};
use super::peer::PeerError;
use super::recorder::{BeforeRound, Recorder};
use super::relay::Relay;
use super::secure::Way;
use super::shares::Share;
use super::source_asks::{Asked, Held};
use super::source_dial::Dialled;
use super::source_forecast::Writing;
use super::source_grants::ReaderFound;
use super::source_path::PathWatch;
use super::source_paths::PathsTried;
use super::source_postcopy::{BackAgain, ServeEnded, Serving};
use super::source_streams::Streams;
use crate::engine::{
    Mailbox, Question, Reread, Session, SourceCommand, WorkerEvent, WorkerHandle, WorkerRound,
};
use crate::path::{Lanes, RoundWork};
use crate::vmm::tracker::DirtyTracker;
use crate::vmm::{Throttle, Vm};

pub(super) use again::serve_again;
pub(super) use begin::{random, start};

/// Between looks at the clock, at cancel requests, and updates of what is shown.
const TICK: Duration = Duration::from_millis(50);

/// This node was busy with something else, or stopped, if so much time lies between two looks.
const STALL: Duration = Duration::from_millis(500);

/// What is asked of a source.
#[derive(Clone, Debug)]
pub(super) struct Request {
    pub(super) id: MigrationId,
    pub(super) vm: String,
    pub(super) destination: PeerNode,
    pub(super) settings: TransferSettings,
    pub(super) dry_run: bool,
}

/// What reaches the driver.
#[derive(Debug)]
pub(super) enum SourceInput {
    /// An event for the machine.
    Event(SourceEvent),
    /// The destination has answered to the first words, or nobody has.
    Greeted(Result<Capabilities, PeerError>),
    /// A worker speaks.
    Worker(WorkerEvent),
    /// A further connection was made, or could not be.
    Dialled(Dialled),
    /// The device connection is over.
    DeviceLost(String),
    /// RAM was read again.
    Reread(Reread),
    /// The destination is to be asked for pages.
    Question(Question),
    /// A connection for missing pages ended.
    ServeEnded(ServeEnded),
    /// There is a way for the destination to read, or none.
    ReaderFound(ReaderFound),
    /// The destination is connected to again.
    BackAgain(BackAgain),
    /// There is nothing more to ask for.
    AllAsked(Result<(), String>),
    /// A dry run knows which paths can be taken.
    PathsTried(PathsTried),
    /// It may begin: few are under way at a time.
    Admitted,
}

impl From<WorkerEvent> for SourceInput {
    fn from(event: WorkerEvent) -> Self {
        Self::Worker(event)
    }
}

/// The driver and all it holds. Fields drop in order: connections before memory.
#[derive(Debug)]
pub(super) struct SourceDriver {
    pub(super) node: Arc<Node>,
    pub(super) request: Request,
    pub(super) handle: Arc<MigrationHandle>,
    pub(super) journal: JournalScope,
    pub(super) machine: Source,
    pub(super) mailbox: Mailbox<SourceInput>,
    pub(super) pending: VecDeque<SourceEvent>,
    pub(super) recorder: Recorder,
    /// TLS or plain text.
    pub(super) way: Way,
    pub(super) control: Option<ControlWriter>,
    /// What both nodes can do, once the destination has answered to the first words.
    pub(super) can: Option<Capabilities>,
    /// Where the control connection has led; streams go there too.
    pub(super) peer: Option<SocketAddr>,
    pub(super) relay: Option<Relay>,
    pub(super) streams: Streams,
    pub(super) path: PathWatch,
    pub(super) workers: Vec<WorkerHandle<SourceCommand>>,
    /// How they share a round, on a machine of several nodes.
    pub(super) lanes: Option<Arc<Lanes>>,
    pub(super) tracker: Box<dyn DirtyTracker>,
    pub(super) session: Arc<Session>,
    pub(super) vm: Arc<Mutex<Box<dyn Vm>>>,
    pub(super) vm_stop: Arc<AtomicBool>,
    pub(super) device_thread: Option<JoinHandle<()>>,
    pub(super) asking: Option<Asked>,
    /// What the destination has of the VM, before it is asked for pages.
    pub(super) held: Option<Held>,
    pub(super) serving: Serving,
    pub(super) round: Option<RoundUnderWay>,
    /// CPU time that the guest is without.
    pub(super) throttle: Option<Throttle>,
    pub(super) collected_at: Option<Instant>,
    pub(super) writing: Writing,
    /// A dry run: the destination's answer, while the guest is looked at.
    pub(super) agreed: Option<SourceEvent>,
    pub(super) query_under_way: Arc<AtomicBool>,
    pub(super) outcome: Option<Outcome>,
    /// Its place among the migrations of this node.
    pub(super) turn: Option<Turn>,
    /// What it has of the node's bandwidth, where that is limited.
    pub(super) share: Option<Share>,
    /// Its own limit.
    pub(super) limit_bytes_per_s: u64,
}

/// The round that the workers are at.
#[derive(Debug)]
pub(super) struct RoundUnderWay {
    pub(super) work: Arc<RoundWork>,
    pub(super) began: Instant,
    pub(super) scan_ms: f64,
    pub(super) dirty_ns: u64,
    pub(super) parts: Vec<WorkerRound>,
    /// When all parts were there, while the destination had still to answer: that is no time of the link.
    pub(super) waits_since: Option<Instant>,
    pub(super) waited_ms: f64,
    /// What was recorded before any of them.
    pub(super) before: BeforeRound,
}

impl SourceDriver {
    fn run(mut self) {
        self.queue();
        self.drive();
    }

    fn drive(mut self) {
        let (mut ticked, mut stalled) = (Instant::now(), false);
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
            let since = ticked.elapsed();
            if since >= TICK {
                ticked = Instant::now();
                // Whoever was stopped, or busy for long, judges nobody's silence before it has listened.
                stalled = since >= STALL && !stalled;
                if !stalled {
                    self.feed(SourceEvent::Tick);
                }
                self.check_streams();
                self.pace();
            }
            if self.handle.take_cancel() {
                self.feed(SourceEvent::Cancel);
            }
            while let Some(tune) = self.handle.take_tune() {
                self.tune(tune);
            }
            if self.handle.has_settlement()
                && self.has_heard_all()
                && let Some(settlement) = self.handle.take_settlement()
            {
                self.settle(settlement);
            }
            self.watch_path();
            self.watch_writing();
            self.look_on();
            self.give_turn_up();
            self.publish();
        }
        // Who waits for it hears that it came too late.
        drop(self.handle.take_settlement());
        self.finish();
    }

    fn take(&mut self, input: SourceInput) {
        match input {
            SourceInput::Event(SourceEvent::Peer(Control::RdmaListens { address })) => {
                self.rdma_listens(address);
            }
            SourceInput::Event(SourceEvent::Peer(Control::HoldsBaseline { migration, is_all })) => {
                self.baseline_is_held(migration, is_all);
            }
            SourceInput::Event(SourceEvent::Peer(Control::RdmaKeysGone)) => {
                self.keys_are_gone();
            }
            SourceInput::Event(SourceEvent::Peer(Control::PagesRead(read))) => {
                self.recorder.pages_were_read(&read);
            }
            SourceInput::Event(event @ SourceEvent::Peer(Control::Accept { .. }))
                if self.request.dry_run =>
            {
                self.try_paths(event);
            }
            SourceInput::Event(event @ SourceEvent::Peer(Control::RoundReport { .. })) => {
                self.report_came(event);
            }
            SourceInput::Event(event) => self.feed(event),
            SourceInput::Greeted(outcome) => self.greeted(outcome),
            SourceInput::Worker(event) => self.worker_event(event),
            SourceInput::Dialled(dialled) => self.dialled(dialled),
            SourceInput::DeviceLost(reason) => self.device_lost(reason),
            SourceInput::Reread(read) => self.sample_was_read(read),
            SourceInput::Question(question) => self.question(question),
            SourceInput::AllAsked(asked) => self.all_asked(asked),
            SourceInput::ServeEnded(ended) => self.serve_ended(&ended),
            SourceInput::ReaderFound(found) => self.reader_found(found),
            SourceInput::BackAgain(back) => self.back_again(back),
            SourceInput::PathsTried(tried) => self.paths_tried(tried),
            SourceInput::Admitted => self.begin(),
        }
    }

    /// Takes all that came before an operator decides: an answer of the destination is in the mailbox before its
    /// question ends. `false` while one is under way, or when there is nothing left to decide.
    fn has_heard_all(&mut self) -> bool {
        loop {
            if self.outcome.is_some() || self.query_under_way.load(Ordering::Acquire) {
                return false;
            }
            if let Some(event) = self.pending.pop_front() {
                self.feed(event);
            } else if let Some(input) = self.mailbox.wait(Duration::ZERO) {
                self.take(input);
            } else {
                return true;
            }
        }
    }

    /// Waits for its turn in the loop, where a cancel is heard. A dry run moves nothing.
    fn queue(&mut self) {
        let mailbox = self.mailbox.clone();
        let begin = move || drop(mailbox.push(SourceInput::Admitted));
        if self.request.dry_run {
            return begin();
        }
        let at_once = at_once(&self.request.settings);
        let priority = self.request.settings.priority;
        self.turn = Some(self.node.admission.queue(at_once, priority, begin));
    }

    fn begin(&mut self) {
        self.recorder.begin();
        self.join_shares();
        // Shown now: the connection may take its time.
        let status = self.recorder.status(Phase::Negotiate, false, None);
        self.handle.publish(status);
        self.feed(SourceEvent::Start);
    }

    pub(super) fn feed(&mut self, event: SourceEvent) {
        tracing::debug!(migration = %self.request.id, phase = ?self.machine.phase(), ?event);
        self.note_moment(&event);
        for action in self.machine.on_event(self.now(), event) {
            tracing::debug!(migration = %self.request.id, ?action);
            self.perform(action);
        }
    }

    /// The machine's clock starts at 1 with the migration.
    fn now(&self) -> ProtoInstant {
        ProtoInstant(self.recorder.started().elapsed().as_nanos() as u64 + 1)
    }

    pub(super) const fn limits(&self) -> RoundLimits {
        begin::limits(&self.request.settings)
    }

    pub(super) fn perform(&mut self, action: SourceAction) {
        match action {
            SourceAction::Connect => self.connect(),
            SourceAction::Send(message) => self.send(&message),
            SourceAction::ArmTracker => self.arm_tracker(),
            SourceAction::OpenStreams { token, streams } => self.open_streams(token, streams),
            SourceAction::AskForPages { seed } => self.ask_for_pages(seed),
            SourceAction::TakeFound(found) => self.take_found(&found),
            SourceAction::StartRound {
                round,
                again,
                everything,
            } => {
                self.start_round(round, &again, everything);
            }
            SourceAction::Throttle { percent } => self.take_cpu_time(percent),
            SourceAction::OpenMissing => self.open_missing(),
            SourceAction::NameMissingAhead { again } => self.name_missing_ahead(&again),
            SourceAction::NameMissing { round } => self.name_missing(round),
            SourceAction::ServeAgain => self.serve_again(),
            SourceAction::ReadRoot => self.read_root(),
            SourceAction::PauseVm => self.pause_vm(),
            SourceAction::ReadSample => self.read_sample(),
            SourceAction::SendDeviceState => self.send_device_state(),
            SourceAction::Journal(entry) => match self.journal.write_entry(&self.node, &entry) {
                Ok(()) => self.pending.push_back(SourceEvent::Journaled(entry)),
                Err(reason) => {
                    tracing::error!(reason, ?entry, "journal");
                    self.journal.write_at_last(&self.node, &entry);
                    self.fail(AbortCode::Journal, reason);
                }
            },
            SourceAction::QueryOwner { epoch } => self.query_owner(epoch),
            SourceAction::ResumeVm => self.resume_vm(),
            SourceAction::Finish(outcome) => self.outcome = Some(outcome),
        }
    }

    pub(super) fn fail(&mut self, code: AbortCode, reason: String) {
        self.pending.push_back(SourceEvent::Failed(code, reason));
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
            WorkerEvent::RoundSent(part) => self.round_part(part),
            WorkerEvent::StreamLost { stream, reason, .. } => self.data_stream_lost(stream, reason),
            WorkerEvent::StreamResumed {
                stream,
                carried,
                pages,
                bytes,
            } => self.stream_resumed(stream, carried, (pages, bytes)),
            WorkerEvent::PeerBroke { stream, reason } => {
                let reason = format!("stream {stream}: {reason}");
                self.feed(SourceEvent::Failed(AbortCode::Protocol, reason));
            }
            WorkerEvent::Failed(reason) => {
                self.feed(SourceEvent::Failed(AbortCode::Other, reason));
            }
            WorkerEvent::StreamRound(_) => {}
        }
    }

    /// Once handover is sent, only the control connection counts: a destination that has taken over
    /// closes the others, perhaps before its last words are read.
    pub(super) fn peer_lost(&mut self, reason: String) {
        if self.machine.phase() >= Phase::Handover {
            tracing::debug!(reason, "after the handover");
            return;
        }
        self.feed(SourceEvent::PeerLost(reason));
    }

    /// One that waits for another node, perhaps for ever, is in nobody's way.
    fn give_turn_up(&mut self) {
        if self.machine.is_in_doubt() || self.machine.is_cut_off() {
            (self.turn, self.share) = (None, None);
        }
    }
}
