//! One connection to one monitor: greeting, commands, events, descriptors.

use nix::errno::Errno;
use nix::sys::socket::{
    self, AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr,
};
use serde_json::{Value, json};
use std::collections::VecDeque;
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use crate::error::QmpError;
use crate::line::{LineRead, LineReader};
use crate::message::{self, Message, QemuVersion, QmpEvent};
use crate::{EVENTS_QUEUED_MAX, LINE_BYTES_MAX};

/// Pause between two attempts to connect to a socket that is not there yet.
const CONNECT_RETRY: Duration = Duration::from_millis(10);

/// A blocking QMP connection. Dropping it closes the socket; QEMU runs on.
#[derive(Debug)]
pub struct QmpClient {
    lines: LineReader,
    version: QemuVersion,
    timeout: Duration,
    next_id: u64,
    events: VecDeque<QmpEvent>,
    events_lost: u64,
}

impl QmpClient {
    /// Connects, reads the greeting and leaves negotiation mode.
    ///
    /// `timeout` bounds the whole of it and is also the limit for each later command (see
    /// [`Self::set_timeout`]). A socket that does not exist yet, or that nobody accepts on, is tried
    /// again until then: QEMU needs a moment to make it.
    ///
    /// # Errors
    /// [`QmpError::Connect`] when no connection came about, [`QmpError::Timeout`] when another client
    /// holds the monitor (QEMU serves one at a time), [`QmpError::Protocol`] when it is no QEMU.
    pub fn connect(path: impl AsRef<Path>, timeout: Duration) -> Result<Self, QmpError> {
        let path = path.as_ref();
        let deadline = Instant::now() + timeout;
        let stream = loop {
            match connect_once(path) {
                Ok(stream) => break stream,
                Err(source) if is_worth_a_retry(&source) && Instant::now() < deadline => {
                    thread::sleep(CONNECT_RETRY);
                }
                Err(source) => {
                    return Err(QmpError::Connect {
                        path: path.into(),
                        source,
                    });
                }
            }
        };
        Self::from_stream(stream, timeout)
    }

    /// Same as [`Self::connect`] on a socket that is connected already.
    ///
    /// # Errors
    /// See [`Self::connect`].
    pub fn from_stream(stream: UnixStream, timeout: Duration) -> Result<Self, QmpError> {
        let mut client = Self {
            lines: LineReader::new(stream, LINE_BYTES_MAX),
            version: QemuVersion {
                major: 0,
                minor: 0,
                micro: 0,
            },
            timeout,
            next_id: 1,
            events: VecDeque::new(),
            events_lost: 0,
        };
        let deadline = Instant::now() + timeout;
        let line = client.read_line("waiting for the greeting", deadline)?;
        let line = line.ok_or_else(|| client.late("waiting for the greeting", timeout))?;
        client.version = message::parse_greeting(&line)?;
        client.execute("qmp_capabilities", Value::Null)?;
        Ok(client)
    }

    /// Version of the QEMU at the other end.
    #[must_use]
    pub fn version(&self) -> QemuVersion {
        self.version
    }

    /// Sets how long a command may take.
    pub fn set_timeout(&mut self, timeout: Duration) {
        self.timeout = timeout;
    }

    /// Events dropped because nobody asked for them in time.
    #[must_use]
    pub fn events_lost(&self) -> u64 {
        self.events_lost
    }

    /// Process id of the QEMU at the other end, as the kernel recorded it when it listened.
    ///
    /// A manager that passed QEMU a listening socket shows up here instead of QEMU.
    ///
    /// # Errors
    /// [`QmpError::Io`] when the kernel does not say.
    pub fn peer_pid(&self) -> Result<i32, QmpError> {
        socket::getsockopt(self.lines.stream(), socket::sockopt::PeerCredentials)
            .map(|credentials| credentials.pid())
            .map_err(|errno| QmpError::Io {
                during: "SO_PEERCRED".into(),
                source: errno.into(),
            })
    }

    /// Runs one command and returns what it returned. `Null` arguments are left out.
    ///
    /// # Errors
    /// [`QmpError::Command`] when QEMU refused; the connection stays good. After
    /// [`QmpError::Timeout`] the command may still be executed.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value, QmpError> {
        self.request(command, arguments, None)
    }

    /// Runs one command with a descriptor attached to its first byte, as `getfd` wants it.
    ///
    /// # Errors
    /// See [`Self::execute`].
    pub fn execute_with_fd(
        &mut self,
        command: &str,
        arguments: Value,
        fd: BorrowedFd<'_>,
    ) -> Result<Value, QmpError> {
        self.request(command, arguments, Some(fd))
    }

    /// Returns the oldest event not yet seen, waiting up to `timeout` for one.
    ///
    /// # Errors
    /// [`QmpError::Closed`] when QEMU went away, only after every queued event was handed out.
    pub fn next_event(&mut self, timeout: Duration) -> Result<Option<QmpEvent>, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(event) = self.events.pop_front() {
                return Ok(Some(event));
            }
            if !self.pump_events(deadline)? {
                return Ok(None);
            }
        }
    }

    /// Returns the first event that satisfies `wanted`, queued or new. Others stay queued, in order.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] when none came in time.
    pub fn wait_event(
        &mut self,
        mut wanted: impl FnMut(&QmpEvent) -> bool,
        timeout: Duration,
    ) -> Result<QmpEvent, QmpError> {
        let deadline = Instant::now() + timeout;
        let mut seen = 0;
        loop {
            let lost_before = self.events_lost;
            if let Some(at) = self.events.iter().skip(seen).position(&mut wanted)
                && let Some(event) = self.events.remove(seen + at)
            {
                return Ok(event);
            }
            seen = self.events.len();
            if !self.pump_events(deadline)? {
                return Err(self.late("waiting for an event", timeout));
            }
            // A full queue dropped its oldest: what was seen moved to the front by as much.
            seen = seen.saturating_sub((self.events_lost - lost_before) as usize);
        }
    }

    /// [`Self::wait_event`] by name.
    ///
    /// # Errors
    /// See [`Self::wait_event`].
    pub fn wait_event_named(
        &mut self,
        name: &str,
        timeout: Duration,
    ) -> Result<QmpEvent, QmpError> {
        self.wait_event(|event| event.name == name, timeout)
            .map_err(|error| match error {
                QmpError::Timeout { after, .. } => QmpError::Timeout {
                    during: format!("waiting for the event {name}"),
                    after,
                },
                other => other,
            })
    }

    fn request(
        &mut self,
        command: &str,
        arguments: Value,
        fd: Option<BorrowedFd<'_>>,
    ) -> Result<Value, QmpError> {
        let during = format!("running {command}");
        let deadline = Instant::now() + self.timeout;
        let id = self.next_id;
        self.next_id += 1;
        let mut line = json!({ "execute": command, "id": id });
        if !arguments.is_null() {
            line["arguments"] = arguments;
        }
        self.send(format!("{line}\n").as_bytes(), fd)
            .map_err(|error| QmpError::from_io(error, &during, self.timeout))?;
        loop {
            let Some(line) = self.read_line(&during, deadline)? else {
                return Err(self.late(&during, self.timeout));
            };
            match message::parse_message(&line)? {
                Message::Event(event) => self.queue(event),
                // Answers to commands that we gave up on carry a smaller id.
                Message::Return {
                    id: Some(other), ..
                }
                | Message::Error {
                    id: Some(other), ..
                } if other < id => {}
                Message::Return {
                    id: Some(answered),
                    value,
                } if answered == id => {
                    return Ok(value);
                }
                // QEMU leaves the id out when it could not parse the line.
                Message::Error {
                    id: answered,
                    class,
                    desc,
                } if answered.is_none_or(|a| a == id) => {
                    return Err(QmpError::Command {
                        command: command.to_owned(),
                        class,
                        desc,
                    });
                }
                _ => return Err(QmpError::protocol("an answer to a command never sent")),
            }
        }
    }

    fn send(&self, line: &[u8], fd: Option<BorrowedFd<'_>>) -> io::Result<()> {
        let mut stream = self.lines.stream();
        stream.set_write_timeout(Some(self.timeout.max(Duration::from_millis(1))))?;
        let Some(fd) = fd else {
            return stream.write_all(line);
        };
        let fds = [fd.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let sent = loop {
            let data = [IoSlice::new(line)];
            match socket::sendmsg::<UnixAddr>(
                stream.as_raw_fd(),
                &data,
                &rights,
                MsgFlags::MSG_NOSIGNAL,
                None,
            ) {
                Err(Errno::EINTR) => {}
                other => break other?,
            }
        };
        stream.write_all(&line[sent..])
    }

    /// Takes one message that must be an event, or a late answer; false when the deadline passed.
    fn pump_events(&mut self, deadline: Instant) -> Result<bool, QmpError> {
        let Some(line) = self.read_line("waiting for an event", deadline)? else {
            return Ok(false);
        };
        if let Message::Event(event) = message::parse_message(&line)? {
            self.queue(event);
        }
        Ok(true)
    }

    fn queue(&mut self, event: QmpEvent) {
        if self.events.len() >= EVENTS_QUEUED_MAX {
            self.events.pop_front();
            self.events_lost += 1;
        }
        self.events.push_back(event);
    }

    fn read_line(&mut self, during: &str, deadline: Instant) -> Result<Option<Vec<u8>>, QmpError> {
        match self.lines.next_line(deadline) {
            Ok(LineRead::Line(line)) => Ok(Some(line)),
            Ok(LineRead::Late) => Ok(None),
            Ok(LineRead::End) => Err(QmpError::Closed {
                during: during.to_owned(),
            }),
            Ok(LineRead::TooLong) => Err(QmpError::protocol(format!(
                "a line of more than {LINE_BYTES_MAX} bytes"
            ))),
            Err(error) => Err(QmpError::from_io(error, during, self.timeout)),
        }
    }

    fn late(&self, during: &str, after: Duration) -> QmpError {
        QmpError::Timeout {
            during: during.to_owned(),
            after,
        }
    }
}

/// Connects without ever blocking: a full backlog is an error here, not a wait without end.
fn connect_once(path: &Path) -> io::Result<UnixStream> {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let fd = socket::socket(AddressFamily::Unix, SockType::Stream, flags, None)?;
    socket::connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
    let stream = UnixStream::from(fd);
    stream.set_nonblocking(false)?;
    Ok(stream)
}

fn is_worth_a_retry(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, Interrupted, NotFound, WouldBlock};
    matches!(
        error.kind(),
        NotFound | ConnectionRefused | WouldBlock | Interrupted
    )
}
