//! What the destination's machine asks for, carried out.

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use dwcp_api::{ApiError, ErrorCode};
use dwcp_journal::RecordKind;
use dwcp_proto::DestinationEvent;
use dwcp_wire::{AbortCode, RefuseCode, StreamRole};

use super::destination::{DestinationDriver, DestinationInput, StreamJoin};
use super::node::lock;
use super::placement::place;
use super::relay::Relay;
use super::room::check_room;
use super::source::random;
use super::vms::is_moving;
use crate::engine::{
    DestinationCommand, Session, WorkerSettings, keep_allocated, spawn_destination_worker,
};
use crate::vmm::{self, VmmError};

pub(super) type Refusal = (RefuseCode, String);

impl DestinationDriver {
    pub(super) fn prepare_vm(&mut self) {
        let prepared = self.try_prepare_vm().and_then(|token| {
            if self.offer.reuse && !self.offer.dry_run {
                return self.look_at_ram(token);
            }
            self.vm_is_ready(token, None);
            Ok(())
        });
        if let Err((code, reason)) = prepared {
            let event = DestinationEvent::VmRefused(code, reason);
            self.pending.push_back(event);
        }
    }

    pub(super) fn vm_is_ready(&mut self, token: u128, content_seed: Option<u64>) {
        let streams = self.offer.streams.min(self.settings.streams.max(1));
        let event = DestinationEvent::VmReady {
            token,
            streams,
            content_seed,
        };
        self.pending.push_back(event);
    }

    fn try_prepare_vm(&mut self) -> Result<u128, Refusal> {
        let vm_failed = |error: VmmError| (RefuseCode::Other, error.to_string());
        let name = self.offer.vm.clone();
        let id = self.handle.id;
        let attachment = self.node.take_vm(&name, id).map_err(|error| {
            let busy = error.code == ErrorCode::Busy;
            let code = if busy {
                RefuseCode::Busy
            } else {
                RefuseCode::NoSuchVm
            };
            (code, for_peer(&self.node.options().name, &name, &error))
        })?;
        self.vm_taken = true;
        let known_epoch = self.node.journal().state().epoch_of(&name);
        if self.offer.epoch < known_epoch {
            let offered = self.offer.epoch;
            let text = format!(
                "epoch {offered} is older than {known_epoch}, known here: \
                                another copy of {name} was handed over since"
            );
            return Err((RefuseCode::StaleEpoch, text));
        }
        let mut vm = vmm::open(&attachment).map_err(vm_failed)?;
        let facts = vm.facts().map_err(vm_failed)?;
        if facts.kind != self.offer.vmm {
            let text = format!(
                "{name} is a {} here, a {} there",
                facts.kind, self.offer.vmm
            );
            return Err((RefuseCode::VmmDiffers, text));
        }
        self.check_ram(&facts.ram)?;
        vm.prepare_destination()
            .map_err(|error| (RefuseCode::Busy, error.to_string()))?;
        let layout = vm.ram().map_err(vm_failed)?;
        check_room(&layout)?;
        let random = random().map_err(|error| (RefuseCode::Other, error.to_string()))?;
        let seed = self.offer.fingerprint_seed;
        let session = Session::new(layout, seed, self.settings.codec);
        if !self.offer.dry_run {
            self.journal
                .write(&self.node, RecordKind::Begin { attachment })
                .map_err(|error| (RefuseCode::Other, error))?;
            self.began = true;
            // Otherwise it is looked at, on another thread.
            if !self.offer.reuse {
                keep_allocated(&session).map_err(|error| (RefuseCode::Other, error.to_string()))?;
            }
        }
        self.session = Some(Arc::new(session));
        self.vm = Some(Arc::new(Mutex::new(vm)));
        Ok(random)
    }

    fn check_ram(&self, here: &[dwcp_wire::RamBlockInfo]) -> Result<(), Refusal> {
        let there = &self.offer.ram;
        if here == &there[..] {
            return Ok(());
        }
        let show = |blocks: &[dwcp_wire::RamBlockInfo]| {
            let blocks: Vec<_> = blocks
                .iter()
                .map(|b| format!("{} {} MiB", b.name, b.bytes >> 20))
                .collect();
            blocks.join(", ")
        };
        let text = format!(
            "RAM differs: source has [{}], destination [{}]; start the destination with the same \
             -m and memory backends",
            show(there),
            show(here)
        );
        Err((RefuseCode::RamDiffers, text))
    }

    pub(super) fn expect_streams(&mut self, token: u128, streams: u16) {
        self.recorder.accepted = true;
        self.expected = Some((token, streams));
        self.generations = vec![0; streams.into()];
        self.node.expect_joins(token, self.mailbox.clone());
    }

    /// Takes a stream that joins; with the last one the workers begin. A later one takes the place of one
    /// that broke.
    pub(super) fn join(&mut self, join: StreamJoin) {
        let Some((_, streams)) = self.expected else {
            return;
        };
        let is_data = join.role == StreamRole::Data;
        let known = self.generations.get(usize::from(join.index)).copied();
        let replaces = is_data && known.is_some_and(|known| join.generation > known);
        // It was overtaken by one that the source made after it.
        let is_stale = is_data && known.is_some_and(|known| join.generation < known);
        let again = !replaces && !is_stale && self.has_joined(&join);
        if again || (is_data && join.index >= streams) {
            let reason = format!(
                "{:?} stream {} joins twice or unasked",
                join.role, join.index
            );
            return self.failed(AbortCode::Protocol, reason);
        }
        // A token alone does not let anybody in who could not have made the offer.
        let connection = &join.connection;
        if connection.is_sealed() != self.journal.tls || !connection.names(&self.offer.source_node)
        {
            let reason = format!(
                "{:?} stream {} comes from elsewhere than the offer",
                join.role, join.index
            );
            return self.failed(AbortCode::Protocol, reason);
        }
        if is_stale {
            tracing::debug!(stream = join.index, "a connection that was given up");
            return;
        }
        self.recorder.count_resumed(connection.is_resumed());
        if is_data {
            self.generations[usize::from(join.index)] = join.generation;
            self.lost.retain(|lost| lost.stream != Some(join.index));
        }
        if !self.workers.is_empty() {
            self.recorder.streams_replaced += 1;
            if let Err(error) = self.give_to_worker(join) {
                self.failed(AbortCode::Other, error.to_string());
            }
            return;
        }
        self.joined
            .retain(|old| (old.role, old.index) != (join.role, join.index));
        self.joined.push(join);
        if self.joined.len() < usize::from(streams) + 1 {
            return;
        }
        match self.start_workers(streams) {
            Ok(()) => self.pending.push_back(DestinationEvent::StreamsJoined),
            Err(error) => self.failed(AbortCode::Other, error.to_string()),
        }
    }

    /// Whether a connection of this kind is there already.
    fn has_joined(&self, join: &StreamJoin) -> bool {
        let of_its_kind = |old: &StreamJoin| (old.role, old.index) == (join.role, join.index);
        !self.workers.is_empty() || self.joined.iter().any(of_its_kind)
    }

    fn give_to_worker(&mut self, join: StreamJoin) -> std::io::Result<()> {
        let index = join.index;
        let worker = &self.workers[usize::from(index) % self.workers.len()];
        let stream = join.connection.into_data_stream()?;
        worker.command(DestinationCommand::AddStream { index, stream });
        Ok(())
    }

    fn start_workers(&mut self, streams: u16) -> std::io::Result<()> {
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let joined = self.joined.first();
        let local = joined.and_then(|join| join.connection.local_ip());
        let placement = place(&self.settings, streams, &session.layout, local);
        if let Some(why) = placement.why {
            self.recorder.remark(why);
        }
        let count = placement.workers.len();
        for (index, place) in placement.workers.into_iter().enumerate() {
            let worker = WorkerSettings {
                index,
                io: self.settings.io,
                send: self.settings.send,
                cpu: place.cpu,
                node: place.node,
                stock: self.node.stock.clone(),
                sealed: self.journal.tls,
                streams: usize::from(streams).div_ceil(count),
                streams_in_all: streams.into(),
                stream_window_bytes: 0,
                ack_bytes: self.offer.ack_bytes,
                busy_poll: Duration::from_micros(self.settings.busy_poll_us.into()),
            };
            let mailbox = self.mailbox.clone();
            self.workers.push(spawn_destination_worker(
                &worker,
                Arc::clone(&session),
                mailbox,
            )?);
        }
        self.recorder.streams = streams;
        for join in std::mem::take(&mut self.joined) {
            if join.role == StreamRole::Data {
                self.give_to_worker(join)?;
                continue;
            }
            let mailbox = self.mailbox.clone();
            let on_break = move |reason: String| {
                let _ = mailbox.push(DestinationInput::DeviceLost(reason));
            };
            self.relay = Some(Relay::start(
                join.connection,
                Arc::new(on_break),
                &self.recorder.meter,
            )?);
        }
        self.round_began = Instant::now();
        Ok(())
    }

    pub(super) fn load_device_state(&mut self) {
        let (Some(vm), Some(relay)) = (&self.vm, &self.relay) else {
            return;
        };
        let opened = UnixStream::pair().and_then(|(ours, vmms)| {
            // What a waiting VMM says is a few bytes.
            relay.open(ours, false)?;
            Ok(vmms)
        });
        let device = match opened {
            Ok(device) => device,
            Err(error) => return self.failed(AbortCode::Other, format!("socket pair: {error}")),
        };
        let (vm, stop, mailbox) = (
            Arc::clone(vm),
            Arc::clone(&self.vm_stop),
            self.mailbox.clone(),
        );
        let meter = Arc::clone(&self.recorder.meter);
        let run = move || {
            let _helper = meter.helper();
            let event = match lock(&vm).load(device, &stop) {
                Ok(()) => DestinationEvent::DeviceLoaded,
                Err(error) => {
                    DestinationEvent::Failed(AbortCode::Vmm, format!("device state: {error}"))
                }
            };
            let _ = mailbox.push(DestinationInput::Event(event));
        };
        match std::thread::Builder::new()
            .name("dwcp-device".into())
            .spawn(run)
        {
            Ok(thread) => self.device_thread = Some(thread),
            Err(error) => self.failed(AbortCode::Other, format!("no thread: {error}")),
        }
    }

    pub(super) fn resume_vm(&mut self) {
        let resumed = match &self.vm {
            Some(vm) => lock(vm).resume(),
            None => Err(VmmError::Failed("no VM was prepared".into())),
        };
        match resumed {
            Ok(_) => self.pending.push_back(DestinationEvent::Resumed),
            Err(error) => self.failed(AbortCode::Vmm, error.to_string()),
        }
    }

    /// The guest must never run here. What came is given back to the system.
    pub(super) fn discard_vm(&mut self) {
        self.vm_stop.store(true, Ordering::Release);
        for worker in &mut self.workers {
            self.recorder.meter.count_cpu(worker.stop());
        }
        self.relay = None;
        self.join_helpers();
        let Some(vm) = &self.vm else { return };
        match lock(vm).discard() {
            Ok(true) if self.offer.reuse && self.peer_lost => {
                let text = "what had come stays in the VM's RAM for the next attempt";
                self.recorder.note(text.into());
            }
            Ok(true) => {
                let blocks = self
                    .session
                    .iter()
                    .flat_map(|session| session.layout.blocks());
                for block in blocks {
                    if let Err(error) = block.discard() {
                        tracing::warn!(%error, "memory of an aborted migration stays allocated");
                    }
                }
            }
            Ok(false) => self.recorder.note(
                "the destination's VMM had begun to load and was ended: start it anew to try again"
                    .into(),
            ),
            Err(VmmError::Gone(_)) => {}
            Err(error) => {
                self.copy_stays = true;
                self.recorder.note(format!(
                    "the destination's VMM may hold a loaded copy and cannot be ended: {error}; \
                     end it by hand, and never run it"
                ));
            }
        }
    }

    pub(super) fn failed(&mut self, code: AbortCode, reason: String) {
        self.pending
            .push_back(DestinationEvent::Failed(code, reason));
    }
}

/// Why this node does not take a VM, in words that are read at the other one. That may have ended an
/// earlier migration while this node still clears what came of it.
fn for_peer(here: &str, vm: &str, error: &ApiError) -> String {
    if *error == is_moving(vm) {
        return format!(
            "an earlier migration of VM {vm} is under way on {here}, or still being cleared there: \
             try again"
        );
    }
    format!("on {here}: {error}")
}
