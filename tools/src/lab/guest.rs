//! The guest of the lab, at both ends.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dwcp_api::Attachment;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::{GuestOptions, WorkloadGuest};
use dwcp_testbed::peers::cpu_seconds;
use dwcp_testbed::synthetic::SyntheticClient;
use dwcp_testbed::wire::Backing;

use super::qemu_end::QemuEnd;
use super::{Binaries, LabError};

/// A guest under emulation may take so long to boot and fill its RAM.
const READY_TIME: Duration = Duration::from_secs(180);

/// It gets so long to look at all of its memory after the move.
const VERIFY_TIME: Duration = Duration::from_secs(180);

/// Flag of a socket that listens, in `/proc/net/unix`.
const ACCEPTS: &str = "00010000";

const ANSWER_TIME: Duration = Duration::from_secs(60);

/// Which guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GuestChoice {
    /// A process with a memfd.
    Synthetic,
    /// QEMU with the project's own kernel.
    Qemu,
    /// QEMU with the distribution's kernel and the project's own init.
    Linux,
    /// QEMU with a Debian that has something to do, as it was saved when it was warm.
    Workload(WorkloadGuest),
}

/// What the guest is and does.
#[derive(Clone, Copy, Debug)]
pub struct GuestSpec {
    /// Which guest.
    pub choice: GuestChoice,
    /// Its RAM.
    pub ram_mib: u64,
    /// RAM filled with data that it checks.
    pub fill_mib: u64,
    /// RAM that it rewrites.
    pub hot_mib: u64,
    /// Pages rewritten per second.
    pub dirty_pages_per_s: u64,
    /// Pages that it looks at per second while it runs, beside those that it rewrites; it always looks
    /// at all of them after the move.
    pub checked_pages_per_s: u64,
    /// What its pages look like.
    pub kind: Kind,
    /// What its RAM is made of. Only of a synthetic guest.
    pub backing: Backing,
}

impl GuestSpec {
    /// A process with so much RAM filled with bytes that do not compress, which it looks at and does not rewrite.
    #[must_use]
    pub fn incompressible(ram_mib: u64, fill_mib: u64) -> Self {
        Self {
            choice: GuestChoice::Synthetic,
            ram_mib,
            fill_mib,
            hot_mib: 1,
            dirty_pages_per_s: 0,
            checked_pages_per_s: GuestOptions::default().verify_rate,
            kind: Kind::Random,
            backing: Backing::Fresh,
        }
    }

    /// A workload's guest: what it fills and writes is its own affair.
    #[must_use]
    pub const fn of_workload(guest: WorkloadGuest) -> Self {
        Self {
            choice: GuestChoice::Workload(guest),
            ram_mib: guest.workload.memory_mib(),
            fill_mib: 0,
            hot_mib: 0,
            dirty_pages_per_s: 0,
            checked_pages_per_s: 0,
            kind: Kind::Text,
            backing: Backing::Fresh,
        }
    }

    /// What a guest in QEMU is told.
    #[must_use]
    pub const fn options(&self) -> GuestOptions {
        GuestOptions {
            fill_mib: self.fill_mib,
            hot_mib: self.hot_mib,
            rate: self.dirty_pages_per_s,
            verify_rate: self.checked_pages_per_s,
            kind: self.kind,
        }
    }
}

/// Both ends of a guest: one runs, the other waits. Dropping it ends both.
#[derive(Debug)]
pub enum GuestPair {
    /// Two processes.
    Synthetic {
        /// Runs.
        source: SyntheticProcess,
        /// Waits.
        destination: SyntheticProcess,
    },
    /// Two QEMUs.
    Qemu {
        /// Runs.
        source: Box<QemuEnd>,
        /// Waits.
        destination: Box<QemuEnd>,
    },
}

/// A synthetic guest's process.
#[derive(Debug)]
pub struct SyntheticProcess {
    child: Child,
    socket: PathBuf,
}

impl Drop for SyntheticProcess {
    fn drop(&mut self) {
        // Both fail only when it has ended by itself.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl GuestPair {
    /// Starts both ends and waits until the source's guest has filled its RAM.
    ///
    /// # Errors
    /// [`LabError::Guest`], [`LabError::Timeout`].
    pub fn start(spec: &GuestSpec, folder: &Path, binaries: &Binaries) -> Result<Self, LabError> {
        if spec.choice == GuestChoice::Synthetic {
            return Ok(Self::Synthetic {
                source: SyntheticProcess::start(
                    spec,
                    &folder.join("source.guest"),
                    binaries,
                    false,
                )?,
                destination: SyntheticProcess::start(
                    spec,
                    &folder.join("destination.guest"),
                    binaries,
                    true,
                )?,
            });
        }
        let mut source = QemuEnd::start(spec, folder, binaries, false)?;
        let mut destination = QemuEnd::start(spec, folder, binaries, true)?;
        source.wait_ready(READY_TIME)?;
        drop(destination.guest.qmp()?);
        Ok(Self::Qemu {
            source: Box::new(source),
            destination: Box::new(destination),
        })
    }

    /// The guest has been moved: where it runs is the source from now on, and a new VMM waits for it.
    ///
    /// # Errors
    /// As [`Self::start`].
    pub fn turn_round(
        &mut self,
        spec: &GuestSpec,
        folder: &Path,
        binaries: &Binaries,
    ) -> Result<(), LabError> {
        match self {
            Self::Synthetic {
                source,
                destination,
            } => {
                // Where the guest was: it is reached at the other socket now.
                let _ = source.child.kill();
                let _ = source.child.wait();
                let place = SyntheticProcess::start(spec, &source.socket, binaries, true)?;
                *source = std::mem::replace(destination, place);
            }
            Self::Qemu {
                source,
                destination,
            } => {
                let mut place = QemuEnd::start(spec, folder, binaries, true)?;
                drop(place.guest.qmp()?);
                destination.guest.goes_on_from(&source.guest);
                *source = std::mem::replace(destination, Box::new(place));
            }
        }
        Ok(())
    }

    /// How the data plane of the source reaches it.
    #[must_use]
    pub fn source(&self) -> Attachment {
        match self {
            Self::Synthetic { source, .. } => source.attachment(),
            Self::Qemu { source, .. } => source.attachment(),
        }
    }

    /// How the data plane of the destination reaches it.
    #[must_use]
    pub fn destination(&self) -> Attachment {
        match self {
            Self::Synthetic { destination, .. } => destination.attachment(),
            Self::Qemu { destination, .. } => destination.attachment(),
        }
    }

    /// CPU seconds that both VMMs have used.
    #[must_use]
    pub fn cpu_s(&self) -> f64 {
        let pids = match self {
            Self::Synthetic {
                source,
                destination,
            } => [source.child.id(), destination.child.id()],
            Self::Qemu {
                source,
                destination,
            } => [source.guest.pid(), destination.guest.pid()],
        };
        pids.into_iter().map(cpu_seconds).sum()
    }

    /// Kills the destination's VMM as `kill -9` does.
    pub fn kill_destination(&mut self) {
        match self {
            Self::Synthetic { destination, .. } => {
                let _ = destination.child.kill();
                let _ = destination.child.wait();
            }
            Self::Qemu { destination, .. } => destination.guest.kill(),
        }
    }

    /// Whether the vCPUs run, at the source and at the destination. A VMM that is gone runs nothing.
    #[must_use]
    pub fn running(&mut self) -> (bool, bool) {
        match self {
            Self::Synthetic {
                source,
                destination,
            } => (source.is_running(), destination.is_running()),
            Self::Qemu {
                source,
                destination,
            } => (source.is_running(), destination.is_running()),
        }
    }

    /// Lets the guest look at all of its memory at the destination. `Err` says what it found.
    ///
    /// # Errors
    /// [`LabError`] when it cannot be asked.
    pub fn verify_at_destination(&mut self) -> Result<Result<(), String>, LabError> {
        match self {
            Self::Synthetic { destination, .. } => destination.verify(),
            Self::Qemu {
                source,
                destination,
            } => Ok(destination.verify_against(source, VERIFY_TIME)),
        }
    }

    /// The longest time for which the guest did not run, where it is now, as its own loop saw it on a clock that goes on in
    /// the pause. A guest in QEMU has none.
    ///
    /// # Errors
    /// [`LabError`] when it cannot be asked.
    pub fn longest_gap_ms(&mut self, at_destination: bool) -> Result<Option<u64>, LabError> {
        let Self::Synthetic {
            source,
            destination,
        } = self
        else {
            return Ok(None);
        };
        let process = if at_destination { destination } else { source };
        let mut client = SyntheticClient::connect(&process.socket, ANSWER_TIME)?;
        Ok(Some(client.status()?.max_gap_ms))
    }

    /// Lets the guest look at its memory at the source, where it stayed.
    ///
    /// # Errors
    /// [`LabError`] when it cannot be asked.
    pub fn verify_at_source(&mut self) -> Result<Result<(), String>, LabError> {
        match self {
            Self::Synthetic { source, .. } => source.verify(),
            Self::Qemu { source, .. } => source.verify_here(VERIFY_TIME),
        }
    }
}

/// Whether somebody listens on a socket. Its file is there before that, and whoever connects takes the place of the
/// one client that a VMM serves.
fn listens(socket: &Path) -> bool {
    let all = std::fs::read_to_string("/proc/net/unix").unwrap_or_default();
    let path = socket.to_string_lossy();
    all.lines().any(|line| {
        let mut fields = line.split_whitespace();
        fields.nth(3) == Some(ACCEPTS) && fields.next_back() == Some(&*path)
    })
}

impl SyntheticProcess {
    fn start(
        spec: &GuestSpec,
        socket: &Path,
        binaries: &Binaries,
        incoming: bool,
    ) -> Result<Self, LabError> {
        let name = if incoming { "destination" } else { "source" };
        let _ = std::fs::remove_file(socket);
        let zero = 100 - spec.fill_mib.min(spec.ram_mib) * 100 / spec.ram_mib.max(1);
        let mut command = Command::new(&binaries.load);
        command
            .args(["guest", "--name", name, "--kind", spec.kind.name()])
            .arg("--socket")
            .arg(socket)
            .args(["--size-mib", &spec.ram_mib.to_string()])
            .args(["--hot-mib", &spec.hot_mib.to_string()])
            .args(["--dirty-rate", &spec.dirty_pages_per_s.to_string()])
            .args(["--verify-rate", &spec.checked_pages_per_s.to_string()])
            .args(["--zero-percent", &zero.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::null());
        if incoming {
            command.arg("--incoming");
        }
        if spec.backing == Backing::Huge {
            command.arg("--hugetlb");
        }
        if incoming && spec.backing != Backing::Fresh {
            command.arg("--prealloc");
        }
        let child = command.spawn().map_err(LabError::system("dwcp-load"))?;
        let mut process = Self {
            child,
            socket: socket.to_owned(),
        };
        process.wait_ready()?;
        Ok(process)
    }

    fn wait_ready(&mut self) -> Result<(), LabError> {
        let deadline = Instant::now() + READY_TIME;
        while !listens(&self.socket) {
            if let Ok(Some(status)) = self.child.try_wait() {
                let what = "synthetic guest".to_owned();
                return Err(LabError::Start {
                    what,
                    detail: status.to_string(),
                });
            }
            if Instant::now() > deadline {
                return Err(LabError::Timeout("filling the guest's RAM".into()));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }

    fn attachment(&self) -> Attachment {
        Attachment::Process {
            socket: self.socket.to_string_lossy().into_owned(),
        }
    }

    /// One that has ended is not waited for: it may do so at any time.
    fn is_running(&mut self) -> bool {
        if !matches!(self.child.try_wait(), Ok(None)) {
            return false;
        }
        let Ok(stream) = UnixStream::connect(&self.socket) else {
            return false;
        };
        SyntheticClient::from_stream(stream, ANSWER_TIME)
            .and_then(|mut client| client.status())
            .is_ok_and(|status| status.running)
    }

    fn verify(&self) -> Result<Result<(), String>, LabError> {
        let mut client = SyntheticClient::connect(&self.socket, READY_TIME)?;
        let found = client.verify()?;
        let status = client.status()?;
        let bad = found.bad + status.bad;
        Ok(if bad == 0 {
            Ok(())
        } else {
            Err(format!("{bad} bad pages of {}", found.pages))
        })
    }
}
