//! Rounds follow each other, from 0 on.

mod common;

use common::*;
use dwcp_proto::{
    Destination, DestinationAction, DestinationConfig, DestinationEvent, Phase, Source,
    SourceAction, SourceEvent,
};
use dwcp_wire::{Control, HeldPages};

/// A destination whose streams are joined.
fn ready() -> Destination {
    let mut destination = Destination::new(DestinationConfig {
        silence_ns: 2_000_000_000,
    });
    for event in [
        DestinationEvent::Peer(Control::Offer(offer())),
        DestinationEvent::VmReady {
            token: 5,
            streams: 2,
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

/// What the destination holds is told before it is ready, and only when it was asked for.
#[test]
fn held_pages_come_before_ready_and_when_asked_for() {
    let held = || {
        let fingerprint = dwcp_simd::Fingerprint { lo: 1, hi: 2 };
        SourceEvent::Peer(Control::Held(HeldPages::new(0, 3, &[fingerprint])))
    };
    for (tell_held, is_ready, is_taken) in [
        (true, false, true),
        (true, true, false),
        (false, false, false),
    ] {
        let mut config = source_config();
        config.offer.tell_held = tell_held;
        let mut source = Source::new(config);
        let accept = Control::Accept {
            token: 5,
            streams: 2,
        };
        let mut events = vec![
            SourceEvent::Start,
            SourceEvent::Connected,
            SourceEvent::Peer(accept),
        ];
        events.extend(is_ready.then_some(SourceEvent::Peer(Control::Ready)));
        for event in events {
            let _ = source.on_event(NOW, event);
        }
        let actions = source.on_event(NOW, held());
        let taken = matches!(&actions[..], [SourceAction::TakeHeld(held)] if held.page == 3);
        assert_eq!(taken, is_taken, "{actions:?}");
        let is_over = source.phase() == Phase::Aborted;
        assert_eq!(is_over, !is_taken);
    }
}
