//! Raw movers: memory from one memfd to another over TCP, with nothing in between. What they reach is
//! the limit of the machine for a mover of pages.
//!
//! A mover has a sending and a receiving thread for each stream. Every stream moves its own share of
//! the memory, in order, in units of [`UNIT_BYTES`]. The receiver fills the destination by one of the
//! [`Receive`] ways.

mod memory;
mod methods;
mod receive;

use std::io;
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::num::Wrapping;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use socket2::{Domain, Socket, Type};

use dwcp_simd::FingerprintKey;

use crate::link::{Side, VethLink};
use memory::Memory;
pub use methods::Method;
pub use receive::Receive;

/// Bytes handed over at once, a frame's data.
pub const UNIT_BYTES: usize = 512 << 10;

/// Of the proofs: any will do.
const SEED: u64 = 0x5EED_0042;

/// What is moved, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WireOptions {
    /// How the bytes get into the socket.
    pub method: Method,
    /// How they get out of it.
    pub receive: Receive,
    /// Memory, MiB.
    pub mib: u64,
    /// Streams, a thread each at both ends.
    pub streams: u64,
    /// What the memory is made of.
    pub backing: Backing,
    /// Whether both ends also read each page as a migration's proof does: the limit of a mover that
    /// proves what it moved.
    pub proven: bool,
}

/// What memory is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backing {
    /// Backing of 4 KiB; at the destination none is allocated.
    Fresh,
    /// Backing of 4 KiB, allocated at both ends.
    Allocated,
    /// Huge pages of 2 MiB, allocated at both ends.
    Huge,
}

/// What it took.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct WireRun {
    /// Bytes moved.
    pub bytes: u64,
    /// From the first byte to the last one received.
    pub seconds: f64,
    /// CPU seconds of all threads of both ends.
    pub cpu_s: f64,
}

/// Moves memory once, over the link or over loopback, and checks that all of it arrived.
///
/// # Errors
/// From the system: the method is not to be had here, or there is no memory.
pub fn run_mover(options: WireOptions, link: Option<&VethLink>) -> io::Result<WireRun> {
    let source = Memory::filled(options.mib, options.backing)?;
    let destination = Memory::empty(options.mib, options.backing)?;
    let pairs = connect(options.streams, link)?;
    let start = Barrier::new(2 * pairs.len() + 1);
    let key = options.proven.then(|| FingerprintKey::new(SEED));
    let share = source.bytes() / options.streams as usize / UNIT_BYTES * UNIT_BYTES;
    let (seconds, cpu_s, proofs) = thread::scope(|scope| {
        let mut threads = vec![];
        for (index, (sender, receiver)) in pairs.iter().enumerate() {
            let first = index * share;
            let end = match index + 1 == pairs.len() {
                true => source.bytes(),
                false => first + share,
            };
            let (source, destination, start) = (&source, &destination, &start);
            let (method, how, key) = (options.method, options.receive, key.as_ref());
            threads.push(scope.spawn(move || {
                let send = || methods::send(method, source, first..end, sender, key);
                let sent = measured(start, send);
                if sent.is_err() {
                    // The other side would wait for ever.
                    let _ = sender.shutdown(Shutdown::Both);
                }
                sent
            }));
            threads.push(scope.spawn(move || {
                let receive = || receive::receive(how, destination, first..end, receiver, key);
                let received = measured(start, receive);
                if received.is_err() {
                    // Its sender would wait for room for ever: hugetlbfs cannot be written.
                    let _ = sender.shutdown(Shutdown::Both);
                }
                received
            }));
        }
        start.wait();
        let began = Instant::now();
        let (mut cpu_s, mut proofs) = (0.0, [Wrapping(0); 2]);
        for (index, thread) in threads.into_iter().enumerate() {
            let outcome = thread.join();
            let (cpu, proof) =
                outcome.map_err(|_| io::Error::other("a mover's thread panicked"))??;
            cpu_s += cpu;
            // A sender, its receiver, the next sender.
            proofs[index % 2] += proof;
        }
        io::Result::Ok((began.elapsed().as_secs_f64(), cpu_s, proofs))
    })?;
    if proofs[0] != proofs[1] || !source.is_same(&destination) {
        return Err(io::Error::other("what arrived is not what was sent"));
    }
    Ok(WireRun {
        bytes: source.bytes() as u64,
        seconds,
        cpu_s,
    })
}

/// Sending and receiving ends of the streams.
fn connect(streams: u64, link: Option<&VethLink>) -> io::Result<Vec<(TcpStream, TcpStream)>> {
    let listener = match link {
        None => TcpListener::bind("127.0.0.1:0")?,
        Some(link) => link.within(Side::B, || TcpListener::bind((link.address(Side::B), 0)))?,
    };
    let address = listener.local_addr()?;
    let mut pairs = vec![];
    for _ in 0..streams {
        let sender = match link {
            None => dial(address)?,
            Some(link) => link.within(Side::A, || dial(address))?,
        };
        pairs.push((sender, listener.accept()?.0));
    }
    Ok(pairs)
}

/// With the congestion control of the datacenter profile, set before the socket connects: one that
/// opens with BBR stays paced.
fn dial(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_tcp_congestion(b"cubic")?;
    socket.connect(&address.into())?;
    socket.set_tcp_nodelay(true)?;
    Ok(socket.into())
}

/// Waits for the start, works, and says how much CPU time that took, and the work's proof.
fn measured(start: &Barrier, work: impl FnOnce() -> io::Result<u64>) -> io::Result<(f64, u64)> {
    start.wait();
    let before = thread_cpu_s()?;
    let proof = work()?;
    Ok((thread_cpu_s()? - before, proof))
}

fn thread_cpu_s() -> io::Result<f64> {
    let usage = getrusage(UsageWho::RUSAGE_THREAD)?;
    let time = usage.user_time() + usage.system_time();
    Ok(time.num_microseconds() as f64 / 1e6)
}
