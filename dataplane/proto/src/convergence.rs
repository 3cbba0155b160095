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
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const LIMITS: RoundLimits = RoundLimits {
        downtime_ns_max: 300 * MS,
        downtime_ns_at_last: 300 * MS,
        rounds_max: 5,
        throttle_percent_max: 0,
        if_not_converged: IfNotConverged::Abort,
    };

    #[test]
    fn the_first_round_is_never_the_last() {
        let input = RoundInput {
            pages: 100_000,
            round_ns: 400 * MS,
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Continue);
    }

    #[test]
    fn a_quiet_guest_is_switched_over() {
        let input = RoundInput {
            round: 1,
            pages: 10,
            pages_before: 100_000,
            round_ns: MS,
            dirty_ns: 400 * MS,
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Switchover);
    }

    #[test]
    fn a_guest_that_outruns_the_link_is_given_back_or_forced() {
        let input = RoundInput {
            round: 5,
            pages: 500_000,
            pages_before: 500_000,
            round_ns: 2000 * MS,
            dirty_ns: 2000 * MS,
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Abort);
        let force = RoundLimits {
            if_not_converged: IfNotConverged::SwitchOver,
            ..LIMITS
        };
        assert_eq!(decide_round(&input, &force), RoundDecision::Switchover);
        let earlier = RoundInput { round: 2, ..input };
        assert_eq!(decide_round(&earlier, &force), RoundDecision::Continue);
    }

    #[test]
    fn a_guest_that_outruns_the_link_is_post_copied_at_once() {
        let limits = RoundLimits {
            if_not_converged: IfNotConverged::PostCopy,
            ..LIMITS
        };
        let input = RoundInput {
            round: 1,
            pages: 500_000,
            pages_before: 500_000,
            round_ns: 2000 * MS,
            dirty_ns: 2000 * MS,
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &limits), RoundDecision::PostCopy);
        let shrinking = RoundInput {
            pages: 350_000,
            ..input
        };
        assert_eq!(decide_round(&shrinking, &limits), RoundDecision::Continue);
        let last = RoundInput {
            round: 5,
            ..shrinking
        };
        assert_eq!(decide_round(&last, &limits), RoundDecision::PostCopy);
    }

    #[test]
    fn a_guest_that_is_forecast_to_outrun_the_link_is_post_copied_after_the_first_round() {
        let limits = RoundLimits {
            if_not_converged: IfNotConverged::PostCopy,
            ..LIMITS
        };
        let outlook = Outlook {
            dirty_pages: 200_000,
            page_ns: 4000,
            outruns: true,
        };
        let input = RoundInput {
            pages: 500_000,
            round_ns: 2000 * MS,
            outlook: Some(outlook),
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &limits), RoundDecision::PostCopy);
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Continue);
        // What is few is few, whatever was forecast.
        let quiet = Outlook {
            dirty_pages: 10,
            ..outlook
        };
        let quiet = RoundInput {
            outlook: Some(quiet),
            ..input
        };
        assert_eq!(decide_round(&quiet, &limits), RoundDecision::Switchover);
    }

    /// A small set that is dirty all the time: as many pages in each round, and they fit.
    #[test]
    fn what_is_dirty_is_counted_and_not_derived_where_it_can_be() {
        let outlook = Outlook {
            dirty_pages: 2500,
            page_ns: 80_000,
            outruns: false,
        };
        let input = RoundInput {
            round: 1,
            pages: 2500,
            pages_before: 24_000,
            round_ns: 500 * MS,
            dirty_ns: 250 * MS,
            outlook: Some(outlook),
            ..Default::default()
        };
        assert_eq!(expected_downtime_ns(&input), Some(200 * MS));
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Switchover);
        let derived = RoundInput {
            outlook: None,
            ..input
        };
        assert_eq!(expected_downtime_ns(&derived), Some(1000 * MS));
        assert_eq!(decide_round(&derived, &LIMITS), RoundDecision::Continue);
    }

    #[test]
    fn a_suspect_page_is_a_dirty_page_and_counted_once() {
        let input = RoundInput {
            round: 2,
            pages: 2500,
            suspects: 1400,
            outlook: Some(Outlook {
                dirty_pages: 2500,
                page_ns: 80_000,
                outruns: false,
            }),
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Switchover);
        // One that was damaged on the way is not dirty.
        let damaged = RoundInput {
            suspects: 9000,
            ..input
        };
        assert_eq!(decide_round(&damaged, &LIMITS), RoundDecision::Continue);
    }

    /// Only pages are in the forecast; the pause is more than they.
    #[test]
    fn a_tenth_of_the_pause_is_kept_for_what_is_no_page() {
        let of = |ms| Outlook {
            dirty_pages: ms,
            page_ns: MS,
            outruns: false,
        };
        let decide = |ms| {
            let input = RoundInput {
                round: 2,
                pages: 300,
                outlook: Some(of(ms)),
                ..Default::default()
            };
            decide_round(&input, &LIMITS)
        };
        assert_eq!(decide(270), RoundDecision::Switchover);
        assert_eq!(decide(271), RoundDecision::Continue);
    }

    #[test]
    fn the_pause_that_is_accepted_grows_in_the_second_half_of_the_rounds() {
        let ramp = RoundLimits {
            downtime_ns_at_last: 900 * MS,
            rounds_max: 10,
            ..LIMITS
        };
        let after = [0, 5, 6, 8, 10, 11].map(|round| ramp.downtime_ns_after(round) / MS);
        assert_eq!(after, [300, 300, 420, 660, 900, 900]);
        let input = |round| RoundInput {
            round,
            pages: 700,
            outlook: Some(Outlook {
                dirty_pages: 700,
                page_ns: MS,
                outruns: true,
            }),
            ..Default::default()
        };
        assert_eq!(decide_round(&input(8), &ramp), RoundDecision::Continue);
        assert_eq!(decide_round(&input(9), &ramp), RoundDecision::Switchover);
        let less = RoundLimits {
            downtime_ns_at_last: 0,
            ..ramp
        };
        assert_eq!(less.downtime_ns_after(10), 300 * MS);
        let none = RoundLimits {
            rounds_max: 0,
            ..ramp
        };
        assert_eq!(none.downtime_ns_after(1), 300 * MS);
    }

    #[test]
    fn behind_the_deadline_there_is_no_further_round() {
        let input = RoundInput {
            round: 1,
            pages: 10_000,
            outlook: Some(Outlook {
                dirty_pages: 2000,
                page_ns: 100_000,
                outruns: false,
            }),
            is_late: true,
            ..Default::default()
        };
        let of = |input: &RoundInput, limits| decide_round(input, limits);
        assert_eq!(of(&input, &LIMITS), RoundDecision::Switchover, "it fits");
        let input = RoundInput {
            outlook: input.outlook.map(|outlook| Outlook {
                dirty_pages: 5000,
                ..outlook
            }),
            ..input
        };
        assert_eq!(of(&input, &LIMITS), RoundDecision::Abort);
        let longer = RoundLimits {
            downtime_ns_at_last: 600 * MS,
            ..LIMITS
        };
        assert_eq!(of(&input, &longer), RoundDecision::Switchover);
    }

    #[test]
    fn a_guest_is_throttled_step_by_step_while_rounds_lead_nowhere() {
        let limits = RoundLimits {
            throttle_percent_max: 70,
            ..LIMITS
        };
        let input = |round, dirty_pages| RoundInput {
            round,
            pages: 10_000,
            outlook: Some(Outlook {
                dirty_pages,
                page_ns: 100_000,
                outruns: true,
            }),
            ..Default::default()
        };
        let of = |input: &RoundInput, percent| throttle(input, &limits, percent);
        assert_eq!(of(&input(0, 9000), 0), 0, "what comes is not known yet");
        assert_eq!(of(&input(1, 9000), 0), 20);
        assert_eq!(of(&input(2, 9000), 60), 70);
        assert_eq!(of(&input(2, 5000), 40), 40, "it works");
        assert_eq!(of(&input(2, 2000), 40), 40, "the pause fits");
        assert_eq!(throttle(&input(1, 9000), &LIMITS, 0), 0, "not wanted");
    }

    #[test]
    fn while_rounds_halve_the_pages_another_is_worth_it() {
        let input = RoundInput {
            round: 2,
            pages: 10_000,
            pages_before: 100_000,
            round_ns: 40 * MS,
            dirty_ns: 400 * MS,
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Continue);
    }
}
