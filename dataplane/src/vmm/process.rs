//! A process that shares its RAM as memfds and obeys a line protocol: the synthetic guest, or a VMM
//! that wants to be moved this way.
//!
//! On connecting the process says one JSON line, with the memfds of its RAM blocks and a userfaultfd
//! beside it; then each side says a JSON object a line. `docs/ATTACHMENTS.md` has the messages.

use std::io::{BufRead, BufReader, ErrorKind, IoSlice, IoSliceMut, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use dwcp_wire::RamBlockInfo;
use dwcp_wire::limits::RAM_BLOCKS_MAX;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{HandedUserfaultfd, RunState, Vm, VmFacts, VmmError};
use crate::ram::{RamBlock, RamLayout};

const ANSWER_TIME: Duration = Duration::from_secs(30);

/// Longest line that is read.
const LINE_BYTES_MAX: usize = 64 * 1024;

#[derive(Debug, Deserialize)]
struct Greeting {
    dwcp_guest: u32,
    pid: i32,
    userfaultfd: bool,
    /// It does not tell faults of the kernel itself.
    #[serde(default)]
    userfaultfd_user_mode_only: bool,
    ram: Vec<GreetingBlock>,
}

#[derive(Debug, Deserialize)]
struct GreetingBlock {
    name: String,
    bytes: u64,
    va: u64,
}

/// The process behind its socket.
#[derive(Debug)]
pub(super) struct ProcessVm {
    stream: BufReader<UnixStream>,
    greeting: Greeting,
    memfds: Vec<OwnedFd>,
    userfaultfd: Option<OwnedFd>,
    device: Option<UnixStream>,
}

impl ProcessVm {
    pub(super) fn connect(path: &str) -> Result<Self, VmmError> {
        let gone = |error: std::io::Error| VmmError::Gone(format!("{path}: {error}"));
        let stream =
            UnixStream::connect(path).map_err(|error| VmmError::connecting(path, &error))?;
        stream.set_read_timeout(Some(ANSWER_TIME)).map_err(gone)?;
        stream.set_write_timeout(Some(ANSWER_TIME)).map_err(gone)?;
        let (line, mut descriptors) =
            receive_greeting(&stream).map_err(|error| match error.kind() {
                ErrorKind::WouldBlock | ErrorKind::TimedOut => VmmError::Failed(format!(
                    "{path}: no greeting within {} s",
                    ANSWER_TIME.as_secs()
                )),
                _ => gone(error),
            })?;
        let greeting: Greeting = serde_json::from_slice(&line)
            .map_err(|error| VmmError::Failed(format!("{path}: greeting: {error}")))?;
        let expected = greeting.ram.len() + usize::from(greeting.userfaultfd);
        if greeting.dwcp_guest != 1 || descriptors.len() != expected {
            let found = descriptors.len();
            let what = format!("{path}: greeting with {found} descriptors, expected {expected}");
            return Err(VmmError::Failed(what));
        }
        let userfaultfd = if greeting.userfaultfd {
            descriptors.pop()
        } else {
            None
        };
        let stream = BufReader::new(stream);
        Ok(Self {
            stream,
            greeting,
            memfds: descriptors,
            userfaultfd,
            device: None,
        })
    }

    fn execute(&mut self, command: &str, descriptor: Option<RawFd>) -> Result<Value, VmmError> {
        let lost = |error: std::io::Error| match error.kind() {
            ErrorKind::WouldBlock | ErrorKind::TimedOut => VmmError::Failed(format!(
                "{command}: no answer within {} s",
                ANSWER_TIME.as_secs()
            )),
            _ => VmmError::Gone(format!("{command}: {error}")),
        };
        let mut line = json!({ "execute": command }).to_string();
        line.push('\n');
        let descriptors: Vec<RawFd> = descriptor.into_iter().collect();
        let rights = [ControlMessage::ScmRights(&descriptors)];
        let rights = if descriptors.is_empty() {
            &rights[..0]
        } else {
            &rights[..]
        };
        let socket = self.stream.get_mut();
        let slices = [IoSlice::new(line.as_bytes())];
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &slices,
            rights,
            MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|errno| lost(errno.into()))?;
        socket.write_all(&line.as_bytes()[sent..]).map_err(lost)?;
        let mut answer = String::new();
        let mut limited = std::io::Read::take(&mut self.stream, LINE_BYTES_MAX as u64);
        if limited.read_line(&mut answer).map_err(lost)? == 0 {
            return Err(VmmError::Gone(format!("{command}: connection closed")));
        }
        let mut answer: Value = serde_json::from_str(&answer)
            .map_err(|error| VmmError::Failed(format!("{command}: {error}")))?;
        match answer.get_mut("return") {
            Some(value) => Ok(value.take()),
            None => Err(VmmError::Failed(format!(
                "{command}: {}",
                answer["error"]["desc"]
            ))),
        }
    }

    fn timed(&mut self, command: &str) -> Result<u64, VmmError> {
        let answer = self.execute(command, None)?;
        answer["timestamp_us"]
            .as_u64()
            .ok_or_else(|| VmmError::Failed(format!("{command}: no timestamp")))
    }
}

fn receive_greeting(stream: &UnixStream) -> std::io::Result<(Vec<u8>, Vec<OwnedFd>)> {
    let mut line = vec![0; LINE_BYTES_MAX];
    let mut filled = 0;
    let mut descriptors = vec![];
    while !line[..filled].contains(&b'\n') && filled < line.len() {
        let mut space = nix::cmsg_space!([RawFd; RAM_BLOCKS_MAX + 1]);
        let mut slices = [IoSliceMut::new(&mut line[filled..])];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut space), flags)?;
        for control in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel has just made these descriptors for this process, and each is
                // taken once.
                descriptors.extend(
                    raw.into_iter()
                        .map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }),
                );
            }
        }
        if message.bytes == 0 {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        filled += message.bytes;
    }
    line.truncate(filled);
    Ok((line, descriptors))
}

impl Vm for ProcessVm {
    fn facts(&mut self) -> Result<VmFacts, VmmError> {
        let status = self.execute("status", None)?;
        let is = |name| status.get(name).and_then(Value::as_bool).unwrap_or(false);
        let state = match (is("running"), is("incoming")) {
            (true, _) => RunState::Running,
            (false, true) => RunState::Incoming,
            (false, false) => RunState::Paused,
        };
        let ram = self.greeting.ram.iter();
        Ok(VmFacts {
            kind: "process",
            vmm: "process".into(),
            state,
            ram: ram
                .map(|b| RamBlockInfo {
                    name: b.name.clone(),
                    bytes: b.bytes,
                })
                .collect(),
            pid: self.greeting.pid,
        })
    }

    fn ram(&mut self) -> Result<RamLayout, VmmError> {
        let blocks = self
            .greeting
            .ram
            .iter()
            .zip(&self.memfds)
            .map(|(block, memfd)| {
                let memfd = memfd
                    .try_clone()
                    .map_err(|error| VmmError::system("memfd", error))?;
                Ok(RamBlock::map(
                    block.name.clone(),
                    memfd,
                    block.bytes,
                    block.va,
                )?)
            });
        Ok(RamLayout::new(blocks.collect::<Result<_, VmmError>>()?)?)
    }

    fn userfaultfd(&mut self) -> Result<HandedUserfaultfd, VmmError> {
        let Some(userfaultfd) = &self.userfaultfd else {
            return Err(VmmError::Failed(
                "the process could not make a userfaultfd".into(),
            ));
        };
        let fd = userfaultfd
            .try_clone()
            .map_err(|error| VmmError::system("userfaultfd", error))?;
        Ok(HandedUserfaultfd {
            fd,
            tells_kernel_faults: !self.greeting.userfaultfd_user_mode_only,
        })
    }

    fn prepare_source(&mut self) -> Result<(), VmmError> {
        Ok(())
    }

    fn pause(&mut self, device: UnixStream, _stop: &AtomicBool) -> Result<u64, VmmError> {
        self.device = Some(device);
        self.timed("pause")
    }

    fn send_device_state(&mut self, _stop: &AtomicBool) -> Result<(), VmmError> {
        let device = self.device.take();
        let device = device.ok_or_else(|| VmmError::Failed("guest was not paused".into()))?;
        self.execute("save", Some(device.as_raw_fd())).map(drop)
    }

    fn resume(&mut self) -> Result<u64, VmmError> {
        self.timed("resume")
    }

    fn prepare_destination(&mut self) -> Result<(), VmmError> {
        let state = self.facts()?.state;
        if state == RunState::Incoming {
            return Ok(());
        }
        Err(VmmError::unsuitable(
            format!(
                "the process is {}, it does not wait for a migration",
                state.name()
            ),
            "start it as an incoming guest",
        ))
    }

    fn load(&mut self, device: UnixStream, _stop: &AtomicBool) -> Result<(), VmmError> {
        self.execute("load", Some(device.as_raw_fd())).map(drop)
    }

    fn discard(&mut self) -> Result<bool, VmmError> {
        if self.facts()?.state == RunState::Incoming {
            return Ok(true);
        }
        // It holds a guest that could be told to run.
        self.execute("quit", None)?;
        Ok(false)
    }
}
