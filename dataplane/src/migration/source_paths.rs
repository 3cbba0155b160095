//! Where the data streams of a migration go, by several paths if it has them, and how smoothly.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use dwcp_api::{ApiError, ErrorCode, PATHS_MAX, RdmaChoice, StreamPath, TransferSettings};
use dwcp_proto::SourceEvent;
use dwcp_wire::{AbortCode, StreamHello, StreamRole};

use super::dial::{Route, connect_stream};
use super::peer::PeerError;
use super::source::{SourceDriver, SourceInput};
use crate::transport::{TcpInfo, set_pacing_rate};

/// Of the limit of a migration, the kernel lets one stream send so much, in percent: what is limited is counted by
/// the workers, and what they send at once is spread.
const PACED_PERCENT: u64 = 110;

/// Below, what the kernel has taken in one piece leaves later than the workers' own pace would have it, also after
/// the limit was lifted for the pause: 64 KiB in 10 ms.
const PACED_MIN_BYTES_PER_S: u64 = 50_000_000 / 8;

/// Whether the streams can take the paths.
///
/// # Errors
/// [`ErrorCode::BadRequest`], before anything is begun.
pub(super) fn check_paths(settings: &TransferSettings) -> Result<(), ApiError> {
    let (paths, streams) = (settings.paths.len(), settings.streams);
    let (message, hint) = if paths > PATHS_MAX {
        (
            format!("{paths} paths; {PATHS_MAX} at most"),
            "give those that carry most",
        )
    } else if paths > usize::from(streams) {
        (
            format!("{paths} paths for {streams} data streams: some would carry nothing"),
            "set transfer.streams to as many, or to \"auto\"",
        )
    } else if paths > 0 && settings.rdma == RdmaChoice::Required {
        (
            "transfer.rdma = \"required\", and paths are for TCP".to_owned(),
            "an adapter's own network decides its path",
        )
    } else {
        return Ok(());
    };
    Err(ApiError::new(ErrorCode::BadRequest, message).with_hint(hint))
}

/// The path that a stream takes: in turn, and the next one each time it is replaced, since what broke the connection
/// may have broken the path.
fn path(paths: &[StreamPath], index: u16, generation: u16) -> Option<usize> {
    let turn = usize::from(index) + usize::from(generation);
    turn.checked_rem(paths.len())
}

/// How long it takes to connect.
fn connect_time(route: Route, time: Duration) -> Result<Duration, PeerError> {
    let began = Instant::now();
    connect_stream(route, time, None).map(|_| began.elapsed())
}

/// Bytes that the other end has acknowledged.
pub(super) fn acked(socket: &TcpStream) -> u64 {
    TcpInfo::of(socket).map_or(0, |info| info.bytes_acked)
}

/// Which paths a dry run could take, and how long it took to connect.
#[derive(Debug)]
pub(super) struct PathsTried(Vec<(StreamPath, Result<Duration, PeerError>)>);

impl SourceDriver {
    /// Both nodes agree on a dry run. Before that is said every path is connected to, all at once.
    pub(super) fn try_paths(&mut self, agreed: SourceEvent) {
        if self.agreed.is_some() {
            let reason = "the other node has accepted twice".to_owned();
            return self.fail(AbortCode::Protocol, reason);
        }
        let (paths, Some(to)) = (&self.request.settings.paths, self.peer) else {
            return self.look_first(agreed);
        };
        if paths.is_empty() {
            return self.look_first(agreed);
        }
        self.agreed = Some(agreed);
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        let (paths, mailbox) = (paths.clone(), self.mailbox.clone());
        let run = move || {
            let outcomes = std::thread::scope(|scope| {
                let each = paths.iter().map(|&path| {
                    let route = (path.from, path.to.unwrap_or(to));
                    let thread = std::thread::Builder::new().name("dwcp-dial".into());
                    let connecting = thread.spawn_scoped(scope, move || connect_time(route, time));
                    (path, connecting)
                });
                let each: Vec<_> = each.collect();
                let ended = each
                    .into_iter()
                    .filter_map(|(path, connecting)| match connecting {
                        // A thread that panicked has said so.
                        Ok(connecting) => Some((path, connecting.join().ok()?)),
                        Err(error) => Some((path, Err(error.into()))),
                    });
                ended.collect()
            });
            let _ = mailbox.push(SourceInput::PathsTried(PathsTried(outcomes)));
        };
        let thread = std::thread::Builder::new().name("dwcp-dial".into());
        if let Err(error) = thread.spawn(run) {
            self.fail(AbortCode::Other, format!("no thread: {error}"));
        }
    }

    /// Says of each path whether it can be taken. One that can is enough.
    pub(super) fn paths_tried(&mut self, tried: PathsTried) {
        let mut failed = vec![];
        let all = tried.0.len();
        for (path, outcome) in tried.0 {
            match outcome {
                Ok(time) => self.recorder.remark(format!(
                    "path {path} can be taken in {:.1} ms",
                    time.as_secs_f64() * 1000.0
                )),
                Err(error) => {
                    let text = format!("path {path} cannot be taken: {error}");
                    self.recorder.note(text.clone());
                    failed.push(text);
                }
            }
        }
        if failed.len() == all {
            return self.peer_lost(format!("no path can be taken: {}", failed.join("; ")));
        }
        if let Some(agreed) = self.agreed.take() {
            self.look_first(agreed);
        }
    }

    /// The way of a further connection; `to` is where the control connection has led.
    pub(super) fn route(&self, hello: StreamHello, to: SocketAddr) -> Route {
        let paths = &self.request.settings.paths;
        let taken = match hello.role {
            StreamRole::Data => path(paths, hello.index, hello.generation),
            _ => None,
        };
        taken.map_or((None, to), |at| {
            (paths[at].from, paths[at].to.unwrap_or(to))
        })
    }

    /// A stream that cannot be opened may be on the next one.
    pub(super) const fn has_another_path(&self) -> bool {
        self.request.settings.paths.len() > 1
    }

    /// Says what each path has carried, and how many streams it has now.
    pub(super) fn tell_paths(&mut self) {
        let paths = &self.request.settings.paths;
        let mut carried = vec![(0_u16, 0_u64); paths.len()];
        for (index, generation, socket) in self.streams.by_generation() {
            if let Some(at) = path(paths, index, generation) {
                carried[at].0 += 1;
                carried[at].1 += acked(socket);
            }
        }
        for ended in &self.streams.ended {
            if let Some(at) = path(paths, ended.index, ended.generation) {
                carried[at].1 += ended.bytes_acked;
            }
        }
        let words = paths.iter().zip(carried).map(|(path, (streams, bytes))| {
            let mib = bytes as f64 / f64::from(1 << 20);
            format!("{path} {mib:.0} MiB by {streams} streams")
        });
        let words: Vec<_> = words.collect();
        if !words.is_empty() {
            self.recorder.remark(format!("paths: {}", words.join(", ")));
        }
    }

    /// A limit is the kernel's to keep smooth. Streams that never had one are not paced: that costs speed.
    pub(super) fn pace_stream(&self, socket: &TcpStream) {
        let limit = self.session.pace.bytes_per_s();
        if limit >= PACED_MIN_BYTES_PER_S && self.recorder.pause.paused.is_none() {
            // One that breaks just now is nobody's loss.
            let _ = set_pacing_rate(socket, Some(limit.saturating_mul(PACED_PERCENT) / 100));
        }
    }

    /// The limit is another one.
    pub(super) fn pace_streams(&self) {
        match self.session.pace.bytes_per_s() {
            ..PACED_MIN_BYTES_PER_S => self.free_streams(),
            _ => self
                .streams
                .sockets()
                .for_each(|socket| self.pace_stream(socket)),
        }
    }

    /// There is no limit any more.
    pub(super) fn free_streams(&self) {
        for socket in self.streams.sockets() {
            let _ = set_pacing_rate(socket, None);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn streams_take_paths_in_turn_and_another_one_when_they_break() {
        let one = |to: &str| to.parse::<StreamPath>().unwrap();
        let paths = [one("192.0.2.1:1"), one("192.0.2.2:1"), one("192.0.2.3:1")];
        let taken: Vec<_> = (0..4).map(|index| path(&paths, index, 0)).collect();
        assert_eq!(taken, [Some(0), Some(1), Some(2), Some(0)]);
        assert_eq!(path(&paths, 2, 1), Some(0));
        assert_eq!(path(&[], 2, 1), None);
    }
}
