//! One worker that sends RAM by the real line and codec over a link that is only computed.
//!
//! Encoding takes the CPU time that it takes here; sending takes what the link needs. So a codec is tried on
//! links that no machine at hand has, and nothing else on the machine disturbs it.

use std::time::{Duration, Instant};

use dwcp_api::{Codec, Prefer};
use dwcp_dataplane::path::{
    BuiltFrame, Effort, EffortChooser, Encoder, FRAME_BUFFER_BYTES, Interval, Outgoing, RoundWork,
};
use dwcp_dataplane::ram::{Digests, RamLayout};
use dwcp_dataplane::transport::UNSENT_BYTES_MAX;
use dwcp_simd::{FingerprintKey, PAGE_BYTES};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

/// What the sockets take before a worker must wait: of one stream, unsent and on its way.
const ROOM_BYTES: u64 = 2 * UNSENT_BYTES_MAX as u64;

/// What was chosen after an interval, by what was seen in it: what a learned chooser would be trained on.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Decision {
    #[serde(flatten)]
    seen: Interval,
    effort: String,
    next: String,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub(super) struct Sent {
    /// Until the last byte has left.
    pub(super) seconds: f64,
    /// CPU time of the worker.
    pub(super) busy_s: f64,
    /// Pages with data.
    pub(super) page_bytes: u64,
    pub(super) wire_bytes: u64,
    pub(super) decisions: Vec<Decision>,
}

/// A frame, as it was built once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded {
    busy_s: f64,
    built: BuiltFrame,
}

impl Sent {
    fn add(&mut self, frame: &Recorded) {
        self.busy_s += frame.busy_s;
        self.page_bytes += frame.built.page_bytes;
        self.wire_bytes += frame.built.wire_bytes;
    }
}

/// When things happen, in seconds.
struct Road {
    /// Bytes per second.
    link: f64,
    now: f64,
    /// When all that is queued will have left.
    sent: f64,
}

impl Road {
    const fn new(link: f64) -> Self {
        Self {
            link,
            now: 0.0,
            sent: 0.0,
        }
    }

    /// Queues a frame; returns how long the worker waits for room.
    fn send(&mut self, bytes: u64) -> f64 {
        self.sent = self.sent.max(self.now) + bytes as f64 / self.link;
        let wait = (self.sent - ROOM_BYTES as f64 / self.link - self.now).max(0.0);
        self.now += wait;
        wait
    }
}

/// Stages 1 to 4 over all of some RAM.
struct Line<'a> {
    line: Outgoing<'a>,
    encoder: Encoder,
    work: &'a RoundWork,
    buffer: Vec<u8>,
    sequence: u64,
}

impl<'a> Line<'a> {
    fn new(mut line: Outgoing<'a>, work: &'a RoundWork, window_bytes: u64) -> Self {
        line.begin(work);
        Self {
            line,
            encoder: Encoder::new(
                Codec::Auto {
                    window_bytes,
                    prefer: Prefer::Time,
                },
                1,
            ),
            work,
            buffer: vec![0; FRAME_BUFFER_BYTES],
            sequence: 0,
        }
    }

    fn set(&mut self, effort: Effort) {
        self.encoder.set_effort(effort);
        self.line.set_by_reference(effort == Effort::Raw);
    }

    fn next(&mut self) -> Option<Recorded> {
        let before = cpu_s();
        self.sequence += 1;
        let (line, buffer) = (&mut self.line, &mut self.buffer);
        let frame = line.next_frame(self.work, buffer, &mut self.encoder, 0, self.sequence)?;
        let busy_s = cpu_s() - before;
        Some(Recorded {
            busy_s,
            built: BuiltFrame {
                page_bytes: line.pages_with_data() * PAGE_BYTES as u64,
                wire_bytes: frame.bytes(),
                // On a clock that goes on while others have the core.
                encoding: line.encoding().min(Duration::from_secs_f64(busy_s)),
            },
        })
    }
}

/// All frames of `ram` by one effort.
pub(super) fn record(ram: &RamLayout, effort: Effort, window_bytes: u64) -> Vec<Recorded> {
    let (digests, key, work) = (Digests::new(ram), FingerprintKey::new(1), everything(ram));
    let mut line = Line::new(
        Outgoing::new(ram, &digests, &key, false),
        &work,
        window_bytes,
    );
    line.set(effort);
    std::iter::from_fn(|| line.next()).collect()
}

/// Sends what was recorded.
pub(super) fn replay(frames: &[Recorded], link_bytes_per_s: f64) -> Sent {
    let (mut road, mut sent) = (Road::new(link_bytes_per_s), Sent::default());
    for frame in frames {
        road.now += frame.busy_s;
        sent.add(frame);
        road.send(frame.built.wire_bytes);
    }
    sent.seconds = road.now.max(road.sent);
    sent
}

/// Sends all of `ram` as a chooser decides, over a short path or a long one.
pub(super) fn adapt(
    ram: &RamLayout,
    is_short: bool,
    link_bytes_per_s: f64,
    window_bytes: u64,
) -> Sent {
    let (digests, key, work) = (Digests::new(ram), FingerprintKey::new(1), everything(ram));
    let mut line = Line::new(
        Outgoing::new(ram, &digests, &key, false),
        &work,
        window_bytes,
    );
    let mut chooser = EffortChooser::new(ROOM_BYTES, is_short, 1.0, Prefer::Time);
    line.set(chooser.effort());
    let (mut road, mut sent) = (Road::new(link_bytes_per_s), Sent::default());
    let start = Instant::now();
    while let Some(frame) = line.next() {
        road.now += frame.busy_s;
        sent.add(&frame);
        let (effort, now) = (chooser.effort(), start + Duration::from_secs_f64(road.now));
        let next = chooser.built(now, &frame.built);
        sent.decisions
            .extend(chooser.take_seen().map(|seen| Decision {
                seen,
                effort: effort.to_string(),
                next: next.unwrap_or(effort).to_string(),
            }));
        if let Some(next) = next {
            line.set(next);
        }
        let waited = road.send(frame.built.wire_bytes);
        if waited > 0.0 {
            chooser.waited(Duration::from_secs_f64(waited));
        }
    }
    sent.seconds = road.now.max(road.sent);
    sent
}

fn everything(ram: &RamLayout) -> RoundWork {
    let mut dirty = ram.empty_bitmap();
    for (block, bitmap) in ram.blocks().iter().zip(&mut dirty.blocks) {
        bitmap.set_range(0, block.pages());
    }
    RoundWork::new(0, dirty, ram.empty_bitmap())
}

/// CPU time of this thread: others on the machine do not count.
fn cpu_s() -> f64 {
    let time = clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID);
    time.map_or(0.0, |time| Duration::from(time).as_secs_f64())
}
