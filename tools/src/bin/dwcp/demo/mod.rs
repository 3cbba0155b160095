//! `dwcp demo`: two nodes on this machine, a guest under load, one migration, the proof, the numbers.

mod picture;

use dwcp_api::{MigrationReport, RunResult};
use dwcp_controlplane::config::Dimension;
use dwcp_controlplane::profile;
use dwcp_testbed::Kind;
use dwcp_testbed::guests::{GuestOptions, qemu_binary};
use dwcp_testbed::wire::Backing;
use dwcp_tools::lab::{GuestChoice, GuestSpec, Lab, RunSpec};

use crate::context::Context;
use crate::failure::Failure;

const HELP: &str = "Nothing needs to run already, and nothing is left behind. The guest fills its \
RAM with pages that it can check, rewrites some of them while it is moved, and looks at all of them \
at the destination.

Examples:
  dwcp demo
  dwcp demo --guest linux --size 1GiB --dirty-rate 5000
  dwcp demo --guest synthetic --size 2GiB --mode internet --json
  dwcp demo --set tracker.prefer=fingerprint --set transfer.io=poll";

/// `dwcp demo`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    /// The guest: a process, QEMU with the project's kernel, or QEMU with Debian's.
    #[arg(long, value_enum, default_value_t = Guest::Qemu)]
    guest: Guest,
    /// RAM of the guest.
    #[arg(long, default_value = "512MiB", value_name = "BYTES")]
    size: String,
    /// RAM filled with data [default: 55% of the size].
    #[arg(long, value_name = "BYTES")]
    fill: Option<String>,
    /// Pages that the guest rewrites per second.
    #[arg(long, default_value_t = 2000, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// What the pages look like.
    #[arg(long, value_enum, default_value_t = Pages::Text)]
    pages: Pages,
    /// Mode, or a profile's file.
    #[arg(long, default_value = "datacenter", value_name = "MODE|FILE")]
    mode: String,
    /// Change a key of the profile (dwcp config explain); may be given again.
    #[arg(long = "set", value_name = "KEY=VALUE")]
    changes: Vec<String>,
    /// Do it so many times, each with new nodes and a new guest.
    #[arg(long, default_value_t = 1)]
    times: u32,
    /// Keep the folder with logs and journals, and say where it is.
    #[arg(long)]
    keep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Guest {
    /// A process with a memfd; needs nothing.
    Synthetic,
    /// QEMU with the project's own kernel.
    Qemu,
    /// QEMU with Debian's kernel and the project's own init.
    Linux,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Pages {
    /// Compresses about four times.
    Text,
    /// Does not compress.
    Random,
    /// A rewrite changes few bytes.
    Sparse,
}

impl Args {
    /// Whether logs and journals stay.
    pub(crate) const fn keeps(&self) -> bool {
        self.keep
    }
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    let spec = spec(args)?;
    let mut reports = Vec::new();
    for turn in 1..=args.times {
        if args.times > 1 && !context.json {
            eprintln!("— {turn} of {}", args.times);
        }
        reports.push(once(args, &spec, context.json)?);
    }
    print(args, &spec, &reports, context)?;
    let bad = reports.iter().find(|report| {
        report.result != RunResult::Completed
            || !report.verified
            || report.guest_verified != Some(true)
    });
    match bad {
        None => Ok(()),
        Some(report) if report.result != RunResult::Completed => Err(Failure::ended(report)),
        Some(_) => Err(Failure::other(anyhow::anyhow!(
            "the guest does not confirm its memory"
        ))),
    }
}

fn print(
    args: &Args,
    spec: &RunSpec,
    reports: &[MigrationReport],
    context: &Context,
) -> Result<(), Failure> {
    if let [report] = reports {
        return context.print(report, || picture::report(report, &spec.guest));
    }
    context.print(&reports, || picture::table(reports, args.times))
}

fn spec(args: &Args) -> Result<RunSpec, Failure> {
    let base = profile::load(&args.mode)?;
    let settings = profile::with_changes(&base, args.changes.iter().map(String::as_str))?;
    let mib = |text: &str, what: &str| {
        Dimension::Bytes
            .parse(text)
            .map(|bytes| bytes >> 20)
            .map_err(|error| Failure::Usage(format!("--{what} {text}: {error}")))
    };
    let ram_mib = mib(&args.size, "size")?;
    if !(64..=1 << 20).contains(&ram_mib) {
        return Err(Failure::Usage(format!(
            "--size {}: must be 64MiB to 1TiB",
            args.size
        )));
    }
    let fill_mib = match &args.fill {
        Some(text) => mib(text, "fill")?,
        None => ram_mib * 55 / 100,
    };
    let choice = match args.guest {
        Guest::Synthetic => GuestChoice::Synthetic,
        Guest::Qemu => GuestChoice::Qemu,
        Guest::Linux => GuestChoice::Linux,
    };
    let kind = match args.pages {
        Pages::Text => Kind::Text,
        Pages::Random => Kind::Random,
        Pages::Sparse => Kind::Sparse,
    };
    let hot_mib = 50.min(fill_mib / 2);
    let dirty_pages_per_s = args.dirty_rate;
    let guest = GuestSpec {
        choice,
        ram_mib,
        fill_mib,
        hot_mib,
        dirty_pages_per_s,
        checked_pages_per_s: GuestOptions::default().verify_rate,
        kind,
        backing: Backing::Fresh,
    };
    Ok(RunSpec { guest, settings })
}

/// QEMU where there is one; otherwise says so, and takes the synthetic guest.
fn available(choice: GuestChoice) -> GuestChoice {
    let works = || {
        let version = std::process::Command::new(qemu_binary())
            .arg("--version")
            .output();
        version.is_ok_and(|output| output.status.success())
    };
    if choice == GuestChoice::Synthetic || works() {
        return choice;
    }
    eprintln!(
        "dwcp: {} does not run: taking the synthetic guest instead (tools/setup installs QEMU)",
        qemu_binary().display()
    );
    GuestChoice::Synthetic
}

fn once(args: &Args, spec: &RunSpec, json: bool) -> Result<MigrationReport, Failure> {
    let mut spec = spec.clone();
    spec.guest.choice = available(spec.guest.choice);
    let mut folder = tempfile::Builder::new()
        .prefix("dwcp-demo-")
        .tempdir()
        .map_err(Failure::other)?;
    if args.keep {
        folder.disable_cleanup(true);
        eprintln!(
            "dwcp: logs and journals stay in {}",
            folder.path().display()
        );
    }
    let mut say = |text: &str| {
        if !json {
            eprintln!("  {text}");
        }
    };
    let mut lab = Lab::start(&spec, folder.path(), &mut say).map_err(Failure::other)?;
    say("moving it from node-a to node-b while it runs");
    let mut display = (!json).then(crate::watch::Display::new);
    let mut watch = |status: &dwcp_api::MigrationStatus| {
        if let Some(display) = &mut display {
            display.show(status);
        }
    };
    let moved = lab
        .run(&spec.settings, &mut watch, &mut say)
        .map_err(Failure::other)?;
    if let Some(says) = &moved.guest_says {
        eprintln!("dwcp: the guest says: {says}");
    }
    Ok(moved.report)
}
