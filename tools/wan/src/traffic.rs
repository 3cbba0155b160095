//! Traffic through a link: a probe, round trips, a TCP transfer.

use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use nix::libc;
use nix::sys::socket::{setsockopt, sockopt};
use serde::Serialize;

use crate::link::Link;
use crate::namespace::within;

const BUFFER_BYTES: usize = 256 * 1024;
/// How often a waiting thread looks whether it is to end.
const TICK: Duration = Duration::from_millis(20);
const PAYLOAD_BYTES: usize = 64;

/// What a TCP transfer from A to B brought.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Transfer {
    /// Bytes that were read at the receiver.
    pub bytes: u64,
    /// From before the first byte was written to after the last one was read.
    pub seconds: f64,
}

impl Transfer {
    /// Payload per time, in Mbit/s. Slow start is part of it.
    #[must_use]
    pub fn goodput_mbit_per_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "bytes of a short transfer")]
        let bits = self.bytes as f64 * 8.0;
        bits / self.seconds / 1e6
    }
}

fn sockets(link: &Link) -> io::Result<[UdpSocket; 2]> {
    let open = |side: usize| {
        let address = link.addresses[side].as_str();
        within(&link.namespaces[side], || UdpSocket::bind((address, 0)))
    };
    Ok([open(0)?, open(1)?])
}

/// Sends small packets from A to B until one arrives.
///
/// # Errors
/// From the system, or none arrived within `limit`.
pub fn probe(link: &Link, limit: Duration) -> io::Result<()> {
    let [a, b] = sockets(link)?;
    b.set_read_timeout(Some(TICK))?;
    let (to, deadline) = (b.local_addr()?, Instant::now() + limit);
    while Instant::now() < deadline {
        a.send_to(&[0; PAYLOAD_BYTES], to)?;
        match b.recv(&mut [0; PAYLOAD_BYTES]) {
            Ok(_) => return Ok(()),
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Err(io::Error::new(ErrorKind::TimedOut, "none arrived"))
}

/// Round trips of small UDP packets, one after the other. What is not back within `limit` is none.
///
/// # Errors
/// From the system.
pub fn round_trips(
    link: &Link,
    count: usize,
    limit: Duration,
) -> io::Result<Vec<Option<Duration>>> {
    let [a, b] = sockets(link)?;
    a.connect(b.local_addr()?)?;
    b.connect(a.local_addr()?)?;
    a.set_read_timeout(Some(limit))?;
    b.set_read_timeout(Some(TICK))?;
    let done = std::sync::atomic::AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut payload = [0; PAYLOAD_BYTES];
            while !done.load(std::sync::atomic::Ordering::Relaxed) {
                if let Ok(bytes) = b.recv(&mut payload) {
                    let _ = b.send(&payload[..bytes]);
                }
            }
        });
        let trips = (0..count).map(|number| round_trip(&a, number as u64, limit));
        let trips = trips.collect();
        done.store(true, std::sync::atomic::Ordering::Relaxed);
        trips
    })
}

fn round_trip(socket: &UdpSocket, number: u64, limit: Duration) -> io::Result<Option<Duration>> {
    let mut payload = [0; PAYLOAD_BYTES];
    payload[..8].copy_from_slice(&number.to_le_bytes());
    let sent = Instant::now();
    socket.send(&payload)?;
    let mut answer = [0; PAYLOAD_BYTES];
    while sent.elapsed() < limit {
        match socket.recv(&mut answer) {
            // One that is too late is not this one.
            Ok(_) if answer == payload => return Ok(Some(sent.elapsed())),
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(None)
}

/// Sends by TCP from A to B for as long as asked, with that congestion control.
///
/// # Errors
/// From the system; a congestion control that the kernel does not have is named.
pub fn transfer(link: &Link, congestion: &str, length: Duration) -> io::Result<Transfer> {
    let listener = within(&link.namespaces[1], || {
        TcpListener::bind((link.addresses[1].as_str(), 0))
    })?;
    let address = listener.local_addr()?;
    let sender = within(&link.namespaces[0], || TcpStream::connect(address))?;
    setsockopt(&sender, sockopt::TcpCongestion, &OsString::from(congestion))
        .map_err(|errno| io::Error::other(format!("congestion control {congestion}: {errno}")))?;
    // What has not been sent when it ends is of no use, and would be in the way of what comes next.
    let linger = libc::linger {
        l_onoff: 1,
        l_linger: 0,
    };
    setsockopt(&sender, sockopt::Linger, &linger)?;
    sender.set_write_timeout(Some(TICK))?;
    let (receiver, _) = listener.accept()?;
    receiver.set_read_timeout(Some(TICK))?;
    let started = Instant::now();
    let deadline = started + length;
    thread::scope(|scope| {
        scope.spawn(|| send_until(&sender, deadline));
        let transfer = receive_until(&receiver, started, deadline);
        let _ = sender.shutdown(Shutdown::Both);
        transfer
    })
}

fn send_until(mut sender: &TcpStream, deadline: Instant) {
    let data = vec![0x5a; BUFFER_BYTES];
    while Instant::now() < deadline {
        match sender.write(&data) {
            Ok(_) => {}
            Err(error) if is_timeout(&error) => {}
            // The receiver has closed: it is over.
            Err(_) => return,
        }
    }
}

fn receive_until(
    mut receiver: &TcpStream,
    started: Instant,
    deadline: Instant,
) -> io::Result<Transfer> {
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut bytes = 0;
    while Instant::now() < deadline {
        match receiver.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => bytes += read as u64,
            Err(error) if is_timeout(&error) => {}
            Err(error) => return Err(error),
        }
    }
    let seconds = started.elapsed().as_secs_f64();
    Ok(Transfer { bytes, seconds })
}

fn is_timeout(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::Interrupted
    )
}
