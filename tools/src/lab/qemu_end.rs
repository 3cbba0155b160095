//! One end of a guest in QEMU.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dwcp_api::Attachment;
use dwcp_testbed::guests::{GuestKind, QemuGuest};

use super::{Binaries, GuestChoice, GuestSpec, LabError};

/// A workload that says so often how far it is has found its pace again.
const WORK_LINES: usize = 3;

/// A workload that has not gone on after this time stands.
const WORK_TIME: Duration = Duration::from_secs(60);

/// How often a log is looked at.
const LOOK: Duration = Duration::from_millis(50);

/// A QEMU with the preload library.
#[derive(Debug)]
pub struct QemuEnd {
    pub(super) guest: QemuGuest,
    uffd_socket: PathBuf,
    is_workload: bool,
}

impl QemuEnd {
    pub(super) fn start(
        spec: &GuestSpec,
        folder: &Path,
        binaries: &Binaries,
        incoming: bool,
    ) -> Result<Self, LabError> {
        let name = if incoming { "destination" } else { "source" };
        let uffd_socket = folder.join(format!("{name}.uffd"));
        let mut builder = QemuGuest::builder(name, folder)
            .guest(match spec.choice {
                GuestChoice::Synthetic | GuestChoice::Qemu => GuestKind::Bare,
                GuestChoice::Linux | GuestChoice::Workload(_) => GuestKind::Linux,
            })
            .memory_mib(spec.ram_mib)
            .options(spec.options())
            .env("LD_PRELOAD", &binaries.preload)
            .env("DWCP_UFFD_SOCKET", &uffd_socket);
        let workload = match spec.choice {
            GuestChoice::Workload(guest) => Some(guest),
            _ => None,
        };
        if let Some(guest) = workload {
            builder = builder.workload(guest);
        }
        if incoming || workload.is_some() {
            builder = builder.incoming().paused();
        }
        let mut guest = builder.spawn()?;
        if let (Some(workload), false) = (workload, incoming) {
            guest.restore(&workload.warm(&mut |_| {})?)?;
        }
        Ok(Self {
            guest,
            uffd_socket,
            is_workload: workload.is_some(),
        })
    }

    pub(super) fn attachment(&self) -> Attachment {
        Attachment::Qemu {
            qmp_socket: self.guest.qmp_path().to_string_lossy().into_owned(),
            uffd_socket: Some(self.uffd_socket.to_string_lossy().into_owned()),
        }
    }

    pub(super) fn is_running(&mut self) -> bool {
        self.guest.is_alive()
            && self
                .guest
                .qmp()
                .and_then(|mut qmp| Ok(qmp.query_status()?))
                .is_ok_and(|status| status.status == "running")
    }

    pub(super) fn wait_ready(&mut self, timeout: Duration) -> Result<(), LabError> {
        if self.is_workload {
            return Ok(self.guest.wait_work(WORK_LINES, timeout)?);
        }
        self.guest.wait_ready(timeout)?;
        self.guest.wait_ticks(1, timeout)?;
        Ok(())
    }

    /// Whether the guest of `source` came here whole, by its own account; a workload's is that it works.
    pub(super) fn verify_against(
        &mut self,
        source: &Self,
        timeout: Duration,
    ) -> Result<(), String> {
        if self.is_workload {
            return self
                .guest
                .goes_on_here(source.guest.serial(), WORK_TIME)
                .map(drop);
        }
        let verdict = self.guest.verify_against(source.guest.serial(), timeout);
        if verdict.ok && verdict.full_pass {
            return Ok(());
        }
        let no_reason = || "it did not look at all pages".into();
        Err(verdict.reason.unwrap_or_else(no_reason))
    }

    /// A workload goes on where it stayed.
    fn works_here(&mut self) -> Result<(), String> {
        let log = self.guest.serial().clone();
        let before = log.work().last().map(|line| line.done);
        let deadline = Instant::now() + WORK_TIME;
        while log.work().last().map(|line| line.done) <= before {
            if !self.guest.is_alive() {
                return Err("its QEMU is gone".into());
            }
            if Instant::now() > deadline {
                return Err("its work does not go on where it stayed".into());
            }
            std::thread::sleep(LOOK);
        }
        Ok(())
    }

    /// The guest goes on ticking where it stayed, and a pass over all pages finds none bad.
    pub(super) fn verify_here(
        &mut self,
        timeout: Duration,
    ) -> Result<Result<(), String>, LabError> {
        if self.is_workload {
            return Ok(self.works_here());
        }
        let log = self.guest.serial().clone();
        let pages = log.ready_mib().unwrap_or(0) << 8;
        let before = log.latest().map_or(0, |tick| tick.verified);
        let deadline = Instant::now() + timeout;
        while Instant::now() < deadline {
            if let Some(tick) = log.latest() {
                if tick.bad > 0 {
                    return Ok(Err(format!("{} bad pages", tick.bad)));
                }
                if tick.verified >= before + pages {
                    return Ok(Ok(()));
                }
            }
            if !self.guest.is_alive() {
                return Ok(Err("its QEMU is gone".into()));
            }
            std::thread::sleep(LOOK);
        }
        Ok(Err("it did not look at all pages in time".into()))
    }
}
