//! What this node says on a migration's control connection.

use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_proto::Phase;
use dwcp_wire::{Control, FrameKind, encode_control};

use super::meter::Meter;
use super::peer::{PeerError, write_frame};
use crate::tls::Connection;
use crate::transport::TcpInfo;

/// Sends control messages on a connection.
#[derive(Debug)]
pub(super) struct ControlWriter {
    stream: Connection,
    sequence: u64,
    meter: Arc<Meter>,
    /// So many more messages are to follow the last one, and when that was.
    followers: u8,
    said: Instant,
}

/// What the guest stands for is followed by so many messages that say nothing: the kernel takes a packet for lost when three
/// behind it were received, and otherwise only after a round trip or two more.
pub(super) const FOLLOWERS: u8 = 3;

/// Between two of them: in one packet they would be lost together.
pub(super) const FOLLOW_TIME: Duration = Duration::from_millis(10);

/// Whether the guest stands until the other node has heard this.
fn in_pause(phase: Phase, message: &Control) -> bool {
    matches!(phase, Phase::Switchover | Phase::Handover) && *message != Control::Alive
}

impl ControlWriter {
    /// A writer on a connection whose hellos are exchanged. A peer that takes nothing for `silence`
    /// is lost.
    pub(super) fn new(
        stream: Connection,
        silence: Duration,
        meter: &Arc<Meter>,
    ) -> io::Result<Self> {
        let writer = Self {
            stream,
            sequence: 1,
            meter: Arc::clone(meter),
            followers: 0,
            said: Instant::now(),
        };
        writer.bound_silence(silence)?;
        Ok(writer)
    }

    /// From now on a peer that takes nothing for so long is lost.
    pub(super) fn bound_silence(&self, silence: Duration) -> io::Result<()> {
        self.stream.set_write_timeout(Some(silence))
    }

    /// As [`Self::send`], in a phase of the migration: what the guest stands for is to be followed.
    pub(super) fn send_in(&mut self, phase: Phase, message: &Control) -> Result<(), PeerError> {
        if in_pause(phase, message) {
            self.followers = FOLLOWERS;
            self.said = Instant::now();
        }
        self.send(message)
    }

    /// Says what is to follow, if that is due. Returns how long something else may be waited for, `most` at most.
    pub(super) fn follow(&mut self, most: Duration) -> Duration {
        if self.followers == 0 {
            return most;
        }
        let since = self.said.elapsed();
        if since < FOLLOW_TIME {
            // Less is no wait at all.
            return most.min((FOLLOW_TIME - since).max(Duration::from_millis(1)));
        }
        self.followers -= 1;
        self.said = Instant::now();
        // A connection that breaks is noticed by its reader.
        let _ = self.send(&Control::Alive);
        most.min(FOLLOW_TIME)
    }

    pub(super) fn send(&mut self, message: &Control) -> Result<(), PeerError> {
        self.sequence += 1;
        let payload = encode_control(message)?;
        Ok(write_frame(
            &mut self.stream,
            FrameKind::Control,
            0,
            self.sequence,
            &payload,
            &self.meter,
        )?)
    }

    /// How long words are on their way at least: half of the shortest round trip that the kernel has seen.
    pub(super) fn half_trip(&self) -> Duration {
        self.round_trip().0 / 2
    }

    /// The shortest round trip that the kernel has seen, and what it takes one for now.
    pub(super) fn round_trip(&self) -> (Duration, Duration) {
        let info = TcpInfo::of(self.stream.socket());
        info.map_or_else(
            |_| Default::default(),
            |info| (info.min_rtt, info.rtt.max(info.min_rtt)),
        )
    }

    /// The address of this end.
    pub(super) fn local_address(&self) -> Option<IpAddr> {
        self.stream.local_ip()
    }

    /// Nothing more is said. Its reader hears the other end out.
    pub(super) fn end(&self) {
        self.stream.end_writing();
    }

    /// Ends the connection; its reader ends too.
    pub(super) fn shut(&self) {
        self.stream.shut();
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;
    use crate::migration::peer::read_control;

    const SILENCE: Duration = Duration::from_secs(5);

    fn connected() -> (ControlWriter, Connection) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let writer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let writer = ControlWriter::new(writer.into(), SILENCE, &Arc::default()).unwrap();
        (writer, listener.accept().unwrap().0.into())
    }

    /// Follows for as long as there is something to follow with, and ends the connection.
    fn heard(mut writer: ControlWriter, mut reader: Connection) -> Vec<Control> {
        while writer.follow(SILENCE) < SILENCE {
            std::thread::yield_now();
        }
        writer.shut();
        let read = || read_control(&mut reader, &Meter::default()).ok();
        std::iter::from_fn(read).collect()
    }

    #[test]
    fn what_is_waited_for_is_followed_by_three_words() {
        let (mut writer, reader) = connected();
        let began = Instant::now();
        writer
            .send_in(Phase::Switchover, &Control::DeviceLoaded)
            .unwrap();
        let heard = heard(writer, reader);
        assert!(began.elapsed() >= FOLLOW_TIME * u32::from(FOLLOWERS));
        let [Control::DeviceLoaded, followers @ ..] = &heard[..] else {
            panic!("{heard:?}");
        };
        assert_eq!(followers, [const { Control::Alive }; 3]);
    }

    /// A connection that was shut both ways is reset by what comes, and what it had said, and was lost, with it.
    #[test]
    fn who_has_said_the_last_word_is_not_reset_by_what_comes() {
        let says = |reader: &mut Connection| {
            let mut words = (0..50).map(|_| {
                std::thread::sleep(Duration::from_millis(1));
                reader.write_all(b"alive").is_ok()
            });
            words.all(|was_taken| was_taken)
        };
        let (writer, mut reader) = connected();
        writer.end();
        assert!(says(&mut reader));
        writer.shut();
        assert!(!says(&mut reader));
    }

    #[test]
    fn other_words_are_not_followed() {
        let (mut writer, reader) = connected();
        writer.send_in(Phase::Setup, &Control::Ready).unwrap();
        assert_eq!(heard(writer, reader), [Control::Ready]);
        for (phase, message, wanted) in [
            (Phase::Precopy, Control::Ready, false),
            (Phase::Switchover, Control::Alive, false),
            (Phase::Switchover, Control::DeviceLoaded, true),
            (Phase::Handover, Control::Committed { epoch: 1 }, true),
            (Phase::Postcopy, Control::Fetched, false),
        ] {
            assert_eq!(in_pause(phase, &message), wanted, "{phase:?} {message:?}");
        }
    }
}
