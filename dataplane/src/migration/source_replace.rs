//! Streams of the source that break: each is taken up again by another connection, within a time.

use std::time::{Duration, Instant};

use dwcp_proto::{Phase, SourceEvent, patience_in_pause_ns};
use dwcp_wire::{Capabilities, StreamRole};

use super::dial;
use super::peer::LAST_WORDS;
use super::source::SourceDriver;
use super::source_paths::acked;
use super::source_streams::EndedConnection;

/// Tries to replace a stream, in one migration: a peer does not make a source connect for ever.
const TRIES_MAX: u32 = 2048;

/// Between two tries to replace a stream, at most; a quarter of it before the second.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A stream is broken, until another connection has taken its place.
#[derive(Debug)]
pub(super) struct Break {
    since: Instant,
    reason: String,
    tries: u32,
}

impl SourceDriver {
    pub(super) fn is_broken(&self, index: u16) -> bool {
        self.streams.data[usize::from(index)].broken.is_some()
    }

    /// A data stream broke. After the handover no stream is needed.
    pub(super) fn data_stream_lost(&mut self, index: u16, reason: String) {
        if self.machine.phase() >= Phase::Handover {
            tracing::debug!(stream = index, reason, "after the handover");
            return;
        }
        tracing::warn!(vm = self.request.vm, stream = index, reason, "stream broke");
        let stream = &mut self.streams.data[usize::from(index)];
        // The last descriptor of a connection that is over.
        if let Some(socket) = stream.socket.take() {
            self.streams.ended.push(EndedConnection {
                index,
                generation: stream.generation,
                bytes_acked: acked(&socket),
            });
        }
        if std::mem::take(&mut stream.is_queue)
            && let Err(reason) = self.queue_lost(index, &reason)
        {
            return self.peer_lost(reason);
        }
        let stream = &mut self.streams.data[usize::from(index)];
        let broken = &mut stream.broken;
        broken.get_or_insert_with(|| Break {
            since: Instant::now(),
            reason,
            tries: 0,
        });
        self.replace(index);
    }

    /// Tries to connect in the place of a stream that is broken.
    pub(super) fn replace(&mut self, index: u16) {
        let stream = &mut self.streams.data[usize::from(index)];
        let Some(broken) = &mut stream.broken else {
            return;
        };
        if self.streams.tries >= TRIES_MAX {
            let reason = format!(
                "stream {index} broke ({}): {TRIES_MAX} times a stream was to be replaced, and no more is",
                broken.reason
            );
            return self.peer_lost(reason);
        }
        let pause = match broken.tries {
            0 => Duration::ZERO,
            tries => (PAUSE_MAX / 8 * (1 << tries.min(3))).min(PAUSE_MAX),
        };
        broken.tries += 1;
        stream.generation += 1;
        self.streams.tries += 1;
        self.dial(StreamRole::Data, index, pause);
    }

    /// Another connection has taken the place of one that broke, and the destination has said that it has
    /// `carried` bytes of the stream: these pages, and bytes of frames, were lost.
    pub(super) fn stream_resumed(&mut self, index: u16, carried: u64, (pages, bytes): (u64, u64)) {
        let Some(broken) = self.streams.data[usize::from(index)].broken.take() else {
            return;
        };
        self.recorder.streams_replaced += 1;
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        let text = format!(
            "stream {index} broke after {:.1} MiB ({}) and was replaced in {:.0} ms; {pages} pages, \
             {:.1} MiB, sent again",
            mib(carried),
            broken.reason,
            broken.since.elapsed().as_secs_f64() * 1000.0,
            mib(bytes),
        );
        self.recorder.stream_broke(text);
    }

    /// How long the other node may say or take nothing, and a stream may stay broken: not as long where the guest stands.
    pub(super) fn patience(&self) -> Duration {
        let settings = &self.request.settings;
        let ns = |ms: u32| u64::from(ms) * 1_000_000;
        let silence_ns = ns(settings.peer_silence_ms);
        let stands = self.recorder.pause.paused.is_some() && self.machine.phase() < Phase::Handover;
        let patience_ns = if stands {
            patience_in_pause_ns(silence_ns, ns(settings.downtime_limit_ms))
        } else {
            silence_ns
        };
        Duration::from_nanos(patience_ns)
    }

    /// The guest is paused: a connection that carries nothing is known to be broken sooner, and so is a destination that says
    /// nothing. Not one that would have pages placed by an adapter: it may give back the registration of all of RAM meanwhile.
    pub(super) fn hasten(&mut self) {
        let speaks = self
            .can
            .is_some_and(|can| can.contains(Capabilities::SPEAKS_IN_PAUSE));
        if speaks && self.streams.rdma.memory().is_none() {
            self.pending.push_back(SourceEvent::SpeaksInPause);
        }
        let patience = self.patience();
        if let Some(relay) = &self.relay {
            relay.bound_silence(patience);
        }
        if let Some(control) = &self.control
            && let Err(error) = control.bound_silence(patience)
        {
            tracing::warn!(%error, "the control connection keeps its time limit");
        }
        for socket in self.streams.sockets() {
            dial::bound_silence(socket, patience);
        }
        if self.session.pace.bytes_per_s() > 0 {
            self.free_streams();
        }
    }

    /// The device connection ended. A destination that gives up says why on the control connection, which may
    /// be read later than the end of another.
    pub(super) fn device_lost(&mut self, reason: String) {
        let lost = &mut self.streams.device_lost;
        lost.get_or_insert_with(|| (Instant::now(), reason));
    }

    /// A stream that stays broken for too long is lost, and so is the device connection.
    pub(super) fn check_streams(&mut self) {
        let device = &mut self.streams.device_lost;
        if let Some((_, reason)) = device.take_if(|(since, _)| since.elapsed() > LAST_WORDS) {
            return self.peer_lost(reason);
        }
        let limit = self.patience();
        let over = self
            .streams
            .data
            .iter()
            .enumerate()
            .find_map(|(index, stream)| {
                let broken = stream.broken.as_ref()?;
                (broken.since.elapsed() > limit).then(|| (index, broken.reason.clone()))
            });
        if let Some((index, reason)) = over {
            self.peer_lost(format!(
                "stream {index} broke ({reason}) and could not be replaced in {} ms",
                limit.as_millis()
            ));
        }
    }
}
