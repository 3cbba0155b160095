//! `dwcp bench tls`: what TLS costs, of goodput and of CPU time.

use std::net::IpAddr;

use dwcp_api::{KernelTlsChoice, TlsChoice, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_tools::lab::Ends;
use serde::Serialize;

use super::numbers::{part, size_mib, some};
use super::run::{Record as RecordOf, by_case, move_incompressible, move_whole};
use super::stat::median;
use super::wan::Road;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Needs root: the link is two network namespaces and dwcp-wan between them; not with --address. The \
guest is a process whose pages do not compress. The settings are those of the internet profile with raw pages, in \
mode hybrid, since mode internet is never plain text. Goodput is the bytes of guest pages over the whole \
time of the migration, handshakes included. Exit code 1 when TLS keeps less than --least of it.

Examples:
  dwcp bench tls
  dwcp bench tls --rounds 5 --json > tls.json
  dwcp bench tls --kernel --address 127.0.0.1 --least 0
  dwcp bench tls --link 900mbit,10ms --size-mib 2048 --set transfer.streams=8";

/// `dwcp bench tls`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The link: rate, round-trip time, loss each way.
    #[arg(long, value_name = "RATE,RTT[,LOSS]", default_value = "900mbit,20ms", value_parser = Road::parse)]
    link: Road,
    /// Both nodes at this address of this machine, and no link between them.
    #[arg(long, conflicts_with = "link")]
    address: Option<IpAddr>,
    /// Also with records that the kernel seals (transfer.kernel_tls).
    #[arg(long)]
    kernel: bool,
    /// RAM of the guest, MiB; nine tenths of it are filled.
    #[arg(long, default_value_t = 1024, value_parser = size_mib)]
    size_mib: u64,
    /// How often each is moved.
    #[arg(long, default_value_t = 3, value_parser = some::<u32>)]
    rounds: u32,
    /// Goodput with TLS, of that without, that is demanded.
    #[arg(long, default_value_t = 0.9, value_parser = part)]
    least: f64,
    /// Change a key of the profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    /// `tls-off`, `tls-on`, `tls-kernel`.
    system: String,
    case: String,
    total_ms: f64,
    downtime_ms: f64,
    wire_bytes: u64,
    /// Bytes of guest pages per second.
    bytes_per_s: f64,
    cpu_s: f64,
    cpu_s_per_gb: f64,
    /// Of the control connection.
    #[serde(skip_serializing_if = "Option::is_none")]
    cipher_suite: Option<String>,
    /// Connections that a ticket opened.
    resumed: u16,
    /// Data streams that the source's kernel sealed.
    kernel_streams: u16,
    /// How guest pages left; empty when copies did, or before a way was chosen.
    send_method: String,
    guest_verified: bool,
}

/// The runs, and what came out of them.
#[derive(Debug, Serialize)]
struct Report {
    #[serde(flatten)]
    record: RecordOf<Run>,
    /// Median goodput with TLS, of that without.
    goodput_ratio: f64,
    goodput_ratio_least: f64,
}

const OFF: &str = "tls-off";
const ON: &str = "tls-on";
const KERNEL: &str = "tls-kernel";

/// What is compared, each with its settings.
const SYSTEMS: [(&str, TlsChoice, KernelTlsChoice); 3] = [
    (OFF, TlsChoice::Off, KernelTlsChoice::Off),
    (ON, TlsChoice::On, KernelTlsChoice::Off),
    (KERNEL, TlsChoice::On, KernelTlsChoice::Auto),
];

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("internet")?;
    let own = ["mode=hybrid", "pages.codec=raw", "pages.reuse=false"];
    let changes = own
        .into_iter()
        .chain(args.changes.iter().map(String::as_str));
    let settings = profile::with_changes(&base, changes)?;
    let mut runs = vec![];
    for turn in 1..=args.rounds {
        for (system, tls, kernel_tls) in SYSTEMS {
            if system == KERNEL && !args.kernel {
                continue;
            }
            eprintln!("round {turn} of {}: {system}", args.rounds);
            let settings = TransferSettings {
                tls,
                kernel_tls,
                ..settings.clone()
            };
            runs.push(one(args, system, &settings, turn)?);
        }
    }
    let goodput = |system: &str| {
        let of_it = runs.iter().filter(|run| run.system == system);
        median(of_it.map(|run| run.bytes_per_s))
    };
    let report = Report {
        goodput_ratio: goodput(ON) / goodput(OFF),
        goodput_ratio_least: args.least,
        record: RecordOf::here("dwcp.bench.tls/1", runs),
    };
    context.print(&report, || text(&report))?;
    if report.goodput_ratio >= args.least {
        return Ok(());
    }
    Err(Failure::other(anyhow::anyhow!(
        "TLS keeps {:.3} of the goodput, and {} is demanded",
        report.goodput_ratio,
        args.least
    )))
}

fn one(args: &Args, system: &str, settings: &TransferSettings, turn: u32) -> Result<Run, Failure> {
    let ram = (args.size_mib, args.size_mib * 9 / 10);
    let (moved, page_bytes) = match args.address.map(|address| address.to_string()) {
        Some(address) => move_whole(ram, settings, Ends::at(&address), system)?,
        None => move_incompressible(ram, settings, (&args.link, 1), turn)?,
    };
    let (report, cpu_s) = (&moved.report, moved.dataplane_cpu_s);
    let tls = report.tls.as_ref();
    let kernel_streams = tls.map_or(0, |tls| tls.kernel_streams);
    if system == KERNEL && kernel_streams == 0 {
        return Err(Failure::other(anyhow::anyhow!(
            "the kernel sealed no stream: {}",
            report.notes.join("; ")
        )));
    }
    Ok(Run {
        system: system.to_owned(),
        case: match args.address {
            Some(address) => address.to_string(),
            None => args.link.name.clone(),
        },
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        wire_bytes: report.wire_bytes,
        bytes_per_s: page_bytes / (report.total_ms / 1e3),
        cpu_s,
        cpu_s_per_gb: cpu_s / (page_bytes / 1e9),
        cipher_suite: tls.map(|tls| tls.cipher_suite.clone()),
        resumed: tls.map_or(0, |tls| tls.resumed),
        kernel_streams,
        send_method: report.send_method.clone(),
        guest_verified: true,
    })
}

fn text(report: &Report) -> String {
    let table = by_case(&report.record, |run| &run.case, table);
    format!(
        "{table}\nTLS keeps {:.1}% of the goodput; {:.0}% is demanded",
        report.goodput_ratio * 100.0,
        report.goodput_ratio_least * 100.0
    )
}

fn table(runs: &[&Run]) -> String {
    let mut out = "median of each   total ms   pause ms   Mbit/s   CPU s/GB\n".to_owned();
    for (system, ..) in SYSTEMS {
        if runs.iter().all(|run| run.system != system) {
            continue;
        }
        let middle = |of: fn(&Run) -> f64| {
            let of_it = runs.iter().filter(|run| run.system == system);
            median(of_it.map(|run| of(run)))
        };
        out.push_str(&format!(
            "{system:<14} {:>10.0} {:>10.1} {:>8.1} {:>10.2}\n",
            middle(|run| run.total_ms),
            middle(|run| run.downtime_ms),
            middle(|run| run.bytes_per_s * 8.0 / 1e6),
            middle(|run| run.cpu_s_per_gb),
        ));
    }
    out
}
