//! Attachments: how the data plane reaches a VM, and how it learns what the guest writes.
//!
//! | attachment | RAM | pause, device state | file |
//! |---|---|---|---|
//! | unmodified QEMU | shared memory-backend-file | QMP, `x-ignore-shared` | `qemu.rs` |
//! | a process that shares memfds | memfds by SCM_RIGHTS | a line protocol | `process.rs` |
//!
//! Device state always travels over a socket that the VM is given; what is at its other end (the
//! relay to the other node) the VM does not know.

mod process;
mod qemu;
mod qemu_ram;
mod throttle;
pub mod tracker;
mod userfault;

pub use throttle::{Throttle, give_back_all};
pub use userfault::{Faults, HandedUserfaultfd, Userfault, fetch as fetch_userfaultfd};

use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::time::{Duration, Instant};

use dwcp_api::Attachment;
use dwcp_journal::GuestMemory;
use dwcp_wire::RamBlockInfo;
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;

use crate::ram::{RamError, RamLayout};

/// A process that is killed gives its memory back within this time.
const END_TIME: Duration = Duration::from_secs(10);

/// What the guest is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RunState {
    /// Its vCPUs run.
    Running,
    /// They stand; it can be resumed.
    Paused,
    /// It waits for a migration.
    Incoming,
    /// It was migrated away and stands; it can be resumed.
    Postmigrate,
    /// The VMM's own word for something else.
    Other(String),
}

impl RunState {
    /// A word for people.
    #[must_use]
    pub fn name(&self) -> &str {
        match self {
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Incoming => "incoming",
            Self::Postmigrate => "postmigrate",
            Self::Other(word) => word,
        }
    }
}

/// What is known of a VM.
#[derive(Clone, Debug)]
pub struct VmFacts {
    /// `qemu` or `process`: both ends of a migration must be of one kind.
    pub kind: &'static str,
    /// VMM and version, for people.
    pub vmm: String,
    /// What the guest is doing.
    pub state: RunState,
    /// RAM blocks in order.
    pub ram: Vec<RamBlockInfo>,
    /// Process id of the VMM.
    pub pid: i32,
}

/// Why a VM does not do what it should.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum VmmError {
    /// It cannot be moved as it was started.
    #[error("{what}")]
    Unsuitable {
        /// What stands in the way.
        what: String,
        /// What to change.
        hint: String,
    },
    /// The VMM is gone.
    #[error("VMM is gone: {0}")]
    Gone(String),
    /// It refused, or did something else than asked.
    #[error("{0}")]
    Failed(String),
    /// The caller gave up waiting.
    #[error("stopped waiting for the VMM")]
    Stopped,
    /// Its RAM cannot be used.
    #[error(transparent)]
    Ram(#[from] RamError),
    /// A system call failed.
    #[error("{what}: {source}")]
    System {
        /// What was tried.
        what: String,
        /// The failure.
        source: std::io::Error,
    },
}

impl VmmError {
    fn unsuitable(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Unsuitable {
            what: what.into(),
            hint: hint.into(),
        }
    }

    fn connecting(what: impl std::fmt::Display, source: &std::io::Error) -> Self {
        let text = format!("{what}: {source}");
        if nobody_listens(source) {
            Self::Gone(text)
        } else {
            Self::Failed(text)
        }
    }

    pub(crate) fn system(what: impl Into<String>, source: impl Into<std::io::Error>) -> Self {
        Self::System {
            what: what.into(),
            source: source.into(),
        }
    }
}

/// Whether connecting to a VMM's socket failed because there is no socket, or nobody behind it: then
/// the VMM has gone. Anything else (a full backlog, no permission) says nothing of the VMM.
#[must_use]
pub fn nobody_listens(error: &std::io::Error) -> bool {
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    matches!(error.kind(), NotFound | ConnectionRefused)
}

/// A VM, held for one migration or one question.
pub trait Vm: Send + std::fmt::Debug {
    /// What is known of it now.
    ///
    /// # Errors
    /// [`VmmError::Unsuitable`] when it could not be moved, with what to change.
    fn facts(&mut self) -> Result<VmFacts, VmmError>;

    /// Maps its RAM.
    ///
    /// # Errors
    /// [`VmmError::Ram`], [`VmmError::System`].
    fn ram(&mut self) -> Result<RamLayout, VmmError>;

    /// Its userfaultfd, or why there is none.
    ///
    /// # Errors
    /// In words for a person.
    fn userfaultfd(&mut self) -> Result<HandedUserfaultfd, VmmError>;

    /// Source: makes ready to give device state, before the guest is paused.
    ///
    /// # Errors
    /// [`VmmError::Failed`].
    fn prepare_source(&mut self) -> Result<(), VmmError>;

    /// Source: pauses the guest. Device state will come out of `device`, some of it perhaps now.
    /// Returns the wall clock of the pause in microseconds.
    ///
    /// # Errors
    /// The guest runs on then.
    fn pause(&mut self, device: UnixStream, stop: &AtomicBool) -> Result<u64, VmmError>;

    /// Source: gives all device state and stands still afterwards.
    ///
    /// # Errors
    /// [`VmmError::Stopped`] when `stop` was set meanwhile.
    fn send_device_state(&mut self, stop: &AtomicBool) -> Result<(), VmmError>;

    /// Runs the guest, whatever state it is in. Returns the wall clock in microseconds.
    ///
    /// # Errors
    /// [`VmmError::Gone`], [`VmmError::Failed`].
    fn resume(&mut self) -> Result<u64, VmmError>;

    /// Destination: makes sure that the guest will not run by itself when it is loaded.
    ///
    /// # Errors
    /// [`VmmError::Failed`].
    fn prepare_destination(&mut self) -> Result<(), VmmError>;

    /// Destination: loads device state from `device`. RAM must be complete. The guest stands.
    ///
    /// # Errors
    /// [`VmmError::Stopped`] when `stop` was set meanwhile.
    fn load(&mut self, device: UnixStream, stop: &AtomicBool) -> Result<(), VmmError>;

    /// Destination: makes sure that the guest never runs here. Returns whether the VM can take
    /// another migration.
    ///
    /// # Errors
    /// [`VmmError::Failed`].
    fn discard(&mut self) -> Result<bool, VmmError>;
}

/// Reaches a VM.
///
/// # Errors
/// [`VmmError::Gone`] when nobody answers.
pub fn open(attachment: &Attachment) -> Result<Box<dyn Vm>, VmmError> {
    Ok(match attachment {
        Attachment::Qemu {
            qmp_socket,
            uffd_socket,
        } => Box::new(qemu::QemuVm::connect(qmp_socket, uffd_socket.clone())?),
        Attachment::Process { socket } => Box::new(process::ProcessVm::connect(socket)?),
    })
}

/// A guest's memory and its userfaultfd once more, of a VMM that may wait for a page and answer nobody.
///
/// # Errors
/// [`VmmError::Gone`] when it is not the process that it was.
pub fn reopen_memory(
    attachment: &Attachment,
    memory: &GuestMemory,
) -> Result<(RamLayout, HandedUserfaultfd), VmmError> {
    if started_ticks(memory.pid)? != memory.started_ticks {
        return Err(VmmError::Gone(format!(
            "no process {} any more",
            memory.pid
        )));
    }
    match attachment {
        Attachment::Qemu { uffd_socket, .. } => {
            let socket = uffd_socket.as_deref().unwrap_or_default();
            let handed = fetch_userfaultfd(socket)?;
            Ok((qemu_ram::map_at(memory)?, handed))
        }
        Attachment::Process { socket } => {
            let mut vm = process::ProcessVm::connect(socket)?;
            Ok((vm.ram()?, vm.userfaultfd()?))
        }
    }
}

/// Gives the faults of a guest that will never run here back to the kernel: a VMM that waits for a page that
/// nobody brings answers nobody.
///
/// # Errors
/// [`VmmError::Gone`] when it is not the process that it was.
pub fn lift_missing(attachment: &Attachment, memory: &GuestMemory) -> Result<(), VmmError> {
    let (_, handed) = reopen_memory(attachment, memory)?;
    let userfault = Userfault::new(handed.fd, Faults::Missing)?;
    for block in &memory.blocks {
        // What was never registered stays so.
        let _ = userfault.unregister(block.address, block.bytes);
    }
    Ok(())
}

/// Ends a VMM that may wait for a page and answer nobody, and waits until it has ended.
///
/// # Errors
/// From the system. A process that has ended already is no error.
pub fn end_process(pid: i32, begun_ticks: u64) -> Result<(), VmmError> {
    let deadline = Instant::now() + END_TIME;
    loop {
        match started_ticks(pid) {
            Ok(ticks) if ticks == begun_ticks => {}
            Ok(_) | Err(VmmError::Gone(_)) => return Ok(()),
            Err(error) => return Err(error),
        }
        match nix::sys::signal::kill(Pid::from_raw(pid), Signal::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(errno) => return Err(VmmError::system(format!("kill {pid}"), errno)),
        }
        if Instant::now() >= deadline {
            return Err(VmmError::Failed(format!("process {pid} does not end")));
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// When a process began, in clock ticks since the boot; see proc_pid_stat(5).
///
/// # Errors
/// [`VmmError::Gone`] when there is none.
pub fn started_ticks(pid: i32) -> Result<u64, VmmError> {
    stat_fields(pid, [19]).map(|[ticks]| ticks)
}

/// Fields of `/proc/PID/stat`, counted from 0 behind the name in brackets, which may hold anything.
fn stat_fields<const N: usize>(pid: i32, fields: [usize; N]) -> Result<[u64; N], VmmError> {
    let gone = || VmmError::Gone(format!("no process {pid}"));
    let path = format!("/proc/{pid}/stat");
    let stat = std::fs::read_to_string(&path).map_err(|error| match error.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => gone(),
        _ => VmmError::system(path, error),
    })?;
    let (_, behind) = stat.rsplit_once(')').ok_or_else(gone)?;
    // One that has ended, and whose parent has not looked yet.
    if behind.trim_start().starts_with(['Z', 'X']) {
        return Err(gone());
    }
    let behind: Vec<_> = behind.split_whitespace().collect();
    let mut values = [0; N];
    for (value, field) in values.iter_mut().zip(fields) {
        let text = behind.get(field).ok_or_else(gone)?;
        *value = text.parse().map_err(|_| gone())?;
    }
    Ok(values)
}

/// Wall clock in microseconds.
#[must_use]
pub fn wall_us() -> u64 {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    now.map_or(0, |time| time.as_micros() as u64)
}
