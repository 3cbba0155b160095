//! One way of a link: a packet in, the time of its arrival or the reason of its loss out. It reads no
//! clock and moves no byte.
//!
//! A packet that is not lost waits until those before it are out (`rate`), unless more wait already
//! than the queue holds; is sent (`bytes * 8 / rate`); and arrives `delay` later. Jitter is added to
//! the delay as a line that wanders between 0 and `jitter`, never so steep that a packet overtakes
//! another. A packet that is held back (`reorder`) arrives later than it would, those after it do not.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

use crate::draws::{Draw, Draws};
use crate::params::WayParams;
use crate::trace::{Trace, TraceError};
use crate::units::QueueLimit;

/// Why a packet does not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DropReason {
    /// It was lost.
    Loss,
    /// The queue was full.
    Queue,
    /// The link is cut.
    Cut,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It arrives.
    Deliver {
        /// When.
        at_ns: u64,
        /// It was held back: packets after it may arrive earlier.
        is_late: bool,
    },
    /// It does not.
    Drop(DropReason),
}

/// What has happened on a way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// Packets that came in.
    pub packets: u64,
    /// Their bytes, IP headers included.
    pub bytes: u64,
    /// Packets that got a time of arrival.
    pub passed_packets: u64,
    /// Their bytes.
    pub passed_bytes: u64,
    /// Of those, held back.
    pub held_back: u64,
    /// Lost at random.
    pub dropped_by_loss: u64,
    /// Dropped since the queue was full.
    pub dropped_by_queue: u64,
    /// Dropped since the link was cut.
    pub dropped_by_cut: u64,
    /// Dropped since the emulator holds no more bytes.
    pub dropped_by_memory: u64,
    /// Refused by the receiving interface.
    pub dropped_by_receiver: u64,
}

/// What paces a way.
#[derive(Debug)]
enum Pace {
    Unlimited,
    Constant { bit_per_s: u64 },
    Trace { trace: Trace, origin_ns: u64 },
}

impl Pace {
    fn new(params: &WayParams, origin_ns: u64) -> Result<Self, TraceError> {
        Ok(match (&params.trace, params.rate_bit_per_s) {
            (Some(source), _) => Self::Trace {
                trace: Trace::load(source)?,
                origin_ns,
            },
            (None, Some(bit_per_s)) => Self::Constant { bit_per_s },
            (None, None) => Self::Unlimited,
        })
    }

    fn finish_ns(&self, start_ns: u64, bytes: u64) -> u64 {
        match self {
            Self::Unlimited => start_ns,
            Self::Constant { bit_per_s } => {
                let bits_ns = u128::from(bytes) * 8 * 1_000_000_000;
                let took = bits_ns.div_ceil(u128::from(*bit_per_s));
                start_ns.saturating_add(u64::try_from(took).unwrap_or(u64::MAX))
            }
            Self::Trace { trace, origin_ns } => {
                let from_ns = start_ns.saturating_sub(*origin_ns);
                origin_ns.saturating_add(trace.finish_ns(from_ns, bytes))
            }
        }
    }

    fn mean_bit_per_s(&self) -> Option<u64> {
        match self {
            Self::Unlimited => None,
            Self::Constant { bit_per_s } => Some(*bit_per_s),
            Self::Trace { trace, .. } => Some(trace.mean_bit_per_s()),
        }
    }
}

/// What a queue holds at least when it is left to us.
const QUEUE_BYTES_MIN: u64 = 256 * 1024;
/// A held-back packet comes a quarter of the delay later, and at least this much.
const HELD_BACK_NS_MIN: u64 = 1_000_000;
/// The jitter has a new target this often, unless it takes longer to get there.
const JITTER_STEP_NS_MIN: u64 = 10_000_000;

/// One way of a link.
#[derive(Debug)]
pub struct Way {
    params: WayParams,
    pace: Pace,
    draws: Draws,
    origin_ns: u64,
    /// When the last accepted packet is out.
    free_ns: u64,
    /// Packets that are not out yet: when they will be, and their bytes.
    waiting: VecDeque<(u64, u64)>,
    waiting_bytes: u64,
    /// The latest arrival so far of a packet that was not held back.
    arrived_ns: u64,
    cut_until_ns: u64,
    counters: Counters,
}

impl Way {
    /// A way that starts now, idle. `number` tells the ways of a link apart: each decides for itself.
    ///
    /// # Errors
    /// A rate trace that cannot be used.
    pub fn new(
        params: &WayParams,
        seed: u64,
        number: u64,
        now_ns: u64,
    ) -> Result<Self, TraceError> {
        Ok(Self {
            pace: Pace::new(params, now_ns)?,
            params: params.clone(),
            draws: Draws::new(seed, number),
            origin_ns: now_ns,
            free_ns: now_ns,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            arrived_ns: 0,
            cut_until_ns: 0,
            counters: Counters::default(),
        })
    }

    /// Changes what the way is; packets that were accepted keep their times.
    ///
    /// # Errors
    /// A rate trace that cannot be used; nothing is changed then.
    pub fn change(&mut self, params: &WayParams, now_ns: u64) -> Result<(), TraceError> {
        // A trace that stays goes on where it is.
        if params.trace.is_none() || params.trace != self.params.trace {
            self.pace = Pace::new(params, now_ns)?;
        }
        self.params = params.clone();
        Ok(())
    }

    /// Lets nothing in until then.
    pub const fn cut(&mut self, until_ns: u64) {
        self.cut_until_ns = until_ns;
    }

    /// Decides about a packet that comes in now. Times must not go back.
    pub fn offer(&mut self, now_ns: u64, bytes: u32) -> Verdict {
        let number = self.counters.packets;
        let bytes = u64::from(bytes);
        self.counters.packets += 1;
        self.counters.bytes += bytes;
        if self.is_cut(now_ns) {
            self.counters.dropped_by_cut += 1;
            return Verdict::Drop(DropReason::Cut);
        }
        if self.draws.unit(Draw::Loss, number) < self.params.loss {
            self.counters.dropped_by_loss += 1;
            return Verdict::Drop(DropReason::Loss);
        }
        self.settle(now_ns);
        if !self.has_room(now_ns, bytes) {
            self.counters.dropped_by_queue += 1;
            return Verdict::Drop(DropReason::Queue);
        }
        self.free_ns = self.pace.finish_ns(self.free_ns.max(now_ns), bytes);
        if self.free_ns > now_ns {
            self.waiting.push_back((self.free_ns, bytes));
            self.waiting_bytes += bytes;
        }
        self.counters.passed_packets += 1;
        self.counters.passed_bytes += bytes;
        self.arrival(number)
    }

    fn arrival(&mut self, number: u64) -> Verdict {
        let delay_ns = self.params.delay_ns + self.jitter_ns(self.free_ns);
        let at_ns = self.free_ns.saturating_add(delay_ns).max(self.arrived_ns);
        let is_late = self.draws.unit(Draw::Reorder, number) < self.params.reorder;
        if is_late {
            self.counters.held_back += 1;
            let more_ns = (self.params.delay_ns / 4).max(HELD_BACK_NS_MIN);
            let at_ns = at_ns.saturating_add(more_ns);
            return Verdict::Deliver { at_ns, is_late };
        }
        self.arrived_ns = at_ns;
        Verdict::Deliver { at_ns, is_late }
    }

    /// Forgets the packets that are out.
    fn settle(&mut self, now_ns: u64) {
        while let Some((out_ns, bytes)) = self.waiting.front().copied() {
            if out_ns > now_ns {
                return;
            }
            self.waiting.pop_front();
            self.waiting_bytes -= bytes;
        }
    }

    fn has_room(&self, now_ns: u64, bytes: u64) -> bool {
        let queue_bytes = match self.params.queue {
            QueueLimit::Nanoseconds(limit_ns) => {
                return self.free_ns.saturating_sub(now_ns) <= limit_ns;
            }
            QueueLimit::Bytes(limit) => limit,
            QueueLimit::Auto => match self.pace.mean_bit_per_s() {
                None => return true,
                Some(rate) => {
                    let held = u128::from(rate) * u128::from(self.params.delay_ns) / 4_000_000_000;
                    u64::try_from(held).unwrap_or(u64::MAX).max(QUEUE_BYTES_MIN)
                }
            },
        };
        // A packet larger than the whole queue passes when nothing waits.
        self.waiting_bytes == 0 || self.waiting_bytes + bytes <= queue_bytes
    }

    /// Straight from one drawn target to the next, none steeper than one in two: a packet sent later
    /// never arrives earlier.
    fn jitter_ns(&self, at_ns: u64) -> u64 {
        let jitter_ns = self.params.jitter_ns;
        if jitter_ns == 0 {
            return 0;
        }
        let step_ns = (2 * jitter_ns).max(JITTER_STEP_NS_MIN);
        let from_ns = at_ns.saturating_sub(self.origin_ns);
        let (number, into_ns) = (from_ns / step_ns, from_ns % step_ns);
        let target = |number| self.draws.unit(Draw::Jitter, number);
        let (from, to) = (target(number), target(number + 1));
        #[expect(clippy::cast_precision_loss, reason = "both are far below 2^53")]
        let (into, jitter) = (into_ns as f64 / step_ns as f64, jitter_ns as f64);
        let now = from + (to - from) * into;
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "between 0 and jitter_ns"
        )]
        let jitter_ns = (now * jitter) as u64;
        jitter_ns
    }

    /// Whether nothing comes in.
    #[must_use]
    pub const fn is_cut(&self, now_ns: u64) -> bool {
        now_ns < self.cut_until_ns
    }

    /// Bytes that wait to be sent, and how long the last of them will.
    pub fn backlog(&mut self, now_ns: u64) -> (u64, u64) {
        self.settle(now_ns);
        (self.waiting_bytes, self.free_ns.saturating_sub(now_ns))
    }

    /// What has happened.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Counts what happened to packets after they passed.
    pub(crate) const fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// What it is asked to be.
    #[must_use]
    pub const fn params(&self) -> &WayParams {
        &self.params
    }
}
