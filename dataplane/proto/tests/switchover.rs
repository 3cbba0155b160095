//! The paused part at the source, and giving the guest back.

mod common;

use common::*;
use dwcp_proto::{Ending, JournalEntry, Phase, RESUME_TRIES_MAX, SourceAction, SourceEvent};
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
