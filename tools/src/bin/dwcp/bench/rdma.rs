//! `dwcp bench rdma`: a migration whose pages an adapter places, beside TCP and beside what the adapter can do.

use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::Context as _;
use dwcp_api::{RdmaChoice, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_tools::lab::Ends;
use serde::Serialize;

use super::run::{Record as RecordOf, by_case, move_whole};
use super::stat::median;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Both nodes are on this machine and its device. The guest is a process whose pages do not \
compress; the settings are those of the datacenter profile. Goodput is the bytes of guest pages over the whole time of \
the migration. With ib_write_bw (perftest) in PATH its figure is measured in turn, on the same device.

Examples:
  dwcp bench rdma --address 192.0.2.7
  dwcp bench rdma --address 192.0.2.7 --size-mib 4096 --rounds 5 --json > rdma.json";

/// `dwcp bench rdma`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// Address of this machine's RDMA device.
    #[arg(long, env = "DWCP_RXE_OWN")]
    address: IpAddr,
    /// RAM of the guest, MiB, all of it filled.
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
    /// How often each is measured.
    #[arg(long, default_value_t = 3)]
    rounds: u32,
    /// Change a key of the profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    /// `tcp`, `rdma`, `ib_write_bw`.
    system: String,
    case: String,
    /// Bytes of guest pages per second, or of WRITEs.
    bytes_per_s: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    moved: Option<Moved>,
}

#[derive(Clone, Debug, Serialize)]
struct Moved {
    transport: String,
    total_ms: f64,
    downtime_ms: f64,
    /// From the beginning to the end of the first round, with memory made and registered.
    first_round_ms: f64,
    rounds: u32,
    cpu_s: f64,
    cpu_s_per_gb: f64,
    notes: Vec<String>,
}

const TCP: &str = "tcp";
const RDMA: &str = "rdma";
const PERFTEST: &str = "ib_write_bw";

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("datacenter")?;
    let own = ["transfer.tls=off"];
    let changes = own
        .into_iter()
        .chain(args.changes.iter().map(String::as_str));
    let settings = profile::with_changes(&base, changes)?;
    let mut runs = vec![];
    for turn in 1..=args.rounds {
        eprintln!("round {turn} of {}", args.rounds);
        for (system, rdma) in [(TCP, RdmaChoice::Off), (RDMA, RdmaChoice::Required)] {
            let settings = TransferSettings {
                rdma,
                ..settings.clone()
            };
            runs.push(migration(args, system, &settings)?);
        }
        if let Some(bytes_per_s) = write_bandwidth(args.address)? {
            runs.push(Run {
                system: PERFTEST.to_owned(),
                case: case(args),
                bytes_per_s,
                moved: None,
            });
        }
    }
    let record = RecordOf::here("dwcp.bench.rdma/1", runs);
    context.print(&record, || by_case(&record, |run| &run.case, table))
}

fn case(args: &Args) -> String {
    format!("{} MiB, both nodes on one device", args.size_mib)
}

fn migration(args: &Args, system: &str, settings: &TransferSettings) -> Result<Run, Failure> {
    let address = args.address.to_string();
    let ram = (args.size_mib, args.size_mib);
    let (moved, page_bytes) = move_whole(ram, settings, Ends::at(&address), system)?;
    let report = &moved.report;
    Ok(Run {
        system: system.to_owned(),
        case: case(args),
        bytes_per_s: page_bytes / (report.total_ms / 1e3),
        moved: Some(Moved {
            transport: report.transport.clone(),
            total_ms: report.total_ms,
            downtime_ms: report.downtime_ms,
            first_round_ms: report.round_reports.first().map_or(0.0, |round| round.ms),
            rounds: report.rounds,
            cpu_s: moved.dataplane_cpu_s,
            cpu_s_per_gb: moved.dataplane_cpu_s / (page_bytes / 1e9),
            notes: report.notes.clone(),
        }),
    })
}

/// What perftest finds, in bytes per second; `None` without it.
fn write_bandwidth(address: IpAddr) -> Result<Option<f64>, Failure> {
    let devices = dwcp_rdma::devices().map_err(Failure::other)?;
    let Some(device) = devices.first() else {
        return Ok(None);
    };
    let start = |peer: Option<String>| {
        Command::new(PERFTEST)
            .args([
                "-d",
                &device.name,
                "-x",
                "1",
                "-F",
                "-s",
                "262144",
                "-n",
                "1000",
            ])
            .args(peer)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
    };
    let Ok(mut server) = start(None) else {
        return Ok(None);
    };
    // It says nothing when it listens: the client tries until somebody does.
    let mut found = None;
    for _ in 0..20 {
        std::thread::sleep(Duration::from_millis(200));
        let client = start(Some(address.to_string())).map_err(Failure::other)?;
        let output = client.wait_with_output().map_err(Failure::other)?;
        found = bandwidth(&String::from_utf8_lossy(&output.stdout));
        if found.is_some() {
            break;
        }
    }
    let _ = server.kill();
    let _ = server.wait();
    found
        .context("ib_write_bw did not say how fast it was")
        .map(Some)
        .map_err(Failure::other)
}

/// The fourth number of the line of figures, MiB per second.
fn bandwidth(text: &str) -> Option<f64> {
    let figures = text.lines().find(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("262144")
    })?;
    let average: f64 = figures.split_whitespace().nth(3)?.parse().ok()?;
    Some(average * 1024.0 * 1024.0)
}

fn table(runs: &[&Run]) -> String {
    let mut out = "median of each    MiB/s   total ms   round 0 ms   CPU s/GB\n".to_owned();
    for system in [TCP, RDMA, PERFTEST] {
        let of_it: Vec<_> = runs.iter().filter(|run| run.system == system).collect();
        if of_it.is_empty() {
            continue;
        }
        let middle = |of: fn(&Moved) -> f64| {
            let moved = of_it.iter().filter_map(|run| run.moved.as_ref());
            median(moved.map(of))
        };
        let rate = median(of_it.iter().map(|run| run.bytes_per_s)) / f64::from(1 << 20);
        out.push_str(&format!("{system:<14} {rate:>8.1}"));
        if system != PERFTEST {
            out.push_str(&format!(
                " {:>10.0} {:>12.0} {:>10.2}",
                middle(|moved| moved.total_ms),
                middle(|moved| moved.first_round_ms),
                middle(|moved| moved.cpu_s_per_gb),
            ));
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_average_is_read_from_the_line_of_figures() {
        let text = " #bytes     #iterations    BW peak[MiB/sec]    BW average[MiB/sec]   MsgRate[Mpps]\n \
                    262144     1000           170.11              165.93             0.000664\n";
        let rate = bandwidth(text).unwrap() / f64::from(1 << 20);
        assert!((rate - 165.93).abs() < 1e-9);
        assert_eq!(bandwidth("no such device"), None);
    }
}
