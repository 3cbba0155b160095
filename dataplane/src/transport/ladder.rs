//! Which way pages leave on a stream: tried on its first frames, chosen by what they reach.
//!
//! Belief would choose wrongly somewhere: what a kernel, a driver, huge pages or an encrypted socket
//! make of a call is known only after the call. So each method carries a stretch of frames, one after
//! the other; the one that cost this end the least CPU time carries the rest, unless it was much
//! slower than another: then its cost is paid elsewhere. Speed alone would be chance: over so few
//! frames it changes twofold with what else runs. A method that the kernel refuses is out at once.
//! A frame is the same bytes by any method.

use std::io;
use std::time::{Duration, Instant};

use dwcp_api::SendChoice;

use super::SendMethod;
use super::experience::{Experience, Place};
use crate::cpu_time::thread_cpu_ns;

/// Frames of a stretch that are not measured: the socket still holds those of the method before.
const FRAMES_BEFORE: u32 = 8;

/// Frames of a stretch that are: 12 MiB.
const FRAMES_MEASURED: u32 = 24;

/// A method that takes so many times as long as the fastest does not win, however cheap.
const TIMES_AS_LONG_MAX: f64 = 2.0;

/// A moment, by the clock and by the CPU time of this thread. All that the worker does for a frame is
/// alike whichever way its pages leave, but for what that way costs.
#[derive(Clone, Copy, Debug)]
pub(super) struct Moment {
    time: Instant,
    cpu: Duration,
}

impl Moment {
    pub(super) fn now() -> Self {
        Self {
            time: Instant::now(),
            cpu: Duration::from_nanos(thread_cpu_ns()),
        }
    }

    #[cfg(test)]
    pub(super) fn after(self, time: Duration) -> Self {
        Self {
            time: self.time + time,
            cpu: self.cpu + time,
        }
    }
}

/// A method's figures.
#[derive(Clone, Debug)]
pub(super) struct Rung {
    method: SendMethod,
    frames: u32,
    /// When the next measured frame could begin; `None` before the first, and after a break.
    since: Option<Moment>,
    bytes: usize,
    time: Duration,
    cpu: Duration,
    refused: bool,
}

impl Rung {
    const fn new(method: SendMethod) -> Self {
        Self {
            method,
            frames: 0,
            since: None,
            bytes: 0,
            time: Duration::ZERO,
            cpu: Duration::ZERO,
            refused: false,
        }
    }

    /// Whether it is still to be tried.
    pub(super) const fn is_open(&self) -> bool {
        !self.refused && self.frames < FRAMES_BEFORE + FRAMES_MEASURED
    }

    fn time_per_byte(&self) -> f64 {
        self.time.as_secs_f64() / self.bytes.max(1) as f64
    }

    fn cpu_per_byte(&self) -> f64 {
        self.cpu.as_secs_f64() / self.bytes.max(1) as f64
    }
}

/// The methods of one stream.
#[derive(Debug)]
pub(super) struct Ladder {
    rungs: Vec<Rung>,
    chosen: Option<SendMethod>,
    /// Where what is found here is remembered.
    place: Option<(Place, Experience)>,
}

impl Ladder {
    /// The methods that `choice` allows, of those that the transport `has`. Writing is what remains
    /// when there is none.
    pub(super) fn new(choice: SendChoice, has: &[SendMethod]) -> Self {
        let allowed = |method: &SendMethod| match choice {
            SendChoice::Auto => true,
            SendChoice::ZeroCopy => *method == SendMethod::ZeroCopy,
            SendChoice::Vmsplice => *method == SendMethod::Vmsplice,
            SendChoice::Sendfile => *method == SendMethod::Sendfile,
            SendChoice::Write | SendChoice::Copy => *method == SendMethod::Write,
        };
        let methods: Vec<_> = has.iter().copied().filter(allowed).collect();
        Self {
            chosen: match methods[..] {
                [] => Some(SendMethod::Write),
                [only] => Some(only),
                _ => None,
            },
            rungs: methods.into_iter().map(Rung::new).collect(),
            place: None,
        }
    }

    /// The methods of a place: what earlier streams found there is not tried again.
    pub(super) fn at(choice: SendChoice, place: Place, experience: &Experience) -> Self {
        let mut ladder = Self::new(choice, place.has);
        if choice == SendChoice::Auto {
            if let Some(rungs) = experience.recall(&place, Instant::now()) {
                ladder.rungs = rungs;
                ladder.choose();
            }
            ladder.place = Some((place, experience.clone()));
        }
        ladder
    }

    /// The method for the next frame. Writing is what remains when all else is refused.
    pub(super) fn method(&self) -> SendMethod {
        self.chosen.unwrap_or_else(|| {
            let next = self.rungs.iter().find(|rung| rung.is_open());
            next.map_or(SendMethod::Write, |rung| rung.method)
        })
    }

    /// Whether frames are still to be measured.
    pub(super) const fn is_probing(&self) -> bool {
        self.chosen.is_none()
    }

    /// What was chosen, once it was.
    pub(super) const fn chosen(&self) -> Option<SendMethod> {
        self.chosen
    }

    /// Notes a frame that left at `now`.
    pub(super) fn left(&mut self, method: SendMethod, bytes: usize, now: Moment) {
        let Some(rung) = self.rungs.iter_mut().find(|rung| rung.method == method) else {
            return;
        };
        rung.frames += 1;
        if rung.frames < FRAMES_BEFORE {
            return;
        }
        if let Some(since) = rung.since.replace(now) {
            rung.time += now.time.duration_since(since.time);
            rung.cpu += now.cpu.saturating_sub(since.cpu);
            rung.bytes += bytes;
        }
        self.choose();
    }

    /// Notes that a round is over: until the next begins nothing leaves, and no method is to blame.
    pub(super) fn paused(&mut self) {
        for rung in &mut self.rungs {
            rung.since = None;
        }
    }

    /// Notes that the kernel has copied what it was to send by reference: dearer than to write at once.
    pub(super) fn copied(&mut self, method: SendMethod) {
        let is_in = |rung: &Rung| rung.method == method && !rung.refused;
        // What alone is allowed was asked for by name.
        if self.rungs.len() > 1 && self.rungs.iter().any(is_in) {
            self.refused(method, &io::Error::other("the kernel copies the pages"));
        }
    }

    /// Notes that the kernel does not do it.
    pub(super) fn refused(&mut self, method: SendMethod, error: &io::Error) {
        tracing::info!(method = method.name(), %error, "pages cannot be sent this way here");
        for rung in &mut self.rungs {
            rung.refused |= rung.method == method;
        }
        if self.chosen == Some(method) {
            self.chosen = Some(SendMethod::Write);
        }
        self.choose();
    }

    fn choose(&mut self) {
        if self.chosen.is_some() || self.rungs.iter().any(Rung::is_open) {
            return;
        }
        let tried = || self.rungs.iter().filter(|rung| !rung.refused);
        let fastest = tried()
            .map(Rung::time_per_byte)
            .fold(f64::INFINITY, f64::min);
        let best = tried()
            .filter(|rung| rung.time_per_byte() <= fastest * TIMES_AS_LONG_MAX)
            .min_by(|a, b| a.cpu_per_byte().total_cmp(&b.cpu_per_byte()));
        self.chosen = Some(best.map_or(SendMethod::Write, |rung| rung.method));
        tracing::info!(
            chosen = self.chosen.map(SendMethod::name),
            rungs = ?self.rungs,
            "how pages leave on this stream"
        );
    }
}

impl Drop for Ladder {
    /// What was tried to its end is remembered.
    fn drop(&mut self) {
        let Some((place, experience)) = self.place.take() else {
            return;
        };
        let mut rungs = std::mem::take(&mut self.rungs);
        for rung in rungs.iter_mut().filter(|rung| rung.is_open()) {
            *rung = Rung::new(rung.method);
        }
        experience.note(place, rungs, Instant::now());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Lets frames leave until a method is chosen; `cost` gives a frame's time and CPU time in
    /// microseconds.
    fn carry(ladder: &mut Ladder, cost: impl Fn(SendMethod) -> (u64, u64)) {
        let mut now = Moment::now();
        for _ in 0..1000 {
            let method = ladder.method();
            let (time, cpu) = cost(method);
            now.time += Duration::from_micros(time);
            now.cpu += Duration::from_micros(cpu);
            if ladder.is_probing() {
                ladder.left(method, 1000, now);
            }
        }
    }

    #[test]
    fn a_method_that_costs_little_and_lasts_long_is_not_chosen() {
        for fast in SendMethod::ALL {
            let mut ladder = Ladder::new(SendChoice::Auto, &SendMethod::ALL);
            carry(&mut ladder, |method| match method == fast {
                true => (50, 50),
                false => (110, 10),
            });
            assert_eq!(ladder.chosen(), Some(fast));
            assert_eq!(ladder.method(), fast);
        }
    }

    #[test]
    fn the_cheapest_is_chosen_whichever_it_is_and_whatever_else_runs() {
        for cheap in SendMethod::ALL {
            let mut ladder = Ladder::new(SendChoice::Auto, &SendMethod::ALL);
            carry(&mut ladder, |method| match method == cheap {
                true => (150, 5),
                false => (100, 9),
            });
            assert_eq!(ladder.chosen(), Some(cheap));
        }
    }

    #[test]
    fn the_time_between_rounds_is_no_methods_fault() {
        let mut ladder = Ladder::new(SendChoice::Auto, &SendMethod::ALL);
        let (mut now, mut frames) = (Moment::now(), 0);
        while ladder.is_probing() {
            let method = ladder.method();
            // The fastest one's stretch is cut by two rounds' ends.
            if method == SendMethod::Sendfile && frames % 20 == 19 {
                ladder.paused();
                now.time += Duration::from_secs(1);
            }
            let is_fast = method == SendMethod::Sendfile;
            now.time += Duration::from_micros(if is_fast { 50 } else { 120 });
            ladder.left(method, 1000, now);
            frames += 1;
        }
        assert_eq!(ladder.chosen(), Some(SendMethod::Sendfile));
    }

    #[test]
    fn every_method_carries_its_stretch_before_the_choice() {
        let mut ladder = Ladder::new(SendChoice::Auto, &SendMethod::ALL);
        let now = Moment::now();
        for _ in 0..(FRAMES_BEFORE + FRAMES_MEASURED) as usize * SendMethod::ALL.len() {
            assert!(ladder.is_probing());
            ladder.left(ladder.method(), 1024, now);
        }
        assert!(!ladder.is_probing());
    }

    #[test]
    fn a_refused_method_is_never_taken_again() {
        let mut ladder = Ladder::new(SendChoice::Auto, &SendMethod::ALL);
        let error = io::Error::from_raw_os_error(libc::EINVAL);
        ladder.refused(SendMethod::Vmsplice, &error);
        carry(&mut ladder, |method| match method {
            SendMethod::Vmsplice => panic!("it was refused"),
            SendMethod::Sendfile => (50, 5),
            SendMethod::Write | SendMethod::ZeroCopy => (90, 9),
        });
        assert_eq!(ladder.chosen(), Some(SendMethod::Sendfile));
    }

    #[test]
    fn what_the_operator_chose_is_taken_until_the_kernel_refuses() {
        let mut ladder = Ladder::new(SendChoice::Sendfile, &SendMethod::ALL);
        assert_eq!(ladder.method(), SendMethod::Sendfile);
        assert!(!ladder.is_probing());
        ladder.refused(SendMethod::Sendfile, &io::ErrorKind::Unsupported.into());
        assert_eq!(ladder.method(), SendMethod::Write);
    }

    #[test]
    fn a_reference_that_the_kernel_copies_is_out_unless_it_was_asked_for() {
        let mut ladder = Ladder::new(SendChoice::Auto, &SendMethod::ALL);
        assert_eq!(ladder.method(), SendMethod::ZeroCopy);
        ladder.copied(SendMethod::ZeroCopy);
        carry(&mut ladder, |method| match method {
            SendMethod::ZeroCopy => panic!("it is copied"),
            _ => (50, 5),
        });
        assert_ne!(ladder.chosen(), Some(SendMethod::ZeroCopy));
        let mut ladder = Ladder::new(SendChoice::ZeroCopy, &SendMethod::ALL);
        ladder.copied(SendMethod::ZeroCopy);
        assert_eq!(ladder.method(), SendMethod::ZeroCopy);
    }

    #[test]
    fn what_the_transport_lacks_is_written() {
        let ladder = Ladder::new(
            SendChoice::ZeroCopy,
            &[SendMethod::Vmsplice, SendMethod::Write],
        );
        assert_eq!(ladder.chosen(), Some(SendMethod::Write));
    }
}
