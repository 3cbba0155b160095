//! `dwcp bench wan`: one guest over emulated links, by DWCP there and back, and by QEMU itself.

mod goals;
mod road;
mod runs;
mod table;

use std::path::PathBuf;

use dwcp_api::TransferSettings;
use dwcp_controlplane::profile;
use dwcp_testbed::guests::{Workload, WorkloadGuest, workload_disk};
use dwcp_testbed::peers::PeerSystem;

pub(super) use self::road::Road;
use self::runs::{Run, SEEDS, by_dwcp, by_qemu};
use super::numbers::{size_mib, some};
use crate::context::{Context, print_text};
use crate::failure::Failure;

const HELP: &str = "Needs root: each link is two network namespaces and dwcp-wan between them. All \
systems send under the same congestion control. `dwcp` is the first move, `dwcp-back` the way back to \
the node that it left, some seconds later. The pause is measured from STOP at the source to RESUME at \
the destination. A system that does not end in time is a row, too. Where packets are lost, \
multifd with zstd is also moved under cubic, the default of distributions. Below the rows DWCP's bytes, \
times and pauses are set against its goals.

The workloads are a Debian from the disk that `tools/setup --workloads` makes, booted once until it is \
warm, saved, and moved from that very state by each system. Their RAM: database 1024 MiB, store 768, \
idle 512. A moved one is looked at until its work goes on.

Examples:
  dwcp bench wan
  dwcp bench wan --link 100mbit,100ms --rounds 3 --json > wan.json
  dwcp bench wan --link 500mbit,50ms,0.1% --system dwcp,qemu-multifd4-zstd
  dwcp bench wan --peer-congestion-control cubic
  dwcp bench wan --workload database,store,idle --held none,disk,sibling,sibling-disk --json > wan.json
  dwcp bench wan --show wan.json";

/// `dwcp bench wan`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// A link: rate, round-trip time, loss each way; may be given again. Four of them by default.
    #[arg(long = "link", value_name = "RATE,RTT[,LOSS]", value_parser = Road::parse)]
    links: Vec<Road>,
    /// Which guest; the options about RAM are those of `text`.
    #[arg(
        long = "workload",
        value_enum,
        value_delimiter = ',',
        default_value = "text"
    )]
    guests: Vec<Guest>,
    /// What the destination has before DWCP moves the guest there.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "none")]
    held: Vec<Held>,
    /// Print the runs of a JSON record as Markdown, and move nothing; may be given again.
    #[arg(long, value_name = "RECORD")]
    show: Vec<PathBuf>,
    /// RAM of the guest, MiB.
    #[arg(long, default_value_t = 512, value_parser = size_mib)]
    size_mib: u64,
    /// RAM filled with data, percent.
    #[arg(long, default_value_t = 55, value_parser = clap::value_parser!(u64).range(1..=90))]
    fill_percent: u64,
    /// Pages rewritten per second.
    #[arg(long, default_value_t = 100, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// How often each system moves it.
    #[arg(long, default_value_t = 1, value_parser = some::<u32>)]
    rounds: u32,
    /// Seconds that the guest stays before it goes back.
    #[arg(long, default_value_t = 10)]
    stay_s: u64,
    /// Seconds after which a migration is given up.
    #[arg(long, default_value_t = 150, value_parser = some::<u64>)]
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
    QemuMultifd4ZstdCubic,
}

/// Over every link.
const SYSTEMS: [System; 4] = [
    System::Dwcp,
    System::QemuPlain,
    System::QemuXbzrle,
    System::QemuMultifd4Zstd,
];

/// What the destination has before the guest comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Held {
    /// Nothing.
    None,
    /// The RAM of another guest of the same kind, that left it.
    Sibling,
    /// The disk image that the guest runs from.
    Disk,
    /// Both.
    SiblingDisk,
}

/// The guest of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Guest {
    /// Checked pages of text.
    Text,
    /// PostgreSQL under transactions.
    Database,
    /// Redis under writes, beside compilers.
    Store,
    /// A Debian with next to nothing to do.
    Idle,
}

/// Which guest, over which link.
struct Case<'a> {
    road: &'a Road,
    workload: Option<Workload>,
}

type Record = super::run::Record<Run>;

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    if !args.show.is_empty() {
        return print_text(&table::of_records(&args.show)?);
    }
    let base = profile::load("internet")?;
    let settings = profile::with_changes(&base, args.changes.iter().map(String::as_str))?;
    args.prepare()?;
    let mut runs: Vec<Run> = vec![];
    let measured = all(args, &settings, &mut |run| {
        eprintln!("    {}", table::line(&run));
        runs.push(run);
    });
    // Hours may have gone into the runs before the one that failed.
    let record = Record::here("dwcp.bench.wan/1", runs);
    if measured.is_ok() || !record.runs.is_empty() {
        context.print(&record, || table::of(&record))?;
    }
    measured?;
    // What QEMU's own migration does to a guest is a result.
    let is_bad =
        |run: &&Run| run.is_completed() && !run.guest_verified && run.system.starts_with("dwcp");
    match record.runs.iter().find(is_bad) {
        None => Ok(()),
        Some(run) => Err(Failure::other(anyhow::anyhow!(
            "{}: a moved guest does not confirm its memory, or does not go on",
            run.name()
        ))),
    }
}

fn all(args: &Args, settings: &TransferSettings, done: &mut dyn FnMut(Run)) -> Result<(), Failure> {
    for turn in 1..=args.rounds {
        for road in &args.roads()? {
            for guest in &args.guests {
                let workload = guest.workload();
                let case = Case { road, workload };
                eprintln!("round {turn} of {}: {}", args.rounds, case.name());
                one_case(args, settings, turn, &case, done)?;
            }
        }
    }
    Ok(())
}

fn one_case(
    args: &Args,
    settings: &TransferSettings,
    turn: u32,
    case: &Case<'_>,
    done: &mut dyn FnMut(Run),
) -> Result<(), Failure> {
    for system in args.systems(case.road) {
        let own = system.congestion_control();
        let congestion_control = own.unwrap_or(&args.peer_congestion_control);
        let up = || case.road.up(u64::from(turn), congestion_control);
        match system.peer() {
            Some(peer) => {
                let mut run = by_qemu(args, peer, case, &*up()?)?;
                if let Some(own) = own {
                    run.system = format!("{}-{own}", run.system);
                }
                done(run);
            }
            None => {
                for &held in &args.held {
                    by_dwcp(args, settings, case, held, &*up()?, done)?;
                }
            }
        }
    }
    Ok(())
}

impl Case<'_> {
    fn name(&self) -> String {
        match self.workload {
            None => self.road.name.clone(),
            Some(workload) => format!("{} {}", self.road.name, workload.name()),
        }
    }
}

impl Held {
    /// Empty for nothing.
    const fn name(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Sibling => "sibling",
            Self::Disk => "disk",
            Self::SiblingDisk => "sibling and disk",
        }
    }

    const fn has_sibling(self) -> bool {
        matches!(self, Self::Sibling | Self::SiblingDisk)
    }

    const fn has_disk(self) -> bool {
        matches!(self, Self::Disk | Self::SiblingDisk)
    }
}

impl Guest {
    const fn workload(self) -> Option<Workload> {
        match self {
            Self::Text => None,
            Self::Database => Some(Workload::Database),
            Self::Store => Some(Workload::Store),
            Self::Idle => Some(Workload::Idle),
        }
    }
}

impl System {
    const fn peer(self) -> Option<PeerSystem> {
        match self {
            Self::Dwcp => None,
            Self::QemuPlain => Some(PeerSystem::Plain),
            Self::QemuXbzrle => Some(PeerSystem::Xbzrle),
            Self::QemuMultifd4Zstd | Self::QemuMultifd4ZstdCubic => Some(PeerSystem::Multifd4Zstd),
        }
    }

    /// Where it is not that of all others.
    const fn congestion_control(self) -> Option<&'static str> {
        match self {
            Self::QemuMultifd4ZstdCubic => Some("cubic"),
            _ => None,
        }
    }
}

impl Args {
    fn roads(&self) -> Result<Vec<Road>, Failure> {
        if !self.links.is_empty() {
            return Ok(self.links.clone());
        }
        Road::usual()
    }

    /// Finds out what is missing, and boots what is not warm yet, before anything is measured.
    fn prepare(&self) -> Result<(), Failure> {
        let guests = self.guests.iter().filter_map(|guest| guest.workload());
        let workloads: Vec<_> = guests.collect();
        let on_disk = self.held.iter().any(|held| held.has_disk());
        if workloads.is_empty() && !on_disk {
            if workload_disk().is_err() {
                eprintln!(
                    "for guests with RAM as servers have it: tools/setup --workloads, then --workload \
                     database,store,idle"
                );
            }
            return Ok(());
        }
        workload_disk().map_err(Failure::other)?;
        let seeds = match self.held.iter().any(|held| held.has_sibling()) {
            true => &SEEDS[..],
            false => &SEEDS[..1],
        };
        for workload in workloads {
            for &seed in seeds {
                let guest = WorkloadGuest { workload, seed };
                guest
                    .warm(&mut |text| eprintln!("{text}"))
                    .map_err(Failure::other)?;
            }
        }
        Ok(())
    }

    fn systems(&self, road: &Road) -> Vec<System> {
        if !self.systems.is_empty() {
            return self.systems.clone();
        }
        let mut systems = SYSTEMS.to_vec();
        let cubic = System::QemuMultifd4ZstdCubic;
        if road.is_lossy() && cubic.congestion_control() != Some(&self.peer_congestion_control) {
            systems.push(cubic);
        }
        systems
    }

    const fn fill_mib(&self) -> u64 {
        self.size_mib * self.fill_percent / 100
    }

    fn hot_mib(&self) -> u64 {
        50.min(self.fill_mib())
    }
}
