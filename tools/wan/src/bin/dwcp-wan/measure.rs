//! `dwcp-wan measure`: TCP through a link.

use std::time::Duration;

use comfy_table::{Table, presets};
use dwcp_wan::control::{Request, Status};
use dwcp_wan::link::{self, Link, LinkName};
use dwcp_wan::traffic::{self, Transfer};
use serde::Serialize;
use serde_json::json;

use crate::failure::Failure;
use crate::options::LinkTime;
use crate::output;
use crate::run::own_name;
use crate::signals::Held;
use crate::up::NewLink;

const HELP: &str =
    "Sends by TCP from A to B for --length with each congestion control, over a link of \
its own. Goodput is payload read at B per second, slow start included. CPU is of the emulator, in \
percent of a core. The round trip is that of small UDP packets before the transfer.

Examples:
  dwcp-wan measure --rate 100mbit --delay 25ms
  dwcp-wan measure --rate 1gbit --delay 50ms --loss 0.1% --length 20s --json";

const ROUND_TRIPS: usize = 10;
/// A round trip that takes longer has been lost.
const ROUND_TRIP_LIMIT: Duration = Duration::from_secs(5);

/// `dwcp-wan measure`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(flatten)]
    link: NewLink,
    /// Congestion controls of TCP, one after the other.
    #[arg(
        long,
        value_name = "NAME",
        value_delimiter = ',',
        default_value = "cubic,bbr"
    )]
    congestion: Vec<String>,
    /// How long each transfer runs, 100ms at least.
    #[arg(long, value_name = "TIME", value_parser = length, default_value = "10s")]
    length: LinkTime,
}

/// Below this, what is measured is how a transfer begins and ends.
const LENGTH_MIN_NS: u64 = 100_000_000;

fn length(text: &str) -> Result<LinkTime, String> {
    match LinkTime::parse(text) {
        Ok(LinkTime(..LENGTH_MIN_NS)) => {
            Err("too short to measure anything: 100ms at least".into())
        }
        parsed => parsed.map_err(|error| error.to_string()),
    }
}

#[derive(Debug, Serialize)]
struct Row {
    congestion: String,
    goodput_mbit_per_s: f64,
    cpu_percent: f64,
    round_trip_min_ms: Option<f64>,
    round_trip_max_ms: Option<f64>,
    round_trips_lost: usize,
    transfer: Transfer,
    packets: u64,
    dropped_by_loss: u64,
    dropped_by_queue: u64,
}

pub(crate) fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let signals = Held::hold()?;
    let name = own_name(None, "measure")?;
    let mut rows = vec![];
    let mut watched = false;
    for congestion in &args.congestion {
        // Each on a link of its own: the same decisions meet each.
        let link = args.link.up_for_now(&name, &signals)?;
        if !std::mem::replace(&mut watched, true) {
            signals.end_with(&name);
        }
        rows.push(measure(
            &link,
            congestion,
            Duration::from_nanos(args.length.0),
        )?);
    }
    let params = args.link.params()?;
    output::print(json, &json!({"params": params, "rows": rows}), || {
        table(&rows)
    })
}

fn measure(link: &Link, congestion: &str, length: Duration) -> Result<Row, Failure> {
    let trips = traffic::round_trips(link, ROUND_TRIPS, ROUND_TRIP_LIMIT)?;
    let before = show(&link.name)?;
    let transfer = traffic::transfer(link, congestion, length)?;
    let after = show(&link.name)?;
    let (first, last) = (&before.ways[0].counters, &after.ways[0].counters);
    let in_ms = |trip: &Duration| trip.as_secs_f64() * 1e3;
    Ok(Row {
        congestion: congestion.to_owned(),
        goodput_mbit_per_s: transfer.goodput_mbit_per_s(),
        cpu_percent: (after.cpu_s - before.cpu_s) / transfer.seconds * 100.0,
        round_trip_min_ms: trips.iter().flatten().min().map(in_ms),
        round_trip_max_ms: trips.iter().flatten().max().map(in_ms),
        round_trips_lost: trips.iter().filter(|trip| trip.is_none()).count(),
        transfer,
        packets: last.packets - first.packets,
        dropped_by_loss: last.dropped_by_loss - first.dropped_by_loss,
        dropped_by_queue: last.dropped_by_queue - first.dropped_by_queue,
    })
}

fn show(name: &LinkName) -> Result<Status, Failure> {
    Ok(link::ask(name, &Request::Show)?)
}

fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header([
        "congestion",
        "goodput Mbit/s",
        "CPU %",
        "RTT ms",
        "packets",
        "lost",
        "dropped by queue",
    ]);
    for row in rows {
        let trip = match (row.round_trip_min_ms, row.round_trip_max_ms) {
            (Some(min), Some(max)) => format!("{min:.1} to {max:.1}"),
            _ => "none came back".to_owned(),
        };
        table.add_row([
            row.congestion.clone(),
            format!("{:.1}", row.goodput_mbit_per_s),
            format!("{:.1}", row.cpu_percent),
            trip,
            row.packets.to_string(),
            row.dropped_by_loss.to_string(),
            row.dropped_by_queue.to_string(),
        ]);
    }
    table.to_string()
}
