//! Device state between a VMM's socket and the other node, both ways.
//!
//! The two VMMs never talk directly: each talks to its own node's data plane over a socket pair, and
//! the relay carries the bytes in `Device` frames, each under its checksum. The destination holds
//! what comes until RAM is proven.

use std::collections::VecDeque;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use dwcp_wire::FrameKind;
use dwcp_wire::limits::DEVICE_BYTES_MAX;

use super::meter::{Helper, Meter};
use super::peer::{PeerError, read_frame, write_frame};

/// Device state that a destination holds before the gate opens. QEMU's own is 0.3 MiB; video RAM
/// and the like may add tens.
const HELD_BYTES_MAX: usize = 512 << 20;

/// Told once when the relay breaks before it is over.
type OnBreak = Arc<dyn Fn(String) + Send + Sync>;

/// One end of the relay.
pub(super) struct Relay {
    peer: TcpStream,
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
    bytes: usize,
    ended: bool,
}

impl Relay {
    /// Reads from the other node at once, and holds what comes.
    pub(super) fn start(
        peer: TcpStream,
        on_break: OnBreak,
        meter: &Arc<Meter>,
    ) -> std::io::Result<Self> {
        let held = Arc::new(Held::default());
        let relay = Self {
            peer: peer.try_clone()?,
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

    /// Connects the VMM: what was held goes to it, and what it says goes to the other node.
    pub(super) fn open(&self, vmm: UnixStream) -> std::io::Result<()> {
        let (peer, from_vmm, on_break) = (
            self.peer.try_clone()?,
            vmm.try_clone()?,
            Arc::clone(&self.on_break),
        );
        spawn("dwcp-device-out", &self.meter, move |meter, helper| {
            if let Err(error) = send(from_vmm, peer, meter, helper) {
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
        let _ = self.peer.shutdown(Shutdown::Both);
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

impl Held {
    fn lock(&self) -> std::sync::MutexGuard<'_, HeldState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.lock().ended = true;
        self.changed.notify_all();
    }
}

/// Other node -> held. An empty frame is the end.
fn receive(
    mut peer: TcpStream,
    held: &Held,
    meter: &Meter,
    helper: &mut Helper,
) -> Result<(), PeerError> {
    loop {
        helper.lap();
        let (header, payload) = read_frame(&mut peer, meter)?;
        if header.kind != FrameKind::Device {
            return Err(PeerError::Kind {
                expected: FrameKind::Device,
                found: header.kind,
            });
        }
        if payload.is_empty() {
            held.end();
            return Ok(());
        }
        let mut state = held.lock();
        state.bytes += payload.len();
        if state.bytes > HELD_BYTES_MAX {
            return Err(std::io::Error::other("more device state than can be held").into());
        }
        state.chunks.push_back(payload);
        drop(state);
        held.changed.notify_all();
    }
}

/// Held -> VMM.
fn deliver(held: &Held, mut vmm: UnixStream, helper: &mut Helper) -> std::io::Result<()> {
    loop {
        helper.lap();
        let mut state = held.lock();
        let chunk = loop {
            if let Some(chunk) = state.chunks.pop_front() {
                state.bytes -= chunk.len();
                break chunk;
            }
            if state.ended {
                return vmm.shutdown(Shutdown::Write);
            }
            state = held
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        };
        drop(state);
        vmm.write_all(&chunk)?;
    }
}

/// VMM -> other node.
fn send(
    mut vmm: UnixStream,
    mut peer: TcpStream,
    meter: &Meter,
    helper: &mut Helper,
) -> std::io::Result<()> {
    let mut buffer = vec![0; DEVICE_BYTES_MAX];
    // The stream's first frame was its hello.
    for sequence in 2.. {
        helper.lap();
        let bytes = vmm.read(&mut buffer)?;
        let kind = FrameKind::Device;
        write_frame(&mut peer, kind, 0, sequence, &buffer[..bytes], meter)?;
        if bytes == 0 {
            break;
        }
    }
    Ok(())
}
