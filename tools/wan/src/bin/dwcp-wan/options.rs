//! What a link is to be, on the command line.

use std::fs;
use std::path::PathBuf;

use dwcp_wan::params::{LinkParams, TraceSource, WayParams};
use dwcp_wan::trace::Trace;
use dwcp_wan::units::{self, QueueLimit, UnitError};

use crate::failure::Failure;

/// A rate; none where it is not limited.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkRate(Option<u64>);

/// A time in nanoseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct LinkTime(pub(crate) u64);

impl LinkRate {
    fn parse(text: &str) -> Result<Self, UnitError> {
        units::rate(text).map(Self)
    }
}

impl LinkTime {
    pub(crate) fn parse(text: &str) -> Result<Self, UnitError> {
        units::time(text).map(Self)
    }
}

/// A link's options. Those without `back` hold for both ways.
#[derive(clap::Args, Clone, Debug, Default)]
#[command(next_help_heading = "Link (both ways, unless a --back option says otherwise)")]
pub(crate) struct LinkOptions {
    /// Bits of IP packets per second: 100mbit, 2.5gbit, unlimited.
    #[arg(long, value_name = "RATE", value_parser = LinkRate::parse)]
    rate: Option<LinkRate>,
    /// One-way delay: 50ms, 250us.
    #[arg(long, value_name = "TIME", value_parser = LinkTime::parse)]
    delay: Option<LinkTime>,
    /// The delay wanders up to this much above it; packets stay in order.
    #[arg(long, value_name = "TIME", value_parser = LinkTime::parse)]
    jitter: Option<LinkTime>,
    /// Share of packets that are lost: 0.1%.
    #[arg(long, value_name = "SHARE", value_parser = units::share)]
    loss: Option<f64>,
    /// Share of packets that arrive a quarter of the delay later (1ms at least): others overtake them.
    #[arg(long, value_name = "SHARE", value_parser = units::share)]
    reorder: Option<f64>,
    /// What waits at most, in bytes or time: 256KiB, 50ms; auto is what the link holds in a round
    /// trip, and no less than 256KiB.
    #[arg(long, value_name = "SIZE|TIME", value_parser = units::queue)]
    queue: Option<QueueLimit>,
    /// A rate that changes over time, repeated: CSV with the columns t_s and mbps.
    #[arg(long, value_name = "FILE", conflicts_with = "rate")]
    trace: Option<PathBuf>,
    /// Which trace of a file with a column `trace` [default: the first].
    #[arg(long, value_name = "NAME")]
    trace_name: Option<String>,
    /// Rate from B to A.
    #[arg(long, value_name = "RATE", value_parser = LinkRate::parse, conflicts_with = "back_trace")]
    back_rate: Option<LinkRate>,
    /// Delay from B to A.
    #[arg(long, value_name = "TIME", value_parser = LinkTime::parse)]
    back_delay: Option<LinkTime>,
    /// Jitter from B to A.
    #[arg(long, value_name = "TIME", value_parser = LinkTime::parse)]
    back_jitter: Option<LinkTime>,
    /// Loss from B to A.
    #[arg(long, value_name = "SHARE", value_parser = units::share)]
    back_loss: Option<f64>,
    /// Reordering from B to A.
    #[arg(long, value_name = "SHARE", value_parser = units::share)]
    back_reorder: Option<f64>,
    /// Queue from B to A.
    #[arg(long, value_name = "SIZE|TIME", value_parser = units::queue)]
    back_queue: Option<QueueLimit>,
    /// Rate trace from B to A.
    #[arg(long, value_name = "FILE")]
    back_trace: Option<PathBuf>,
    /// Which trace of that file.
    #[arg(long, value_name = "NAME")]
    back_trace_name: Option<String>,
}

/// The options of one way.
struct WayOptions {
    rate: Option<LinkRate>,
    delay: Option<LinkTime>,
    jitter: Option<LinkTime>,
    loss: Option<f64>,
    reorder: Option<f64>,
    queue: Option<QueueLimit>,
    trace: Option<TraceSource>,
}

impl LinkOptions {
    /// A new link.
    pub(crate) fn params(&self, seed: u64) -> Result<LinkParams, Failure> {
        let mut params = LinkParams {
            seed,
            ..LinkParams::default()
        };
        self.apply(&mut params.ways)?;
        Ok(params)
    }

    /// Changes what is named.
    pub(crate) fn apply(&self, ways: &mut [WayParams; 2]) -> Result<(), Failure> {
        let there = WayOptions {
            rate: self.rate,
            delay: self.delay,
            jitter: self.jitter,
            loss: self.loss,
            reorder: self.reorder,
            queue: self.queue,
            trace: source("--trace", self.trace.as_ref(), self.trace_name.as_ref())?,
        };
        let back_trace = self.back_trace.as_ref();
        let back = WayOptions {
            rate: self
                .back_rate
                .or_else(|| there.rate.filter(|_| back_trace.is_none())),
            delay: self.back_delay.or(there.delay),
            jitter: self.back_jitter.or(there.jitter),
            loss: self.back_loss.or(there.loss),
            reorder: self.back_reorder.or(there.reorder),
            queue: self.back_queue.or(there.queue),
            trace: source("--back-trace", back_trace, self.back_trace_name.as_ref())?
                .or_else(|| there.trace.clone().filter(|_| self.back_rate.is_none())),
        };
        for (way, options) in ways.iter_mut().zip([there, back]) {
            options.apply(way);
        }
        Ok(())
    }
}

impl WayOptions {
    fn apply(self, way: &mut WayParams) {
        if let Some(LinkRate(rate)) = self.rate {
            (way.rate_bit_per_s, way.trace) = (rate, None);
        }
        if self.trace.is_some() {
            (way.rate_bit_per_s, way.trace) = (None, self.trace);
        }
        let time = |new: Option<LinkTime>, old: u64| new.map_or(old, |new| new.0);
        way.delay_ns = time(self.delay, way.delay_ns);
        way.jitter_ns = time(self.jitter, way.jitter_ns);
        way.loss = self.loss.unwrap_or(way.loss);
        way.reorder = self.reorder.unwrap_or(way.reorder);
        way.queue = self.queue.unwrap_or(way.queue);
    }
}

/// A trace that can be used; the emulator, which runs elsewhere, gets its full path.
fn source(
    option: &str,
    path: Option<&PathBuf>,
    name: Option<&String>,
) -> Result<Option<TraceSource>, Failure> {
    let Some(path) = path else {
        return match name {
            Some(_) => Err(Failure::Usage(format!("{option}-name needs {option} FILE"))),
            None => Ok(None),
        };
    };
    let absolute = fs::canonicalize(path)
        .map_err(|error| Failure::Usage(format!("{option} {}: {error}", path.display())))?;
    let source = TraceSource {
        path: absolute,
        name: name.cloned(),
    };
    Trace::load(&source)?;
    Ok(Some(source))
}
