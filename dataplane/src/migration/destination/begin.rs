//! How a migration begins at its destination: by an offer.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::{MigrationId, Role, TransferSettings};
use dwcp_journal::GuestMemory;
use dwcp_proto::{Destination, DestinationConfig, DestinationEvent};
use dwcp_wire::{Capabilities, Control, Offer};

use super::{DestinationDriver, DestinationInput, FIRST_SILENCE};
use crate::engine::Mailbox;
use crate::migration::control_writer::ControlWriter;
use crate::migration::destination_found::Finding;
use crate::migration::destination_postcopy::Postcopy;
use crate::migration::meter::Meter;
use crate::migration::node::{JournalScope, Node};
use crate::migration::peer;
use crate::migration::recorder::{Recorder, Subject, tls_report};
use crate::tls::Connection;

/// Takes a migration that a source offers on `stream`, to its end. Runs on the caller's thread.
pub(in crate::migration) fn run(
    node: &Arc<Node>,
    (stream, source_can): (Connection, Capabilities),
    offer: Offer,
    settings: TransferSettings,
    meter: &Arc<Meter>,
) -> Result<(), String> {
    let id = MigrationId(offer.migration);
    if node.incoming(id).is_some() {
        return Err(format!("migration {id} is under way already"));
    }
    let machine = Destination::new(DestinationConfig {
        silence_ns: FIRST_SILENCE.as_nanos() as u64,
    });
    let journal = scope(&stream, &offer);
    let mut driver = driver(node, (machine, journal), offer.clone(), settings, meter)?;
    driver.source_can = source_can;
    driver.recorder.tls = tls_report(&stream);
    let silence = Duration::from_millis(offer.peer_silence_ms.into()).min(FIRST_SILENCE * 6);
    let control = stream
        .try_clone()
        .and_then(|stream| ControlWriter::new(stream, silence, meter))
        .map_err(|error| error.to_string())?;
    driver.control = Some(control);
    listen_to_peer(stream, driver.mailbox.clone(), meter).map_err(|error| error.to_string())?;
    let offered = DestinationEvent::Peer(Control::Offer(offer));
    driver.pending.push_back(offered);
    node.incoming_began(id, driver.mailbox.clone());
    driver.run();
    Ok(())
}

/// A driver that has done nothing yet, and is known to the node.
pub(super) fn driver(
    node: &Arc<Node>,
    (machine, journal): (Destination, JournalScope),
    offer: Offer,
    settings: TransferSettings,
    meter: &Arc<Meter>,
) -> Result<DestinationDriver, String> {
    let id = MigrationId(offer.migration);
    let mut recorder = Recorder::new(Subject {
        id,
        vm: offer.vm.clone(),
        role: Role::Destination,
        peer: offer.source_node.clone(),
        mode: settings.mode.clone(),
        meter: Arc::clone(meter),
    });
    recorder.dry_run = offer.dry_run;
    recorder.ram_bytes = offer.ram.iter().map(|block| block.bytes).sum();
    let mailbox = Mailbox::new().map_err(|error| error.to_string())?;
    let handle = node.register(id, recorder.status(machine.phase(), false, None));
    Ok(DestinationDriver {
        node: Arc::clone(node),
        settings,
        handle,
        journal,
        machine,
        mailbox,
        pending: VecDeque::new(),
        offer,
        recorder,
        control: None,
        source_can: Capabilities::default(),
        rdma: None,
        relay: None,
        joined: vec![],
        expected: None,
        workers: vec![],
        session: None,
        vm: None,
        vm_taken: false,
        began: false,
        copy_stays: false,
        vm_stop: Arc::default(),
        device_thread: None,
        ram_thread: None,
        finding: Finding::default(),
        postcopy: Postcopy::default(),
        round: vec![],
        round_began: Instant::now(),
        questions: vec![],
        peer_lost: false,
        source_heard: None,
        generations: vec![],
        lost: vec![],
        outcome: None,
        turn: None,
    })
}

fn scope(stream: &Connection, offer: &Offer) -> JournalScope {
    // The port is this connection's, not its data plane's.
    let address = stream.peer_addr().map(|address| address.ip().to_string());
    JournalScope {
        migration: MigrationId(offer.migration),
        vm: offer.vm.clone(),
        role: Role::Destination,
        peer_node: offer.source_node.clone(),
        peer_address: address.unwrap_or_default(),
        tls: stream.is_sealed(),
        epoch: offer.epoch,
        memory: GuestMemory::default(),
    }
}

/// Hears control messages on a thread of its own.
pub(in crate::migration) fn listen_to_peer(
    stream: Connection,
    reader: Mailbox<DestinationInput>,
    meter: &Arc<Meter>,
) -> std::io::Result<()> {
    peer::spawn_reader(
        stream,
        meter,
        |_, _| true,
        move |message| {
            let event = match message {
                Ok(message) => DestinationEvent::Peer(message),
                Err(error) => DestinationEvent::PeerLost(format!("control connection: {error}")),
            };
            let event = DestinationInput::Event(event);
            let taken = reader.push_within(event, FIRST_SILENCE);
            if taken.is_err() {
                tracing::error!("destination driver hangs, or has ended");
            }
            taken.is_ok()
        },
    )
}
