//! The commands that a migration needs, with types. Everything else goes through
//! [`QmpClient::execute`].

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use std::thread;
use std::time::{Duration, Instant};

use crate::client::QmpClient;
use crate::error::QmpError;

/// Pause between two questions about the progress of a migration.
const MIGRATION_POLL: Duration = Duration::from_millis(2);

/// Whether the guest runs, and what QEMU calls its state.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct RunStatus {
    /// QEMU's name of the state: `running`, `paused`, `postmigrate`, `inmigrate`, …
    pub status: String,
    /// Whether virtual CPUs execute.
    pub running: bool,
}

/// Where a migration stands, in QEMU's own words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum MigrationStatus {
    /// None was started.
    #[default]
    None,
    /// Connecting.
    Setup,
    /// RAM is being sent, the guest runs.
    Active,
    /// The guest is stopped; QEMU waits for `migrate-continue`.
    PreSwitchover,
    /// Device state is being sent.
    Device,
    /// Waiting for a device to be unplugged.
    WaitUnplug,
    /// The guest runs at the destination, RAM follows.
    PostcopyActive,
    /// Post-copy lost its connection.
    PostcopyPaused,
    /// Post-copy is being taken up again.
    PostcopyRecover,
    /// Done.
    Completed,
    /// It did not work; see [`MigrateInfo::error_desc`].
    Failed,
    /// Being cancelled.
    Cancelling,
    /// Cancelled.
    Cancelled,
    /// A state this client does not know.
    #[serde(other)]
    Other,
}

impl MigrationStatus {
    /// Whether nothing further happens without a new command.
    #[must_use]
    pub fn is_final(self) -> bool {
        matches!(
            self,
            Self::None | Self::Completed | Self::Failed | Self::Cancelled
        )
    }
}

/// Page and byte counters of a migration; what this QEMU does not report is 0.
#[derive(Debug, Clone, Copy, PartialEq, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrateRam {
    /// Bytes sent, all channels.
    pub transferred: u64,
    /// Bytes of RAM still to send.
    pub remaining: u64,
    /// Bytes of RAM in all.
    pub total: u64,
    /// Zero pages.
    pub duplicate: u64,
    /// Pages sent whole.
    pub normal: u64,
    /// Bytes of pages sent whole.
    pub normal_bytes: u64,
    /// Times the dirty bitmap was read.
    pub dirty_sync_count: u64,
    /// Pages dirtied per second.
    pub dirty_pages_rate: u64,
    /// Bytes sent by multifd channels.
    pub multifd_bytes: u64,
    /// Bytes sent while the guest was stopped.
    pub downtime_bytes: u64,
    /// Bytes sent before.
    pub precopy_bytes: u64,
    /// Bytes sent after.
    pub postcopy_bytes: u64,
    /// Pages asked for by the destination.
    pub postcopy_requests: u64,
}

/// Counters of xbzrle: pages that were sent before, as what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrateXbzrle {
    /// Bytes sent for `pages`, those that were sent whole included.
    pub bytes: u64,
    /// Pages whose old content was there: encoded, sent whole, or not sent since nothing had changed.
    pub pages: u64,
    /// Pages whose old content was no longer there; sent whole.
    pub cache_miss: u64,
}

/// The answer to `query-migrate`.
#[derive(Debug, Clone, PartialEq, Default, Deserialize)]
#[serde(default, rename_all = "kebab-case")]
pub struct MigrateInfo {
    /// Where it stands.
    pub status: MigrationStatus,
    /// Counters; absent before the first byte.
    pub ram: Option<MigrateRam>,
    /// With xbzrle.
    pub xbzrle_cache: Option<MigrateXbzrle>,
    /// Milliseconds since it began, or in all.
    pub total_time: Option<u64>,
    /// QEMU's own figure of the pause, milliseconds. It ends when the last byte entered the socket
    /// buffer, not when the guest runs again.
    pub downtime: Option<u64>,
    /// Milliseconds of preparation.
    pub setup_time: Option<u64>,
    /// What went wrong.
    pub error_desc: Option<String>,
    /// Addresses an incoming QEMU listens on, as QAPI's `SocketAddress`.
    pub socket_address: Vec<Value>,
}

/// One memory backend of a QEMU.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MemoryBackend {
    /// Its id: `ram0` for `-object memory-backend-file,id=ram0`.
    pub id: String,
    /// Its QOM type: `memory-backend-file`, `memory-backend-memfd`, `memory-backend-ram`.
    pub qom_type: String,
    /// The file behind it, for file backends.
    pub mem_path: Option<String>,
    /// Bytes of RAM.
    pub size_bytes: u64,
    /// Whether the mapping is shared, so that another process may see the guest's writes.
    pub share: bool,
}

/// One entry of `query-memdev`; backends made without an id cannot be asked further.
#[derive(Deserialize)]
struct Memdev {
    id: Option<String>,
    size: u64,
}

impl QmpClient {
    /// Asks whether the guest runs.
    ///
    /// # Errors
    /// See [`QmpClient::execute`], as for every function here.
    pub fn query_status(&mut self) -> Result<RunStatus, QmpError> {
        self.query("query-status", Value::Null)
    }

    /// Lets the guest run.
    ///
    /// # Errors
    /// QEMU refuses while a migration comes in.
    pub fn cont(&mut self) -> Result<(), QmpError> {
        self.run("cont", Value::Null)
    }

    /// Stops the guest's CPUs.
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn stop(&mut self) -> Result<(), QmpError> {
        self.run("stop", Value::Null)
    }

    /// Asks QEMU to end itself. QEMU going away before it answered counts as done.
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn quit(&mut self) -> Result<(), QmpError> {
        match self.run("quit", Value::Null) {
            Err(QmpError::Closed { .. }) => Ok(()),
            other => other,
        }
    }

    /// Asks where a migration stands.
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn query_migrate(&mut self) -> Result<MigrateInfo, QmpError> {
        self.query("query-migrate", Value::Null)
    }

    /// Asks again and again until `done` says so, or `timeout` passes.
    ///
    /// # Errors
    /// [`QmpError::Timeout`] names the status seen last.
    pub fn wait_migrate(
        &mut self,
        mut done: impl FnMut(&MigrateInfo) -> bool,
        timeout: Duration,
    ) -> Result<MigrateInfo, QmpError> {
        let deadline = Instant::now() + timeout;
        loop {
            let info = self.query_migrate()?;
            if done(&info) {
                return Ok(info);
            }
            if Instant::now() >= deadline {
                let during = format!("a migration was {:?}", info.status);
                return Err(QmpError::Timeout {
                    during,
                    after: timeout,
                });
            }
            thread::sleep(MIGRATION_POLL);
        }
    }

    /// Switches migration capabilities on or off, all in one command.
    ///
    /// # Errors
    /// A capability that this QEMU does not know refuses them all.
    pub fn set_migration_capabilities(&mut self, wanted: &[(&str, bool)]) -> Result<(), QmpError> {
        let list: Vec<Value> = wanted
            .iter()
            .map(|(name, state)| json!({ "capability": name, "state": state }))
            .collect();
        self.run("migrate-set-capabilities", json!({ "capabilities": list }))
    }

    /// Sets migration parameters, given as one JSON object (`{"max-bandwidth": 0, …}`).
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn migrate_set_parameters(&mut self, parameters: Value) -> Result<(), QmpError> {
        self.run("migrate-set-parameters", parameters)
    }

    /// Starts to send the guest to `uri` (`unix:PATH`, `tcp:HOST:PORT`, `fd:NAME`).
    ///
    /// # Errors
    /// Only what is known at once; the rest shows in [`QmpClient::query_migrate`].
    pub fn migrate(&mut self, uri: &str) -> Result<(), QmpError> {
        self.run("migrate", json!({ "uri": uri }))
    }

    /// Starts to listen on `uri`, for a QEMU started with `-incoming defer`.
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn migrate_incoming(&mut self, uri: &str) -> Result<(), QmpError> {
        self.run("migrate-incoming", json!({ "uri": uri }))
    }

    /// Goes on from a status at which QEMU waits, `pre-switchover` as a rule.
    ///
    /// # Errors
    /// QEMU refuses when it is not in that status.
    pub fn migrate_continue(&mut self, state: &str) -> Result<(), QmpError> {
        self.run("migrate-continue", json!({ "state": state }))
    }

    /// Cancels; the guest runs on at the source. Nothing happens when no migration is under way.
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn migrate_cancel(&mut self) -> Result<(), QmpError> {
        self.run("migrate_cancel", Value::Null)
    }

    /// Gives QEMU a descriptor under a name, for `migrate("fd:NAME")`.
    ///
    /// # Errors
    /// See [`QmpClient::execute`].
    pub fn getfd(&mut self, name: &str, fd: std::os::fd::BorrowedFd<'_>) -> Result<(), QmpError> {
        self.execute_with_fd("getfd", json!({ "fdname": name }), fd)
            .map(drop)
    }

    /// Lists the memory backends, also the one that QEMU makes by itself for a plain `-m`.
    ///
    /// # Errors
    /// [`QmpError::Protocol`] when an answer has another shape than documented.
    pub fn query_memdev(&mut self) -> Result<Vec<MemoryBackend>, QmpError> {
        let devices: Vec<Memdev> = self.query("query-memdev", Value::Null)?;
        let mut backends = Vec::with_capacity(devices.len());
        for Memdev { id, size } in devices {
            let Some(id) = id else { continue };
            let path = format!("/objects/{id}");
            let qom_type: String = self.qom_get(&path, "type")?;
            let share = self.qom_get(&path, "share")?;
            let mem_path = match qom_type.as_str() {
                "memory-backend-file" => Some(self.qom_get(&path, "mem-path")?),
                _ => None,
            };
            backends.push(MemoryBackend {
                id,
                qom_type,
                mem_path,
                size_bytes: size,
                share,
            });
        }
        Ok(backends)
    }

    /// Reads one property of one object.
    ///
    /// # Errors
    /// [`QmpError::Protocol`] when it is not a `T`.
    pub fn qom_get<T: DeserializeOwned>(
        &mut self,
        path: &str,
        property: &str,
    ) -> Result<T, QmpError> {
        self.query("qom-get", json!({ "path": path, "property": property }))
    }

    fn query<T: DeserializeOwned>(
        &mut self,
        command: &str,
        arguments: Value,
    ) -> Result<T, QmpError> {
        let value = self.execute(command, arguments)?;
        serde_json::from_value(value)
            .map_err(|error| QmpError::protocol(format!("answer to {command}: {error}")))
    }

    fn run(&mut self, command: &str, arguments: Value) -> Result<(), QmpError> {
        self.execute(command, arguments).map(drop)
    }
}
