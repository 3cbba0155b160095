//! One running QEMU with one of our guests.

use dwcp_qmp::QmpClient;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use super::builder::QemuBuilder;
use super::progress::goes_on;
use super::serial::{SerialLog, TickLine, Verdict, verify};
use super::{GuestError, tail};

/// How often a log is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// How long QEMU may take until its monitor answers, on a busy machine.
const QMP_TIMEOUT: Duration = Duration::from_secs(30);

/// A running QEMU. Dropping it kills it and removes its sockets and its RAM.
#[derive(Debug)]
pub struct QemuGuest {
    pub(super) name: String,
    pub(super) child: Child,
    pub(super) qmp: PathBuf,
    pub(super) output: PathBuf,
    pub(super) serial: SerialLog,
    pub(super) ram: Option<PathBuf>,
    /// Whether the RAM file is ours to remove.
    pub(super) owns_ram: bool,
}

impl QemuGuest {
    /// A builder for a guest whose socket and logs lie in `folder` under `name`.
    #[must_use]
    pub fn builder(name: &str, folder: impl Into<PathBuf>) -> QemuBuilder {
        QemuBuilder::new(name, folder.into())
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// QEMU's process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The path of its monitor socket.
    #[must_use]
    pub fn qmp_path(&self) -> &Path {
        &self.qmp
    }

    /// The file behind its RAM, when it has one.
    #[must_use]
    pub fn ram_path(&self) -> Option<&Path> {
        self.ram.as_deref()
    }

    /// What the guest says.
    #[must_use]
    pub fn serial(&self) -> &SerialLog {
        &self.serial
    }

    /// The guest here is that of `source`: it was moved.
    pub fn goes_on_from(&mut self, source: &Self) {
        self.serial.goes_on_from(&source.serial);
    }

    /// Connects to the monitor; QEMU serves one client at a time.
    ///
    /// # Errors
    /// [`GuestError::Ended`] with QEMU's own words when it did not start.
    pub fn qmp(&mut self) -> Result<QmpClient, GuestError> {
        let deadline = Instant::now() + QMP_TIMEOUT;
        while !self.qmp.exists() && Instant::now() < deadline {
            self.check_alive()?;
            thread::sleep(LOOK);
        }
        let connected = QmpClient::connect(&self.qmp, QMP_TIMEOUT);
        self.check_alive()?;
        Ok(connected?)
    }

    /// Whether QEMU still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Waits until the guest has filled its RAM.
    ///
    /// # Errors
    /// [`GuestError::Ended`], [`GuestError::Failed`] or [`GuestError::Timeout`].
    pub fn wait_ready(&mut self, timeout: Duration) -> Result<u64, GuestError> {
        self.wait_for("READY line", timeout, SerialLog::ready_mib)
    }

    /// Waits until the program that it was started for has ended, and returns its exit code.
    ///
    /// # Errors
    /// As [`Self::wait_ready`].
    pub fn wait_exit(&mut self, timeout: Duration) -> Result<i32, GuestError> {
        self.wait_for("end of its program", timeout, SerialLog::exit_code)
    }

    /// Waits until the guest's workload is warm.
    ///
    /// # Errors
    /// As [`Self::wait_ready`].
    pub fn wait_warm(&mut self, timeout: Duration) -> Result<(), GuestError> {
        let is_warm = |log: &SerialLog| log.is_warm().then_some(());
        self.wait_for("READY line", timeout, is_warm)
    }

    /// Waits until the guest's workload said `count` times how far it is.
    ///
    /// # Errors
    /// As [`Self::wait_ready`].
    pub fn wait_work(&mut self, count: usize, timeout: Duration) -> Result<(), GuestError> {
        self.wait_for("work", timeout, |log| {
            (log.work().len() >= count).then_some(())
        })
    }

    /// Waits until the workload of `source` goes on here, or does not; or `timeout`. The work that it has
    /// done here, or what is wrong.
    ///
    /// # Errors
    /// What is wrong.
    pub fn goes_on_here(&mut self, source: &SerialLog, timeout: Duration) -> Result<u64, String> {
        let deadline = Instant::now() + timeout;
        loop {
            match goes_on(source, &self.serial) {
                Ok(Some(done)) => return Ok(done),
                Ok(None) if !self.is_alive() => return Err("its QEMU is gone".into()),
                Ok(None) if Instant::now() >= deadline => {
                    return Err("its work does not go on".into());
                }
                Ok(None) => thread::sleep(LOOK),
                Err(reason) => return Err(reason),
            }
        }
    }

    /// Waits until the guest printed `count` ticks, and returns the newest.
    ///
    /// # Errors
    /// As [`Self::wait_ready`].
    pub fn wait_ticks(&mut self, count: usize, timeout: Duration) -> Result<TickLine, GuestError> {
        self.wait_for("ticks", timeout, |log| {
            let ticks = log.ticks();
            ticks.last().copied().filter(|_| ticks.len() >= count)
        })
    }

    /// Waits until the destination of a move has checked every page, or `timeout`; then says whether
    /// the guest came through.
    #[must_use]
    pub fn verify_against(&mut self, source: &SerialLog, timeout: Duration) -> Verdict {
        let deadline = Instant::now() + timeout;
        loop {
            let verdict = verify(source, &self.serial);
            if verdict.full_pass || Instant::now() >= deadline || !self.is_alive() {
                return verdict;
            }
            thread::sleep(LOOK);
        }
    }

    /// The end of what QEMU printed, for messages.
    #[must_use]
    pub fn output(&self) -> String {
        tail(&fs::read_to_string(&self.output).unwrap_or_default(), 1000)
    }

    /// Ends it the hard way.
    pub fn kill(&mut self) {
        // Both fail only when it is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }

    fn wait_for<T>(
        &mut self,
        what: &str,
        timeout: Duration,
        look: impl Fn(&SerialLog) -> Option<T>,
    ) -> Result<T, GuestError> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(found) = look(&self.serial) {
                return Ok(found);
            }
            if let Some(detail) = self.serial.failure() {
                return Err(GuestError::Failed {
                    name: self.name.clone(),
                    detail,
                });
            }
            if let Err(ended) = self.check_alive() {
                // Its last words may have come since.
                return look(&self.serial).ok_or(ended);
            }
            if Instant::now() >= deadline {
                return Err(GuestError::Timeout {
                    name: self.name.clone(),
                    what: what.to_owned(),
                    after: timeout,
                    tail: tail(&self.serial.text(), 300),
                });
            }
            thread::sleep(LOOK);
        }
    }

    pub(super) fn check_alive(&mut self) -> Result<(), GuestError> {
        let status = match self.child.try_wait() {
            Ok(None) => return Ok(()),
            Ok(Some(status)) => ExitStatus::to_string(&status),
            Err(error) => error.to_string(),
        };
        Err(GuestError::Ended {
            name: self.name.clone(),
            status,
            output: self.output(),
        })
    }
}

impl Drop for QemuGuest {
    fn drop(&mut self) {
        self.kill();
        let ram = self.ram.as_ref().filter(|_| self.owns_ram);
        for path in [&self.qmp].into_iter().chain(ram) {
            // Gone already when somebody tidied up.
            let _ = fs::remove_file(path);
        }
    }
}
