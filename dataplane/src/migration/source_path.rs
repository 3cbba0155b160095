//! What a source sees of the path to the destination, and what it changes when the path is of another mode.

use std::time::{Duration, Instant};

use dwcp_api::{ApiError, ErrorCode, PathMode, PathSample, Tune};

use socket2::SockRef;

use super::dial;
use super::source::SourceDriver;
use super::stream_count::StreamCount;
use crate::engine::SourceCommand;
use crate::transport::{SHORT_RTT, TcpInfo};

/// Between two samples.
const INTERVAL: Duration = Duration::from_millis(200);

/// Connecting takes so long at most.
const PROBE_TIME: Duration = Duration::from_secs(10);

/// The last sample, and when it was taken.
#[derive(Debug, Default)]
pub(super) struct PathWatch {
    pub(super) sample: Option<PathSample>,
    taken: Option<Instant>,
    /// Where the number of streams is found by measurement.
    pub(super) count: Option<StreamCount>,
}

/// What the connections of a migration have carried so far.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Carried {
    pub(super) acked_bytes: u64,
    pub(super) sent_bytes: u64,
    pub(super) resent_bytes: u64,
    /// Those that are there.
    pub(super) connections: u16,
    /// The shortest of theirs.
    pub(super) rtt: Duration,
    /// At most of those in use the kernel had more to send than the path took.
    pub(super) is_limited: bool,
}

/// The same of these streams; those with an index below `in_use` carry pages.
fn carried(infos: &[(u16, TcpInfo)], in_use: u16) -> Carried {
    let (mut all, mut limited) = (Carried::default(), 0);
    for &(index, info) in infos {
        all.acked_bytes += info.bytes_acked;
        all.sent_bytes += info.bytes_sent;
        all.resent_bytes += info.bytes_retransmitted;
        all.rtt = match all.connections {
            0 => info.rtt,
            _ => all.rtt.min(info.rtt),
        };
        all.connections += 1;
        limited += u32::from(index < in_use && info.unsent_bytes > 0);
    }
    all.is_limited = 2 * limited > u32::from(in_use);
    all
}

/// What several connections over one path show of it; `None` without one.
fn sample(infos: impl Iterator<Item = TcpInfo>) -> Option<PathSample> {
    let add = |sum: Option<PathSample>, info: TcpInfo| {
        let (rtt_us, rtt_var_us) = (info.rtt.as_micros() as u64, info.rtt_var.as_micros() as u64);
        let one = PathSample {
            rtt_us,
            rtt_var_us,
            delivery_bytes_per_s: info.delivery_rate,
            is_app_limited: info.is_app_limited,
            sent_bytes: info.bytes_sent,
            retransmitted_bytes: info.bytes_retransmitted,
        };
        let Some(sum) = sum else { return Some(one) };
        let nearer = if one.rtt_us < sum.rtt_us { one } else { sum };
        Some(PathSample {
            rtt_us: nearer.rtt_us,
            rtt_var_us: nearer.rtt_var_us,
            delivery_bytes_per_s: sum
                .delivery_bytes_per_s
                .saturating_add(one.delivery_bytes_per_s),
            is_app_limited: sum.is_app_limited || one.is_app_limited,
            sent_bytes: sum.sent_bytes + one.sent_bytes,
            retransmitted_bytes: sum.retransmitted_bytes + one.retransmitted_bytes,
        })
    };
    infos.fold(None, add)
}

/// Looks at the path to a node once: a connection is opened, and closed again.
///
/// # Errors
/// [`ErrorCode::System`] when nobody answers there.
pub fn probe_path(destination: &str) -> Result<PathSample, ApiError> {
    let refused = |reason: String| {
        ApiError::new(ErrorCode::System, reason)
            .with_hint("is its data plane running, and is the way there open?")
    };
    let socket =
        dial::connect(destination, PROBE_TIME, None).map_err(|error| refused(error.to_string()))?;
    sample(TcpInfo::of(&socket).into_iter())
        .filter(|sample| sample.rtt_us > 0)
        .ok_or_else(|| refused(format!("{destination}: the kernel tells nothing of TCP")))
}

impl SourceDriver {
    /// Looks at the path, now and then.
    pub(super) fn watch_path(&mut self) {
        let is_due = self.path.taken.is_none_or(|at| at.elapsed() >= INTERVAL);
        if !is_due {
            return;
        }
        let infos = self.stream_infos();
        self.path.sample = sample(infos.iter().map(|(_, info)| *info));
        self.path.taken = Some(Instant::now());
        self.count_streams(&infos);
    }

    /// What the kernel knows of the data streams' connections, with the streams' indexes.
    fn stream_infos(&self) -> Vec<(u16, TcpInfo)> {
        let streams = self.streams.by_index();
        streams
            .filter_map(|(index, socket)| Some((index, TcpInfo::of(socket).ok()?)))
            .collect()
    }

    /// Has as many streams carry pages as the path wants, if that is measured; not while the guest is paused.
    fn count_streams(&mut self, infos: &[(u16, TcpInfo)]) {
        let is_paused = self.recorder.pause.paused.is_some();
        let Some(count) = self.path.count.as_mut().filter(|_| !is_paused) else {
            return;
        };
        let carried = carried(infos, count.now());
        if let Some(streams) = count.read(Instant::now(), carried) {
            tracing::info!(vm = self.request.vm, streams, "streams that carry pages");
            self.use_streams(streams);
        }
    }

    fn use_streams(&mut self, streams: u16) {
        self.recorder.streams_in_use = streams;
        for worker in &self.workers {
            worker.command(SourceCommand::Use(streams));
        }
    }

    /// All streams are there: as many of them carry pages as were asked for, or as is a good beginning.
    pub(super) fn begin_with_streams(&mut self) {
        let opened = self.recorder.streams;
        if !self.request.settings.measure_streams {
            return self.use_streams(opened);
        }
        let rtt = carried(&self.stream_infos(), 0).rtt;
        // Every path is to carry something.
        let least = self.workers.len().max(self.request.settings.paths.len());
        let count = StreamCount::new(least as u16, opened, rtt < SHORT_RTT);
        self.use_streams(count.now());
        self.path.count = Some(count);
    }

    /// Does what was asked for meanwhile.
    pub(super) fn tune(&mut self, tune: Tune) {
        match tune {
            Tune::BandwidthLimitMbit(mbit) => self.limit_bandwidth(mbit),
            Tune::PathMode(mode) => self.set_mode(mode),
            Tune::PostCopy => self.go_postcopy(),
        }
    }

    /// A connection keeps what it has carried: only how it sends changes.
    fn set_mode(&mut self, path: PathMode) {
        let mut text = format!("mode {} -> {}: {}", self.recorder.mode, path.mode, path.why);
        if let Some(name) = path.congestion_control
            && self.request.settings.congestion_control.as_ref() != Some(&name)
        {
            let set = |socket| SockRef::from(socket).set_tcp_congestion(name.as_bytes());
            // One that breaks just now is nobody's loss.
            let outcomes: Vec<_> = self.streams.sockets().map(set).collect();
            match outcomes
                .iter()
                .find(|outcome| outcome.is_ok())
                .or_else(|| outcomes.first())
            {
                Some(Err(error)) => text.push_str(&format!("; {name} cannot be set: {error}")),
                _ => {
                    text.push_str(&format!("; streams under {name}"));
                    self.request.settings.congestion_control = Some(name);
                }
            }
        }
        tracing::info!(vm = self.request.vm, "{text}");
        self.recorder.mode = path.mode;
        self.recorder.remark(text);
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};

    use super::*;

    #[test]
    fn connections_are_seen_as_one_path() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let open = |bytes: usize| {
            let mut stream = TcpStream::connect(address).unwrap();
            stream.write_all(&vec![1; bytes]).unwrap();
            stream
        };
        let streams = [open(1000), open(3000)];
        let infos = streams.iter().map(|stream| TcpInfo::of(stream).unwrap());
        let all = sample(infos).unwrap();
        assert_eq!((all.sent_bytes, all.retransmitted_bytes), (4000, 0));
        assert!(all.rtt_us > 0);
        assert_eq!(sample(std::iter::empty()), None);
    }
}
