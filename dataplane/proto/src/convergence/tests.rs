//! Decisions after one round, each line of the table.

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
