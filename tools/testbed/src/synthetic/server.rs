//! The socket of a synthetic guest: who may speak, what may be said.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use nix::unistd::geteuid;
use serde::Deserialize;
use serde_json::{Value, json};
use std::fs;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use super::machine::Machine;
use super::memory::{self, Memory};
use super::{SyntheticError, SyntheticOptions};
use crate::channel::{Channel, Received};

/// Most clients at once; more are dropped at once.
const CLIENTS_MAX: usize = 32;

/// How often threads that wait look whether the guest has ended.
const LOOK: Duration = Duration::from_millis(100);

/// How long a client may take to read an answer, or a peer to take or give device state.
const PEER_TIMEOUT: Duration = Duration::from_secs(60);

/// A synthetic guest that runs in threads of this process.
#[derive(Debug)]
pub struct SyntheticGuest {
    served: Arc<Served>,
    threads: Vec<JoinHandle<()>>,
    socket: PathBuf,
}

/// What the threads of the clients share.
#[derive(Debug)]
struct Served {
    machine: Machine,
    name: String,
    userfaultfd: Option<OwnedFd>,
    clients: AtomicUsize,
}

#[derive(Deserialize)]
struct Request {
    execute: String,
}

impl SyntheticGuest {
    /// Fills RAM, makes the socket and starts to run (unless incoming).
    ///
    /// # Errors
    /// See [`SyntheticError`]; nothing is left behind.
    pub fn start(options: SyntheticOptions) -> Result<Self, SyntheticError> {
        options.check()?;
        let prealloc = options.incoming && options.prealloc;
        let memory = Memory::new(options.ram_mib, options.hugetlb, prealloc, &options.nodes);
        let memory = memory.map_err(|source| {
            let kind = if options.hugetlb {
                "2 MiB huge pages"
            } else {
                "plain pages"
            };
            SyntheticError::Memory {
                mib: options.ram_mib,
                kind,
                source,
            }
        })?;
        let served = Arc::new(Served {
            machine: Machine::new(&options, memory),
            name: options.name,
            userfaultfd: memory::userfaultfd(),
            clients: AtomicUsize::new(0),
        });
        let socket = options.socket;
        let listener = listen(&socket).map_err(|source| SyntheticError::Socket {
            path: socket.clone(),
            source,
        })?;
        let mut guest = Self {
            served,
            threads: Vec::new(),
            socket,
        };
        let worker = Arc::clone(&guest.served);
        guest.spawn("guest-worker", move || worker.machine.work())?;
        if !options.incoming {
            // The worker was started above and obeys within microseconds.
            let _ = guest.served.machine.resume();
        }
        let served = Arc::clone(&guest.served);
        guest.spawn("guest-accept", move || accept_clients(&listener, &served))?;
        Ok(guest)
    }

    /// Waits until a client says `quit`.
    pub fn wait(mut self) {
        for thread in self.threads.drain(..) {
            // A thread that panicked has ended too, and said so on standard error.
            let _ = thread.join();
        }
    }

    fn spawn(
        &mut self,
        name: &str,
        body: impl FnOnce() + Send + 'static,
    ) -> Result<(), SyntheticError> {
        let thread = thread::Builder::new().name(name.into()).spawn(body);
        self.threads
            .push(thread.map_err(|source| SyntheticError::Thread { source })?);
        Ok(())
    }
}

impl Drop for SyntheticGuest {
    fn drop(&mut self) {
        self.served.machine.end();
        // Gone already when somebody tidied up.
        let _ = fs::remove_file(&self.socket);
    }
}

fn listen(path: &Path) -> io::Result<UnixListener> {
    if let Ok(found) = fs::symlink_metadata(path)
        && found.file_type().is_socket()
        && UnixStream::connect(path).is_err()
    {
        fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

fn accept_clients(listener: &UnixListener, served: &Arc<Served>) {
    let look = PollTimeout::try_from(LOOK).unwrap_or(PollTimeout::ZERO);
    while !served.machine.has_ended() {
        let mut waiting = [PollFd::new(listener.as_fd(), PollFlags::POLLIN)];
        // An interrupted poll is a look around like any other.
        let _ = poll(&mut waiting, look);
        let Ok((stream, _)) = listener.accept() else {
            continue;
        };
        if !is_allowed(&stream) || served.clients.load(Ordering::Relaxed) >= CLIENTS_MAX {
            continue;
        }
        served.clients.fetch_add(1, Ordering::Relaxed);
        let shared = Arc::clone(served);
        let thread = thread::Builder::new().name("guest-client".into());
        let started = thread.spawn(move || {
            serve_client(&shared, stream);
            shared.clients.fetch_sub(1, Ordering::Relaxed);
        });
        if started.is_err() {
            served.clients.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// The socket's mode keeps others out; this holds when somebody changed it.
fn is_allowed(stream: &UnixStream) -> bool {
    getsockopt(stream, sockopt::PeerCredentials)
        .is_ok_and(|peer| peer.uid() == 0 || peer.uid() == geteuid().as_raw())
}

/// Speaks with one client until it goes away, misbehaves or says `quit`.
fn serve_client(served: &Served, stream: UnixStream) {
    let mut channel = Channel::new(stream);
    if served.greet(&channel).is_err() {
        return;
    }
    while !served.machine.has_ended() {
        let line = match channel.receive(Instant::now() + LOOK) {
            Ok(Received::Line(line)) => line,
            Ok(Received::Late) => continue,
            Ok(Received::TooLong) => {
                // It is dropped in any case; whether it reads why is its own affair.
                let _ = channel.send(&refusal("line too long"), &[], LOOK);
                return;
            }
            Ok(Received::End) | Err(_) => return,
        };
        let request = serde_json::from_slice::<Request>(&line);
        let answer = match &request {
            Ok(request) => served.execute(&request.execute, &mut channel),
            Err(error) => Err(format!("not a request: {error}")),
        };
        channel.drop_descriptors();
        let answer = match answer {
            Ok(value) => json!({ "return": value }),
            Err(desc) => refusal(&desc),
        };
        let sent = channel.send(&answer, &[], PEER_TIMEOUT);
        if request.is_ok_and(|request| request.execute == "quit") {
            served.machine.end();
            return;
        }
        if sent.is_err() {
            return;
        }
    }
}

fn refusal(desc: &str) -> Value {
    json!({ "error": { "desc": desc } })
}

impl Served {
    fn greet(&self, channel: &Channel) -> io::Result<()> {
        let memory = &self.machine.memory;
        let greeting = json!({
            "dwcp_guest": 1,
            "name": self.name,
            "pid": std::process::id(),
            "incoming": self.machine.is_incoming(),
            "userfaultfd": self.userfaultfd.is_some(),
            "ram": [{
                "name": "ram0",
                "bytes": memory.bytes(),
                "va": memory.address(),
                "page_bytes": memory.page_bytes(),
            }],
        });
        let descriptors: Vec<BorrowedFd<'_>> = std::iter::once(memory.descriptor())
            .chain(self.userfaultfd.as_ref().map(AsFd::as_fd))
            .collect();
        channel.send(&greeting, &descriptors, PEER_TIMEOUT)
    }

    fn execute(&self, command: &str, channel: &mut Channel) -> Result<Value, String> {
        let mut peer = || {
            let descriptor = channel.take_descriptor();
            descriptor
                .map(UnixStream::from)
                .ok_or("no descriptor came along")
        };
        match command {
            "pause" => self.machine.pause().map(|us| json!({ "timestamp_us": us })),
            "resume" => self
                .machine
                .resume()
                .map(|us| json!({ "timestamp_us": us })),
            "status" => Ok(json!(self.machine.status())),
            "verify" => self.machine.verify().map(|report| json!(report)),
            "save" => {
                let peer = peer()?;
                let written = self.machine.save(|bytes| give(&peer, bytes))?;
                let bytes = written.map_err(|error| format!("device state not taken: {error}"))?;
                Ok(json!({ "bytes": bytes }))
            }
            "load" => {
                let peer = peer()?;
                let bytes = self.machine.load(|limit| take(&peer, limit))?;
                Ok(json!({ "bytes": bytes }))
            }
            "quit" => Ok(json!({})),
            other => Err(format!("unknown command {other:.32}")),
        }
    }
}

fn give(mut peer: &UnixStream, bytes: &[u8]) -> io::Result<usize> {
    peer.set_nonblocking(false)?;
    peer.set_write_timeout(Some(PEER_TIMEOUT))?;
    peer.write_all(bytes)?;
    peer.shutdown(Shutdown::Both)?;
    Ok(bytes.len())
}

fn take(peer: &UnixStream, limit: u64) -> Result<Vec<u8>, String> {
    let read = || {
        peer.set_nonblocking(false)?;
        peer.set_read_timeout(Some(PEER_TIMEOUT))?;
        let mut bytes = Vec::new();
        peer.take(limit + 1).read_to_end(&mut bytes)?;
        io::Result::Ok(bytes)
    };
    let bytes = read().map_err(|error| format!("device state not given: {error}"))?;
    if bytes.len() as u64 > limit {
        return Err("device state too long".into());
    }
    Ok(bytes)
}
