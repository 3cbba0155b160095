//! QEMU's own migration, measured: what DWCP is compared with.
//!
//! The same guest is moved between two QEMUs over TCP, without anything of ours between them.
//!
//! A run with `guest_verified: false` is a result to report, not to repeat until it looks better.
//! QEMU 7.2's own migration lost writes under TCG when virtual CPUs were preempted: with both RAMs in
//! files, a byte comparison before the destination ran found stale pages, always the ones written
//! most, after 8 of 16 moves; QEMU 10.0.2 in turn with it: 0 of 16. An idle host, and an exact copy at
//! the pause: none. KVM tracks dirty pages in another way and was not tried. The guest noticed only
//! some of these, because part of a stale page may be dead: its word is necessary, not sufficient.

use dwcp_guest_page::PAGE_BYTES;
use dwcp_qmp::{MigrateInfo, MigrateXbzrle, MigrationStatus, QmpClient, QmpError};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::path::PathBuf;
use std::time::{Duration, Instant};

mod error;
mod wire;

pub use error::PeerError;

use crate::guests::{
    Backend, GuestError, GuestKind, GuestOptions, QemuBuilder, QemuGuest, Verdict, WorkloadGuest,
};

/// A limit that no link reaches, in bytes per second: QEMU's own default would throttle it.
const BANDWIDTH_UNLIMITED: u64 = 1 << 40;

/// Cache of old pages for xbzrle, bytes.
const XBZRLE_CACHE_BYTES: u64 = 256 << 20;

/// How long a guest may take to boot and fill its RAM under emulation.
const READY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a moved guest gets to check all of its RAM.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(120);

/// How long a moved workload gets to show that it goes on.
const WORK_TIMEOUT: Duration = Duration::from_secs(60);

/// A workload that says so often how far it is has found its pace again.
const WORK_LINES: usize = 3;

/// How QEMU moves the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PeerSystem {
    /// Pre-copy over one connection.
    Plain,
    /// Pre-copy over one main and four page connections.
    Multifd4,
    /// The same, compressed with zstd.
    Multifd4Zstd,
    /// Pre-copy over one connection, deltas of pages sent before.
    Xbzrle,
    /// Pre-copy by an adapter's WRITEs, all of RAM pinned beforehand; the address must be a device's.
    Rdma,
}

impl PeerSystem {
    /// All that need nothing but TCP, in the order of the reports.
    pub const ALL: [Self; 4] = [
        Self::Plain,
        Self::Multifd4,
        Self::Multifd4Zstd,
        Self::Xbzrle,
    ];

    /// Its name in reports.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "qemu-plain",
            Self::Multifd4 => "qemu-multifd4",
            Self::Multifd4Zstd => "qemu-multifd4-zstd",
            Self::Xbzrle => "qemu-xbzrle",
            Self::Rdma => "qemu-rdma",
        }
    }

    fn capabilities(self) -> &'static [(&'static str, bool)] {
        match self {
            Self::Plain => &[("events", true)],
            Self::Multifd4 | Self::Multifd4Zstd => &[("events", true), ("multifd", true)],
            Self::Xbzrle => &[("events", true), ("xbzrle", true)],
            Self::Rdma => &[("events", true), ("rdma-pin-all", true)],
        }
    }

    /// Lets the destination listen; returns where to.
    fn listen(self, destination: &mut QmpClient, host: &str) -> Result<String, PeerError> {
        if self == Self::Rdma {
            // The connection manager's ports are not TCP's, and QEMU takes no port of its choice here.
            let port = 20_000 + std::process::id() % 10_000;
            let uri = format!("rdma:{host}:{port}");
            destination.migrate_incoming(&uri)?;
            return Ok(uri);
        }
        destination.migrate_incoming(&format!("tcp:{host}:0"))?;
        let port = listening_port(&destination.query_migrate()?)?;
        Ok(format!("tcp:{host}:{port}"))
    }

    fn parameters(self, downtime_limit_ms: u64) -> Value {
        let mut parameters = json!({
            "max-bandwidth": BANDWIDTH_UNLIMITED,
            "downtime-limit": downtime_limit_ms,
        });
        if matches!(self, Self::Multifd4 | Self::Multifd4Zstd) {
            parameters["multifd-channels"] = json!(4);
        }
        if self == Self::Multifd4Zstd {
            parameters["multifd-compression"] = json!("zstd");
        }
        if self == Self::Xbzrle {
            parameters["xbzrle-cache-size"] = json!(XBZRLE_CACHE_BYTES);
        }
        parameters
    }
}

/// What is moved, and how far.
#[derive(Debug, Clone)]
pub struct PeerOptions {
    /// For sockets and logs.
    pub folder: PathBuf,
    /// Which guest.
    pub guest: GuestKind,
    /// What the guest does.
    pub load: GuestOptions,
    /// Its RAM.
    pub memory_mib: u64,
    /// Instead of that guest, one with a workload, as it was saved when it was warm.
    pub workload: Option<WorkloadGuest>,
    /// What its RAM is made of; private as QEMU makes it by itself, unless compared otherwise.
    pub backend: Backend,
    /// QEMU's `downtime-limit`.
    pub downtime_limit_ms: u64,
    /// How long the migration may take before it is given up.
    pub timeout: Duration,
    /// Where the destination listens.
    pub address: String,
    /// What the source's QEMU is started by (`ip netns exec A`), none by default.
    pub source_prefix: Vec<String>,
    /// What the destination's QEMU is started by.
    pub destination_prefix: Vec<String>,
}

impl PeerOptions {
    /// A bare guest of 512 MiB over loopback, logs in `folder`.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            guest: GuestKind::Bare,
            load: GuestOptions {
                fill_mib: 300,
                hot_mib: 50,
                ..GuestOptions::default()
            },
            memory_mib: 512,
            workload: None,
            backend: Backend::Private,
            downtime_limit_ms: 300,
            timeout: Duration::from_secs(150),
            address: "127.0.0.1".into(),
            source_prefix: Vec::new(),
            destination_prefix: Vec::new(),
        }
    }
}

/// One measured migration.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PeerRun {
    /// [`PeerSystem::name`].
    pub system: &'static str,
    /// Version of the QEMU.
    pub qemu: String,
    /// From the command to the guest running at the destination and the source done.
    pub total_ms: f64,
    /// From STOP at the source to RESUME at the destination, by the events' timestamps.
    pub downtime_ms: f64,
    /// QEMU's own figure, which ends when the last byte entered the socket buffer.
    pub qemu_downtime_ms: Option<u64>,
    /// Bytes that the destination received over TCP, by the kernel's count; with RDMA QEMU's own.
    pub wire_bytes: u64,
    /// Bytes by QEMU's counters; 7.2 counts compressed pages by their size before compression.
    pub qemu_wire_bytes: u64,
    /// RAM of the guest.
    pub ram_bytes: u64,
    /// Pages after the first round; with xbzrle.
    pub again: Option<Again>,
    /// Times QEMU read the dirty bitmap.
    pub rounds: u64,
    /// Processor time of both QEMUs during the migration, the guest's own work included.
    pub cpu_s: f64,
    /// Whether the guest checked all of its RAM at the destination and found nothing wrong; of a
    /// workload, whether it goes on.
    pub guest_verified: bool,
    /// The guest's account.
    pub guest: Verdict,
}

/// Pages that were looked at again, after the first round.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Again {
    /// Pages, but zero ones; those of which nothing had changed, too.
    pub pages: u64,
    /// What was sent for them.
    pub bytes: u64,
}

impl Again {
    /// What has no old content in the cache goes whole, as every page does when it changes for the first time:
    /// the cache is filled behind the first round.
    const fn by_xbzrle(counts: &MigrateXbzrle) -> Self {
        Self {
            pages: counts.pages + counts.cache_miss,
            bytes: counts.bytes + counts.cache_miss * PAGE_BYTES as u64,
        }
    }
}

/// A source that runs and a destination that waits.
struct Pair {
    source: QemuGuest,
    destination: QemuGuest,
    source_qmp: QmpClient,
    destination_qmp: QmpClient,
}

/// Moves a guest by `system` and measures it.
///
/// # Errors
/// [`PeerError::NotCompleted`] also when the time is up.
pub fn run_peer(system: PeerSystem, options: &PeerOptions) -> Result<PeerRun, PeerError> {
    let mut pair = start(system, options)?;
    let uri = system.listen(&mut pair.destination_qmp, &options.address)?;

    let meter = wire::WireMeter::start(pair.destination.pid());
    let cpu_before = pair.cpu_seconds();
    let begin = Instant::now();
    pair.source_qmp.migrate(&uri)?;
    let info = pair
        .source_qmp
        .wait_migrate(|info| info.status.is_final(), options.timeout);
    let info = match completed(info, begin, options.timeout) {
        Ok(info) => info,
        Err(error) => {
            let cpu = pair.cpu_seconds() - cpu_before;
            let received = meter.and_then(wire::WireMeter::finish);
            return Err(error.having_used(received.unwrap_or(0), cpu));
        }
    };
    let stop = pair.source_qmp.wait_event_named("STOP", options.timeout)?;
    let resume = pair
        .destination_qmp
        .wait_event_named("RESUME", options.timeout)?;
    let total = begin.elapsed();
    let cpu_s = pair.cpu_seconds() - cpu_before;
    let received = meter.and_then(wire::WireMeter::finish);

    let (guest, guest_verified) = pair.verdict(options.workload);
    let ram = info.ram.unwrap_or_default();
    Ok(PeerRun {
        system: system.name(),
        qemu: pair.source_qmp.version().to_string(),
        total_ms: total.as_secs_f64() * 1e3,
        downtime_ms: resume.timestamp_us.saturating_sub(stop.timestamp_us) as f64 / 1e3,
        qemu_downtime_ms: info.downtime,
        wire_bytes: match system {
            PeerSystem::Rdma => ram.transferred,
            _ => received.unwrap_or(ram.transferred),
        },
        qemu_wire_bytes: ram.transferred,
        ram_bytes: options.memory_mib << 20,
        again: info.xbzrle_cache.as_ref().map(Again::by_xbzrle),
        rounds: ram.dirty_sync_count,
        cpu_s,
        guest_verified,
        guest,
    })
}

fn start(system: PeerSystem, options: &PeerOptions) -> Result<Pair, PeerError> {
    let builder = |role: &str, prefix: &[String]| -> QemuBuilder {
        QemuGuest::builder(&format!("{}-{role}", system.name()), &options.folder)
            .guest(options.guest)
            .options(options.load)
            .memory_mib(options.memory_mib)
            .backend(options.backend.clone())
            .prefix(prefix)
    };
    let builder = |role: &str, prefix: &[String]| match options.workload {
        None => builder(role, prefix),
        Some(guest) => builder(role, prefix).workload(guest),
    };
    let source = builder("source", &options.source_prefix);
    let mut source = started(source, options.workload)?;
    let mut destination = builder("destination", &options.destination_prefix)
        .incoming()
        .spawn()?;
    let mut source_qmp = source.qmp()?;
    let mut destination_qmp = destination.qmp()?;
    for qmp in [&mut source_qmp, &mut destination_qmp] {
        qmp.set_migration_capabilities(system.capabilities())?;
        qmp.migrate_set_parameters(system.parameters(options.downtime_limit_ms))?;
    }
    Ok(Pair {
        source,
        destination,
        source_qmp,
        destination_qmp,
    })
}

/// A guest that has found its pace.
fn started(builder: QemuBuilder, workload: Option<WorkloadGuest>) -> Result<QemuGuest, GuestError> {
    let Some(guest) = workload else {
        let mut source = builder.spawn()?;
        source.wait_ready(READY_TIMEOUT)?;
        source.wait_ticks(2, READY_TIMEOUT)?;
        return Ok(source);
    };
    let state = guest.warm(&mut |_| {})?;
    let mut source = builder.incoming().paused().spawn()?;
    source.restore(&state)?;
    source.wait_work(WORK_LINES, READY_TIMEOUT)?;
    Ok(source)
}

fn completed(
    info: Result<MigrateInfo, QmpError>,
    begin: Instant,
    timeout: Duration,
) -> Result<MigrateInfo, PeerError> {
    match info {
        Ok(info) if info.status == MigrationStatus::Completed => Ok(info),
        Ok(info) => Err(PeerError::NotCompleted {
            status: info.status,
            after: begin.elapsed(),
            detail: info.error_desc.unwrap_or_else(|| "no reason given".into()),
            wire_bytes: 0,
            cpu_s: 0.0,
        }),
        // Still going when the time was up; a monitor that does not answer is another matter.
        Err(QmpError::Timeout { during, .. }) if begin.elapsed() >= timeout => {
            Err(PeerError::NotCompleted {
                status: MigrationStatus::Active,
                after: begin.elapsed(),
                detail: during,
                wire_bytes: 0,
                cpu_s: 0.0,
            })
        }
        Err(other) => Err(other.into()),
    }
}

fn listening_port(info: &MigrateInfo) -> Result<u16, PeerError> {
    let port = info
        .socket_address
        .first()
        .and_then(|address| address["port"].as_str());
    port.and_then(|port| port.parse().ok())
        .ok_or_else(|| PeerError::NoAddress {
            detail: json!(info.socket_address).to_string(),
        })
}

impl Pair {
    /// The guest's account of the move, and whether that is a good one.
    fn verdict(&mut self, workload: Option<WorkloadGuest>) -> (Verdict, bool) {
        let log = self.source.serial();
        if workload.is_none() {
            let verdict = self.destination.verify_against(log, VERIFY_TIMEOUT);
            let good = verdict.ok && verdict.full_pass;
            return (verdict, good);
        }
        let goes_on = self.destination.goes_on_here(log, WORK_TIMEOUT);
        let verdict = Verdict {
            ok: goes_on.is_ok(),
            reason: goes_on.err(),
            full_pass: false,
            source: None,
            destination: None,
        };
        let good = verdict.ok;
        (verdict, good)
    }

    fn cpu_seconds(&self) -> f64 {
        cpu_seconds(self.source.pid()) + cpu_seconds(self.destination.pid())
    }
}

/// CPU seconds that a process has used: its clock, in nanoseconds; 0 when it is gone.
#[must_use]
pub fn cpu_seconds(pid: u32) -> f64 {
    let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
    nix::time::clock_getcpuclockid(pid)
        .and_then(nix::time::clock_gettime)
        .map_or(0.0, |time| Duration::from(time).as_secs_f64())
}
