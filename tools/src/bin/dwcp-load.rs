//! `dwcp-load`: guests and load to try DWCP with.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use dwcp_testbed::Kind;
use dwcp_testbed::synthetic::{SyntheticOptions, run_synthetic_guest};

const EXAMPLES: &str = "\
Examples:
  dwcp-load guest --socket /tmp/g.sock --size-mib 1024 --dirty-rate 2000
  dwcp vm attach g --process /tmp/g.sock";

/// Guests and load to try DWCP with.
#[derive(Parser, Debug)]
#[command(name = "dwcp-load", version, after_help = EXAMPLES)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand, Debug)]
enum Command {
    /// A process that plays a guest: shares its RAM, rewrites it, checks it.
    #[command(after_help = EXAMPLES)]
    Guest(Guest),
}

#[derive(clap::Args, Debug)]
struct Guest {
    /// Socket on which it is attached.
    #[arg(long, value_name = "PATH")]
    socket: PathBuf,
    /// Its name.
    #[arg(long, default_value = "guest")]
    name: String,
    /// RAM, MiB.
    #[arg(long, default_value_t = 256)]
    size_mib: u64,
    /// RAM that is rewritten, MiB.
    #[arg(long, default_value_t = 16)]
    hot_mib: u64,
    /// Pages rewritten per second.
    #[arg(long, default_value_t = 300, value_name = "PAGES/S")]
    dirty_rate: u64,
    /// Pages checked per second.
    #[arg(long, default_value_t = 20_000, value_name = "PAGES/S")]
    verify_rate: u64,
    /// What pages look like: text, random, sparse.
    #[arg(long, default_value = "text", value_parser = kind)]
    kind: Kind,
    /// How many of a hundred pages stay zero.
    #[arg(long, default_value_t = 0)]
    zero_percent: u8,
    /// Two guests with other seeds differ.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// RAM of 2 MiB huge pages.
    #[arg(long)]
    hugetlb: bool,
    /// Start empty and wait for a migration.
    #[arg(long)]
    incoming: bool,
    /// Allocate the RAM of an empty guest at the start.
    #[arg(long)]
    prealloc: bool,
    /// NUMA nodes that the RAM comes from, in equal shares.
    #[arg(long, value_delimiter = ',', value_name = "NODE,…")]
    nodes: Vec<usize>,
}

fn kind(text: &str) -> Result<Kind, String> {
    Kind::from_name(text).ok_or_else(|| format!("{text} is none of text, random, sparse"))
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("dwcp-load: {}", dwcp_api::in_words(error.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    match cli.command {
        Command::Guest(guest) => Ok(run_synthetic_guest(SyntheticOptions {
            name: guest.name,
            socket: guest.socket,
            ram_mib: guest.size_mib,
            hot_mib: guest.hot_mib,
            rate: guest.dirty_rate,
            verify_rate: guest.verify_rate,
            kind: guest.kind,
            zero_percent: guest.zero_percent,
            seed: guest.seed,
            hugetlb: guest.hugetlb,
            incoming: guest.incoming,
            prealloc: guest.prealloc,
            nodes: guest.nodes,
        })?),
    }
}
