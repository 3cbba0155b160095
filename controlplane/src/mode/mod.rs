//! Which kind of path this is: within a datacenter, between sites, or the internet.
//!
//! Rules over what `TCP_INFO` says, see docs/adr/0019. The round-trip time decides first; loss, jitter and a
//! rate that stays low move a path to the rougher mode. A mode is left only when the path is clearly outside it,
//! for a while, and not soon after it was entered; a path that goes back and forth is left alone for longer each
//! time. The caller has the clock: a detector is a function of what it was shown.

mod follow;
mod window;

use std::fmt;
use std::time::Duration;

use dwcp_api::PathSample;
pub use follow::follow;
use window::{Facts, Window};

/// Kind of a path; the names are those of the built-in profiles.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// Short, fast, next to no loss.
    Datacenter,
    /// Between.
    Hybrid,
    /// Long, lossy or unsteady.
    Internet,
}

impl Mode {
    /// The mode of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        let all = [Self::Datacenter, Self::Hybrid, Self::Internet];
        all.into_iter().find(|mode| mode.name() == name)
    }

    /// Name of its profile.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Datacenter => "datacenter",
            Self::Hybrid => "hybrid",
            Self::Internet => "internet",
        }
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A longer round trip is no datacenter's, and the internet's.
const DATACENTER_RTT: Duration = Duration::from_millis(2);
const INTERNET_RTT: Duration = Duration::from_millis(50);

/// A path that carries less, with more to send, is no datacenter's: bytes per second.
const DATACENTER_RATE: f64 = 125e6;

/// Part of the bytes that is sent again: more is no datacenter's, and the internet's. Congestion that senders
/// make themselves stays below it on a short path.
const DATACENTER_LOSS: f64 = 1e-3;
const INTERNET_LOSS: f64 = 1e-3;

/// Deviation of the round-trip time, as a part of it; of a path that is no datacenter's by its length.
const INTERNET_JITTER: f64 = 0.3;

/// A limit must be passed by this factor for a mode to be left: 1.3 lies between the way there and back; by
/// its square soon after another change.
const LEAVE: f64 = 1.14;

/// For so long, without a break.
const PERSISTS: Duration = Duration::from_millis(600);

/// A mode is kept for so long at least; for four times as long after a change soon after another, and so on.
const DWELL: Duration = Duration::from_secs(5);
const DWELL_MAX: Duration = Duration::from_secs(600);

/// A change within this time of the one before is one too many.
const FLAP: Duration = Duration::from_secs(600);

/// A mode, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The mode.
    pub mode: Mode,
    /// By what, for a person.
    pub why: String,
}

/// Finds the mode of one path.
#[derive(Clone, Debug)]
pub struct Detector {
    mode: Mode,
    window: Window,
    entered: Duration,
    dwell: Duration,
    /// Outside since then.
    outside: Option<(Mode, Duration)>,
}

impl Detector {
    /// A detector for a path that is taken to be of `mode`.
    #[must_use]
    pub fn new(mode: Mode) -> Self {
        Self {
            mode,
            window: Window::default(),
            entered: Duration::ZERO,
            dwell: DWELL,
            outside: None,
        }
    }

    /// The mode of a path that was seen once, by its length alone.
    #[must_use]
    pub fn first(sample: &PathSample) -> Finding {
        let facts = Facts::of(sample);
        let (mode, why) = judge(&facts, None, 1.0);
        Finding { mode, why }
    }

    /// The mode now.
    #[must_use]
    pub const fn mode(&self) -> Mode {
        self.mode
    }

    /// Looks at a sample taken at `now`, on a clock that begins with the detector. Returns the mode if it
    /// changes.
    pub fn observe(&mut self, now: Duration, sample: &PathSample) -> Option<Finding> {
        let facts = self.window.add(now, sample)?;
        let stayed = now.saturating_sub(self.entered);
        let is_new = stayed < FLAP && !self.entered.is_zero();
        let leave = if is_new { LEAVE * LEAVE } else { LEAVE };
        let (mode, why) = judge(&facts, Some(self.mode), leave);
        if mode == self.mode {
            self.outside = None;
            return None;
        }
        let since = match self.outside {
            Some((to, since)) if to == mode => since,
            _ => now,
        };
        self.outside = Some((mode, since));
        // The first guess was made by one look, and is no mode that was entered.
        let is_settled = self.entered.is_zero() || stayed >= self.dwell;
        if now.saturating_sub(since) < PERSISTS || !is_settled {
            return None;
        }
        self.dwell = match is_new {
            true => (self.dwell * 4).min(DWELL_MAX),
            false => DWELL,
        };
        (self.mode, self.entered, self.outside) = (mode, now, None);
        Some(Finding { mode, why })
    }
}

/// The mode of a path with these facts, for one that has been of mode `now` and leaves it where a limit is
/// passed by the factor `leave`.
fn judge(facts: &Facts, now: Option<Mode>, leave: f64) -> (Mode, String) {
    let limit = |limit: f64, rougher: Mode| match now {
        Some(now) if now >= rougher => limit / leave,
        Some(_) => limit * leave,
        None => limit,
    };
    let rtt_ms = facts.rtt.as_secs_f64() * 1000.0;
    let rtt_over = |most: Duration, rougher| rtt_ms > limit(most.as_secs_f64() * 1000.0, rougher);
    let is_long = rtt_over(DATACENTER_RTT, Mode::Hybrid);
    if rtt_over(INTERNET_RTT, Mode::Internet) {
        return (Mode::Internet, format!("round trip {rtt_ms:.0} ms"));
    }
    let loss = facts.loss.filter(|_| is_long);
    if let Some(loss) = loss.filter(|loss| *loss > limit(INTERNET_LOSS, Mode::Internet)) {
        return (Mode::Internet, format!("{:.2}% sent again", loss * 100.0));
    }
    if is_long && facts.jitter > limit(INTERNET_JITTER, Mode::Internet) {
        let percent = facts.jitter * 100.0;
        let why = format!("round trip {rtt_ms:.1} ms varies by {percent:.0}%");
        return (Mode::Internet, why);
    }
    if is_long {
        return (Mode::Hybrid, format!("round trip {rtt_ms:.1} ms"));
    }
    // A limit from below.
    let rate_limit = match now {
        Some(Mode::Datacenter) => 1.0 / leave,
        Some(_) => leave,
        None => 1.0,
    };
    // Short: what is not fast, or loses, is no datacenter's all the same.
    if let Some(rate) = facts
        .rate
        .filter(|rate| *rate < DATACENTER_RATE * rate_limit)
    {
        return (Mode::Hybrid, format!("{:.0} Mbit/s", rate * 8.0 / 1e6));
    }
    if let Some(loss) = facts
        .loss
        .filter(|loss| *loss > limit(DATACENTER_LOSS, Mode::Hybrid))
    {
        return (Mode::Hybrid, format!("{:.3}% sent again", loss * 100.0));
    }
    (Mode::Datacenter, format!("round trip {rtt_ms:.2} ms"))
}

#[cfg(test)]
mod tests;
