//! How a running emulator is asked and told: a datagram of JSON each way, over a Unix socket in the
//! link's folder.

use std::io;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;
use std::{fs, process};

use serde::{Deserialize, Serialize};

use crate::model::Counters;
use crate::params::{Direction, LinkParams, WayParams};

/// The socket's name in the folder.
const SOCKET: &str = "control";
/// No request and no reply is larger.
const MESSAGE_BYTES_MAX: usize = 64 * 1024;
/// The emulator answers between two packets: longer than this, and it is gone or stuck.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);

/// What an emulator is asked.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Begin anew: counters, decisions and clock from nothing, nothing on its way.
    Start(LinkParams),
    /// Change what the ways are; what is on its way keeps its times.
    Set([WayParams; 2]),
    /// Let nothing in, for a time or until `Mend`.
    Cut {
        /// The ways.
        ways: Vec<Direction>,
        /// How long.
        for_ns: Option<u64>,
    },
    /// Let packets in again.
    Mend,
    /// Say how things are.
    Show,
}

/// How things are.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The emulator's process.
    pub pid: u32,
    /// CPU time of the emulator, user and system, in seconds.
    pub cpu_s: f64,
    /// Since the start, in seconds.
    pub elapsed_s: f64,
    /// Seed of the decisions.
    pub seed: u64,
    /// A to B, B to A.
    pub ways: [WayStatus; 2],
}

/// One way.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WayStatus {
    /// Which.
    pub direction: Direction,
    /// What it is asked to be.
    pub params: WayParams,
    /// Nothing comes in.
    pub is_cut: bool,
    /// Bytes that wait for the rate.
    pub queue_bytes: u64,
    /// How long the last of them waits.
    pub queue_ns: u64,
    /// Frames between the queue's end and the receiver, those that wait included; a frame holds one
    /// packet or more.
    pub in_flight_frames: usize,
    /// Their bytes.
    pub in_flight_bytes: usize,
    /// What has happened.
    pub counters: Counters,
}

/// What an emulator answers.
pub type Reply = Result<Status, String>;

/// The emulator's end.
#[derive(Debug)]
pub(crate) struct Server {
    socket: UnixDatagram,
}

impl Server {
    pub(crate) fn bind(folder: &Path) -> io::Result<Self> {
        let socket = UnixDatagram::bind(folder.join(SOCKET))?;
        socket.set_nonblocking(true)?;
        Ok(Self { socket })
    }

    /// The next request and who wants the answer. What is no request is answered at once.
    pub(crate) fn next(&self) -> Option<(Request, SocketAddr)> {
        let mut buffer = vec![0; MESSAGE_BYTES_MAX];
        loop {
            // An error here (a client that is gone) is no reason to stop forwarding.
            let (bytes, from) = self.socket.recv_from(&mut buffer).ok()?;
            match serde_json::from_slice(&buffer[..bytes]) {
                Ok(request) => return Some((request, from)),
                Err(error) => self.answer(&Err(format!("no request: {error}")), &from),
            }
        }
    }

    pub(crate) fn answer(&self, reply: &Reply, to: &SocketAddr) {
        let reply = serde_json::to_vec(reply).expect("a reply is JSON");
        // One who does not wait for the answer does not need it.
        let _ = self.socket.send_to_addr(&reply, to);
    }

    pub(crate) const fn socket(&self) -> &UnixDatagram {
        &self.socket
    }
}

/// A client's own socket, which goes with it.
struct OwnSocket(PathBuf);

impl Drop for OwnSocket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

/// Asks the emulator of the link in `folder`.
///
/// # Errors
/// Nobody answers, or the emulator refused.
pub fn ask(folder: &Path, request: &Request) -> io::Result<Status> {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let own = OwnSocket(folder.join(format!("client-{}-{number}", process::id())));
    let socket = UnixDatagram::bind(&own.0)?;
    socket.set_read_timeout(Some(ANSWER_LIMIT))?;
    socket.set_write_timeout(Some(ANSWER_LIMIT))?;
    let request = serde_json::to_vec(request).map_err(io::Error::other)?;
    socket.send_to(&request, folder.join(SOCKET))?;
    let mut buffer = vec![0; MESSAGE_BYTES_MAX];
    let bytes = socket.recv(&mut buffer)?;
    let reply: Reply = serde_json::from_slice(&buffer[..bytes]).map_err(io::Error::other)?;
    reply.map_err(io::Error::other)
}
