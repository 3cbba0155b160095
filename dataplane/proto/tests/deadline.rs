//! A deadline: the guest is given back, or the round under way is the last.

mod common;

use common::{measure, round_report, source_config, source_in_precopy_with};
use dwcp_proto::{
    IfNotConverged, Instant, JournalEntry, Outlook, Phase, RoundLimits, Source, SourceAction,
    SourceConfig, SourceEvent,
};

const S: u64 = 1_000_000_000;

/// 10 s; the destination took the guest at 1 us. It is never silent.
fn source(if_not_converged: IfNotConverged) -> Source {
    source_in_precopy_with(SourceConfig {
        limits: RoundLimits {
            downtime_ns_max: 1,
            downtime_ns_at_last: 1,
            rounds_max: 100,
            throttle_percent_max: 0,
            if_not_converged,
        },
        deadline_ns: 10 * S,
        silence_ns: 1000 * S,
        ..source_config()
    })
}

fn report(source: &mut Source, at: u64) -> Vec<SourceAction> {
    let busy = Outlook {
        dirty_pages: 10_000,
        page_ns: 1000,
        outruns: false,
    };
    let _ = source.on_event(Instant(at), SourceEvent::RoundSent(measure()));
    let _ = source.on_event(Instant(at), SourceEvent::Outlook(busy));
    source.on_event(
        Instant(at),
        SourceEvent::Peer(round_report(0, vec![], false)),
    )
}

#[test]
fn a_guest_is_given_back_in_the_middle_of_a_round() {
    let mut source = source(IfNotConverged::Abort);
    let _ = source.on_event(Instant(10 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Precopy);
    let actions = source.on_event(Instant(11 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Aborted);
    assert!(actions.contains(&SourceAction::ResumeVm), "{actions:?}");
}

#[test]
fn or_the_round_under_way_is_its_last() {
    let mut early = source(IfNotConverged::SwitchOver);
    let next = |actions: &[SourceAction]| {
        let next = |action: &SourceAction| matches!(action, SourceAction::StartRound { .. });
        actions.iter().any(next)
    };
    assert!(next(&report(&mut early, 5 * S)));
    let mut late = source(IfNotConverged::SwitchOver);
    let _ = late.on_event(Instant(11 * S), SourceEvent::Tick);
    assert_eq!(late.phase(), Phase::Precopy);
    let prepared = SourceAction::Journal(JournalEntry::Prepared);
    assert!(report(&mut late, 12 * S).contains(&prepared));
}
