//! What is said on connections between nodes: hellos and control messages.

use std::io::ErrorKind::UnexpectedEof;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;

use dwcp_api::Codec;
use dwcp_wire::limits::PAYLOAD_BYTES_MAX;
use dwcp_wire::{
    Capabilities, Control, ControlError, FrameHeader, FrameKind, HEADER_BYTES, HeaderError, Hello,
    HelloError, StreamHello, decode_control, negotiate,
};

use super::control_writer::ControlWriter;
use super::meter::Meter;
use crate::tls::{Connection, TlsError};

/// Time for the other node's own words, on the control connection, once another connection has ended.
pub(super) const LAST_WORDS: Duration = Duration::from_millis(100);

/// Why talking to the other node failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(super) enum PeerError {
    /// No connection.
    #[error("cannot connect to {address}: {source}")]
    Connect {
        /// Address tried.
        address: String,
        /// The failure.
        source: io::Error,
    },
    /// It is not the node that it must be, or TLS broke.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// TLS was agreed on, and this node's certificate is gone.
    #[error(
        "this node was started without the certificate that the other node knows it by: give --tls-certificate again"
    )]
    NoCertificate,
    /// The peer ended it, or its process ended.
    #[error("the other side closed the connection")]
    Closed,
    /// It broke.
    #[error("connection lost: {0}")]
    Lost(#[from] io::Error),
    /// The peer speaks something else.
    #[error(transparent)]
    Header(#[from] HeaderError),
    /// The versions do not meet.
    #[error(transparent)]
    Hello(#[from] HelloError),
    /// Not a control message.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// A frame of another kind than the one that must come now.
    #[error("{found:?} frame where {expected:?} was expected")]
    Kind {
        /// What must come.
        expected: FrameKind,
        /// What came.
        found: FrameKind,
    },
    /// It does not answer, and says why.
    #[error("{0}")]
    Refused(String),
    /// Damaged on the way.
    #[error("payload checksum of a {0:?} frame does not match")]
    Checksum(FrameKind),
    /// It is older than the codec.
    #[error("the other node cannot read codec `{0}`: upgrade it, or set pages.codec = \"raw\"")]
    Codec(&'static str),
    /// It is older than post-copy.
    #[error(
        "the other node knows no post-copy: upgrade it, or set switchover.if_not_converged = \"abort\""
    )]
    NoPostcopy,
}

impl PeerError {
    /// Whether a connection that stood has broken: another may do better. Who cannot be reached at all, or
    /// is somebody else, stays so.
    pub(super) fn is_loss(&self) -> bool {
        match self {
            Self::Closed => true,
            // TLS has words of its own in such an error: those are no loss.
            Self::Lost(error) => error.get_ref().is_none() || error.kind() == UnexpectedEof,
            Self::Tls(error) => error.is_loss(),
            _ => false,
        }
    }
}

impl PeerError {
    /// Whether the connection stands, and what came by it cannot be read.
    const fn is_damage(&self) -> bool {
        matches!(
            self,
            Self::Header(_) | Self::Control(_) | Self::Kind { .. } | Self::Checksum(_)
        )
    }
}

/// Reads one frame whose payload is covered by its checksum.
pub(super) fn read_frame(
    stream: &mut Connection,
    meter: &Meter,
) -> Result<(FrameHeader, Vec<u8>), PeerError> {
    let mut bytes = [0; HEADER_BYTES];
    if !fill(stream, &mut bytes)? {
        // What says a few words of its own and hangs up is something else than a node that ended.
        return Err(match FrameHeader::from_bytes(&bytes) {
            Err(error @ HeaderError::Magic(start)) if start != [0; 4] => error.into(),
            _ => PeerError::Closed,
        });
    }
    let header = FrameHeader::from_bytes(&bytes)?;
    debug_assert!(header.payload_len() <= PAYLOAD_BYTES_MAX);
    let mut payload = vec![0; header.payload_len()];
    if !fill(stream, &mut payload)? {
        return Err(PeerError::Closed);
    }
    meter.count_bytes(HEADER_BYTES + payload.len());
    if header.covers(&payload) {
        Ok((header, payload))
    } else {
        Err(PeerError::Checksum(header.kind))
    }
}

/// Reads until `bytes` are full. Returns whether they are: the stream may end before.
fn fill(stream: &mut Connection, bytes: &mut [u8]) -> io::Result<bool> {
    let mut filled = 0;
    while filled < bytes.len() {
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Ok(false),
            Ok(more) => filled += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(true)
}

fn expect_kind(header: &FrameHeader, expected: FrameKind) -> Result<(), PeerError> {
    if header.kind == expected {
        return Ok(());
    }
    Err(PeerError::Kind {
        expected,
        found: header.kind,
    })
}

/// Writes one frame.
pub(super) fn write_frame(
    stream: &mut Connection,
    kind: FrameKind,
    index: u16,
    sequence: u64,
    payload: &[u8],
    meter: &Meter,
) -> io::Result<()> {
    let header = FrameHeader::covering(kind, index, sequence, payload);
    let mut frame = Vec::with_capacity(HEADER_BYTES + payload.len());
    frame.extend_from_slice(&header.to_bytes());
    frame.extend_from_slice(payload);
    stream.write_all(&frame)?;
    meter.count_bytes(frame.len());
    Ok(())
}

/// The source's first words.
pub(super) fn say_hello(stream: &mut Connection, meter: &Meter) -> Result<(), PeerError> {
    let own = Hello::own().to_bytes();
    Ok(write_frame(stream, FrameKind::Hello, 0, 1, &own, meter)?)
}

/// The answer to them. Both sides come to the same version and capabilities.
pub(super) fn hear_reply(
    stream: &mut Connection,
    meter: &Meter,
) -> Result<(u16, Capabilities), PeerError> {
    let (header, payload) = read_frame(stream, meter)?;
    expect_kind(&header, FrameKind::HelloReply)?;
    Ok(negotiate(Hello::own(), hello_from(&payload)?)?)
}

/// Whether a peer that can do this much reads what `codec` makes, and takes a guest by post-copy, where that
/// may be wanted.
pub(super) fn check_abilities(
    can: Capabilities,
    codec: Codec,
    post_copy: bool,
) -> Result<(), PeerError> {
    if post_copy && !can.contains(Capabilities::POSTCOPY) {
        return Err(PeerError::NoPostcopy);
    }
    let (name, needed) = match codec {
        Codec::Raw => return Ok(()),
        Codec::Zstd { .. } => ("zstd", Capabilities::ZSTD),
        Codec::Window { .. } | Codec::Auto { .. } => ("window", Capabilities::WINDOW),
    };
    if can.contains(needed) {
        return Ok(());
    }
    Err(PeerError::Codec(name))
}

/// The destination's answer to a hello that was read.
pub(super) fn answer_hello(
    stream: &mut Connection,
    payload: &[u8],
    meter: &Meter,
) -> Result<(u16, Capabilities), PeerError> {
    let own = Hello::own();
    write_frame(stream, FrameKind::HelloReply, 0, 1, &own.to_bytes(), meter)?;
    Ok(negotiate(own, hello_from(payload)?)?)
}

fn hello_from(payload: &[u8]) -> Result<Hello, HelloError> {
    payload
        .first_chunk()
        .map(Hello::from_bytes)
        .ok_or(HelloError::Malformed)
}

/// First words on a data or device stream.
pub(super) fn say_stream_hello(
    stream: &mut Connection,
    hello: StreamHello,
    meter: &Meter,
) -> Result<(), PeerError> {
    let payload = hello.to_bytes();
    Ok(write_frame(
        stream,
        FrameKind::StreamHello,
        hello.index,
        1,
        &payload,
        meter,
    )?)
}

/// Reads one control message.
pub(super) fn read_control(stream: &mut Connection, meter: &Meter) -> Result<Control, PeerError> {
    let (header, payload) = read_frame(stream, meter)?;
    expect_kind(&header, FrameKind::Control)?;
    Ok(decode_control(&payload)?)
}

/// Reads control messages on a thread of their own and hands each to `take`, the end included. It hears
/// `first` before, and ends when that or `take` says false: nobody takes them any more.
pub(super) fn spawn_reader(
    mut stream: Connection,
    meter: &Arc<Meter>,
    first: impl FnOnce(&mut Connection, &Meter) -> bool + Send + 'static,
    take: impl Fn(Result<Control, PeerError>) -> bool + Send + 'static,
) -> io::Result<()> {
    let meter = Arc::clone(meter);
    let read = move || {
        let mut helper = meter.helper();
        if !first(&mut stream, &meter) {
            return;
        }
        if let Err(error) = stream.set_read_timeout(None) {
            take(Err(error.into()));
            return;
        }
        loop {
            let message = read_control(&mut stream, &meter);
            let end = message.as_ref().err().map(PeerError::is_damage);
            let is_taken = take(message);
            helper.lap();
            if !is_taken {
                return stream.shut();
            }
            match end {
                None => {}
                // Nobody hears it any more, and the other end does not know: this node's last words may follow.
                Some(true) => {
                    std::thread::sleep(LAST_WORDS);
                    return stream.shut();
                }
                Some(false) => return,
            }
        }
    };
    std::thread::Builder::new()
        .name("dwcp-control".into())
        .spawn(read)
        .map(drop)
}

/// Says one thing on a new connection, and hears the answer to it.
pub(super) fn ask<A>(
    connect: impl FnOnce() -> Result<Connection, PeerError>,
    words: &Control,
    (time, meter): (Duration, &Arc<Meter>),
    is_answer: impl Fn(&Control) -> Option<A>,
) -> Result<A, PeerError> {
    let mut stream = connect()?;
    stream.set_read_timeout(Some(time))?;
    say_hello(&mut stream, meter)?;
    hear_reply(&mut stream, meter)?;
    let mut writer = ControlWriter::new(stream.try_clone()?, time, meter)?;
    writer.send(words)?;
    loop {
        let said = read_control(&mut stream, meter)?;
        if let Some(answer) = is_answer(&said) {
            return Ok(answer);
        }
        if let Control::Refuse { reason, .. } = said {
            return Err(PeerError::Refused(reason));
        }
    }
}

/// Connects to a destination in post-copy once more. Returns the connection, and what it says: that it goes
/// on, or that nothing is missing.
pub(super) fn resume_postcopy(
    connect: impl FnOnce() -> Result<Connection, PeerError>,
    migration: u128,
    time: Duration,
    meter: &Arc<Meter>,
) -> Result<(Connection, Control), PeerError> {
    let mut stream = connect()?;
    stream.set_read_timeout(Some(time))?;
    say_hello(&mut stream, meter)?;
    hear_reply(&mut stream, meter)?;
    let mut writer = ControlWriter::new(stream.try_clone()?, time, meter)?;
    writer.send(&Control::PostcopyResume { migration })?;
    loop {
        let answer = read_control(&mut stream, meter)?;
        match answer {
            Control::PostcopyGoOn { .. } | Control::Whole { .. } => return Ok((stream, answer)),
            Control::Refuse { reason, .. } => return Err(PeerError::Refused(reason)),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_older_node_is_asked_for_no_more_than_it_can() {
        let old = Capabilities(Capabilities::ZSTD.0 | Capabilities::DEVICE_STATE.0);
        let window = Codec::Window {
            level: 1,
            window_bytes: 1 << 20,
        };
        let words = |codec, post_copy| match check_abilities(old, codec, post_copy) {
            Ok(()) => String::new(),
            Err(error) => error.to_string(),
        };
        assert_eq!(words(Codec::Zstd { level: 1 }, false), "");
        assert!(words(window, false).contains("pages.codec"));
        assert!(words(Codec::Raw, true).contains("post-copy"));
        check_abilities(dwcp_wire::CAPABILITIES, window, true).unwrap();
    }

    /// What is said to who hears these bytes, and then the end.
    fn words_for(bytes: &[u8]) -> String {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut peer = std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.write_all(bytes).unwrap();
        drop(peer);
        let (stream, _) = listener.accept().unwrap();
        read_frame(&mut stream.into(), &Meter::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn an_early_end_says_what_ended() {
        let frame = FrameHeader::covering(FrameKind::HelloReply, 0, 1, &Hello::own().to_bytes());
        for whole in [&b""[..], &frame.to_bytes()[..30], &frame.to_bytes()] {
            let words = words_for(whole);
            assert_eq!(words, "the other side closed the connection");
        }
        let words = words_for(b"SSH-2.0-OpenSSH_9.2\r\n");
        assert!(words.contains("does not speak DWCP"), "{words}");
    }
}
