//! Unmodified QEMU, 7.2 and newer, by its QMP monitor.
//!
//! DWCP moves RAM; QEMU streams its device state, 0.3 MiB or so, into a socket that it is given
//! with `getfd`. `pause-before-switchover` stops it with the guest paused and nothing sent yet;
//! `return-path` makes `completed` mean that the destination has loaded everything.

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_qmp::{MigrationStatus, QmpClient, QmpError};
use serde_json::json;

use super::{HandedUserfaultfd, RunState, Vm, VmFacts, VmmError, qemu_ram, wall_us};
use crate::ram::RamLayout;

/// A monitor that does not answer for so long is taken for hung.
const ANSWER_TIME: Duration = Duration::from_secs(20);

/// A monitor that does not greet for so long is held by somebody else.
const GREETING_TIME: Duration = Duration::from_secs(4);

/// Longest wait for a phase of QEMU's own migration.
const PHASE_TIME: Duration = Duration::from_secs(60);

/// Between looks at whether the caller has given up.
const STOP_LOOK: Duration = Duration::from_millis(20);

/// Name under which QEMU is given the device socket.
const FD_NAME: &str = "dwcp-device";

/// QEMU behind its monitor.
#[derive(Debug)]
pub(super) struct QemuVm {
    qmp: QmpClient,
    uffd_socket: Option<String>,
    loading: bool,
}

impl From<QmpError> for VmmError {
    fn from(error: QmpError) -> Self {
        if error.is_closed() {
            Self::Gone(error.to_string())
        } else {
            Self::Failed(error.to_string())
        }
    }
}

impl QemuVm {
    pub(super) fn connect(path: &str, uffd_socket: Option<String>) -> Result<Self, VmmError> {
        // QEMU serves one client of a monitor at a time: another one shows as silence.
        let mut qmp = QmpClient::connect(path, GREETING_TIME).map_err(|error| match error {
            QmpError::Timeout { .. } => VmmError::Failed(format!(
                "QMP {path}: {error}; end the other client of this monitor, or give DWCP its own"
            )),
            QmpError::Connect { source, .. } => {
                VmmError::connecting(format_args!("QMP {path}"), &source)
            }
            error if error.is_closed() => VmmError::Gone(format!("QMP {path}: {error}")),
            error => VmmError::Failed(format!("QMP {path}: {error}")),
        })?;
        qmp.set_timeout(ANSWER_TIME);
        Ok(Self {
            qmp,
            uffd_socket,
            loading: false,
        })
    }

    fn state(&mut self) -> Result<RunState, VmmError> {
        let status = self.qmp.query_status()?.status;
        Ok(match status.as_str() {
            "running" => RunState::Running,
            "paused" | "prelaunch" | "finish-migrate" | "suspended" => RunState::Paused,
            "inmigrate" => RunState::Incoming,
            "postmigrate" => RunState::Postmigrate,
            _ => RunState::Other(status),
        })
    }

    /// Waits until QEMU's migration is in one of `wanted`, or has ended otherwise. Returns the
    /// time of the last STOP seen on the way.
    fn wait_migration(
        &mut self,
        wanted: &[&str],
        stop: &AtomicBool,
    ) -> Result<Option<u64>, VmmError> {
        let deadline = Instant::now() + PHASE_TIME;
        let mut stopped_us = None;
        while Instant::now() < deadline {
            if stop.load(Ordering::Acquire) {
                return Err(VmmError::Stopped);
            }
            let Some(event) = self.qmp.next_event(STOP_LOOK)? else {
                continue;
            };
            if event.name == "STOP" {
                stopped_us = Some(event.timestamp_us);
            }
            if event.name != "MIGRATION" {
                continue;
            }
            let status = event
                .data
                .get("status")
                .and_then(|status| status.as_str())
                .unwrap_or("");
            if wanted.contains(&status) {
                return Ok(stopped_us);
            }
            if matches!(status, "failed" | "cancelled" | "completed") {
                let reason = self.qmp.query_migrate()?.error_desc.unwrap_or_default();
                return Err(VmmError::Failed(format!(
                    "QEMU's migration {status}: {reason}"
                )));
            }
        }
        Err(VmmError::Failed(format!(
            "QEMU's migration did not reach {wanted:?} in time"
        )))
    }

    fn wait_state(&mut self, wanted: &RunState) -> Result<(), VmmError> {
        let deadline = Instant::now() + ANSWER_TIME;
        loop {
            let state = self.state()?;
            if state == *wanted {
                return Ok(());
            }
            if Instant::now() > deadline {
                let found = state.name().to_owned();
                return Err(VmmError::Failed(format!(
                    "QEMU is {found}, not {}",
                    wanted.name()
                )));
            }
            std::thread::sleep(Duration::from_micros(200));
        }
    }

    /// Ends a migration of QEMU's that is under way.
    fn cancel_migration(&mut self) -> Result<(), VmmError> {
        let deadline = Instant::now() + ANSWER_TIME;
        let mut asked = false;
        loop {
            let status = self.qmp.query_migrate()?.status;
            if status.is_final() || status == MigrationStatus::None {
                return Ok(());
            }
            if !asked {
                self.qmp.migrate_cancel()?;
                asked = true;
            }
            if Instant::now() > deadline {
                return Err(VmmError::Failed("QEMU does not end its migration".into()));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn give_socket(&mut self, device: &UnixStream) -> Result<String, VmmError> {
        self.qmp.getfd(FD_NAME, device.as_fd())?;
        Ok(format!("fd:{FD_NAME}"))
    }
}

impl Vm for QemuVm {
    fn facts(&mut self) -> Result<VmFacts, VmmError> {
        let version = self.qmp.version();
        if !version.at_least(7, 2) {
            return Err(VmmError::unsuitable(
                format!("QEMU {version} is too old"),
                "use QEMU 7.2 or newer",
            ));
        }
        let backends = qemu_ram::suitable_backends(&mut self.qmp)?;
        Ok(VmFacts {
            kind: "qemu",
            vmm: format!("qemu {version}"),
            state: self.state()?,
            ram: qemu_ram::infos(&backends),
            pid: self.qmp.peer_pid()?,
        })
    }

    fn ram(&mut self) -> Result<RamLayout, VmmError> {
        let pid = self.qmp.peer_pid()?;
        let backends = qemu_ram::suitable_backends(&mut self.qmp)?;
        qemu_ram::map(pid, &backends)
    }

    fn userfaultfd(&mut self) -> Result<HandedUserfaultfd, VmmError> {
        let Some(path) = &self.uffd_socket else {
            return Err(VmmError::unsuitable(
                "QEMU runs without the preload library",
                "start it with `dwcp vm run-qemu`, or with LD_PRELOAD=libdwcp_preload.so and \
                 DWCP_UFFD_SOCKET=PATH, and attach it with --uffd-socket PATH",
            ));
        };
        super::fetch_userfaultfd(path)
    }

    fn prepare_source(&mut self) -> Result<(), VmmError> {
        self.cancel_migration()?;
        self.qmp.set_migration_capabilities(&[
            ("x-ignore-shared", true),
            ("events", true),
            ("pause-before-switchover", true),
            ("return-path", true),
            ("multifd", false),
            ("postcopy-ram", false),
        ])?;
        // Blocks that are not shared (video RAM, option ROMs) are QEMU's to send; nothing may slow
        // them down.
        self.qmp.migrate_set_parameters(
            json!({"max-bandwidth": 1u64 << 40, "downtime-limit": 60_000}),
        )?;
        Ok(())
    }

    fn pause(&mut self, device: UnixStream, stop: &AtomicBool) -> Result<u64, VmmError> {
        let uri = self.give_socket(&device)?;
        while self.qmp.next_event(Duration::ZERO)?.is_some() {}
        self.qmp.migrate(&uri)?;
        let stopped_us = self.wait_migration(&["pre-switchover"], stop)?;
        Ok(stopped_us.unwrap_or_else(wall_us))
    }

    fn send_device_state(&mut self, stop: &AtomicBool) -> Result<(), VmmError> {
        self.qmp.migrate_continue("pre-switchover")?;
        self.wait_migration(&["completed"], stop)?;
        self.wait_state(&RunState::Postmigrate)
    }

    fn resume(&mut self) -> Result<u64, VmmError> {
        while self.qmp.next_event(Duration::ZERO)?.is_some() {}
        self.cancel_migration()?;
        if self.state()? == RunState::Running {
            return Ok(wall_us());
        }
        self.qmp.cont()?;
        self.wait_state(&RunState::Running)?;
        while let Some(event) = self.qmp.next_event(Duration::ZERO)? {
            if event.name == "RESUME" {
                return Ok(event.timestamp_us);
            }
        }
        Ok(wall_us())
    }

    fn prepare_destination(&mut self) -> Result<(), VmmError> {
        let state = self.state()?;
        if state != RunState::Incoming {
            return Err(VmmError::unsuitable(
                format!("QEMU is {}, it does not wait for a migration", state.name()),
                "start the destination with `-incoming defer -S`",
            ));
        }
        self.qmp.set_migration_capabilities(&[
            ("x-ignore-shared", true),
            ("events", true),
            ("return-path", true),
            ("multifd", false),
            ("postcopy-ram", false),
        ])?;
        // While it waits for a migration, `stop` clears QEMU's autostart: even one that was started
        // without -S stays paused after loading.
        self.qmp.stop()?;
        Ok(())
    }

    fn load(&mut self, device: UnixStream, stop: &AtomicBool) -> Result<(), VmmError> {
        let uri = self.give_socket(&device)?;
        while self.qmp.next_event(Duration::ZERO)?.is_some() {}
        self.loading = true;
        self.qmp.migrate_incoming(&uri)?;
        self.wait_migration(&["completed"], stop)?;
        self.wait_state(&RunState::Paused)
    }

    fn discard(&mut self) -> Result<bool, VmmError> {
        if !self.loading && self.state()? == RunState::Incoming {
            return Ok(true);
        }
        // It has begun to load: it cannot take another migration, and must not linger with the
        // guest's devices.
        self.qmp.quit()?;
        Ok(false)
    }
}
