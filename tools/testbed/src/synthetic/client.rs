//! The blocking client of a synthetic guest.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::channel::{Channel, Received};

/// Pause between two attempts to connect to a guest that is not ready yet.
const CONNECT_RETRY: Duration = Duration::from_millis(5);

/// Most RAM blocks that a greeting may announce.
const BLOCKS_MAX: usize = 8;

/// What a guest reports of itself.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct GuestStatus {
    /// Whether it rewrites and checks pages now.
    pub running: bool,
    /// Whether it still waits for its first `resume` after a `load`.
    #[serde(default)]
    pub incoming: bool,
    /// Pages rewritten in its life.
    pub writes: u64,
    /// Pages checked by the pass over all of RAM.
    pub verified: u64,
    /// Pages found wrong; anything but 0 is a lost guest.
    pub bad: u64,
    /// Times all of RAM was checked.
    pub passes: u64,
    /// Longest time between two turns of its loop, milliseconds.
    pub max_gap_ms: u64,
}

/// The outcome of a full check.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct VerifyReport {
    /// Pages found wrong.
    pub bad: u64,
    /// Pages checked.
    pub pages: u64,
}

/// A RAM block as the guest announces it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RamBlock {
    /// Its name.
    pub name: String,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where the guest has mapped it.
    pub va: u64,
    /// Size of the pages behind it: 4096 or 2097152.
    pub page_bytes: u64,
}

/// Why a call to a guest failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// Nobody listens there, or not in time.
    #[error("Cannot connect to the guest at {}", path.display())]
    Connect {
        /// The socket that was tried.
        path: PathBuf,
        /// What the last attempt met.
        source: io::Error,
    },
    /// The guest is gone.
    #[error("The guest went away while {during}")]
    Closed {
        /// What we were doing.
        during: String,
    },
    /// No answer in time.
    #[error("No answer from the guest within {after:?} while {during}")]
    Timeout {
        /// What we were doing.
        during: String,
        /// How long we waited.
        after: Duration,
    },
    /// The guest refused.
    #[error("The guest refused {command}: {desc}")]
    Refused {
        /// The command.
        command: String,
        /// The guest's words.
        desc: String,
    },
    /// The peer does not speak the protocol.
    #[error("Not a synthetic guest: {detail}")]
    Protocol {
        /// What was wrong.
        detail: String,
    },
    /// The kernel refused a read or a write.
    #[error("Socket error while {during}")]
    Io {
        /// What we were doing.
        during: String,
        /// The kernel's reason.
        source: io::Error,
    },
}

/// A connection to a synthetic guest, with its RAM in hand.
#[derive(Debug)]
pub struct SyntheticClient {
    channel: Channel,
    timeout: Duration,
    greeting: Greeting,
    ram: Vec<OwnedFd>,
    userfaultfd: Option<OwnedFd>,
}

#[derive(Debug, Deserialize)]
struct Greeting {
    dwcp_guest: u32,
    name: String,
    pid: i32,
    incoming: bool,
    ram: Vec<RamBlock>,
    userfaultfd: bool,
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "return")]
    value: Option<Value>,
    error: Option<Refusal>,
}

#[derive(Deserialize)]
struct Refusal {
    desc: String,
}

#[derive(Deserialize)]
struct Stamp {
    timestamp_us: u64,
}

#[derive(Deserialize)]
struct Moved {
    bytes: u64,
}

impl SyntheticClient {
    /// Connects, waiting until the guest is ready, and takes its greeting and descriptors.
    ///
    /// `timeout` bounds this and each later command.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, ClientError> {
        let path = path.as_ref();
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match UnixStream::connect(path) {
                Ok(stream) => break stream,
                Err(source) if is_worth_a_retry(&source) && Instant::now() < deadline => {
                    thread::sleep(CONNECT_RETRY);
                }
                Err(source) => {
                    return Err(ClientError::Connect {
                        path: path.into(),
                        source,
                    });
                }
            }
        };
        Self::from_stream(stream, timeout)
    }

    /// Same on a socket that is connected already.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self, ClientError> {
        let mut channel = Channel::new(stream);
        let line = receive(&mut channel, "waiting for the greeting", timeout)?;
        let greeting: Greeting = parse(&line)?;
        if greeting.dwcp_guest != 1 || greeting.ram.is_empty() || greeting.ram.len() > BLOCKS_MAX {
            return Err(protocol("a greeting of another version, or without RAM"));
        }
        let missing = || protocol("descriptors are missing from the greeting");
        let ram: Vec<OwnedFd> = greeting
            .ram
            .iter()
            .map_while(|_| channel.take_descriptor())
            .collect();
        if ram.len() != greeting.ram.len() {
            return Err(missing());
        }
        let userfaultfd = match greeting.userfaultfd {
            true => Some(channel.take_descriptor().ok_or_else(missing)?),
            false => None,
        };
        channel.drop_descriptors();
        Ok(Self {
            channel,
            timeout,
            greeting,
            ram,
            userfaultfd,
        })
    }

    /// Sets how long a command may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// The guest's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.greeting.name
    }

    /// The guest's process.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.greeting.pid
    }

    /// Whether the guest waited for `load` when we connected.
    #[must_use]
    pub fn incoming(&self) -> bool {
        self.greeting.incoming
    }

    /// The RAM blocks, in the order of [`Self::ram_descriptors`].
    #[must_use]
    pub fn ram(&self) -> &[RamBlock] {
        &self.greeting.ram
    }

    /// The memfd of each RAM block.
    #[must_use]
    pub fn ram_descriptors(&self) -> &[OwnedFd] {
        &self.ram
    }

    /// The guest's userfaultfd, when its kernel gave it one.
    #[must_use]
    pub fn userfaultfd(&self) -> Option<BorrowedFd<'_>> {
        self.userfaultfd.as_ref().map(AsFd::as_fd)
    }

    /// Stops the guest and returns when it stopped (wall clock, microseconds).
    ///
    /// # Errors
    /// See [`ClientError`], as for every command.
    pub fn pause(&mut self) -> Result<u64, ClientError> {
        self.execute::<Stamp>("pause", &[])
            .map(|stamp| stamp.timestamp_us)
    }

    /// Lets the guest run and returns when it began to (wall clock, microseconds).
    ///
    /// # Errors
    /// An incoming guest refuses before `load`.
    pub fn resume(&mut self) -> Result<u64, ClientError> {
        self.execute::<Stamp>("resume", &[])
            .map(|stamp| stamp.timestamp_us)
    }

    /// Asks how the guest is. Answered even while it waits for a page.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn status(&mut self) -> Result<GuestStatus, ClientError> {
        self.execute("status", &[])
    }

    /// Has the device state written to a stream socket; somebody must read it meanwhile.
    ///
    /// # Errors
    /// The guest refuses while it runs.
    pub fn save(&mut self, to: BorrowedFd<'_>) -> Result<u64, ClientError> {
        self.execute::<Moved>("save", &[to])
            .map(|moved| moved.bytes)
    }

    /// Has the device state read from a stream socket, until its end.
    ///
    /// # Errors
    /// The guest refuses a state that is damaged or of a guest of another size.
    pub fn load(&mut self, from: BorrowedFd<'_>) -> Result<u64, ClientError> {
        self.execute::<Moved>("load", &[from])
            .map(|moved| moved.bytes)
    }

    /// Has every page checked.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn verify(&mut self) -> Result<VerifyReport, ClientError> {
        self.execute("verify", &[])
    }

    /// Ends the guest.
    ///
    /// # Errors
    /// See [`ClientError`].
    pub fn quit(&mut self) -> Result<(), ClientError> {
        self.execute::<Value>("quit", &[]).map(drop)
    }

    fn execute<T: DeserializeOwned>(
        &mut self,
        command: &str,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<T, ClientError> {
        let during = format!("running {command}");
        self.channel
            .send(&json!({ "execute": command }), descriptors, self.timeout)
            .map_err(|source| from_io(source, &during, self.timeout))?;
        let line = receive(&mut self.channel, &during, self.timeout)?;
        let answer: Answer = parse(&line)?;
        match (answer.value, answer.error) {
            (Some(value), None) => serde_json::from_value(value)
                .map_err(|error| protocol(&format!("answer to {command}: {error}"))),
            (None, Some(refusal)) => Err(ClientError::Refused {
                command: command.into(),
                desc: refusal.desc,
            }),
            _ => Err(protocol("an answer must be one of return and error")),
        }
    }
}

fn receive(channel: &mut Channel, during: &str, after: Duration) -> Result<Vec<u8>, ClientError> {
    match channel.receive(Instant::now() + after) {
        Ok(Received::Line(line)) => Ok(line),
        Ok(Received::Late) => Err(ClientError::Timeout {
            during: during.into(),
            after,
        }),
        Ok(Received::End) => Err(ClientError::Closed {
            during: during.into(),
        }),
        Ok(Received::TooLong) => Err(protocol("a line without end")),
        Err(source) => Err(from_io(source, during, after)),
    }
}

fn parse<T: DeserializeOwned>(line: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(line).map_err(|error| protocol(&error.to_string()))
}

fn protocol(detail: &str) -> ClientError {
    ClientError::Protocol {
        detail: detail.into(),
    }
}

fn from_io(source: io::Error, during: &str, after: Duration) -> ClientError {
    let during = during.to_owned();
    match source.kind() {
        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
            ClientError::Timeout { during, after }
        }
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => {
            ClientError::Closed { during }
        }
        _ => ClientError::Io { during, source },
    }
}

fn is_worth_a_retry(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused
    )
}
