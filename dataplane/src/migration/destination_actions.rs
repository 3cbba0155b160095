//! What the destination's machine asks for, carried out.

use std::os::unix::net::UnixStream;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use dwcp_api::{ApiError, ErrorCode};
use dwcp_journal::RecordKind;
use dwcp_proto::DestinationEvent;
use dwcp_wire::{AbortCode, RefuseCode};

use super::destination::{DestinationDriver, DestinationInput};
use super::doubt::ASK_AGAIN;
use super::node::lock;
use super::room::check_room;
use super::source::random;
use super::vms::is_moving;
use crate::engine::{Session, keep_allocated};
use crate::vmm::{self, RunState, Vm, VmmError};

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
        let event = DestinationEvent::VmReady {
            token,
            streams: self.granted_streams(),
            content_seed,
        };
        self.pending.push_back(event);
    }

    /// Data streams that the source may open.
    pub(super) fn granted_streams(&self) -> u16 {
        self.offer.streams.min(self.settings.streams.max(1))
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

    /// The last look before there is no way back: a VMM that has died since it loaded the guest would take it along,
    /// though the source still has all of it.
    pub(super) fn check_loaded(&self) -> Result<(), VmmError> {
        let memory = &self.journal.memory;
        if memory.pid != 0 {
            // One that waits for a page answers nobody.
            return match vmm::started_ticks(memory.pid)? == memory.started_ticks {
                true => Ok(()),
                false => Err(VmmError::Gone(format!("no process {}", memory.pid))),
            };
        }
        let Some(vm) = &self.vm else { return Ok(()) };
        match lock(vm).facts()?.state {
            RunState::Paused => Ok(()),
            other => Err(VmmError::Failed(format!("it is {}", other.name()))),
        }
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
        if let (Some(vm), Some(_)) = (&self.vm, &self.postcopy.fetch) {
            let vm = Arc::clone(vm);
            return self.resume_patiently(vm);
        }
        let resumed = match &self.vm {
            Some(vm) => lock(vm).resume(),
            None => Err(VmmError::Failed("no VM was prepared".into())),
        };
        match resumed {
            Ok(_) => self.pending.push_back(DestinationEvent::Resumed),
            Err(error) => self.failed(AbortCode::Vmm, error.to_string()),
        }
    }

    /// A VMM that waits for a page does not answer before that has come, on whatever way: it is asked until it
    /// does, on a thread of its own.
    fn resume_patiently(&mut self, vm: Arc<Mutex<Box<dyn Vm>>>) {
        let (mailbox, stop) = (self.mailbox.clone(), Arc::clone(&self.vm_stop));
        let run = move || {
            while !stop.load(Ordering::Acquire) {
                let event = match lock(&vm).resume() {
                    Ok(_) => DestinationEvent::Resumed,
                    Err(VmmError::Gone(reason)) => DestinationEvent::Failed(AbortCode::Vmm, reason),
                    Err(error) => {
                        tracing::info!(%error, "the VMM does not run the guest yet");
                        std::thread::sleep(ASK_AGAIN);
                        continue;
                    }
                };
                return drop(mailbox.push(DestinationInput::Event(event)));
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("dwcp-resume".into())
            .spawn(run)
        {
            self.failed(AbortCode::Vmm, format!("no thread: {error}"));
        }
    }

    /// The guest must never run here. What came is given back to the system.
    pub(super) fn discard_vm(&mut self) {
        self.vm_stop.store(true, Ordering::Release);
        for worker in &mut self.workers {
            self.recorder.meter.count_cpu(worker.stop());
        }
        self.relay = None;
        // A VMM that waits for a page answers nobody.
        self.postcopy.discard();
        self.join_helpers();
        if let Err(reason) = self.revoke_keys() {
            tracing::error!(reason, "RAM of an aborted migration");
        }
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
