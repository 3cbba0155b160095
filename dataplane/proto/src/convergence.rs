//! Whether another pre-copy round is worth its bytes.

use dwcp_wire::limits::PAGE_BYTES;

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
    /// Bytes that it put on the wire.
    pub wire_bytes: u64,
    /// Pages that must be sent again in any case.
    pub suspects: u64,
    /// The forecast is that no round to come makes the pause fit.
    pub outruns: bool,
}

/// Where an operator draws the lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RoundLimits {
    /// Longest pause wanted.
    pub downtime_ns_max: u64,
    /// Rounds at most while the guest runs.
    pub rounds_max: u32,
    /// When the rounds are used up and the pause would not fit.
    pub if_not_converged: IfNotConverged,
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

/// Pages expected to be dirty by now: the dirty rate of the last interval over the last round.
fn expected_pages(input: &RoundInput) -> u64 {
    if input.dirty_ns == 0 {
        return u64::MAX;
    }
    let pages = u128::from(input.pages) * u128::from(input.round_ns) / u128::from(input.dirty_ns);
    u64::try_from(pages)
        .unwrap_or(u64::MAX)
        .saturating_add(input.suspects)
}

/// Pause to expect if the guest were paused now, without device state: the expected dirty pages at
/// the last round's rate. `None` while there is no dirty rate yet.
#[must_use]
pub fn expected_downtime_ns(input: &RoundInput) -> Option<u64> {
    let pages = expected_pages(input);
    if pages == u64::MAX {
        return None;
    }
    let bytes = u128::from(pages) * PAGE_BYTES as u128;
    // A round of few pages measures its fixed cost, not the link: that cost is paid once.
    let sent = u128::from(input.pages.max(1)) * PAGE_BYTES as u128;
    let ns = bytes * u128::from(input.round_ns) / sent;
    u64::try_from(ns).ok().map(|ns| ns.min(u64::MAX / 2))
}

/// Whether the guest is paused after a round rather than sent another: of the pages that are dirty by now, whether
/// their pause fits, and of the pages of the last two rounds.
pub(crate) const fn is_worth_pausing(dirty: u64, fits: bool, (before, last): (u64, u64)) -> bool {
    let shrinking = last.saturating_mul(2) <= before;
    dirty < PAGES_FEW || (fits && !shrinking)
}

/// Decides, first match wins.
///
/// | condition | result |
/// |---|---|
/// | first round, post-copy is wanted, and the guest is forecast to outrun its link | `PostCopy` |
/// | first round | `Continue` |
/// | fewer than 64 pages are expected to be dirty | `Switchover` |
/// | the pause fits, and the last round did not halve the pages | `Switchover` |
/// | post-copy is wanted, and the same, or the last round sent more than 7 of 10 pages of the one before | `PostCopy` |
/// | `rounds_max` reached, and the pause fits or is forced | `Switchover` |
/// | `rounds_max` reached | `PostCopy`, `Abort` |
/// | otherwise | `Continue` |
///
/// Pure. Device state and resume are not in the forecast; they take milliseconds and are measured
/// as parts of the pause.
#[must_use]
pub fn decide_round(input: &RoundInput, limits: &RoundLimits) -> RoundDecision {
    let wants_postcopy = limits.if_not_converged == IfNotConverged::PostCopy;
    let Some(downtime_ns) = expected_downtime_ns(input) else {
        if wants_postcopy && input.outruns {
            return RoundDecision::PostCopy;
        }
        return if limits.rounds_max == 0 {
            RoundDecision::Switchover
        } else {
            RoundDecision::Continue
        };
    };
    let fits = downtime_ns <= limits.downtime_ns_max;
    if is_worth_pausing(
        expected_pages(input),
        fits,
        (input.pages_before, input.pages),
    ) {
        RoundDecision::Switchover
    } else if wants_postcopy && (input.outruns || !input.converges()) {
        RoundDecision::PostCopy
    } else if input.round < limits.rounds_max {
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

impl RoundInput {
    /// Whether each round is clearly shorter than the one before: then they lead somewhere.
    const fn converges(&self) -> bool {
        self.pages.saturating_mul(10) <= self.pages_before.saturating_mul(7)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;
    const LIMITS: RoundLimits = RoundLimits {
        downtime_ns_max: 300 * MS,
        rounds_max: 5,
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
        let input = RoundInput {
            pages: 500_000,
            round_ns: 2000 * MS,
            outruns: true,
            ..Default::default()
        };
        assert_eq!(decide_round(&input, &limits), RoundDecision::PostCopy);
        assert_eq!(decide_round(&input, &LIMITS), RoundDecision::Continue);
        // What is few is few, whatever was forecast.
        let quiet = RoundInput {
            round: 1,
            pages: 10,
            dirty_ns: 2000 * MS,
            ..input
        };
        assert_eq!(decide_round(&quiet, &limits), RoundDecision::Switchover);
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
