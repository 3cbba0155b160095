//! Connections from this node to another one.

use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

use super::peer::PeerError;
use crate::transport::{UNSENT_BYTES_MAX, hasten_losses};

/// Has the kernel take no more of a stream than the link does, and a little. Kernels before 3.12 take
/// what they have room for.
pub(super) fn bound_unsent(stream: &TcpStream) {
    let _ = SockRef::from(stream).set_tcp_notsent_lowat(UNSENT_BYTES_MAX);
}

/// A stream that carries nothing for so long says that it is there.
const KEEPALIVE: Duration = Duration::from_secs(15);

/// Ends a stream whose bytes the other side does not acknowledge for so long: nobody else says that the way
/// is gone.
pub(super) fn bound_silence(stream: &TcpStream, silence: Duration) {
    let socket = SockRef::from(stream);
    let _ = socket.set_tcp_user_timeout(Some(silence));
    // One that carries nothing for long stays known to what stands between the nodes.
    let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
}

/// Connects within `time`, to whichever address of the name answers. A congestion control that the host lacks
/// is left to the streams to note.
pub(super) fn connect(
    address: &str,
    time: Duration,
    congestion_control: Option<&str>,
) -> Result<TcpStream, PeerError> {
    let failed = |source| PeerError::Connect {
        address: address.to_owned(),
        source,
    };
    let deadline = Instant::now() + time;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "name has no address");
    for candidate in address.to_socket_addrs().map_err(failed)? {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(failed(io::ErrorKind::TimedOut.into()));
        }
        match open(None, candidate, left, congestion_control) {
            Ok((stream, _)) => return Ok(stream),
            Err(error) => last = error,
        }
    }
    Err(failed(last))
}

/// The way of a further connection: its local address, where that is not the kernel's to choose, and where it leads.
pub(super) type Route = (Option<IpAddr>, SocketAddr);

/// Connects a data stream, and says what could not be set.
pub(super) fn connect_stream(
    (from, to): Route,
    time: Duration,
    congestion_control: Option<&str>,
) -> Result<(TcpStream, Option<String>), PeerError> {
    open(from, to, time, congestion_control).map_err(|source| PeerError::Connect {
        address: match from {
            Some(from) => format!("{to} from {from}"),
            None => to.to_string(),
        },
        source,
    })
}

/// Congestion control is set before the socket connects: BBR switches pacing on as a connection opens,
/// and a socket that leaves BBR later stays paced. On a short link that costs 40% of its speed.
fn open(
    from: Option<IpAddr>,
    peer: SocketAddr,
    time: Duration,
    congestion_control: Option<&str>,
) -> io::Result<(TcpStream, Option<String>)> {
    let socket = Socket::new(Domain::for_address(peer), Type::STREAM, Some(Protocol::TCP))?;
    let note = congestion_control.and_then(|name| {
        let outcome = socket.set_tcp_congestion(name.as_bytes());
        let words = |error| format!("congestion control {name} cannot be set: {error}");
        outcome.err().map(words)
    });
    // An older kernel has a time of its own.
    let _ = hasten_losses(&socket);
    if let Some(from) = from {
        socket.bind(&SocketAddr::new(from, 0).into())?;
    }
    socket.connect_timeout(&peer.into(), time)?;
    socket.set_tcp_nodelay(true)?;
    Ok((socket.into(), note))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    const TIME: Duration = Duration::from_secs(5);

    #[test]
    fn a_stream_has_the_congestion_control_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let (stream, note) = connect_stream((None, peer), TIME, Some("reno")).unwrap();
        assert_eq!(note, None);
        let stream = Socket::from(stream);
        let name = stream.tcp_congestion().unwrap();
        assert!(name.starts_with(b"reno"), "{name:?}");
        assert!(stream.tcp_nodelay().unwrap());
    }

    #[test]
    fn a_control_connection_has_it_too_where_the_host_has_it() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let name_by = |asked| {
            let stream = Socket::from(connect(&address, TIME, asked).unwrap());
            stream.tcp_congestion().unwrap()
        };
        assert!(name_by(Some("reno")).starts_with(b"reno"));
        assert_eq!(name_by(Some("nonesuch")), name_by(None));
    }

    #[test]
    fn one_that_the_host_lacks_is_noted_and_the_stream_goes_on() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let (stream, note) = connect_stream((None, peer), TIME, Some("nonesuch")).unwrap();
        let note = note.unwrap();
        assert!(note.starts_with("congestion control nonesuch cannot be set"));
        assert_eq!(stream.peer_addr().unwrap(), peer);
    }

    #[test]
    fn a_stream_has_the_local_address_asked_for() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = listener.local_addr().unwrap();
        let from = "127.0.0.2".parse().unwrap();
        let (stream, _) = connect_stream((Some(from), peer), TIME, None).unwrap();
        assert_eq!(stream.local_addr().unwrap().ip(), from);
        let elsewhere = "192.0.2.1".parse().unwrap();
        let error = connect_stream((Some(elsewhere), peer), TIME, None).unwrap_err();
        assert!(error.to_string().contains("from 192.0.2.1"), "{error}");
    }

    #[test]
    fn who_does_not_listen_is_named() {
        let gone = TcpListener::bind("127.0.0.1:0").unwrap().local_addr();
        let error = connect_stream((None, gone.unwrap()), TIME, None).unwrap_err();
        assert!(
            error
                .to_string()
                .starts_with("cannot connect to 127.0.0.1:")
        );
    }
}
