//! `dwcp bench rdma`: a migration whose pages an adapter places, beside TCP, beside QEMU's own migration over RDMA, and
//! beside what the adapter can do.

mod perftest;

use std::fmt::Write;
use std::net::IpAddr;

use dwcp_api::{DowntimePartsMs, RdmaChoice, RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_testbed::guests::GuestKind;
use dwcp_testbed::peers::{PeerError, PeerOptions, PeerSystem, run_peer};
use dwcp_tools::lab::{Ends, GuestSpec};
use serde::Serialize;

use self::perftest::{PERFTEST, write_bandwidth};
use super::numbers::{size_mib, some};
use super::run::{Guest, Record as RecordOf, by_case, move_once};
use super::stat::median;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Both nodes are on this machine and its device. The guest's pages do not compress; the settings are those of \
the datacenter profile. Goodput is the bytes of guest pages that are not zero over the whole time of the migration. With ib_write_bw (perftest) in \
PATH its figure is measured in turn, on the same device. With --guest qemu the guest is one of QEMU, and QEMU's own migration over \
RDMA moves one like it. Exit code 1 when a migration of DWCP does not end well, or not by the \
transport that it was to take.

Examples:
  dwcp bench rdma --address 192.0.2.7
  dwcp bench rdma --address 192.0.2.7 --size-mib 4096 --rounds 5 --json > rdma.json
  dwcp bench rdma --address 192.0.2.7 --system rdma --dirty-rate 2000 --rounds 20
  dwcp bench rdma --address 192.0.2.7 --guest qemu --system rdma,qemu-rdma";

/// `dwcp bench rdma`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Address of this machine's RDMA device.
    #[arg(long, env = "DWCP_RXE_OWN")]
    address: IpAddr,
    /// Whom to move.
    #[arg(long, value_enum, default_value = "synthetic")]
    guest: Guest,
    /// What is measured; all that there is for the guest when not given.
    #[arg(long = "system", value_enum, value_delimiter = ',')]
    systems: Vec<System>,
    /// RAM of the guest, MiB. A synthetic one is filled, one of QEMU to two thirds.
    #[arg(long, default_value_t = 256, value_parser = size_mib)]
    size_mib: u64,
    /// Pages rewritten per second.
    #[arg(long, default_value_t = 0, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// How often each is measured.
    #[arg(long, default_value_t = 3, value_parser = some::<u32>)]
    rounds: u32,
    /// Change a key of the profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum System {
    /// DWCP over TCP.
    Tcp,
    /// DWCP, the pages placed by the adapter.
    Rdma,
    /// QEMU's own, of a guest of QEMU.
    QemuRdma,
    /// ib_write_bw of perftest.
    Perftest,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    system: String,
    case: String,
    /// Bytes of guest pages per second, or of WRITEs.
    bytes_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<Moved>,
}

#[derive(Clone, Debug, Default, Serialize)]
struct Moved {
    /// Completed by the transport that was asked for, and the guest found its memory whole.
    good: bool,
    /// Why not, if not.
    #[serde(skip_serializing_if = "String::is_empty")]
    reason: String,
    transport: String,
    total_ms: f64,
    downtime_ms: f64,
    /// Of DWCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    downtime_parts_ms: Option<DowntimePartsMs>,
    /// From the beginning to the end of the first round, with memory made and registered.
    first_round_ms: f64,
    rounds: u64,
    /// Of both data planes; of QEMU, of both VMMs.
    cpu_s: f64,
    cpu_s_per_gb: f64,
    notes: Vec<String>,
}

impl System {
    const ALL: [Self; 4] = [Self::Tcp, Self::Rdma, Self::QemuRdma, Self::Perftest];

    fn name(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Rdma => "rdma",
            Self::QemuRdma => PeerSystem::Rdma.name(),
            Self::Perftest => PERFTEST,
        }
    }
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("datacenter")?;
    let own = ["transfer.tls=off"];
    let changes = own
        .into_iter()
        .chain(args.changes.iter().map(String::as_str));
    let settings = profile::with_changes(&base, changes)?;
    let systems = args.systems()?;
    let mut runs = vec![];
    let measured = args.rounds_of(&systems, &settings, &mut runs);
    // What was measured before one that failed is not lost with it.
    let record = RecordOf::here("dwcp.bench.rdma/2", runs);
    context.print(&record, || by_case(&record, |run| &run.case, table))?;
    measured?;
    let bad = record
        .runs
        .iter()
        .filter(|run| run.is_ours() && !run.is_good());
    match bad.count() {
        0 => Ok(()),
        bad => Err(Failure::other(anyhow::anyhow!(
            "{bad} migrations did not end well"
        ))),
    }
}

impl Args {
    fn systems(&self) -> Result<Vec<System>, Failure> {
        let has_peer = matches!(self.guest, Guest::Qemu);
        if !has_peer && self.systems.contains(&System::QemuRdma) {
            return Err(Failure::Usage(
                "qemu-rdma moves guests of QEMU: --guest qemu".into(),
            ));
        }
        if !self.systems.is_empty() {
            return Ok(self.systems.clone());
        }
        let all = System::ALL.into_iter();
        Ok(all
            .filter(|system| has_peer || *system != System::QemuRdma)
            .collect())
    }

    fn rounds_of(
        &self,
        systems: &[System],
        settings: &TransferSettings,
        runs: &mut Vec<Run>,
    ) -> Result<(), Failure> {
        for turn in 1..=self.rounds {
            eprintln!("round {turn} of {}", self.rounds);
            for &system in systems {
                if let Some(run) = self.measure(system, settings)? {
                    eprintln!("    {}", run.line());
                    runs.push(run);
                }
            }
        }
        Ok(())
    }

    fn case(&self) -> String {
        format!(
            "{:?} guest of {} MiB, {} pages/s, both nodes on one device",
            self.guest, self.size_mib, self.dirty_rate
        )
    }

    fn guest(&self) -> GuestSpec {
        let fill_mib = match self.guest {
            Guest::Synthetic => self.size_mib,
            Guest::Qemu => self.size_mib * 2 / 3,
        };
        GuestSpec {
            choice: self.guest.choice(),
            hot_mib: 8.min(fill_mib),
            dirty_pages_per_s: self.dirty_rate,
            ..GuestSpec::incompressible(self.size_mib, fill_mib)
        }
    }

    /// `None` where there is no perftest.
    fn measure(&self, system: System, settings: &TransferSettings) -> Result<Option<Run>, Failure> {
        let rdma = match system {
            System::Tcp => RdmaChoice::Off,
            System::Rdma => RdmaChoice::Required,
            System::QemuRdma => return self.by_qemu().map(Some),
            System::Perftest => {
                let found = write_bandwidth(self.address)?;
                return Ok(found.map(|bytes_per_s| self.result(system, bytes_per_s, None)));
            }
        };
        let settings = TransferSettings {
            rdma,
            ..settings.clone()
        };
        self.by_dwcp(system, &settings).map(Some)
    }

    fn result(&self, system: System, bytes_per_s: f64, moved: Option<Moved>) -> Run {
        Run {
            system: system.name().to_owned(),
            case: self.case(),
            bytes_per_s,
            moved,
        }
    }

    fn by_dwcp(&self, system: System, settings: &TransferSettings) -> Result<Run, Failure> {
        let address = self.address.to_string();
        let moved = move_once(self.guest(), settings, Some(Ends::at(&address)))?;
        let report = &moved.report;
        let pages = report.pages.raw + report.pages.compressed;
        let page_bytes = (pages * dwcp_simd::PAGE_BYTES as u64) as f64;
        let is_whole = report.guest_verified == Some(true) && report.verified;
        let by_rdma = report.transport == System::Rdma.name();
        let good = report.result == RunResult::Completed
            && is_whole
            && by_rdma == (system == System::Rdma);
        let said = moved.guest_says.clone().unwrap_or_default();
        let details = Moved {
            good,
            reason: match good {
                true => String::new(),
                false => format!("{} {} {said}", report.transport, report.reason),
            },
            transport: report.transport.clone(),
            total_ms: report.total_ms,
            downtime_ms: report.downtime_ms,
            downtime_parts_ms: Some(report.downtime_parts_ms),
            first_round_ms: report.round_reports.first().map_or(0.0, |round| round.ms),
            rounds: report.rounds.into(),
            cpu_s: moved.dataplane_cpu_s,
            cpu_s_per_gb: moved.dataplane_cpu_s / (page_bytes / 1e9),
            notes: report.notes.clone(),
        };
        Ok(self.result(system, page_bytes / (report.total_ms / 1e3), Some(details)))
    }

    fn by_qemu(&self) -> Result<Run, Failure> {
        let folder = tempfile::tempdir().map_err(Failure::other)?;
        let guest = self.guest();
        let options = PeerOptions {
            guest: GuestKind::Bare,
            memory_mib: guest.ram_mib,
            load: guest.options(),
            address: self.address.to_string(),
            ..PeerOptions::new(folder.path())
        };
        let run = match run_peer(PeerSystem::Rdma, &options) {
            Ok(run) => run,
            Err(error @ PeerError::NotCompleted { .. }) => {
                let details = Moved {
                    reason: error.to_string(),
                    transport: "qemu".to_owned(),
                    ..Moved::default()
                };
                return Ok(self.result(System::QemuRdma, 0.0, Some(details)));
            }
            Err(error) => return Err(Failure::other(error)),
        };
        let page_bytes = (guest.fill_mib << 20) as f64;
        let details = Moved {
            good: run.guest_verified,
            reason: run.guest.reason.unwrap_or_default(),
            transport: "qemu".to_owned(),
            total_ms: run.total_ms,
            downtime_ms: run.downtime_ms,
            rounds: run.rounds,
            cpu_s: run.cpu_s,
            cpu_s_per_gb: run.cpu_s / (page_bytes / 1e9),
            ..Moved::default()
        };
        let bytes_per_s = page_bytes / (run.total_ms / 1e3);
        Ok(self.result(System::QemuRdma, bytes_per_s, Some(details)))
    }
}

impl Run {
    fn is_good(&self) -> bool {
        self.moved.as_ref().is_none_or(|moved| moved.good)
    }

    fn is_ours(&self) -> bool {
        [System::Tcp.name(), System::Rdma.name()].contains(&self.system.as_str())
    }

    fn line(&self) -> String {
        let mib_per_s = self.bytes_per_s / f64::from(1 << 20);
        match &self.moved {
            None => format!("{:<12} {mib_per_s:>7.1} MiB/s", self.system),
            Some(moved) => format!(
                "{:<12} {mib_per_s:>7.1} MiB/s {:>7.0} ms, pause {:>6.1} ms {}",
                self.system,
                moved.total_ms,
                moved.downtime_ms,
                if moved.good { "good" } else { &moved.reason },
            ),
        }
    }
}

fn table(runs: &[&Run]) -> String {
    let mut out =
        "median of each    MiB/s   total ms   pause ms   round 0 ms   CPU s/GB   good\n".to_owned();
    for system in System::ALL {
        let of_it = runs.iter().filter(|run| run.system == system.name());
        let of_it: Vec<_> = of_it.collect();
        if of_it.is_empty() {
            continue;
        }
        let middle = |of: fn(&Moved) -> f64| {
            let moved = of_it.iter().filter_map(|run| run.moved.as_ref());
            median(moved.map(of))
        };
        let rate = median(of_it.iter().map(|run| run.bytes_per_s)) / f64::from(1 << 20);
        let _ = write!(out, "{:<14} {rate:>8.1}", system.name());
        if system != System::Perftest {
            let good = of_it.iter().filter(|run| run.is_good()).count();
            let _ = write!(
                out,
                " {:>10.0} {:>10.1} {:>12.0} {:>10.2} {good:>3} of {}",
                middle(|moved| moved.total_ms),
                middle(|moved| moved.downtime_ms),
                middle(|moved| moved.first_round_ms),
                middle(|moved| moved.cpu_s_per_gb),
                of_it.len(),
            );
        }
        out.push('\n');
    }
    out
}
