//! Post-copy at both ends: when it begins, what ends it, and what does not.

mod common;

use common::*;
use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, Ending, IfNotConverged,
    Instant, JournalEntry, Phase, RoundLimits, Source, SourceAction, SourceConfig, SourceEvent,
};
use dwcp_wire::{AbortCode, Control, FetchSummary, RoundSummary};

const EMPTY: RoundSummary = RoundSummary {
    frames: 0,
    wire_bytes: 0,
    pages: 0,
    marks_again: 0,
};

/// A source that has decided for post-copy, and what it wants done.
fn source_that_goes() -> (Source, Vec<SourceAction>) {
    source_that_goes_and_bears(source_config().silence_ns)
}

/// One whose destination may be silent for so long.
fn source_that_goes_and_bears(silence_ns: u64) -> (Source, Vec<SourceAction>) {
    let config = SourceConfig {
        limits: RoundLimits {
            downtime_ns_max: 1,
            downtime_ns_at_last: 1,
            throttle_percent_max: 0,
            rounds_max: 9,
            if_not_converged: IfNotConverged::PostCopy,
        },
        silence_ns,
        ..source_config()
    };
    let mut source = source_in_precopy_with(config);
    let mut many = measure();
    (many.pages, many.dirty_ns) = (100_000, 0);
    let _ = source.on_event(NOW, SourceEvent::RoundSent(many));
    let _ = source.on_event(NOW, SourceEvent::GoPostcopy);
    let actions = source.on_event(NOW, SourceEvent::Peer(round_report(0, vec![], false)));
    (source, actions)
}

/// Its guest stands, and what is missing is named.
fn name_missing(source: &mut Source) {
    let mut measure = measure();
    measure.sent = EMPTY;
    for event in [
        SourceEvent::Journaled(JournalEntry::PreparedPostcopy),
        SourceEvent::Peer(Control::PostcopyReady),
        SourceEvent::Peer(Control::MissingAheadTaken),
        SourceEvent::Paused,
        SourceEvent::RoundSent(measure),
        SourceEvent::SampleRead { missed: 0 },
    ] {
        let _ = source.on_event(NOW, event);
    }
}

/// The destination's answer to that.
fn nothing_missed() -> Control {
    Control::RoundReport {
        round: 1,
        applied: EMPTY,
        suspects: vec![],
        root: ROOT,
        pages_proven: Some(8),
    }
}

/// A source whose guest runs there.
fn source_in_postcopy() -> Source {
    let (mut source, _) = source_that_goes();
    name_missing(&mut source);
    for event in [
        SourceEvent::DeviceSent,
        SourceEvent::Peer(nothing_missed()),
        SourceEvent::Peer(Control::DeviceLoaded),
        SourceEvent::Peer(Control::Committed { epoch: EPOCH + 1 }),
        SourceEvent::Peer(Control::Resumed),
    ] {
        let _ = source.on_event(NOW, event);
    }
    assert_eq!(source.phase(), Phase::Postcopy);
    source
}

#[test]
fn the_guest_is_paused_only_when_the_destination_can_do_without_its_pages() {
    let (mut source, actions) = source_that_goes();
    let journal = SourceAction::Journal(JournalEntry::PreparedPostcopy);
    let start = SourceAction::Send(Control::PostcopyStart);
    assert_eq!(actions, [start, SourceAction::OpenMissing, journal]);
    let durable = SourceEvent::Journaled(JournalEntry::PreparedPostcopy);
    assert_eq!(source.on_event(NOW, durable), []);
    let actions = source.on_event(NOW, SourceEvent::Peer(Control::PostcopyReady));
    assert!(matches!(
        actions[..],
        [
            SourceAction::NameMissingAhead { .. },
            SourceAction::Send(Control::MissingAhead)
        ]
    ));
    let actions = source.on_event(NOW, SourceEvent::Peer(Control::MissingAheadTaken));
    let begin = SourceAction::Send(Control::SwitchoverStart);
    assert_eq!(actions, [begin, SourceAction::PauseVm]);
    let actions = source.on_event(NOW, SourceEvent::Paused);
    assert_eq!(actions, [SourceAction::NameMissing { round: 1 }]);
}

#[test]
fn a_destination_that_cannot_leaves_the_guest_where_it_is() {
    let (mut source, _) = source_that_goes();
    let reason = "huge pages".to_owned();
    let refused = SourceEvent::Peer(Control::PostcopyRefused { reason });
    let actions = source.on_event(NOW, refused);
    assert!(matches!(
        actions[..],
        [
            SourceAction::Send(Control::Abort {
                code: AbortCode::NotConverging,
                ..
            }),
            SourceAction::ResumeVm
        ]
    ));
}

#[test]
fn a_write_that_the_tracker_missed_gives_the_guest_back() {
    let (mut source, _) = source_that_goes();
    for event in [
        SourceEvent::Journaled(JournalEntry::PreparedPostcopy),
        SourceEvent::Peer(Control::PostcopyReady),
        SourceEvent::Peer(Control::MissingAheadTaken),
        SourceEvent::Paused,
        SourceEvent::RoundSent(measure()),
    ] {
        let _ = source.on_event(NOW, event);
    }
    let actions = source.on_event(NOW, SourceEvent::SampleRead { missed: 1 });
    assert!(actions.contains(&SourceAction::ResumeVm), "{actions:?}");
}

/// The destination takes out of its RAM what was named, and says nothing meanwhile.
#[test]
fn in_the_pause_a_destination_may_be_silent_until_ram_is_proven() {
    const S: u64 = 1_000_000_000;
    let (mut source, _) = source_that_goes_and_bears(30 * S);
    let _ = source.on_event(NOW, SourceEvent::SpeaksInPause);
    name_missing(&mut source);
    let _ = source.on_event(Instant(20 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Switchover);
    let _ = source.on_event(Instant(20 * S), SourceEvent::Peer(nothing_missed()));
    let _ = source.on_event(Instant(22 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Switchover);
    let _ = source.on_event(Instant(23 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Aborted);
}

/// What a guest needs is here: no failure is a reason to end.
#[test]
fn only_the_destination_ends_it() {
    let mut source = source_in_postcopy();
    let lost = || SourceEvent::PeerLost("gone".into());
    let failed = SourceEvent::Failed(AbortCode::Other, "no thread".into());
    assert_eq!(source.on_event(NOW, SourceEvent::Cancel), []);
    assert_eq!(source.on_event(NOW, failed), []);
    assert_eq!(source.on_event(NOW, lost()), [SourceAction::ServeAgain]);
    assert!(source.is_cut_off());
    // Once is enough until there is another way.
    assert_eq!(source.on_event(NOW, lost()), []);
    let _ = source.on_event(NOW, SourceEvent::Connected);
    assert!(!source.is_cut_off());
    assert_eq!(source.on_event(NOW, lost()), [SourceAction::ServeAgain]);
    let _ = source.on_event(NOW, SourceEvent::Connected);

    let fetched = SourceEvent::Peer(Control::Fetched);
    assert_eq!(source.on_event(NOW, fetched), [SourceAction::ReadRoot]);
    let root = Control::RamRoot { root: ROOT };
    let read = SourceEvent::RootRead { root: ROOT };
    assert_eq!(source.on_event(NOW, read), [SourceAction::Send(root)]);
    let whole = Control::Whole {
        verified: Some(true),
        summary: FetchSummary::default(),
    };
    let actions = source.on_event(NOW, SourceEvent::Peer(whole));
    let committed = SourceAction::Journal(JournalEntry::Committed { epoch: EPOCH + 1 });
    assert_eq!(actions[0], committed);
    assert_eq!(source.phase(), Phase::Complete);
}

/// The source learns of the commit by asking, or not before the connection is lost: it serves all the same.
#[test]
fn a_source_in_doubt_serves_once_it_knows() {
    let mut config = source_config();
    config.limits.if_not_converged = IfNotConverged::PostCopy;
    let mut source = Source::serving_again(config, EPOCH + 1);
    assert!(source.is_cut_off());
    assert_eq!(source.phase(), Phase::Postcopy);
    assert_eq!(source.on_event(NOW, SourceEvent::Tick), []);
}

fn fetching() -> Destination {
    restarted(true)
}

fn restarted(runs: bool) -> Destination {
    let config = DestinationConfig {
        silence_ns: 2_000_000_000,
    };
    Destination::fetching_again(config, EPOCH + 1, runs)
}

#[test]
fn a_root_that_differs_is_said_and_nothing_is_taken_back() {
    let mut destination = fetching();
    let fetched = DestinationEvent::AllFetched {
        root: Some(ROOT),
        summary: FetchSummary::default(),
    };
    let actions = destination.on_event(NOW, fetched);
    assert_eq!(actions, [DestinationAction::Send(Control::Fetched)]);
    // It may not have been heard.
    let actions = destination.on_event(NOW, DestinationEvent::SourceIsBack);
    assert_eq!(actions, [DestinationAction::Send(Control::Fetched)]);
    let root = DestinationEvent::Peer(Control::RamRoot { root: ROOT + 1 });
    let journal = || DestinationAction::Journal(JournalEntry::Whole);
    assert_eq!(destination.on_event(NOW, root), [journal()]);
    // A disk that is full may not stay so, and nobody is told before.
    let full = DestinationEvent::Failed(AbortCode::Journal, "no space left".into());
    assert_eq!(destination.on_event(NOW, full), []);
    assert_eq!(
        destination.on_event(NOW, DestinationEvent::Tick),
        [journal()]
    );
    let durable = DestinationEvent::Journaled(JournalEntry::Whole);
    let actions = destination.on_event(NOW, durable);
    let Some(DestinationAction::Finish(outcome)) = actions.last() else {
        panic!("{actions:?}");
    };
    assert_eq!(outcome.result, Ending::Failed);
    assert!(!actions.contains(&DestinationAction::DiscardVm));
    assert_eq!(destination.phase(), Phase::Failed);
}

/// Its host is lost when all pages are here: the guest needs nothing of it.
#[test]
fn a_source_that_never_says_its_root_does_not_hold_the_guest_for_ever() {
    let mut destination = fetching();
    let fetched = DestinationEvent::AllFetched {
        root: Some(ROOT),
        summary: FetchSummary::default(),
    };
    let _ = destination.on_event(NOW, fetched);
    let soon = Instant(NOW.0 + 39_000_000_000);
    let actions = destination.on_event(soon, DestinationEvent::Tick);
    assert!(!actions.contains(&DestinationAction::Journal(JournalEntry::Whole)));
    let late = Instant(NOW.0 + 41_000_000_000);
    let actions = destination.on_event(late, DestinationEvent::Tick);
    assert_eq!(actions, [DestinationAction::Journal(JournalEntry::Whole)]);
    let durable = DestinationEvent::Journaled(JournalEntry::Whole);
    let actions = destination.on_event(late, durable);
    let Some(DestinationAction::Finish(outcome)) = actions.last() else {
        panic!("{actions:?}");
    };
    assert_eq!(outcome.result, Ending::Completed);
}

#[test]
fn a_lost_source_is_waited_for() {
    let mut destination = fetching();
    let lost = DestinationEvent::PeerLost("gone".into());
    let aborted = DestinationEvent::Peer(Control::Abort {
        code: AbortCode::Other,
        reason: "no".into(),
    });
    for event in [lost, aborted, DestinationEvent::Cancel] {
        assert_eq!(destination.on_event(NOW, event), []);
    }
    let asked = destination.on_event(NOW, DestinationEvent::OwnerQuery);
    assert_eq!(asked, [DestinationAction::AnswerOwner { committed: true }]);
    assert_eq!(destination.phase(), Phase::Postcopy);
}

/// One that was not run before its data plane died is run, and only then fetches for ever.
#[test]
fn a_guest_that_stands_is_run() {
    let config = DestinationConfig {
        silence_ns: 2_000_000_000,
    };
    let mut destination = Destination::fetching_again(config, EPOCH + 1, false);
    assert_eq!(destination.phase(), Phase::Handover);
    let actions = destination.on_event(NOW, DestinationEvent::Resumed);
    let resumed = DestinationAction::Journal(JournalEntry::Resumed);
    assert!(actions.contains(&resumed), "{actions:?}");
    assert_eq!(destination.phase(), Phase::Postcopy);
}

/// Its source keeps the guest's pages, and asks, until the journal here says that they are needed no more.
#[test]
fn a_guest_that_is_lost_is_said_until_it_is_durable() {
    for (mut destination, failures) in [(fetching(), 1), (restarted(false), 5)] {
        let gone = || DestinationEvent::Failed(AbortCode::Vmm, "gone".into());
        let mut said = vec![];
        for _ in 0..failures {
            let _ = destination.on_event(NOW, DestinationEvent::Tick);
            said = destination.on_event(NOW, gone());
        }
        let [DestinationAction::Journal(entry @ JournalEntry::Failed { .. })] = &said[..] else {
            panic!("{said:?}");
        };
        let full = DestinationEvent::Failed(AbortCode::Journal, "no space left".into());
        assert_eq!(destination.on_event(NOW, full), []);
        assert_eq!(destination.on_event(NOW, DestinationEvent::Tick), said);
        assert_eq!(destination.on_event(NOW, gone()), []);
        let query = destination.on_event(NOW, DestinationEvent::OwnerQuery);
        assert_eq!(query, [DestinationAction::AnswerOwner { committed: true }]);
        assert_eq!(destination.phase(), Phase::Postcopy);
        let durable = DestinationEvent::Journaled(entry.clone());
        let end = destination.on_event(NOW, durable);
        let [DestinationAction::Finish(outcome)] = &end[..] else {
            panic!("{end:?}");
        };
        assert_eq!(outcome.result, Ending::Failed);
        assert_eq!(destination.phase(), Phase::Failed);
    }
}
