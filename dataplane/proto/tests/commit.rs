//! The commit, and what a destination may say when it cannot be written.

mod common;

use common::*;
use dwcp_proto::{
    DestinationAction, DestinationEvent, Instant, JournalEntry, Phase, RESUME_TRIES_MAX,
};
use dwcp_wire::{AbortCode, Control};

fn journal_fails() -> DestinationEvent {
    DestinationEvent::Failed(AbortCode::Journal, "input/output error".into())
}

/// An error from the journal does not say that nothing was written. If the record is there after
/// all, a restart would run a guest that the source was told to resume.
#[test]
fn a_failed_commit_is_refused_durably_before_anybody_is_told() {
    let mut destination = destination_committing();
    let actions = destination.on_event(NOW, journal_fails());
    assert_eq!(actions, [DestinationAction::Journal(JournalEntry::Refused)]);
    assert_eq!(destination.phase(), Phase::Handover);

    let asked = destination.on_event(NOW, DestinationEvent::OwnerQuery);
    assert_eq!(asked, []);
    let actions = destination.on_event(NOW, DestinationEvent::Journaled(JournalEntry::Refused));
    assert_eq!(actions[0], DestinationAction::DiscardVm);
    assert!(aborts(&actions));
    assert!(actions.contains(&DestinationAction::AnswerOwner { committed: false }));
    assert_eq!(destination.phase(), Phase::Aborted);
}

/// It must not end before that: nobody would be left who discards the loaded copy.
#[test]
fn when_the_refusal_fails_too_it_is_tried_again_and_nobody_is_answered_before() {
    let mut destination = destination_committing();
    let _ = destination.on_event(NOW, journal_fails());
    assert_eq!(destination.on_event(NOW, journal_fails()), []);
    assert_eq!(destination.phase(), Phase::Handover);

    let soon = Instant(NOW.0 + 500_000_000);
    for event in [
        DestinationEvent::OwnerQuery,
        DestinationEvent::Cancel,
        DestinationEvent::PeerLost("reset".into()),
        DestinationEvent::Tick,
    ] {
        assert_eq!(destination.on_event(soon, event), []);
    }
    let later = Instant(NOW.0 + 1_000_000_000);
    let again = destination.on_event(later, DestinationEvent::Tick);
    let refuse = DestinationAction::Journal(JournalEntry::Refused);
    assert_eq!(again, [refuse]);
    // One try at a time.
    let much_later = Instant(later.0 * 10);
    assert_eq!(destination.on_event(much_later, DestinationEvent::Tick), []);

    let refused = DestinationEvent::Journaled(JournalEntry::Refused);
    let actions = destination.on_event(much_later, refused);
    assert_eq!(actions[0], DestinationAction::DiscardVm);
    let answer = DestinationAction::AnswerOwner { committed: false };
    assert!(actions.contains(&answer));
    assert_eq!(destination.phase(), Phase::Aborted);
    let asked = destination.on_event(much_later, DestinationEvent::OwnerQuery);
    assert_eq!(asked, [answer]);
}

/// A source that asks every second for a day must not fill the journal.
#[test]
fn a_refusal_is_written_once_however_often_somebody_asks() {
    let mut destination = destination_loaded();
    let _ = destination.on_event(NOW, DestinationEvent::Cancel);
    let refuse = DestinationAction::Journal(JournalEntry::Refused);
    let answer = DestinationAction::AnswerOwner { committed: false };
    let first = destination.on_event(NOW, DestinationEvent::OwnerQuery);
    assert_eq!(first, [refuse, answer.clone()]);
    let second = destination.on_event(NOW, DestinationEvent::OwnerQuery);
    assert_eq!(second, [answer]);
}

#[test]
fn a_long_reason_is_cut_so_that_it_can_be_sent() {
    let mut destination = destination_committing();
    let long = "x".repeat(5000);
    let failed = DestinationEvent::Failed(AbortCode::Journal, long);
    let mut actions = destination.on_event(NOW, failed);
    actions.extend(destination.on_event(NOW, DestinationEvent::Journaled(JournalEntry::Refused)));
    for action in actions {
        if let DestinationAction::Send(message) = action {
            dwcp_wire::encode_control(&message).expect("can be sent");
        }
    }
}

#[test]
fn an_owned_vm_that_does_not_run_is_still_owned() {
    let mut destination = destination_committing();
    let entry = JournalEntry::Committed { epoch: EPOCH + 1 };
    let _ = destination.on_event(NOW, DestinationEvent::Journaled(entry));
    for _ in 0..RESUME_TRIES_MAX {
        assert_eq!(destination.phase(), Phase::Handover);
        let dead = DestinationEvent::Failed(AbortCode::Vmm, "gone".into());
        let _ = destination.on_event(NOW, dead);
        let _ = destination.on_event(NOW, DestinationEvent::Tick);
    }
    assert_eq!(destination.phase(), Phase::Failed);
    let answer = destination.on_event(NOW, DestinationEvent::OwnerQuery);
    assert_eq!(answer, [DestinationAction::AnswerOwner { committed: true }]);
}

/// After the commit there is no other node that could run the guest.
#[test]
fn an_owned_vm_that_fails_to_run_once_is_run_again() {
    let mut destination = destination_committing();
    let entry = JournalEntry::Committed { epoch: EPOCH + 1 };
    let _ = destination.on_event(NOW, DestinationEvent::Journaled(entry));
    let busy = DestinationEvent::Failed(AbortCode::Vmm, "busy".into());
    assert_eq!(destination.on_event(NOW, busy), []);
    let again = destination.on_event(NOW, DestinationEvent::Tick);
    assert_eq!(again, [DestinationAction::ResumeVm]);
    assert_eq!(destination.on_event(NOW, DestinationEvent::Tick), []);
    let _ = destination.on_event(NOW, DestinationEvent::Resumed);
    assert_eq!(destination.phase(), Phase::Complete);
}

/// What was proven must be what runs: no page may come between the proof and the handover.
#[test]
fn no_round_is_taken_after_the_proof() {
    for event in [round_end(2, false), round_applied(2)] {
        let mut destination = destination_loaded();
        let actions = destination.on_event(NOW, event);
        assert!(aborts(&actions), "{actions:?}");
        assert_eq!(destination.phase(), Phase::Aborted);
    }
}

#[test]
fn a_handover_without_device_state_is_refused() {
    let mut destination = destination_proven();
    let handover = Control::Handover { epoch: EPOCH + 1 };
    let actions = destination.on_event(NOW, DestinationEvent::Peer(handover));
    assert!(aborts(&actions));
}

#[test]
fn a_question_before_the_commit_discards_then_answers_no() {
    let mut destination = destination_loaded();
    let actions = destination.on_event(NOW, DestinationEvent::OwnerQuery);
    assert_eq!(
        actions[..3],
        [
            DestinationAction::DiscardVm,
            DestinationAction::Journal(JournalEntry::Refused),
            DestinationAction::AnswerOwner { committed: false },
        ]
    );
}
