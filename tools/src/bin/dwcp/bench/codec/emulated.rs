//! One worker that sends RAM by the real line and codec over a link that is only computed.
//!
//! Encoding takes the CPU time that it takes here; sending takes what the link needs. So a codec is tried on
//! links that no machine at hand has, and nothing else on the machine disturbs it.

use std::time::{Duration, Instant};

use dwcp_api::{Codec, Prefer};
use dwcp_dataplane::path::{
    BuiltFrame, Effort, EffortChooser, Encoder, FRAME_BUFFER_BYTES, Interval, Outgoing, RoundWork,
    Seen, Tree,
};
use dwcp_dataplane::ram::{Digests, RamLayout};
use dwcp_dataplane::transport::UNSENT_BYTES_MAX;
use dwcp_simd::{FingerprintKey, PAGE_BYTES};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;

use super::shadow::Case;
use crate::bench::draws::Draws;

/// What the sockets take before a worker must wait: of one stream, unsent and on its way.
const ROOM_BYTES: u64 = 2 * UNSENT_BYTES_MAX as u64;

/// What a stream carries.
#[derive(Clone, Copy, Debug)]
pub(super) struct Window {
    /// How far back it looks.
    pub(super) bytes: u64,
    /// Pages of words are shuffled.
    pub(super) shuffles: bool,
}

/// How some RAM is sent.
#[derive(Clone, Debug)]
pub(super) struct Drive {
    /// Over a path within a site.
    pub(super) is_short: bool,
    pub(super) link_bytes_per_s: f64,
    pub(super) window: Window,
    /// Runs beside the rule; nothing is sent by it.
    pub(super) shadow: Tree,
    pub(super) by: By,
}

/// Who decides.
#[derive(Clone, Debug)]
pub(super) enum By {
    Rule,
    Learned(Tree),
    /// The rule, but for every other decision, which is drawn.
    Drawn(u64),
}

impl By {
    pub(super) const fn name(&self) -> &'static str {
        match self {
            Self::Rule => "rule",
            Self::Learned(_) => "learned",
            Self::Drawn(_) => "drawn",
        }
    }
}

/// What was chosen after an interval, by what was seen in it.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Decision {
    #[serde(flatten)]
    interval: Interval,
    effort: String,
    /// What was taken, what the rule takes, and what the learned chooser does.
    next: String,
    rule: String,
    learned: String,
    /// For a record of intervals: all that was seen, what was taken, and the pages sent until then.
    #[serde(skip)]
    pub(super) seen: Seen,
    #[serde(skip)]
    pub(super) taken: Effort,
    #[serde(skip)]
    pub(super) page_bytes: u64,
}

impl Decision {
    fn new(seen: Seen, taken: Effort, shadow: &Tree, page_bytes: u64) -> Self {
        Self {
            interval: seen.interval,
            effort: seen.effort.to_string(),
            next: taken.to_string(),
            rule: seen.rule.to_string(),
            learned: seen.by(shadow).to_string(),
            seen,
            taken,
            page_bytes,
        }
    }
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
    /// The learned chooser beside who decided.
    pub(super) shadow: Option<Case>,
}

/// A frame, as it was built once.
#[derive(Clone, Copy, Debug)]
pub(super) struct Recorded {
    busy_s: f64,
    built: BuiltFrame,
}

impl Recorded {
    /// Pages with data, time of the worker, and bytes sent.
    pub(super) const fn spent(&self) -> [f64; 3] {
        let built = &self.built;
        [
            built.page_bytes as f64,
            self.busy_s,
            built.wire_bytes as f64,
        ]
    }
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
    fn new(mut line: Outgoing<'a>, work: &'a RoundWork, window: Window) -> Self {
        line.begin(work);
        Self {
            line,
            encoder: Encoder::new(
                Codec::Auto {
                    window_bytes: window.bytes,
                    prefer: Prefer::Time,
                },
                1,
            )
            .shuffling(window.shuffles),
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
pub(super) fn record(ram: &RamLayout, effort: Effort, window: Window) -> Vec<Recorded> {
    let (digests, key, work) = (Digests::new(ram), FingerprintKey::new(1), everything(ram));
    let mut line = Line::new(Outgoing::new(ram, &digests, &key, false), &work, window);
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

/// Sends all of `ram` as a chooser decides.
pub(super) fn adapt(ram: &RamLayout, drive: &Drive) -> Sent {
    let (digests, key, work) = (Digests::new(ram), FingerprintKey::new(1), everything(ram));
    let mut line = Line::new(
        Outgoing::new(ram, &digests, &key, false),
        &work,
        drive.window,
    );
    let (learned, mut draws) = match &drive.by {
        By::Rule => (None, None),
        By::Learned(tree) => (Some(tree.clone()), None),
        By::Drawn(seed) => (None, Some(Draws::of(*seed))),
    };
    let mut chooser =
        EffortChooser::new(ROOM_BYTES, drive.is_short, 1.0, Prefer::Time).led_by(learned);
    line.set(chooser.effort());
    let (mut road, mut sent) = (Road::new(drive.link_bytes_per_s), Sent::default());
    let start = Instant::now();
    while let Some(frame) = line.next() {
        road.now += frame.busy_s;
        sent.add(&frame);
        let now = start + Duration::from_secs_f64(road.now);
        let next = chooser.built(now, &frame.built);
        if let Some(seen) = chooser.take_seen() {
            let (taken, pages) = (chooser.effort(), sent.page_bytes);
            sent.decisions
                .push(Decision::new(seen, taken, &drive.shadow, pages));
            draw(draws.as_mut(), &mut chooser);
        }
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

/// Every other decision is one of all efforts.
fn draw(draws: Option<&mut Draws>, chooser: &mut EffortChooser) {
    let Some(draws) = draws else {
        return;
    };
    if draws.below(2) == 0 {
        chooser.tell(Effort::ALL[draws.below(Effort::ALL.len() as u64) as usize]);
    }
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
