//! The paused part at both ends, and giving the guest back.

mod common;

use common::*;
use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, Ending, Instant,
    JournalEntry, Phase, RESUME_TRIES_MAX, Source, SourceAction, SourceConfig, SourceEvent,
};
use dwcp_wire::{AbortCode, Control, PageRange};

const SUSPECT: PageRange = PageRange {
    ram_block: 0,
    page: 3,
    count: 1,
};

/// Without the round's end the destination holds a round that never closes, and takes the next
/// one for a broken protocol.
#[test]
fn a_missed_write_closes_its_round_before_everything_is_compared() {
    let mut source = source_in_switchover();
    let _ = source.on_event(NOW, SourceEvent::RoundSent(measure()));
    let actions = source.on_event(NOW, SourceEvent::SampleRead { missed: 2 });
    let [
        SourceAction::Send(Control::RoundEnd {
            round: 1, paused, ..
        }),
    ] = actions[..]
    else {
        panic!("{actions:?}");
    };
    assert!(
        !paused,
        "nothing is proven by a round that is known to be incomplete"
    );

    let report = SourceEvent::Peer(round_report(1, vec![SUSPECT], false));
    let actions = source.on_event(NOW, report);
    let next = SourceAction::StartRound {
        round: 2,
        again: vec![SUSPECT],
        everything: true,
    };
    assert_eq!(actions, [next]);
}

/// An older command's failure can arrive after the resume was asked for.
#[test]
fn a_failure_while_resuming_asks_again() {
    let mut source = source_in_switchover();
    let _ = source.on_event(NOW, SourceEvent::Cancel);
    let failed = || SourceEvent::Failed(AbortCode::Vmm, "device state was not taken".into());
    assert_eq!(source.on_event(NOW, failed()), []);
    assert_eq!(
        source.on_event(NOW, SourceEvent::Tick),
        [SourceAction::ResumeVm]
    );
    let actions = source.on_event(NOW, SourceEvent::Resumed);
    let [
        SourceAction::Journal(JournalEntry::Aborted { .. }),
        SourceAction::Finish(outcome),
    ] = &actions[..]
    else {
        panic!("{actions:?}");
    };
    assert_eq!(outcome.result, Ending::Aborted);
}

#[test]
fn a_guest_that_cannot_be_resumed_is_said_to_stand() {
    let mut source = source_in_switchover();
    let _ = source.on_event(NOW, SourceEvent::Cancel);
    let mut last = vec![];
    for _ in 0..RESUME_TRIES_MAX {
        let _ = source.on_event(NOW, SourceEvent::Tick);
        last = source.on_event(NOW, SourceEvent::Failed(AbortCode::Vmm, "gone".into()));
    }
    let finish = last.last().cloned();
    let Some(SourceAction::Finish(outcome)) = finish else {
        panic!("{last:?}");
    };
    assert_eq!(outcome.result, Ending::Failed);
}

/// The source asserts what the destination asserts: equal counts, equal roots, ranges inside RAM.
#[test]
fn a_report_that_cannot_be_is_refused() {
    let wrong_root = Control::RoundReport {
        round: 1,
        applied: SENT,
        suspects: vec![],
        root: ROOT + 1,
        pages_proven: Some(8),
    };
    let outside = PageRange {
        page: 64,
        ..SUSPECT
    };
    let no_block = PageRange {
        ram_block: 1,
        ..SUSPECT
    };
    let wraps = PageRange {
        count: u32::MAX,
        ..SUSPECT
    };
    for report in [
        wrong_root,
        round_report(1, vec![outside], false),
        round_report(1, vec![no_block], false),
        round_report(1, vec![wraps], false),
    ] {
        let mut source = source_in_switchover();
        let _ = source.on_event(NOW, SourceEvent::RoundSent(measure()));
        let _ = source.on_event(NOW, SourceEvent::SampleRead { missed: 0 });
        let actions = source.on_event(NOW, SourceEvent::Peer(report));
        assert!(tells_source(&actions), "{actions:?}");
        assert_eq!(source.phase(), Phase::Aborted);
    }
}

#[test]
fn a_report_before_the_rounds_end_is_refused() {
    let mut source = source_in_switchover();
    let _ = source.on_event(NOW, SourceEvent::RoundSent(measure()));
    let report = SourceEvent::Peer(round_report(1, vec![], true));
    assert!(tells_source(&source.on_event(NOW, report)));
}

#[test]
fn after_the_handover_only_the_answer_counts() {
    for event in [
        SourceEvent::Cancel,
        SourceEvent::Failed(AbortCode::Vmm, "gone".into()),
        SourceEvent::Failed(AbortCode::Connection, "reset".into()),
        SourceEvent::Resumed,
        SourceEvent::Peer(Control::Alive),
    ] {
        let mut source = source_in_handover();
        assert_eq!(source.on_event(NOW, event), []);
        assert_eq!(source.phase(), Phase::Handover);
    }
    let mut source = source_in_handover();
    let lost = SourceEvent::PeerLost("reset".into());
    let epoch = EPOCH + 1;
    assert_eq!(
        source.on_event(NOW, lost),
        [SourceAction::QueryOwner { epoch }]
    );
    assert!(source.is_in_doubt());
}

const S: u64 = 1_000_000_000;

/// One whose destination may say nothing for half a minute, and `speaks` in a pause or does not promise it.
fn patient_source(speaks: bool) -> Source {
    let config = SourceConfig {
        silence_ns: 30 * S,
        ..source_config()
    };
    let mut source = source_in_precopy_with(config);
    if speaks {
        let _ = source.on_event(NOW, SourceEvent::SpeaksInPause);
    }
    source
}

/// Its guest stands from `at` on.
fn pause(source: &mut Source, at: u64) {
    for event in [
        SourceEvent::RoundSent(measure()),
        SourceEvent::Peer(round_report(0, vec![], false)),
        SourceEvent::Journaled(JournalEntry::Prepared),
    ] {
        let _ = source.on_event(NOW, event);
    }
    let _ = source.on_event(Instant(at), SourceEvent::Paused);
    assert_eq!(source.phase(), Phase::Switchover);
}

/// Half a minute of silence is nothing while the guest runs, and far too long while it stands.
#[test]
fn a_guest_does_not_stand_for_a_destination_that_says_nothing() {
    let mut source = patient_source(true);
    let _ = source.on_event(Instant(20 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Precopy);
    pause(&mut source, 20 * S);
    // What it said before the pause is long ago; the pause is not.
    let _ = source.on_event(Instant(20 * S + 1), SourceEvent::Tick);
    let _ = source.on_event(Instant(21 * S), SourceEvent::Peer(Control::Alive));
    let _ = source.on_event(Instant(23 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Switchover);
    let actions = source.on_event(Instant(23 * S + 1), SourceEvent::Tick);
    assert!(tells_source(&actions), "{actions:?}");
    assert!(actions.contains(&SourceAction::ResumeVm), "{actions:?}");
}

/// An older one says that it lives every quarter of the silence only.
#[test]
fn one_that_does_not_promise_to_speak_is_waited_for() {
    let mut source = patient_source(false);
    pause(&mut source, S);
    let _ = source.on_event(Instant(29 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Switchover);
    let _ = source.on_event(Instant(31 * S), SourceEvent::Tick);
    assert_eq!(source.phase(), Phase::Aborted);
}

#[test]
fn patience_in_a_pause_follows_its_limit_and_not_beyond_the_silence() {
    let patience_s = |silence_s: u64, downtime_s: u64| {
        dwcp_proto::patience_in_pause_ns(silence_s * S, downtime_s * S) / S
    };
    assert_eq!(patience_s(30, 0), 2);
    assert_eq!(patience_s(30, 1), 2);
    assert_eq!(patience_s(30, 5), 10);
    assert_eq!(patience_s(30, 20), 30);
    assert_eq!(patience_s(1, 0), 1);
    assert_eq!(dwcp_proto::patience_in_pause_ns(S, u64::MAX), S);
}

#[test]
fn a_destination_speaks_while_the_guest_stands() {
    let mut destination = Destination::new(DestinationConfig { silence_ns: S });
    let offer = dwcp_wire::Offer {
        peer_silence_ms: 30_000,
        ..offer()
    };
    let ready = DestinationEvent::VmReady {
        token: 5,
        streams: 2,
        content_seed: None,
    };
    for event in [
        DestinationEvent::Peer(Control::Offer(offer)),
        ready,
        DestinationEvent::StreamsJoined,
    ] {
        let _ = destination.on_event(NOW, event);
    }
    let alive = [DestinationAction::Send(Control::Alive)];
    let later = |ms: u64| Instant(NOW.0 + ms * S / 1000);
    assert_eq!(
        destination.on_event(later(7000), DestinationEvent::Tick),
        []
    );
    let start = DestinationEvent::Peer(Control::SwitchoverStart);
    assert_eq!(destination.on_event(later(7000), start), []);
    assert_eq!(
        destination.on_event(later(7050), DestinationEvent::Tick),
        alive
    );
    assert_eq!(
        destination.on_event(later(7300), DestinationEvent::Tick),
        []
    );
    assert_eq!(
        destination.on_event(later(7350), DestinationEvent::Tick),
        alive
    );
}
