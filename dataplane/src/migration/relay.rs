//! Device state between a VMM's socket and the other node, both ways.
//!
//! The two VMMs never talk directly: each talks to its own node's data plane over a socket pair, and
//! the relay carries the bytes in `Device` frames, each under its checksum. The destination holds
//! what comes until RAM is proven.
//!
//! Where pages are compressed, device state is: a connection that has carried nothing yet sends a few
//! packets per round trip, and the guest is paused meanwhile. A tenth of the bytes is half of the
//! round trips.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use dwcp_wire::FrameKind;
use dwcp_wire::limits::DEVICE_BYTES_MAX;

use super::control_writer::{FOLLOW_TIME, FOLLOWERS};
use super::dial;
use super::meter::{Helper, Meter};
use super::peer::{PeerError, read_frame, write_frame};
use crate::tls::Connection;

/// Memory that a destination spends on device state before the gate opens. QEMU's own is 0.3 MiB;
/// video RAM and the like may add tens.
const HELD_BYTES_MAX: usize = 512 << 20;

/// What holding a frame costs beside its payload: the list's entry, and what the allocator adds. A
/// peer may send frames of one byte.
const CHUNK_COST_BYTES: usize = size_of::<Vec<u8>>() + 32;

/// zstd level of device state.
const LEVEL: i32 = 3;

/// Told once when the relay breaks before it is over.
type OnBreak = Arc<dyn Fn(String) + Send + Sync>;

/// What is sent on a new connection to make its window grow: QEMU's device state, compressed, has half
/// of it.
const PADDING_FRAMES: u64 = 4;

/// One end of the relay.
pub(super) struct Relay {
    peer: Connection,
    /// Who has it writes to the other node.
    writing: Arc<Mutex<()>>,
    held: Arc<Held>,
    on_break: OnBreak,
    meter: Arc<Meter>,
}

impl std::fmt::Debug for Relay {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Relay")
            .field("peer", &self.peer)
            .finish_non_exhaustive()
    }
}

#[derive(Debug, Default)]
struct Held {
    state: Mutex<HeldState>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct HeldState {
    chunks: VecDeque<Vec<u8>>,
    /// What the chunks cost.
    cost_bytes: usize,
    ended: bool,
}

impl Relay {
    /// Reads from the other node at once, and holds what comes.
    pub(super) fn start(
        peer: Connection,
        on_break: OnBreak,
        meter: &Arc<Meter>,
    ) -> std::io::Result<Self> {
        let held = Arc::new(Held::default());
        let relay = Self {
            peer: peer.try_clone()?,
            writing: Arc::default(),
            held: Arc::clone(&held),
            on_break: Arc::clone(&on_break),
            meter: Arc::clone(meter),
        };
        spawn("dwcp-device-in", meter, move |meter, helper| {
            if let Err(error) = receive(peer, &held, meter, helper) {
                held.end();
                on_break(format!("device state from the other node: {error}"));
            }
        })?;
        Ok(relay)
    }

    /// Lets the connection's window grow, long before it is needed.
    pub(super) fn warm(&self) -> std::io::Result<()> {
        let (mut peer, writing) = (self.peer.try_clone()?, Arc::clone(&self.writing));
        spawn("dwcp-device-pad", &self.meter, move |meter, _| {
            let _alone = writing.lock().unwrap_or_else(PoisonError::into_inner);
            let padding = vec![0; DEVICE_BYTES_MAX];
            // The stream's first frame was its hello. A connection that breaks is noticed by its reader.
            let _ = (2..2 + PADDING_FRAMES).try_for_each(|sequence| {
                write_frame(&mut peer, FrameKind::Padding, 0, sequence, &padding, meter)
            });
        })
    }

    /// The guest stands: a connection whose bytes are not acknowledged for so long is broken.
    pub(super) fn bound_silence(&self, silence: Duration) {
        dial::bound_silence(self.peer.socket(), silence);
    }

    /// Connects the VMM: what was held goes to it, and what it says goes to the other node.
    /// With `compress`, smaller if it can be.
    pub(super) fn open(&self, vmm: UnixStream, compress: bool) -> std::io::Result<()> {
        let (peer, from_vmm, on_break) = (
            self.peer.try_clone()?,
            vmm.try_clone()?,
            Arc::clone(&self.on_break),
        );
        let writing = Arc::clone(&self.writing);
        spawn("dwcp-device-out", &self.meter, move |meter, helper| {
            let _alone = writing.lock().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = send(from_vmm, peer, compress, meter, helper) {
                on_break(format!("device state to the other node: {error}"));
            }
        })?;
        let held = Arc::clone(&self.held);
        spawn("dwcp-device-vmm", &self.meter, move |_, helper| {
            // A VMM that has ended its part hears no more: its own report says whether it was well.
            let _ = deliver(&held, vmm, helper);
        })
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.peer.shut();
        self.held.end();
    }
}

fn spawn(
    name: &str,
    meter: &Arc<Meter>,
    run: impl FnOnce(&Meter, &mut Helper) + Send + 'static,
) -> std::io::Result<()> {
    let meter = Arc::clone(meter);
    std::thread::Builder::new()
        .name(name.into())
        .spawn(move || run(&meter, &mut meter.helper()))
        .map(drop)
}

fn cost_bytes(chunk: &Vec<u8>) -> usize {
    chunk.capacity() + CHUNK_COST_BYTES
}

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, HeldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn push(&self, chunk: Vec<u8>) -> std::io::Result<()> {
        let mut state = self.lock();
        state.cost_bytes += cost_bytes(&chunk);
        if state.cost_bytes > HELD_BYTES_MAX {
            return Err(std::io::Error::other("more device state than can be held"));
        }
        state.chunks.push_back(chunk);
        drop(state);
        self.changed.notify_all();
        Ok(())
    }

    /// Waits for a chunk; `None` is the end.
    fn pop(&self) -> Option<Vec<u8>> {
        let mut state = self.lock();
        loop {
            if let Some(chunk) = state.chunks.pop_front() {
                state.cost_bytes -= cost_bytes(&chunk);
                return Some(chunk);
            }
            if state.ended {
                return None;
            }
            let woken = self.changed.wait(state);
            state = woken.unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// Other node -> held. An empty frame is the end.
fn receive(
    mut peer: Connection,
    held: &Held,
    meter: &Meter,
    helper: &mut Helper,
) -> Result<(), PeerError> {
    loop {
        helper.lap();
        let (header, payload) = read_frame(&mut peer, meter)?;
        match header.kind {
            FrameKind::Device if payload.is_empty() => {
                held.end();
                // What follows is read: the kernel would reset a connection that is closed with something left.
                while read_frame(&mut peer, meter)
                    .is_ok_and(|(it, _)| it.kind == FrameKind::Padding)
                {}
                return Ok(());
            }
            FrameKind::Device => held.push(payload)?,
            FrameKind::DeviceZstd => held.push(inflate(&payload)?)?,
            FrameKind::Padding => {}
            found => {
                return Err(PeerError::Kind {
                    expected: FrameKind::Device,
                    found,
                });
            }
        }
    }
}

/// The content of a compressed frame, if it is no more than a plain one may have.
fn inflate(payload: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::with_capacity(DEVICE_BYTES_MAX);
    match zstd_safe::decompress(&mut content, payload) {
        Ok(bytes) if bytes > 0 => {
            content.shrink_to_fit();
            Ok(content)
        }
        _ => Err(std::io::Error::other("it cannot be decompressed")),
    }
}

/// Held -> VMM.
fn deliver(held: &Held, mut vmm: UnixStream, helper: &mut Helper) -> std::io::Result<()> {
    while let Some(chunk) = held.pop() {
        vmm.write_all(&chunk)?;
        helper.lap();
    }
    vmm.shutdown(Shutdown::Write)
}

/// VMM -> other node.
fn send(
    mut vmm: UnixStream,
    mut peer: Connection,
    compress: bool,
    meter: &Meter,
    helper: &mut Helper,
) -> std::io::Result<()> {
    let mut buffer = vec![0; DEVICE_BYTES_MAX];
    let mut smaller = Vec::with_capacity(zstd_safe::compress_bound(DEVICE_BYTES_MAX));
    // Behind the hello, and padding.
    for sequence in 2 + PADDING_FRAMES.. {
        helper.lap();
        let bytes = vmm.read(&mut buffer)?;
        let (mut kind, mut payload) = (FrameKind::Device, &buffer[..bytes]);
        if compress && zstd_safe::compress(&mut smaller, payload, LEVEL).is_ok_and(|n| n < bytes) {
            (kind, payload) = (FrameKind::DeviceZstd, &smaller);
        }
        write_frame(&mut peer, kind, 0, sequence, payload, meter)?;
        if bytes == 0 {
            follow(&mut peer, sequence, meter);
            break;
        }
    }
    Ok(())
}

/// The end is followed by padding, for a lost packet to be noticed. Nobody waits for that, and it may be cut off.
fn follow(peer: &mut Connection, end: u64, meter: &Meter) {
    for sequence in end + 1..=end + u64::from(FOLLOWERS) {
        std::thread::sleep(FOLLOW_TIME);
        if write_frame(peer, FrameKind::Padding, 0, sequence, &[0; 16], meter).is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};

    use super::*;

    /// Whatever a VMM says comes out as it went in; a bomb does not go off.
    #[test]
    fn compressed_device_state_is_bounded_and_whole() {
        let state: Vec<u8> = (0..DEVICE_BYTES_MAX as u32)
            .map(|n| (n / 100) as u8)
            .collect();
        let mut small = Vec::with_capacity(zstd_safe::compress_bound(state.len()));
        zstd_safe::compress(&mut small, &state, LEVEL).unwrap();
        assert!(small.len() < state.len() / 10);
        assert!(inflate(&small).unwrap() == state);
        let bomb = vec![0; DEVICE_BYTES_MAX + 1];
        let mut small = Vec::with_capacity(1 << 16);
        zstd_safe::compress(&mut small, &bomb, LEVEL).unwrap();
        inflate(&small).unwrap_err();
        inflate(&small[..small.len() - 1]).unwrap_err();
        inflate(b"no zstd").unwrap_err();
    }

    /// Nothing else ends a connection whose other end has vanished: it carries nothing before the pause.
    #[test]
    fn a_connection_that_is_not_acknowledged_is_bounded() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let ours = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let socket = socket2::Socket::from(ours.try_clone().unwrap());
        let relay =
            Relay::start(Connection::from(ours), Arc::new(|_| {}), &Arc::default()).unwrap();
        let time = Duration::from_millis(2000);
        relay.bound_silence(time);
        assert_eq!(socket.tcp_user_timeout().unwrap(), Some(time));
        assert!(socket.keepalive().unwrap());
    }

    #[test]
    fn small_frames_cannot_take_more_memory_than_large_ones() {
        let held = Held::default();
        let taken = (0..=HELD_BYTES_MAX).find(|_| held.push(vec![7]).is_err());
        let chunks = taken.expect("there is an end to what is held");
        // A chunk of one byte is an entry of the list and a block of the allocator's smallest size.
        let least_cost = size_of::<Vec<u8>>() + 16;
        assert!(chunks * least_cost <= HELD_BYTES_MAX, "{chunks} chunks");
    }

    #[test]
    fn what_is_delivered_makes_room() {
        let held = Held::default();
        for _ in 0..4 {
            held.push(vec![0; HELD_BYTES_MAX / 2]).unwrap();
            assert!(held.pop().is_some());
        }
        held.end();
        assert_eq!(held.pop(), None);
    }
}
