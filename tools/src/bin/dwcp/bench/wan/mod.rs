//! `dwcp bench wan`: one guest over emulated links, by DWCP there and back, and by QEMU itself.

use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

use dwcp_api::{DowntimePartsMs, RunResult, TransferSettings};
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::{GuestKind, GuestOptions};
use dwcp_testbed::peers::{PeerError, PeerOptions, PeerSystem, run_peer};
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{Binaries, GuestChoice, GuestSpec, Lab, MovedGuest, RunSpec};
use dwcp_wan::link::{self, Link, LinkName, TemporaryLink};
use dwcp_wan::params::{LinkParams, WayParams};
use dwcp_wan::units;
use serde::Serialize;

use super::run::{by_case, rate};
use super::stat::median;
use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Needs root: each link is two network namespaces and dwcp-wan between them. All \
systems send under the same congestion control. `dwcp` is the first move, `dwcp-back` the way back to \
the node that it left, some seconds later. The pause is measured from STOP at the source to RESUME at \
the destination. A system that does not end in time is a row, too.

Examples:
  dwcp bench wan
  dwcp bench wan --link 100mbit,100ms --rounds 3 --json > wan.json
  dwcp bench wan --link 500mbit,50ms,0.1% --system dwcp,qemu-multifd4-zstd
  dwcp bench wan --peer-congestion-control cubic";

/// Rate, round trip, loss.
const LINKS: [&str; 4] = [
    "100mbit,100ms",
    "500mbit,50ms",
    "900mbit,50ms,0.1%",
    "100mbit,200ms,1%",
];

/// `dwcp bench wan`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// A link: rate, round-trip time, loss each way; may be given again. Four of them by default.
    #[arg(long = "link", value_name = "RATE,RTT[,LOSS]", value_parser = Road::parse)]
    links: Vec<Road>,
    /// RAM of the guest, MiB.
    #[arg(long, default_value_t = 512)]
    size_mib: u64,
    /// RAM filled with data, percent.
    #[arg(long, default_value_t = 55, value_parser = clap::value_parser!(u64).range(1..=90))]
    fill_percent: u64,
    /// Pages rewritten per second.
    #[arg(long, default_value_t = 100, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// How often each system moves it.
    #[arg(long, default_value_t = 1)]
    rounds: u32,
    /// Seconds that the guest stays before it goes back.
    #[arg(long, default_value_t = 10)]
    stay_s: u64,
    /// Seconds after which a migration is given up.
    #[arg(long, default_value_t = 150)]
    timeout_s: u64,
    /// Which of them; all when not given.
    #[arg(long = "system", value_enum, value_delimiter = ',')]
    systems: Vec<System>,
    /// Congestion control of QEMU's connections, and of what DWCP does not choose itself.
    #[arg(long, default_value = "bbr")]
    peer_congestion_control: String,
    /// Change a key of the internet profile; may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum System {
    Dwcp,
    QemuPlain,
    QemuXbzrle,
    QemuMultifd4Zstd,
}

const SYSTEMS: [System; 4] = [
    System::Dwcp,
    System::QemuPlain,
    System::QemuXbzrle,
    System::QemuMultifd4Zstd,
];

/// A link that is wanted.
#[derive(Clone, Debug)]
pub(super) struct Road {
    pub(super) name: String,
    way: WayParams,
}

#[derive(Clone, Debug, Serialize)]
struct Run {
    system: String,
    case: String,
    /// `completed`, or why not.
    result: String,
    total_ms: f64,
    downtime_ms: f64,
    /// Of DWCP.
    #[serde(skip_serializing_if = "Option::is_none")]
    downtime_parts_ms: Option<DowntimePartsMs>,
    wire_bytes: u64,
    bytes_per_s: f64,
    cpu_s: f64,
    ram_bytes: u64,
    guest_verified: bool,
}

type Record = super::run::Record<Run>;

impl Road {
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let parts: Vec<_> = text.split(',').map(str::trim).collect();
        let (rate, round_trip, loss) = match parts[..] {
            [rate, round_trip] => (rate, round_trip, "0"),
            [rate, round_trip, loss] => (rate, round_trip, loss),
            _ => return Err("a link is RATE,RTT or RATE,RTT,LOSS, as in 100mbit,100ms,1%".into()),
        };
        let round_trip_ns = units::time(round_trip).map_err(|error| error.to_string())?;
        Ok(Self {
            name: text.to_owned(),
            way: WayParams {
                rate_bit_per_s: units::rate(rate).map_err(|error| error.to_string())?,
                delay_ns: round_trip_ns / 2,
                loss: units::share(loss).map_err(|error| error.to_string())?,
                ..WayParams::default()
            },
        })
    }

    /// Makes it, with `congestion_control` for all that chooses none.
    pub(super) fn up(&self, seed: u64, congestion_control: &str) -> Result<TemporaryLink, Failure> {
        let name: LinkName = format!("bench-{}", std::process::id())
            .parse()
            .map_err(|error: String| Failure::other(anyhow::anyhow!(error)))?;
        let params = LinkParams {
            seed,
            ways: [self.way.clone(), self.way.clone()],
        };
        let program = Binaries::find().map_err(Failure::other)?.wan;
        let link: TemporaryLink = link::up(&name, &params, 1500, &program)
            .map_err(Failure::other)?
            .into();
        for namespace in &link.namespaces {
            let setting = format!("net.ipv4.tcp_congestion_control={congestion_control}");
            let set = Command::new("ip")
                .args(["netns", "exec", namespace, "sysctl", "-qw", &setting])
                .status()
                .map_err(Failure::other)?;
            if !set.success() {
                return Err(Failure::other(anyhow::anyhow!(
                    "the kernel has no congestion control {congestion_control}"
                )));
            }
        }
        Ok(link)
    }
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let base = profile::load("internet")?;
    let settings = profile::with_changes(&base, args.changes.iter().map(String::as_str))?;
    let mut runs: Vec<Run> = vec![];
    for turn in 1..=args.rounds {
        for road in args.roads()? {
            for system in args.systems() {
                eprintln!(
                    "round {turn} of {}: {}: {}",
                    args.rounds,
                    road.name,
                    system.name()
                );
                let link = road.up(u64::from(turn), &args.peer_congestion_control)?;
                match system.peer() {
                    None => runs.extend(by_dwcp(args, &settings, &road, &link)?),
                    Some(peer) => runs.push(by_qemu(args, peer, &road, &link)?),
                }
            }
        }
    }
    let record = Record::here("dwcp.bench.wan/1", runs);
    context.print(&record, || table(&record))?;
    let is_bad = |run: &&Run| run.result == "completed" && !run.guest_verified;
    match record.runs.iter().find(is_bad) {
        None => Ok(()),
        Some(run) => Err(Failure::other(anyhow::anyhow!(
            "{}: a moved guest does not confirm its memory",
            run.system
        ))),
    }
}

impl System {
    const fn name(self) -> &'static str {
        match self {
            Self::Dwcp => "dwcp, there and back",
            Self::QemuPlain => "qemu-plain",
            Self::QemuXbzrle => "qemu-xbzrle",
            Self::QemuMultifd4Zstd => "qemu-multifd4-zstd",
        }
    }

    const fn peer(self) -> Option<PeerSystem> {
        match self {
            Self::Dwcp => None,
            Self::QemuPlain => Some(PeerSystem::Plain),
            Self::QemuXbzrle => Some(PeerSystem::Xbzrle),
            Self::QemuMultifd4Zstd => Some(PeerSystem::Multifd4Zstd),
        }
    }
}

impl Args {
    fn roads(&self) -> Result<Vec<Road>, Failure> {
        if !self.links.is_empty() {
            return Ok(self.links.clone());
        }
        let roads = LINKS.iter().map(|text| Road::parse(text));
        roads
            .collect::<Result<_, _>>()
            .map_err(|error| Failure::other(anyhow::anyhow!(error)))
    }

    fn systems(&self) -> Vec<System> {
        match self.systems.is_empty() {
            true => SYSTEMS.to_vec(),
            false => self.systems.clone(),
        }
    }

    const fn fill_mib(&self) -> u64 {
        self.size_mib * self.fill_percent / 100
    }

    fn hot_mib(&self) -> u64 {
        50.min(self.fill_mib())
    }
}

fn by_dwcp(
    args: &Args,
    settings: &TransferSettings,
    road: &Road,
    link: &Link,
) -> Result<[Run; 2], Failure> {
    let spec = RunSpec {
        guest: GuestSpec {
            choice: GuestChoice::Linux,
            ram_mib: args.size_mib,
            fill_mib: args.fill_mib(),
            hot_mib: args.hot_mib(),
            dirty_pages_per_s: args.dirty_rate,
            checked_pages_per_s: GuestOptions::default().verify_rate,
            kind: Kind::Text,
            backing: Backing::Fresh,
        },
        settings: settings.clone(),
    };
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let again = tempfile::tempdir().map_err(Failure::other)?;
    let mut lab = Lab::start_over(&spec, folder.path(), Some(link.into()), &mut |_| {})
        .map_err(Failure::other)?;
    let go = |lab: &mut Lab, system: &str| {
        let moved = lab.run(settings, &mut |_| {}, &mut |_| {});
        moved
            .map(|moved| of_dwcp(system, road, &moved))
            .map_err(Failure::other)
    };
    let there = go(&mut lab, "dwcp")?;
    if there.result != "completed" {
        return Err(Failure::other(anyhow::anyhow!("dwcp: {}", there.result)));
    }
    // It works there: what it changes meanwhile is what the way back costs.
    std::thread::sleep(Duration::from_secs(args.stay_s));
    lab.turn_round(&spec, again.path())
        .map_err(Failure::other)?;
    let back = go(&mut lab, "dwcp-back")?;
    Ok([there, back])
}

fn of_dwcp(system: &str, road: &Road, moved: &MovedGuest) -> Run {
    let report = &moved.report;
    Run {
        system: system.to_owned(),
        case: road.name.clone(),
        result: match report.result {
            RunResult::Completed => "completed".into(),
            _ => report.reason.clone(),
        },
        total_ms: report.total_ms,
        downtime_ms: report.downtime_ms,
        downtime_parts_ms: Some(report.downtime_parts_ms),
        wire_bytes: report.wire_bytes,
        bytes_per_s: rate(report.ram_bytes, report.total_ms),
        cpu_s: moved.cpu_s,
        ram_bytes: report.ram_bytes,
        guest_verified: report.guest_verified == Some(true),
    }
}

fn by_qemu(args: &Args, system: PeerSystem, road: &Road, link: &Link) -> Result<Run, Failure> {
    let folder = tempfile::tempdir().map_err(Failure::other)?;
    let within = |side: usize| -> Vec<String> {
        let words = ["ip", "netns", "exec", &link.namespaces[side]];
        words.map(str::to_owned).to_vec()
    };
    let options = PeerOptions {
        guest: GuestKind::Linux,
        memory_mib: args.size_mib,
        load: GuestOptions {
            fill_mib: args.fill_mib(),
            hot_mib: args.hot_mib(),
            rate: args.dirty_rate,
            kind: Kind::Text,
            ..GuestOptions::default()
        },
        timeout: Duration::from_secs(args.timeout_s),
        address: link.addresses[1].clone(),
        source_prefix: within(0),
        destination_prefix: within(1),
        ..PeerOptions::new(folder.path())
    };
    let ram_bytes = args.size_mib << 20;
    match run_peer(system, &options) {
        Ok(run) => Ok(Run {
            system: run.system.to_owned(),
            case: road.name.clone(),
            result: "completed".into(),
            total_ms: run.total_ms,
            downtime_ms: run.downtime_ms,
            downtime_parts_ms: None,
            wire_bytes: run.wire_bytes,
            bytes_per_s: rate(run.ram_bytes, run.total_ms),
            cpu_s: run.cpu_s,
            ram_bytes,
            guest_verified: run.guest_verified,
        }),
        Err(PeerError::NotCompleted { after, detail, .. }) => Ok(Run {
            system: system.name().to_owned(),
            case: road.name.clone(),
            result: format!("given up after {} s: {detail}", after.as_secs()),
            total_ms: after.as_secs_f64() * 1e3,
            downtime_ms: 0.0,
            downtime_parts_ms: None,
            wire_bytes: 0,
            bytes_per_s: 0.0,
            cpu_s: 0.0,
            ram_bytes,
            guest_verified: false,
        }),
        Err(error) => Err(Failure::other(error)),
    }
}

fn table(record: &Record) -> String {
    by_case(record, |run| &run.case, case_table)
}

fn case_table(runs: &[&Run]) -> String {
    let mut out =
        "median of each        total ms   pause ms  wire MiB  of RAM   CPU s  guest\n".to_owned();
    let mut names: Vec<&str> = vec![];
    for run in runs {
        if !names.contains(&run.system.as_str()) {
            names.push(&run.system);
        }
    }
    for name in names {
        let of_it: Vec<_> = runs.iter().filter(|run| run.system == name).collect();
        let middle = |of: fn(&Run) -> f64| median(of_it.iter().map(|run| of(run)));
        let ended = of_it.iter().all(|run| run.result == "completed");
        let verified = of_it.iter().all(|run| run.guest_verified);
        let _ = writeln!(
            out,
            "{name:<20} {:>9.0} {:>10.1} {:>9.1} {:>7.3} {:>7.2}  {}",
            middle(|run| run.total_ms),
            middle(|run| run.downtime_ms),
            middle(|run| run.wire_bytes as f64) / f64::from(1 << 20),
            middle(|run| run.wire_bytes as f64 / run.ram_bytes as f64),
            middle(|run| run.cpu_s),
            match (ended, verified) {
                (false, _) => "GIVEN UP",
                (true, true) => "verified",
                (true, false) => "BAD",
            }
        );
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_as_people_write_them() {
        let road = Road::parse("100mbit, 200ms, 1%").unwrap();
        assert_eq!(road.way.rate_bit_per_s, Some(100_000_000));
        assert_eq!(road.way.delay_ns, 100_000_000);
        assert!((road.way.loss - 0.01).abs() < 1e-9);
        for text in LINKS {
            Road::parse(text).unwrap();
        }
        for bad in ["", "100mbit", "100mbit,fast", "1,2,3,4"] {
            Road::parse(bad).unwrap_err();
        }
    }
}
