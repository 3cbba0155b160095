//! The command line of the link emulator: a file per command.

mod emulate;
mod failure;
mod measure;
mod options;
mod output;
mod run;
mod show;
mod signals;
mod up;

use std::process::ExitCode;

use clap::{Parser, Subcommand, ValueEnum};
use dwcp_wan::control::Request;
use dwcp_wan::link::{self, LinkName};
use dwcp_wan::params::Direction;
use dwcp_wan::units;
use serde_json::json;

use failure::Failure;
use options::{LinkOptions, LinkTime};

const HELP: &str = "\
A link is two network namespaces, dwcp-wan-NAME-a and dwcp-wan-NAME-b, with an interface wan0 in \
each, and a process between them. It needs root (CAP_NET_ADMIN, CAP_SYS_ADMIN), /dev/net/tun and ip of \
iproute2; no netem.

Exit codes:
  0  done               3  no such link
  1  failed             4  the machine or the user lacks what a link needs
  2  wrong usage
  run: that of the command, 127 and 126 where it does not start; see its help

Examples:
  dwcp-wan up --rate 100mbit --delay 50ms --loss 0.1%
  ip netns exec dwcp-wan-wan-a ping 10.213.8.2
  dwcp-wan set wan --delay 100ms
  dwcp-wan cut wan --for 5s
  dwcp-wan down wan
  dwcp-wan run --rate 1gbit --delay 20ms -- ./test.sh";

/// A link between two network namespaces, as slow, long and lossy as asked.
#[derive(Parser, Debug)]
#[command(name = "dwcp-wan", version, after_help = HELP)]
struct Cli {
    /// Print JSON.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// Set a link up; return when packets pass.
    Up(up::Args),
    /// Take a link down, whatever there is of it.
    Down(DownArgs),
    /// Set a link up, run a command, take the link down.
    Run(run::Args),
    /// Change a running link; what is not named stays.
    Set(SetArgs),
    /// Let nothing into a link.
    Cut(CutArgs),
    /// Let packets in again.
    Mend(NameArgs),
    /// Links, their parameters and counters.
    Show(ShowArgs),
    /// Move TCP through a link: goodput, round trip, CPU of the emulator.
    Measure(measure::Args),
    #[command(hide = true)]
    Emulate(emulate::Args),
}

const MEND_HELP: &str = "Ends every cut of the link, whichever way it was.

Examples:
  dwcp-wan mend wan
  dwcp-wan mend wan --json";

/// A link.
#[derive(clap::Args, Debug)]
#[command(after_help = MEND_HELP)]
struct NameArgs {
    /// The link's name.
    name: LinkName,
}

const DOWN_HELP: &str = "A link that is not there is taken down already: exit code 0.

Examples:
  dwcp-wan down wan
  dwcp-wan down --all";

#[derive(clap::Args, Debug)]
#[command(after_help = DOWN_HELP, override_usage = "dwcp-wan down <NAME|--all>")]
struct DownArgs {
    /// The link's name.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<LinkName>,
    /// Every link of this machine.
    #[arg(long)]
    all: bool,
}

const SET_HELP: &str = "Packets on their way keep their times.

Examples:
  dwcp-wan set wan --delay 100ms --loss 1%
  dwcp-wan set wan --rate unlimited
  dwcp-wan set wan --back-rate 5mbit";

#[derive(clap::Args, Debug)]
#[command(after_help = SET_HELP)]
struct SetArgs {
    /// The link's name.
    name: LinkName,
    #[command(flatten)]
    options: LinkOptions,
}

const CUT_HELP: &str =
    "What is on its way still arrives; what comes in vanishes, as in a cable that was cut.

Examples:
  dwcp-wan cut wan --for 5s
  dwcp-wan cut wan --way b-to-a
  dwcp-wan mend wan";

#[derive(clap::Args, Debug)]
#[command(after_help = CUT_HELP)]
struct CutArgs {
    /// The link's name.
    name: LinkName,
    /// How long [default: until `dwcp-wan mend`].
    #[arg(long = "for", value_name = "TIME", value_parser = LinkTime::parse)]
    length: Option<LinkTime>,
    /// Which way.
    #[arg(long, default_value = "both")]
    way: Way,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Way {
    Both,
    AToB,
    BToA,
}

const SHOW_HELP: &str = "What is left of a link that was not taken down is listed, too.

Examples:
  dwcp-wan show
  dwcp-wan show wan
  dwcp-wan show wan --json";

#[derive(clap::Args, Debug)]
#[command(after_help = SHOW_HELP)]
struct ShowArgs {
    /// The link's name [default: every link].
    name: Option<LinkName>,
}

fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return failure::refused(&error, &arguments),
    };
    match dispatch(&cli.command, cli.json) {
        Ok(code) => code,
        Err(failure) => failure.report(cli.json),
    }
}

fn dispatch(command: &Command, json: bool) -> Result<ExitCode, Failure> {
    match command {
        Command::Up(args) => up::run(args, json)?,
        Command::Down(args) => down(args, json)?,
        Command::Run(args) => return run::run(args),
        Command::Set(args) => set(args, json)?,
        Command::Cut(args) => cut(args, json)?,
        Command::Mend(args) => {
            let status = link::ask(&args.name, &Request::Mend)?;
            output::print(json, &status, || format!("{}: mended", args.name))?;
        }
        Command::Show(args) => show::run(args.name.as_ref(), json)?,
        Command::Measure(args) => measure::run(args, json)?,
        Command::Emulate(args) => emulate::run(args)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn down(args: &DownArgs, json: bool) -> Result<(), Failure> {
    link::check_rights()?;
    let names = match &args.name {
        Some(name) => vec![name.clone()],
        None => link::list(),
    };
    let (mut ended, mut first) = (vec![], None);
    for name in names {
        // The others are taken down all the same.
        match link::down(&name) {
            Ok(true) => ended.push(name),
            Ok(false) => {}
            Err(error) => first = first.or(Some(error)),
        }
    }
    if let Some(error) = first {
        return Err(error.into());
    }
    output::print(json, &json!({ "down": ended }), || match &ended[..] {
        [] => "there was nothing to take down".to_owned(),
        ended => ended.iter().map(|name| format!("{name}: down\n")).collect(),
    })
}

fn set(args: &SetArgs, json: bool) -> Result<(), Failure> {
    let before = link::ask(&args.name, &Request::Show)?;
    let mut ways = before.ways.map(|way| way.params);
    args.options.apply(&mut ways)?;
    let status = link::ask(&args.name, &Request::Set(ways))?;
    output::print(json, &status, || {
        let [there, back] = &status.ways;
        let (there, back) = (there.params.in_words(), back.params.in_words());
        format!("{}:\n  a-to-b  {there}\n  b-to-a  {back}", args.name)
    })
}

fn cut(args: &CutArgs, json: bool) -> Result<(), Failure> {
    let ways = match args.way {
        Way::Both => Direction::BOTH.to_vec(),
        Way::AToB => vec![Direction::AToB],
        Way::BToA => vec![Direction::BToA],
    };
    let for_ns = args.length.map(|length| length.0);
    let names: Vec<_> = ways.iter().map(|way| way.name()).collect();
    let status = link::ask(&args.name, &Request::Cut { ways, for_ns })?;
    output::print(json, &status, || {
        let until = match for_ns {
            Some(ns) => format!("for {}", units::show_time(ns)),
            None => format!("until `dwcp-wan mend {}`", args.name),
        };
        format!("{}: cut {} {until}", args.name, names.join(" and "))
    })
}
