//! What the source's machine asks for, carried out.

use std::io::ErrorKind;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use dwcp_api::{Codec, NotConverged};
use dwcp_proto::{JournalEntry, Outcome, SourceEvent};
use dwcp_wire::{AbortCode, Capabilities, Control};

use super::control_writer::ControlWriter;
use super::dial;
use super::doubt::{ASK_TIME, committed};
use super::early::LONG_WAY;
use super::meter::Meter;
use super::node::lock;
use super::peer::{self, PeerError};
use super::recorder::tls_report;
use super::reread::reread;
use super::settle::Settlement;
use super::source::{SourceDriver, SourceInput};
use crate::engine::Reread;
use crate::tls::Connection;
use crate::transport::TcpInfo;

impl SourceDriver {
    /// Moments that only events tell.
    pub(super) fn note_moment(&mut self, event: &SourceEvent) {
        let now = Instant::now();
        match event {
            SourceEvent::Peer(Control::Accept { .. }) => self.recorder.accepted = true,
            SourceEvent::Cancel | SourceEvent::Failed(..) => self.recorder.ended_here = true,
            SourceEvent::PeerLost(_) => self.recorder.peer_lost = true,
            _ => {}
        }
        let pause = &mut self.recorder.pause;
        match event {
            SourceEvent::Peer(Control::RoundReport {
                suspects,
                pages_proven,
                ..
            }) => {
                let suspects = suspects.iter().map(|range| u64::from(range.count)).sum();
                if let Some(round) = self.recorder.rounds.last_mut() {
                    round.suspect_pages = suspects;
                    round.ms = self
                        .round
                        .as_ref()
                        .map_or(round.ms, |at| ms_since(at.began));
                }
                if pages_proven.is_some() {
                    pause.proven = Some(now);
                }
            }
            SourceEvent::Peer(Control::DeviceLoaded) | SourceEvent::DeviceSent => {
                pause.device = Some(now);
            }
            SourceEvent::Peer(Control::Committed { .. }) => {
                pause.committed = Some(now);
                // A destination commits only what it has proven.
                self.recorder.verified = true;
            }
            SourceEvent::Peer(Control::Resumed) => {
                pause.resumed = Some(now);
                let half_trip = self.control.as_ref().map(ControlWriter::half_trip);
                pause.word_took = half_trip.unwrap_or_default();
                self.recorder.verified = true;
            }
            SourceEvent::Peer(Control::Whole { verified, summary }) => {
                self.recorder.fetched(summary, *verified);
            }
            SourceEvent::OwnerAnswer { committed: true } => {
                pause.resumed = Some(now);
                self.recorder.verified = true;
            }
            SourceEvent::Journaled(JournalEntry::Prepared | JournalEntry::PreparedPostcopy) => {
                pause.decided = Some(now);
            }
            // Given back: the pause ends here.
            SourceEvent::Resumed if pause.paused.is_some() => pause.resumed = Some(now),
            _ => {}
        }
    }

    pub(super) fn connect(&mut self) {
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        match self.try_connect(time) {
            Ok(()) => {
                self.pending.push_back(SourceEvent::Connected);
                self.connect_early(false);
            }
            Err(error) => self.greeted(Err(error)),
        }
    }

    /// The other side has answered to the first words, or it is no node that this one can talk to.
    pub(super) fn greeted(&mut self, outcome: Result<Capabilities, PeerError>) {
        let error = match outcome {
            Ok(can) => {
                self.can = Some(can);
                self.remark_on_the_way();
                return self.say_where_it_listens(can);
            }
            Err(error) => error,
        };
        self.recorder.no_peer = !error.is_loss();
        let reason = match &error {
            PeerError::Lost(error) if error.kind() == ErrorKind::WouldBlock => {
                let time_ms = self.request.settings.connect_timeout_ms;
                format!("the other side said nothing for {time_ms} ms")
            }
            error => error.to_string(),
        };
        self.pending.push_back(SourceEvent::PeerLost(reason));
    }

    /// A destination that was started anew asks there before it runs the guest: an operator may have taken it back.
    fn say_where_it_listens(&mut self, can: Capabilities) {
        let reached = self.control.as_ref().and_then(ControlWriter::local_address);
        let (Some(listening), Some(reached)) = (self.node.listening.get(), reached) else {
            return;
        };
        let ip = if listening.ip().is_unspecified() {
            reached
        } else {
            listening.ip()
        };
        if can.contains(Capabilities::RECALL) {
            let address = SocketAddr::new(ip, listening.port());
            self.send(&Control::SourceListens { address });
        }
    }

    /// Connects and says hello. The offer does not wait for the answer: that is the same in every version.
    fn try_connect(&mut self, time: Duration) -> Result<(), PeerError> {
        let address = &self.request.destination.address;
        // Names of pages go by this connection, too: a loss must not hold them up more than the pages.
        let congestion_control = self.request.settings.congestion_control.as_deref();
        let socket = dial::connect(address, time, congestion_control)?;
        self.peer = Some(socket.peer_addr()?);
        if TcpInfo::of(&socket)?.rtt > LONG_WAY {
            self.connect_early(true);
        }
        let mut stream = self.way.secure(&self.node, socket, time)?;
        self.recorder.tls = tls_report(&stream);
        stream.set_read_timeout(Some(time))?;
        let meter = Arc::clone(&self.recorder.meter);
        peer::say_hello(&mut stream, &meter)?;
        let patience = self.patience();
        self.control = Some(ControlWriter::new(stream.try_clone()?, patience, &meter)?);
        let (mailbox, codec) = (self.mailbox.clone(), self.request.settings.codec);
        let post_copy = self.request.settings.if_not_converged == NotConverged::PostCopy;
        let hear = move |stream: &mut Connection, meter: &Meter| {
            let reply = peer::hear_reply(stream, meter);
            let outcome = reply.and_then(|(_, can)| {
                peer::check_abilities(can, codec, post_copy)?;
                Ok(can)
            });
            let is_fine = outcome.is_ok();
            mailbox.push(SourceInput::Greeted(outcome)).is_ok() && is_fine
        };
        self.listen(stream, hear)?;
        Ok(())
    }

    /// Hears control messages on a thread of its own, behind what `first` hears; not if that says false.
    pub(super) fn listen(
        &self,
        stream: Connection,
        first: impl FnOnce(&mut Connection, &Meter) -> bool + Send + 'static,
    ) -> std::io::Result<()> {
        let mailbox = self.mailbox.clone();
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        peer::spawn_reader(stream, &self.recorder.meter, first, move |message| {
            let event = match message {
                Ok(message) => SourceEvent::Peer(message),
                Err(error) => SourceEvent::PeerLost(format!("control connection: {error}")),
            };
            // There may be more of them than a mailbox takes: none is lost while the driver is busy.
            let taken = mailbox.push_within(SourceInput::Event(event), time);
            if taken.is_err() {
                tracing::error!("source driver hangs, or has ended");
            }
            taken.is_ok()
        })
    }

    pub(super) fn send(&mut self, message: &Control) {
        // Silence is told so, too.
        self.recorder.peer_lost |= message.tells_lost_connection();
        if let Control::Handover { .. } = message {
            self.session.pace.hold();
        }
        let phase = self.machine.phase();
        let Some(control) = &mut self.control else {
            return;
        };
        if let Err(error) = control.send_in(phase, message) {
            let reason = format!("control connection: {error}");
            if let PeerError::Control(_) = error {
                return self.fail(AbortCode::Other, reason);
            }
            // What became of the first words says more, and is about to be heard.
            if self.can.is_none() {
                tracing::debug!(reason, "before the first words were answered");
                return;
            }
            self.pending.push_back(SourceEvent::PeerLost(reason));
        }
    }

    pub(super) fn arm_tracker(&mut self) {
        let prepared = lock(&self.vm)
            .prepare_source()
            .and_then(|()| self.tracker.arm());
        self.collected_at = Some(Instant::now());
        self.writing.begin();
        self.watch_cpu_time();
        match prepared {
            Ok(()) => self.pending.push_back(SourceEvent::TrackerArmed),
            Err(error) => self.fail(AbortCode::Vmm, error.to_string()),
        }
    }

    pub(super) fn pause_vm(&mut self) {
        self.give_cpu_time_back();
        let opened = UnixStream::pair().and_then(|(ours, vmms)| {
            if let Some(relay) = &self.relay {
                relay.open(ours, self.request.settings.codec != Codec::Raw)?;
            }
            Ok(vmms)
        });
        let device = match opened {
            Ok(device) => device,
            Err(error) => return self.fail(AbortCode::Other, format!("socket pair: {error}")),
        };
        let paused = lock(&self.vm).pause(device, &self.vm_stop);
        match paused {
            Ok(stopped_us) => {
                // QEMU stamps the stop itself; the clock went on until we heard of it.
                let since = crate::vmm::wall_us().saturating_sub(stopped_us);
                let now = Instant::now();
                let paused = now.checked_sub(Duration::from_micros(since.min(10_000_000)));
                self.recorder.pause.paused = Some(paused.unwrap_or(now));
                self.session.pace.lift();
                self.tell_paths();
                self.hasten();
                self.pending.push_back(SourceEvent::Paused);
            }
            Err(error) => self.fail(AbortCode::Vmm, format!("pause: {error}")),
        }
    }

    pub(super) fn read_sample(&mut self) {
        let settings = &self.request.settings;
        let mailbox = self.mailbox.clone();
        let read = reread(
            &self.session,
            settings.verify,
            settings.sample_pages,
            u64::from(self.recorder.round),
            &self.recorder.meter,
            move |read| drop(mailbox.push(SourceInput::Reread(read))),
        );
        if let Some(read) = read {
            self.sample_was_read(read);
        }
    }

    pub(super) fn sample_was_read(&mut self, read: Reread) {
        if read.differing > 0 {
            self.recorder.note(format!(
                "the {} tracker missed writes: {} of {} pages read again had changed; all of RAM \
                 is compared",
                self.tracker.name(),
                read.differing,
                read.pages
            ));
        }
        self.recorder.pause.pages_sent = Some(Instant::now());
        self.pending.push_back(SourceEvent::SampleRead {
            missed: read.differing,
        });
    }

    /// On a thread of its own: meanwhile the destination's reports must be heard.
    pub(super) fn send_device_state(&mut self) {
        let (vm, stop, mailbox) = (
            Arc::clone(&self.vm),
            Arc::clone(&self.vm_stop),
            self.mailbox.clone(),
        );
        let meter = Arc::clone(&self.recorder.meter);
        let run = move || {
            let _helper = meter.helper();
            let event = match lock(&vm).send_device_state(&stop) {
                Ok(()) => SourceEvent::DeviceSent,
                Err(error) => SourceEvent::Failed(AbortCode::Vmm, format!("device state: {error}")),
            };
            let _ = mailbox.push(SourceInput::Event(event));
        };
        match std::thread::Builder::new()
            .name("dwcp-device".into())
            .spawn(run)
        {
            Ok(thread) => self.device_thread = Some(thread),
            Err(error) => self.fail(AbortCode::Other, format!("no thread: {error}")),
        }
    }

    pub(super) fn resume_vm(&mut self) {
        self.let_vm_go();
        // What a guest writes is nobody's to read.
        self.serving.granting.end();
        let resumed = lock(&self.vm).resume();
        match resumed {
            Ok(_) => self.pending.push_back(SourceEvent::Resumed),
            Err(error) => self.fail(AbortCode::Vmm, error.to_string()),
        }
    }

    /// The relay goes first: a VMM that waits in it fails its migration and lets go.
    fn let_vm_go(&mut self) {
        self.vm_stop.store(true, Ordering::Release);
        self.give_cpu_time_back();
        self.relay = None;
        if let Some(thread) = self.device_thread.take() {
            let _ = thread.join();
        }
    }

    /// Does what an operator has decided, if that is still his to decide.
    pub(super) fn settle(&mut self, settlement: Settlement) {
        if !self.machine.is_in_doubt() && !self.machine.is_cut_off() {
            // Who waits for it hears that nobody took it.
            return;
        }
        self.let_vm_go();
        let vm = Arc::clone(&self.vm);
        let by = (&self.node, &*self.handle);
        let end = settlement.carry_out(by, &self.journal, Ok(&mut **lock(&vm)));
        self.outcome = end.map(|(result, reason)| Outcome { result, reason });
    }

    /// One question at a time; the machine asks again until there is an answer.
    pub(super) fn query_owner(&mut self, epoch: u64) {
        if self.query_under_way.swap(true, Ordering::AcqRel) {
            return;
        }
        let (under_way, mailbox) = (Arc::clone(&self.query_under_way), self.mailbox.clone());
        let address = self.request.destination.address.clone();
        let question = Control::OwnerQuery {
            migration: self.request.id.0,
            vm: self.request.vm.clone(),
            epoch,
        };
        let handle = Arc::clone(&self.handle);
        // An operator's decision waits for the end of it.
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        let time = time.min(ASK_TIME);
        let meter = Arc::clone(&self.recorder.meter);
        let (node, way) = (Arc::clone(&self.node), self.way.clone());
        let ask = move || {
            let _helper = meter.helper();
            let connect = || way.connect(&node, &address, time);
            match peer::ask(connect, &question, (time, &meter), committed) {
                Ok(committed) => {
                    let event = SourceEvent::OwnerAnswer { committed };
                    let _ = mailbox.push(SourceInput::Event(event));
                }
                Err(error) => {
                    tracing::warn!(%error, "who owns the VM is not known yet");
                    handle.note_trouble(error.to_string());
                }
            }
            under_way.store(false, Ordering::Release);
        };
        if std::thread::Builder::new()
            .name("dwcp-query".into())
            .spawn(ask)
            .is_err()
        {
            self.query_under_way.store(false, Ordering::Release);
        }
    }
}

pub(super) fn ms_since(moment: Instant) -> f64 {
    moment.elapsed().as_secs_f64() * 1000.0
}
