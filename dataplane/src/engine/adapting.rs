//! A worker's codec that adapts: what its chooser is told, and what follows for the line and the streams.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use dwcp_api::Codec;
use dwcp_simd::PAGE_BYTES;

use crate::path::{BuiltFrame, Effort, EffortChooser, Encoder, Outgoing, Tree};
use crate::transport::{SHORT_RTT, TcpInfo, UNSENT_BYTES_MAX};

/// Shorter is none that was measured.
const NO_RTT: Duration = Duration::from_nanos(1);

/// The efforts of one worker's streams.
#[derive(Debug)]
pub(super) struct Adapting {
    codec: Codec,
    /// The destination knows shuffled pages.
    shuffles: bool,
    /// Pages may leave from where they lie.
    may_refer: bool,
    /// The path's round trip is one within a site.
    is_short_path: bool,
    /// Made once streams carry pages, of a codec that adapts.
    chooser: Option<EffortChooser>,
}

impl Adapting {
    pub(super) const fn new(codec: Codec, may_refer: bool, shuffles: bool) -> Self {
        Self {
            codec,
            shuffles,
            may_refer,
            is_short_path: false,
            chooser: None,
        }
    }

    /// Whether pages leave from where they lie before anything is measured.
    pub(super) fn refers_at_first(&self) -> bool {
        self.may_refer && self.codec == Codec::Raw
    }

    /// Sees the path by one of its connections.
    pub(super) fn look_at(&mut self, socket: &TcpStream) {
        let info = TcpInfo::of(socket);
        self.is_short_path = info.is_ok_and(|info| (NO_RTT..SHORT_RTT).contains(&info.rtt));
    }

    /// So many streams of this worker carry pages, of so many in all.
    pub(super) fn use_streams(&mut self, streams: usize, in_all: usize, line: &mut Outgoing<'_>) {
        let Codec::Auto { prefer, .. } = self.codec else {
            return;
        };
        // What the kernel takes beyond what has been sent, and as much on its way.
        let room = 2 * u64::from(UNSENT_BYTES_MAX) * streams as u64;
        if let Some(chooser) = &mut self.chooser {
            return chooser.set_room(room);
        }
        let share = streams as f64 / in_all.max(1) as f64;
        let chooser = EffortChooser::new(room, self.is_short_path, share, prefer);
        let effort = chooser.effort();
        self.chooser = Some(chooser);
        self.refer(effort, line);
    }

    /// An encoder of this worker, for one of `streams_in_all`.
    pub(super) fn encoder(&self, streams_in_all: usize) -> Encoder {
        let mut encoder = Encoder::new(self.codec, streams_in_all).shuffling(self.shuffles);
        if let Some(chooser) = &self.chooser {
            encoder.set_effort(chooser.effort());
        }
        encoder
    }

    /// Pages that are not encoded leave from where they lie, if they may.
    fn refer(&self, effort: Effort, line: &mut Outgoing<'_>) {
        line.set_by_reference(self.may_refer && effort == Effort::Raw);
    }

    /// Nothing is sent until the next round.
    pub(super) const fn paused(&mut self) {
        if let Some(chooser) = &mut self.chooser {
            chooser.paused();
        }
    }

    /// It has waited for so long.
    pub(super) fn waited(&mut self, time: Duration) {
        if let Some(chooser) = &mut self.chooser {
            chooser.waited(time);
        }
    }

    /// `line` has built a frame of so many bytes. What encoders are to do from now on, if that changes.
    pub(super) fn built(&mut self, wire_bytes: u64, line: &mut Outgoing<'_>) -> Option<Effort> {
        let chooser = self.chooser.as_mut()?;
        let frame = BuiltFrame {
            page_bytes: line.pages_with_data() * PAGE_BYTES as u64,
            wire_bytes,
            encoding: line.encoding(),
        };
        let effort = chooser.built(Instant::now(), &frame);
        if let Some(seen) = chooser.take_seen() {
            // Beside the rule: it decides nothing.
            let learned = seen.by(&Tree::compiled());
            tracing::debug!(interval = ?seen.interval, effort = %seen.effort, rule = %seen.rule, %learned, "codec");
        }
        let effort = effort?;
        self.refer(effort, line);
        tracing::debug!(?effort, "pages are encoded so from now on");
        Some(effort)
    }
}
