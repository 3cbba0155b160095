//! Whether another pre-copy round is worth its bytes.

/// What the last round told.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundInput {
    /// Round that has just ended, from 0.
    pub round: u32,
    /// Pages that it had to send (not zero, not unchanged are counted alike).
    pub pages: u64,
    /// Pages of the round before it.
    pub pages_before: u64,
    /// Duration of the round, from its scan to the report.
    pub round_ns: u64,
    /// Time over which those pages had become dirty; 0 for the first round.
    pub dirty_ns: u64,
    /// Pages that must be sent again in any case.
    pub suspects: u64,
    /// The deadline has passed: there is no round after this one.
    pub is_late: bool,
    /// What a look at the guest's pages says, where the tracker can look without taking.
    pub outlook: Option<Outlook>,
}

/// What the guest has written since the round began, looked at when its report came.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Outlook {
    /// Pages that are dirty.
    pub dirty_pages: u64,
    /// Time that a page takes to the destination.
    pub page_ns: u64,
    /// The forecast is that no round to come makes the pause fit.
    pub outruns: bool,
}

/// Where an operator draws the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoundLimits {
    /// Longest pause wanted.
    pub downtime_ns_max: u64,
    /// Longest pause accepted when the rounds are used up; no less than the one wanted.
    pub downtime_ns_at_last: u64,
    /// Rounds at most while the guest runs.
    pub rounds_max: u32,
    /// How much of the guest's CPU time may be taken so that it dirties less, in percent; 0 takes none.
    pub throttle_percent_max: u8,
    /// When the rounds are used up and the pause would not fit.
    pub if_not_converged: IfNotConverged,
}

/// Of the pause that is wanted the pages get so many tenths: the rest is for what comes beside them, and for a
/// link that is not always as fast.
const PAGES_TENTHS: u64 = 9;

impl RoundLimits {
    /// The pause that is accepted after so many rounds. The wanted one for the first half of them; from there it
    /// grows evenly to the longest.
    #[must_use]
    pub fn downtime_ns_after(&self, round: u32) -> u64 {
        let more = self
            .downtime_ns_at_last
            .saturating_sub(self.downtime_ns_max);
        let half = self.rounds_max / 2;
        let over = round.saturating_sub(half).min(self.rounds_max - half);
        let part =
            u128::from(more) * u128::from(over) / u128::from((self.rounds_max - half).max(1));
        self.downtime_ns_max
            .saturating_add(u64::try_from(part).unwrap_or(u64::MAX))
    }

    /// Whether that many nanoseconds of pages fit the pause that is accepted after so many rounds.
    pub(crate) fn fits(&self, pages_ns: u64, round: u32) -> bool {
        pages_ns <= self.downtime_ns_after(round) / 10 * PAGES_TENTHS
    }
}

/// What becomes of a guest that dirties its pages faster than they leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum IfNotConverged {
    /// It is given back.
    Abort,
    /// It is paused for longer than wanted.
    SwitchOver,
    /// It runs at the destination before its pages are there.
    PostCopy,
}

/// What to do after a round.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoundDecision {
    /// Send what became dirty meanwhile.
    Continue,
    /// Pause the guest and send the rest.
    Switchover,
    /// Pause the guest and send the rest when it runs there.
    PostCopy,
    /// Give up: it does not converge.
    Abort,
}

/// So few dirty pages that a further round gains nothing: less than one frame.
const PAGES_FEW: u64 = 64;

/// Steps in which CPU time is taken from a guest, in percent.
const THROTTLE_STEP_PERCENT: u8 = 20;

impl RoundInput {
    /// Pages that are dirty by now: counted, or the dirty rate of the last interval over the last round. `None`
    /// while there is neither.
    fn dirty_pages(&self) -> Option<u64> {
        let pages = match self.outlook {
            Some(outlook) => outlook.dirty_pages,
            None if self.dirty_ns == 0 => return None,
            None => {
                let pages = u128::from(self.pages) * u128::from(self.round_ns);
                u64::try_from(pages / u128::from(self.dirty_ns)).unwrap_or(u64::MAX)
            }
        };
        // What arrived torn was written meanwhile: it is dirty, and counted.
        Some(pages.max(self.suspects))
    }

    /// A round of few pages measures its fixed cost, not the link: that cost is paid once.
    fn page_ns(&self) -> u64 {
        let measured = self.outlook.map(|outlook| outlook.page_ns);
        measured.unwrap_or_else(|| self.round_ns / self.pages.max(1))
    }

    /// Pages of a round, and of the one behind it, as near to now as is known.
    const fn last_two(&self) -> (u64, u64) {
        match self.outlook {
            Some(outlook) => (self.pages, outlook.dirty_pages),
            None => (self.pages_before, self.pages),
        }
    }

    fn outruns(&self) -> bool {
        self.outlook.is_some_and(|outlook| outlook.outruns)
    }

    /// Whether each round is clearly shorter than the one before: then they lead somewhere.
    const fn converges(&self) -> bool {
        let (before, last) = self.last_two();
        last.saturating_mul(10) <= before.saturating_mul(7)
    }
}

/// Pause to expect if the guest were paused now, without device state: the dirty pages at the rate at which pages
/// leave. `None` while nothing is known of what is dirty.
#[must_use]
pub fn expected_downtime_ns(input: &RoundInput) -> Option<u64> {
    let pages = input.dirty_pages()?;
    Some(pages.saturating_mul(input.page_ns()).min(u64::MAX / 2))
}

/// Whether the guest is paused after a round rather than sent another: of the pages that are dirty by now, whether
/// their pause fits, and of the pages of the last two rounds.
pub(crate) const fn is_worth_pausing(dirty: u64, fits: bool, (before, last): (u64, u64)) -> bool {
    let shrinking = last.saturating_mul(2) <= before;
    dirty < PAGES_FEW || (fits && !shrinking)
}

/// How much of its CPU time a guest is to be without in the next round, in percent, after it was without
/// `percent`: a step more while rounds get no shorter and the pause does not fit.
#[must_use]
pub fn throttle(input: &RoundInput, limits: &RoundLimits, percent: u8) -> u8 {
    let leads_nowhere = input.round > 0 && !input.converges();
    let fits = expected_downtime_ns(input).is_none_or(|ns| limits.fits(ns, input.round));
    if leads_nowhere && !fits {
        let more = percent.saturating_add(THROTTLE_STEP_PERCENT);
        return more.min(limits.throttle_percent_max);
    }
    percent
}

/// Decides, first match wins.
///
/// | condition | result |
/// |---|---|
/// | nothing is known of what is dirty | `Continue` |
/// | fewer than 64 pages are dirty | `Switchover` |
/// | the pause fits, and another round would not halve the pages | `Switchover` |
/// | post-copy is wanted, and the guest is forecast to outrun its link, or another round would leave more than 7 of 10 pages | `PostCopy` |
/// | `rounds_max` or the deadline reached, and the pause fits or is forced | `Switchover` |
/// | the same | `PostCopy`, `Abort` |
/// | otherwise | `Continue` |
///
/// The pause that fits grows in the second half of the rounds, where that is accepted:
/// [`RoundLimits::downtime_ns_after`].
///
/// Pure. Device state and resume are not in the forecast; they take milliseconds and are measured
/// as parts of the pause.
#[must_use]
pub fn decide_round(input: &RoundInput, limits: &RoundLimits) -> RoundDecision {
    let wants_postcopy = limits.if_not_converged == IfNotConverged::PostCopy;
    let (Some(dirty), Some(downtime_ns)) = (input.dirty_pages(), expected_downtime_ns(input))
    else {
        return if limits.rounds_max == 0 {
            RoundDecision::Switchover
        } else {
            RoundDecision::Continue
        };
    };
    let is_last = input.is_late || input.round >= limits.rounds_max;
    let round = if is_last {
        limits.rounds_max
    } else {
        input.round
    };
    let fits = limits.fits(downtime_ns, round);
    let leads_nowhere = input.round > 0 && !input.converges();
    if is_worth_pausing(dirty, fits, input.last_two()) {
        RoundDecision::Switchover
    } else if wants_postcopy && (input.outruns() || leads_nowhere) {
        RoundDecision::PostCopy
    } else if !is_last {
        RoundDecision::Continue
    } else if fits {
        RoundDecision::Switchover
    } else {
        match limits.if_not_converged {
            IfNotConverged::Abort => RoundDecision::Abort,
            IfNotConverged::SwitchOver => RoundDecision::Switchover,
            IfNotConverged::PostCopy => RoundDecision::PostCopy,
        }
    }
}

#[cfg(test)]
mod tests;
