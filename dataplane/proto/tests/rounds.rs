//! Rounds follow each other, from 0 on.

mod common;

use common::*;
use dwcp_proto::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
use dwcp_wire::Control;

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
