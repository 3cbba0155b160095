//! How a migration begins at its source: all that can be checked at once, and all that the driver needs.

use std::collections::VecDeque;
use std::sync::mpsc::sync_channel;
use std::sync::{Arc, Mutex};

use dwcp_api::{ApiError, ErrorCode, NotConverged, Role, TransferSettings, Verify};
use dwcp_journal::{GuestMemory, RecordKind};
use dwcp_proto::{IfNotConverged, RoundLimits, Source, SourceConfig};
use dwcp_wire::Offer;

use super::pace::bytes_per_s;
use super::{Request, SourceDriver, SourceInput};
use crate::engine::{Mailbox, Session};
use crate::migration::handle::MigrationHandle;
use crate::migration::node::{JournalScope, Node, check_running};
use crate::migration::placement::{ACK_BYTES_MIN, stream_window};
use crate::migration::recorder::{Recorder, Subject};
use crate::migration::secure::Way;
use crate::migration::source_forecast::Writing;
use crate::migration::source_path::PathWatch;
use crate::migration::source_paths::check_paths;
use crate::migration::source_postcopy::Serving;
use crate::migration::source_rdma::check_choice;
use crate::migration::source_streams::Streams;
use crate::migration::vms::api_error;
use crate::ram::RamLayout;
use crate::vmm::tracker::{self, DirtyTracker};
use crate::vmm::{self, Vm};

/// Checks what can be checked at once, then moves the VM on a thread of its own.
pub(in crate::migration) fn start(node: &Arc<Node>, request: &Request) -> Result<(), ApiError> {
    start_on(node, request, |run| {
        let thread = std::thread::Builder::new().name("dwcp-source".into());
        thread.spawn(run).map(drop)
    })
}

/// The thread is there before the journal says that the migration began: otherwise nobody might be
/// left to end it.
fn start_on(
    node: &Arc<Node>,
    request: &Request,
    spawn: impl FnOnce(Box<dyn FnOnce() + Send>) -> std::io::Result<()>,
) -> Result<(), ApiError> {
    let way = Way::choose(node, &request.settings, &request.destination)?;
    check_choice(&request.settings, way.is_tls())?;
    check_paths(&request.settings)?;
    let attachment = node.take_vm(&request.vm, request.id)?;
    let (give, taken) = sync_channel::<SourceDriver>(1);
    let run = move || {
        if let Ok(driver) = taken.recv() {
            driver.run();
        }
    };
    let started = spawn(Box::new(run))
        .map_err(|error| ApiError::new(ErrorCode::System, format!("no thread: {error}")))
        .and_then(|()| prepare(node, request, &attachment, way));
    match started {
        Ok(driver) => {
            // The thread waits for nothing else.
            let _ = give.send(driver);
            Ok(())
        }
        Err(error) => {
            node.give_vm(&request.vm);
            Err(error)
        }
    }
}

fn prepare(
    node: &Arc<Node>,
    request: &Request,
    attachment: &dwcp_api::Attachment,
    way: Way,
) -> Result<SourceDriver, ApiError> {
    let refused = |error| api_error(&request.vm, &error);
    let system = |error: std::io::Error| ApiError::new(ErrorCode::System, error.to_string());
    let mut vm = vmm::open(attachment).map_err(refused)?;
    let facts = vm.facts().map_err(refused)?;
    check_running(&facts.state).map_err(|text| {
        ApiError::new(
            ErrorCode::VmUnsuitable,
            format!("VM {}: {text}", request.vm),
        )
        .with_hint("only a running guest is moved; resume it, or attach the right VM")
    })?;
    let layout = vm.ram().map_err(refused)?;
    let choice = request.settings.tracker;
    let chosen = tracker::choose(choice, &mut *vm, &layout, facts.pid).map_err(refused)?;
    let epoch = node.journal().state().epoch_of(&request.vm);
    let seed = (random()? & u128::from(u64::MAX)) as u64;
    let machine = machine(request, offer(node, request, &facts, epoch, seed));
    let mut recorder = recorder(request, chosen.tracker.name(), layout.bytes());
    for note in chosen.notes {
        recorder.note(note);
    }
    let journal = JournalScope {
        migration: request.id,
        vm: request.vm.clone(),
        role: Role::Source,
        peer_node: request.destination.name().to_owned(),
        peer_address: request.destination.address.clone(),
        tls: way.is_tls(),
        epoch,
        memory: GuestMemory::default(),
    };
    let mailbox = Mailbox::new().map_err(system)?;
    journal
        .write(
            node,
            RecordKind::Begin {
                attachment: attachment.clone(),
            },
        )
        .map_err(|error| ApiError::new(ErrorCode::System, error))?;
    let handle = node.register(request.id, recorder.status(machine.phase(), false, None));
    Ok(driver(Parts {
        node: Arc::clone(node),
        session: session(layout, seed, &request.settings),
        request: request.clone(),
        handle,
        journal,
        machine,
        mailbox,
        recorder,
        way,
        tracker: chosen.tracker,
        vm,
    }))
}

/// What a driver begins with.
pub(super) struct Parts {
    pub(super) node: Arc<Node>,
    pub(super) request: Request,
    pub(super) handle: Arc<MigrationHandle>,
    pub(super) journal: JournalScope,
    pub(super) machine: Source,
    pub(super) mailbox: Mailbox<SourceInput>,
    pub(super) recorder: Recorder,
    pub(super) way: Way,
    pub(super) tracker: Box<dyn DirtyTracker>,
    pub(super) session: Session,
    pub(super) vm: Box<dyn Vm>,
}

/// A driver that has done nothing yet.
pub(super) fn driver(parts: Parts) -> SourceDriver {
    let limit_bytes_per_s = bytes_per_s(parts.request.settings.bandwidth_limit_mbit);
    SourceDriver {
        node: parts.node,
        session: Arc::new(parts.session),
        request: parts.request,
        handle: parts.handle,
        journal: parts.journal,
        machine: parts.machine,
        mailbox: parts.mailbox,
        pending: VecDeque::new(),
        recorder: parts.recorder,
        way: parts.way,
        control: None,
        can: None,
        peer: None,
        relay: None,
        streams: Streams::default(),
        path: PathWatch::default(),
        workers: vec![],
        lanes: None,
        tracker: parts.tracker,
        vm: Arc::new(Mutex::new(parts.vm)),
        vm_stop: Arc::default(),
        device_thread: None,
        asking: None,
        held: None,
        serving: Serving::default(),
        round: None,
        throttle: None,
        collected_at: None,
        agreed: None,
        writing: Writing::default(),
        query_under_way: Arc::default(),
        outcome: None,
        turn: None,
        share: None,
        limit_bytes_per_s,
    }
}

/// What is remembered costs memory, and is of use with a codec that can.
pub(super) fn session(layout: RamLayout, seed: u64, settings: &TransferSettings) -> Session {
    let session = Session::new(layout, seed, settings.codec)
        .paced(bytes_per_s(settings.bandwidth_limit_mbit));
    if settings.codec.looks_back() {
        session.remembering(settings.remember_bytes)
    } else {
        session
    }
}

fn machine(request: &Request, offer: Offer) -> Source {
    let settings = &request.settings;
    Source::new(SourceConfig {
        offer,
        limits: limits(settings),
        deadline_ns: u64::from(settings.deadline_ms) * 1_000_000,
        silence_ns: u64::from(settings.peer_silence_ms) * 1_000_000,
    })
}

pub(super) const fn limits(settings: &TransferSettings) -> RoundLimits {
    RoundLimits {
        downtime_ns_max: settings.downtime_limit_ms as u64 * 1_000_000,
        downtime_ns_at_last: settings.downtime_limit_at_last_ms as u64 * 1_000_000,
        rounds_max: settings.rounds_max,
        throttle_percent_max: settings.throttle_percent_max,
        if_not_converged: match settings.if_not_converged {
            NotConverged::Abort => IfNotConverged::Abort,
            NotConverged::SwitchOver => IfNotConverged::SwitchOver,
            NotConverged::PostCopy => IfNotConverged::PostCopy,
        },
    }
}

pub(super) fn recorder(request: &Request, tracker: &str, ram_bytes: u64) -> Recorder {
    let mut recorder = Recorder::new(Subject {
        id: request.id,
        vm: request.vm.clone(),
        role: Role::Source,
        peer: request.destination.name().to_owned(),
        mode: request.settings.mode.clone(),
        meter: Arc::default(),
    });
    recorder.dry_run = request.dry_run;
    recorder.tracker = tracker.to_owned();
    recorder.ram_bytes = ram_bytes;
    recorder
}

const _: () = assert!(dwcp_api::STREAMS_MAX as usize == dwcp_wire::limits::STREAMS_MAX);

pub(super) fn offer(
    node: &Node,
    request: &Request,
    facts: &vmm::VmFacts,
    epoch: u64,
    fingerprint_seed: u64,
) -> Offer {
    let settings = &request.settings;
    let window = stream_window(settings.window_bytes, settings.streams);
    Offer {
        migration: request.id.0,
        vm: request.vm.clone(),
        source_node: node.options().name.clone(),
        epoch,
        vmm: facts.kind.to_owned(),
        ram: facts.ram.clone(),
        streams: settings.streams,
        fingerprint_seed,
        verify_full: settings.verify == Verify::Full,
        sample_pages: settings.sample_pages,
        ack_bytes: (window / 4).max(ACK_BYTES_MIN),
        peer_silence_ms: settings.peer_silence_ms,
        dry_run: request.dry_run,
        reuse: settings.reuse,
    }
}

/// 128 bits that nobody can guess.
pub(in crate::migration) fn random() -> Result<u128, ApiError> {
    let mut bytes = [0; 16];
    std::fs::File::open("/dev/urandom")
        .and_then(|mut file| std::io::Read::read_exact(&mut file, &mut bytes))
        .map_err(|error| ApiError::new(ErrorCode::System, format!("/dev/urandom: {error}")))?;
    Ok(u128::from_ne_bytes(bytes))
}

#[cfg(test)]
#[path = "begin_tests.rs"]
mod tests;
