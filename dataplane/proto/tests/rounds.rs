//! Rounds follow each other, from 0 on.

mod common;

use common::*;
use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, Phase, RoundMeasure,
    Source, SourceAction, SourceEvent,
};
use dwcp_wire::{Control, KnownPages, Offer, PageQuestion, RoundSummary, WantedPages};

/// A destination whose streams are joined.
fn ready() -> Destination {
    ready_for(offer())
}

fn ready_for(offer: Offer) -> Destination {
    let mut destination = Destination::new(DestinationConfig {
        silence_ns: 2_000_000_000,
    });
    for event in [
        DestinationEvent::Peer(Control::Offer(offer)),
        DestinationEvent::VmReady {
            token: 5,
            streams: 2,
            content_seed: None,
        },
        DestinationEvent::StreamsJoined,
    ] {
        let _ = destination.on_event(NOW, event);
    }
    destination
}

fn receive(destination: &mut Destination, round: u32) -> Vec<DestinationAction> {
    let _ = destination.on_event(NOW, round_end(round, false));
    destination.on_event(NOW, round_applied(round))
}

/// Round 0 is the one after which nothing of what RAM held before may be left.
#[test]
fn the_first_round_is_round_0() {
    for round in [1, 2, u32::MAX] {
        assert!(aborts(&receive(&mut ready(), round)), "round {round}");
    }
    assert!(!aborts(&receive(&mut ready(), 0)));
}

#[test]
fn no_round_is_left_out_or_sent_twice() {
    for next in [0, 2, 3] {
        let mut destination = ready();
        let _ = receive(&mut destination, 0);
        assert!(aborts(&receive(&mut destination, next)), "round {next}");
    }
    let mut destination = ready();
    for round in 0..5 {
        assert!(!aborts(&receive(&mut destination, round)), "round {round}");
    }
}

/// A source that offers `reuse`, and a destination that has pages.
fn setting_up(reuse: bool, content_seed: Option<u64>) -> (Source, Vec<SourceAction>) {
    let mut config = source_config();
    config.offer.reuse = reuse;
    let mut source = Source::new(config);
    let _ = source.on_event(NOW, SourceEvent::Start);
    let _ = source.on_event(NOW, SourceEvent::Connected);
    let accept = Control::Accept {
        token: 5,
        streams: 2,
        content_seed,
    };
    let actions = source.on_event(NOW, SourceEvent::Peer(accept));
    (source, actions)
}

#[test]
fn round_0_waits_for_what_it_can_leave_out() {
    let (mut source, actions) = setting_up(true, Some(7));
    assert!(actions.contains(&SourceAction::AskForPages { seed: 7 }));
    for event in [
        SourceEvent::TrackerArmed,
        SourceEvent::Peer(Control::Ready),
        SourceEvent::StreamsOpen,
    ] {
        assert_eq!(source.on_event(NOW, event), []);
    }
    let found = KnownPages::none(0, 3, 1);
    let actions = source.on_event(NOW, SourceEvent::Peer(Control::Found(found.clone())));
    assert_eq!(actions, [SourceAction::TakeFound(found.clone())]);
    let actions = source.on_event(NOW, SourceEvent::MayBegin);
    assert!(matches!(
        actions[..],
        [SourceAction::StartRound { round: 0, .. }]
    ));
    let answer = || SourceEvent::Peer(Control::Found(found.clone()));
    let actions = source.on_event(NOW, answer());
    assert_eq!(actions, [SourceAction::TakeFound(found.clone())]);
    let _ = source.on_event(NOW, SourceEvent::RoundSent(RoundMeasure::default()));
    let _ = source.on_event(NOW, answer());
    assert_eq!(source.phase(), Phase::Aborted, "the round has ended");
}

/// A round trip less before the first page. The end of the round waits: the destination may not have all
/// streams yet.
#[test]
fn pages_do_not_wait_until_the_destination_is_ready() {
    let end_of = |actions: &[SourceAction]| {
        let ends = |action: &SourceAction| {
            matches!(
                action,
                SourceAction::Send(Control::RoundEnd { round: 0, .. })
            )
        };
        actions.iter().any(ends)
    };
    let (mut source, _) = setting_up(false, None);
    assert_eq!(source.on_event(NOW, SourceEvent::TrackerArmed), []);
    let actions = source.on_event(NOW, SourceEvent::StreamsOpen);
    assert!(matches!(
        actions[..],
        [SourceAction::StartRound { round: 0, .. }]
    ));
    let sent = SourceEvent::RoundSent(measure());
    assert_eq!(source.on_event(NOW, sent.clone()), []);
    let actions = source.on_event(NOW, SourceEvent::Peer(Control::Ready));
    assert!(end_of(&actions), "{actions:?}");
    // A lost mark is sent again, and its round ends once more.
    assert!(end_of(&source.on_event(NOW, sent)));
    let _ = source.on_event(NOW, SourceEvent::Peer(Control::Ready));
    assert_eq!(source.phase(), Phase::Aborted, "it is ready once");
}

#[test]
fn a_report_does_not_come_before_the_destination_is_ready() {
    let (mut source, _) = setting_up(false, None);
    for event in [
        SourceEvent::TrackerArmed,
        SourceEvent::StreamsOpen,
        SourceEvent::RoundSent(measure()),
        SourceEvent::Peer(round_report(0, vec![], false)),
    ] {
        let _ = source.on_event(NOW, event);
    }
    assert_eq!(source.phase(), Phase::Aborted);
}

#[test]
fn nothing_is_asked_of_a_destination_that_has_nothing() {
    let (mut source, actions) = setting_up(true, None);
    let asks = |action: &SourceAction| matches!(action, SourceAction::AskForPages { .. });
    assert!(!actions.iter().any(asks));
    let found = Control::Found(KnownPages::none(0, 3, 1));
    let _ = source.on_event(NOW, SourceEvent::Peer(found));
    assert_eq!(source.phase(), Phase::Aborted);
    let (source, _) = setting_up(false, Some(7));
    assert_eq!(source.phase(), Phase::Aborted, "it was not to look");
}

#[test]
fn pages_are_asked_for_until_round_0_ends_and_if_the_offer_says_so() {
    let questions = [
        PageQuestion::Wanted(WantedPages::new(0, 3, &[1, 2])),
        PageQuestion::Unchanged(KnownPages::none(0, 3, 2)),
    ];
    for question in &questions {
        for (reuse, rounds, is_taken) in [(true, 0, true), (true, 1, false), (false, 0, false)] {
            let mut destination = ready_for(Offer { reuse, ..offer() });
            for round in 0..rounds {
                let _ = receive(&mut destination, round);
            }
            let asked = DestinationEvent::Peer(question.clone().into());
            let actions = destination.on_event(NOW, asked);
            let finds =
                matches!(&actions[..], [DestinationAction::FindPages(found)] if found == question);
            assert_eq!(finds, is_taken, "{actions:?}");
            assert_eq!(aborts(&actions), !is_taken);
        }
    }
}

/// What a source says of a round that lost marks with its streams so often.
fn end_after(marks_again: u32, paused: bool) -> DestinationEvent {
    DestinationEvent::Peer(Control::RoundEnd {
        round: 0,
        sent: RoundSummary {
            marks_again,
            ..SENT
        },
        paused,
        root: ROOT,
    })
}

fn applied_after(marks_again: u32) -> DestinationEvent {
    DestinationEvent::RoundApplied {
        round: 0,
        applied: RoundSummary {
            marks_again,
            ..SENT
        },
        suspects: vec![],
        root: ROOT,
    }
}

/// Control and data are different connections: any of them may be heard first.
#[test]
fn an_end_of_a_round_that_a_broken_stream_outdated_is_replaced() {
    let orders: [&[DestinationEvent]; 3] = [
        &[end_after(0, false), end_after(1, false), applied_after(1)],
        &[end_after(0, false), applied_after(1), end_after(1, false)],
        &[applied_after(1), end_after(0, false), end_after(1, false)],
    ];
    for events in orders {
        let mut destination = ready();
        let (last, before) = events.split_last().unwrap();
        for event in before {
            let actions = destination.on_event(NOW, event.clone());
            assert!(actions.is_empty(), "{event:?}: {actions:?}");
        }
        let actions = destination.on_event(NOW, last.clone());
        assert!(!aborts(&actions) && actions.len() == 1, "{actions:?}");
        assert!(!aborts(&receive(&mut destination, 1)));
    }
}

#[test]
fn an_end_that_knows_of_more_marks_than_came_is_refused() {
    let mut destination = ready();
    let _ = destination.on_event(NOW, end_after(1, false));
    assert!(aborts(&destination.on_event(NOW, applied_after(0))));
    let mut destination = ready();
    let _ = destination.on_event(NOW, end_after(1, false));
    assert!(aborts(&destination.on_event(NOW, end_after(1, false))));
}

#[test]
fn a_source_says_anew_what_it_sent() {
    let again = RoundMeasure {
        sent: RoundSummary {
            marks_again: 1,
            ..SENT
        },
        ..measure()
    };
    let ends = |actions: &[SourceAction]| {
        let end = |action: &SourceAction| match action {
            SourceAction::Send(Control::RoundEnd { sent, paused, .. }) => Some((*sent, *paused)),
            _ => None,
        };
        actions.iter().filter_map(end).collect::<Vec<_>>()
    };
    let mut source = source_in_precopy();
    let _ = source.on_event(NOW, SourceEvent::RoundSent(measure()));
    let actions = source.on_event(NOW, SourceEvent::RoundSent(again));
    assert_eq!(ends(&actions), [(again.sent, false)]);
    // While the guest is paused: before the sample is read, and after.
    let mut source = source_in_switchover();
    let _ = source.on_event(NOW, SourceEvent::RoundSent(measure()));
    let actions = source.on_event(NOW, SourceEvent::RoundSent(again));
    assert!(actions.is_empty(), "{actions:?}");
    let actions = source.on_event(NOW, SourceEvent::SampleRead { missed: 0 });
    assert_eq!(ends(&actions), [(again.sent, true)]);
    let actions = source.on_event(NOW, SourceEvent::RoundSent(again));
    assert_eq!(ends(&actions), [(again.sent, true)]);
    assert!(!actions.contains(&SourceAction::SendDeviceState));
}
