//! Suspect pages, however many, are all sent again.

mod common;

use common::*;
use dwcp_proto::{Destination, DestinationAction, DestinationConfig, DestinationEvent};
use dwcp_wire::limits::SUSPECT_RANGES_MAX;
use dwcp_wire::{Control, Offer, PageRange, RamBlockInfo, encode_control};

/// What was left out of a report would never be sent again, and fail the proof.
#[test]
fn more_suspects_than_a_report_has_room_for_are_covered_by_it() {
    let pages = 3 * SUSPECT_RANGES_MAX as u32;
    let offer = Offer {
        ram: vec![RamBlockInfo {
            name: "ram".into(),
            bytes: u64::from(pages) * 4096,
        }],
        ..offer()
    };
    let mut destination = Destination::new(DestinationConfig {
        silence_ns: 2_000_000_000,
    });
    let every_second = (0..pages).step_by(2).map(|page| PageRange {
        ram_block: 0,
        page,
        count: 1,
    });
    let suspects: Vec<_> = every_second.collect();
    let mut actions = vec![];
    for event in [
        DestinationEvent::Peer(Control::Offer(offer)),
        DestinationEvent::VmReady {
            token: 5,
            streams: 2,
            content_seed: None,
        },
        DestinationEvent::StreamsJoined,
        round_end(0, false),
        DestinationEvent::RoundApplied {
            round: 0,
            applied: SENT,
            suspects: suspects.clone(),
            root: ROOT,
        },
    ] {
        actions = destination.on_event(NOW, event);
    }
    let [DestinationAction::Send(report)] = &actions[..] else {
        panic!("{actions:?}");
    };
    encode_control(report).expect("it can be sent");
    let Control::RoundReport { suspects: told, .. } = report else {
        panic!("{report:?}");
    };
    let is_told = |suspect: &PageRange| {
        told.iter()
            .any(|range| (range.page..range.page + range.count).contains(&suspect.page))
    };
    assert!(suspects.iter().all(is_told));
    assert!(told.iter().all(|range| range.page + range.count <= pages));
}
