//! The link model alone, on times that the tests make up.
#![allow(missing_docs)]

use std::fs;

use dwcp_wan::model::{DropReason, Verdict, Way};
use dwcp_wan::params::{TraceSource, WayParams};
use dwcp_wan::units::QueueLimit;
use proptest::collection::vec;
use proptest::prelude::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn way(params: &WayParams, seed: u64) -> Way {
    Way::new(params, seed, 0, 0).unwrap()
}

/// Times and sizes: gaps of up to 2 ms, packets of 40 bytes to 9000.
fn arrivals() -> impl Strategy<Value = Vec<(u64, u32)>> {
    let steps = vec((0..2 * MS, 40..9000_u32), 1..400);
    steps.prop_map(|steps| {
        let mut now_ns = 0;
        let absolute = steps.into_iter().map(|(gap_ns, bytes)| {
            now_ns += gap_ns;
            (now_ns, bytes)
        });
        absolute.collect()
    })
}

fn params() -> impl Strategy<Value = WayParams> {
    let queue = prop_oneof![
        Just(QueueLimit::Auto),
        (1500..200_000_u64).prop_map(QueueLimit::Bytes),
        (0..100 * MS).prop_map(QueueLimit::Nanoseconds),
    ];
    let rate = prop_oneof![Just(None), (100_000..2_000_000_000_u64).prop_map(Some)];
    (rate, 0..100 * MS, 0..50 * MS, 0.0..0.5, queue).prop_map(
        |(rate_bit_per_s, delay_ns, jitter_ns, loss, queue)| WayParams {
            rate_bit_per_s,
            delay_ns,
            jitter_ns,
            loss,
            queue,
            ..WayParams::default()
        },
    )
}

/// Arrivals of what passed: offered at, bytes, arrives at, held back.
fn passed(way: &mut Way, offers: &[(u64, u32)]) -> Vec<(u64, u32, u64, bool)> {
    let verdicts = offers
        .iter()
        .map(|&(now_ns, bytes)| match way.offer(now_ns, bytes) {
            Verdict::Deliver { at_ns, is_late } => Some((now_ns, bytes, at_ns, is_late)),
            Verdict::Drop(_) => None,
        });
    verdicts.collect::<Vec<_>>().into_iter().flatten().collect()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn packets_stay_in_order_and_take_the_delay_at_least(
        params in params(), seed: u64, offers in arrivals(),
    ) {
        let mut last_ns = 0;
        for (now_ns, bytes, at_ns, is_late) in passed(&mut way(&params, seed), &offers) {
            let sending_ns = params.rate_bit_per_s
                .map_or(0, |rate| u64::from(bytes) * 8 * SECOND / rate);
            prop_assert!(!is_late);
            prop_assert!(at_ns >= last_ns, "{at_ns} before {last_ns}");
            prop_assert!(at_ns >= now_ns + sending_ns + params.delay_ns);
            last_ns = at_ns;
        }
    }

    #[test]
    fn the_rate_is_never_exceeded(
        rate in 100_000..2_000_000_000_u64, seed: u64, offers in arrivals(),
    ) {
        let params = WayParams { rate_bit_per_s: Some(rate), ..WayParams::default() };
        let passed = passed(&mut way(&params, seed), &offers);
        // From any packet's arrival to any later one's, what came after the first fits the rate.
        for (index, first) in passed.iter().enumerate().step_by(7) {
            let mut bits = 0;
            for later in &passed[index + 1..] {
                bits += u128::from(later.1) * 8;
                let window_ns = u128::from(later.2 - first.2);
                prop_assert!(bits * u128::from(SECOND) <= window_ns * u128::from(rate));
            }
        }
    }

    #[test]
    fn the_queue_stays_within_its_bound(params in params(), seed: u64, offers in arrivals()) {
        let mut way = way(&params, seed);
        for (now_ns, bytes) in offers {
            let (_, before_ns) = way.backlog(now_ns);
            let verdict = way.offer(now_ns, bytes);
            let (waiting_bytes, _) = way.backlog(now_ns);
            match params.queue {
                QueueLimit::Bytes(limit) => {
                    let is_alone = waiting_bytes == u64::from(bytes);
                    let has_passed = matches!(verdict, Verdict::Deliver { .. });
                    prop_assert!(!has_passed || is_alone || waiting_bytes <= limit);
                }
                QueueLimit::Nanoseconds(limit_ns) => {
                    let has_room = verdict != Verdict::Drop(DropReason::Queue);
                    prop_assert!(!has_room || verdict == Verdict::Drop(DropReason::Loss)
                        || before_ns <= limit_ns);
                }
                QueueLimit::Auto => {}
            }
            if params.rate_bit_per_s.is_none() {
                prop_assert_ne!(verdict, Verdict::Drop(DropReason::Queue));
            }
        }
    }

    #[test]
    fn the_same_seed_decides_the_same(
        mut params in params(), seed: u64, offers in arrivals(),
    ) {
        params.reorder = 0.1;
        let (mut one, mut other) = (way(&params, seed), way(&params, seed));
        for &(now_ns, bytes) in &offers {
            prop_assert_eq!(one.offer(now_ns, bytes), other.offer(now_ns, bytes));
        }
        prop_assert_eq!(one.counters(), other.counters());
    }

    #[test]
    fn every_packet_is_counted_once(mut params in params(), seed: u64, offers in arrivals()) {
        params.reorder = 0.1;
        let mut way = way(&params, seed);
        let passed = passed(&mut way, &offers);
        let counters = way.counters();
        prop_assert_eq!(counters.packets, offers.len() as u64);
        prop_assert_eq!(counters.passed_packets, passed.len() as u64);
        prop_assert_eq!(counters.packets, counters.passed_packets + counters.dropped_by_loss
            + counters.dropped_by_queue + counters.dropped_by_cut);
        let late = passed.iter().filter(|packet| packet.3).count();
        prop_assert_eq!(counters.held_back, late as u64);
    }
}

#[test]
fn losses_and_held_back_packets_are_as_many_as_asked() {
    let params = WayParams {
        loss: 0.01,
        reorder: 0.05,
        delay_ns: 20 * MS,
        ..WayParams::default()
    };
    let offers: Vec<_> = (0..200_000).map(|n| (n * 10_000, 1500)).collect();
    let mut way = way(&params, 3);
    let passed = passed(&mut way, &offers);
    let counters = way.counters();
    assert!(
        (1800..2200).contains(&counters.dropped_by_loss),
        "{counters:?}"
    );
    assert!((9500..10_300).contains(&counters.held_back), "{counters:?}");
    let late = passed.iter().find(|packet| packet.3).unwrap();
    assert_eq!(late.2, late.0 + 25 * MS, "a quarter of the delay later");
    let next = passed.iter().find(|packet| packet.0 > late.0).unwrap();
    assert!(next.2 < late.2, "the next one overtakes it");
}

#[test]
fn jitter_wanders_over_its_whole_range() {
    let params = WayParams {
        delay_ns: 10 * MS,
        jitter_ns: 8 * MS,
        ..WayParams::default()
    };
    let offers: Vec<_> = (0..100_000).map(|n| (n * 100_000, 100)).collect();
    let passed = passed(&mut way(&params, 1), &offers);
    let more: Vec<_> = passed
        .iter()
        .map(|packet| packet.2 - packet.0 - 10 * MS)
        .collect();
    let (least, most) = (more.iter().min().unwrap(), more.iter().max().unwrap());
    assert!(
        *least < MS && (7 * MS..=8 * MS).contains(most),
        "{least} {most}"
    );
    let mean = more.iter().sum::<u64>() / more.len() as u64;
    assert!((3 * MS..5 * MS).contains(&mean), "{mean}");
}

#[test]
fn a_full_queue_drops_the_newest() {
    let params = WayParams {
        rate_bit_per_s: Some(12_000_000),
        queue: QueueLimit::Bytes(3000),
        ..WayParams::default()
    };
    // A packet of 1500 bytes takes 1 ms.
    let mut way = way(&params, 1);
    let arrives = |at_ms| Verdict::Deliver {
        at_ns: at_ms * MS,
        is_late: false,
    };
    assert_eq!(way.offer(0, 1500), arrives(1));
    assert_eq!(way.offer(0, 1500), arrives(2));
    assert_eq!(way.offer(0, 1500), Verdict::Drop(DropReason::Queue));
    assert_eq!(way.offer(MS, 1500), arrives(3));
    assert_eq!(way.backlog(MS), (3000, 2 * MS));
    assert_eq!(
        way.offer(10 * MS, 9000),
        arrives(16),
        "alone, whatever its size"
    );
}

#[test]
fn a_change_holds_for_what_comes_and_keeps_the_order() {
    let mut params = WayParams {
        delay_ns: 100 * MS,
        ..WayParams::default()
    };
    let mut way = way(&params, 1);
    let arrives = |at_ms| Verdict::Deliver {
        at_ns: at_ms * MS,
        is_late: false,
    };
    assert_eq!(way.offer(0, 100), arrives(100));
    params.delay_ns = 10 * MS;
    way.change(&params, MS).unwrap();
    assert_eq!(
        way.offer(MS, 100),
        arrives(100),
        "not before the one that was sent before it"
    );
    assert_eq!(way.offer(95 * MS, 100), arrives(105));
}

#[test]
fn a_cut_lasts_as_long_as_asked() {
    let mut way = way(&WayParams::default(), 1);
    way.cut(10 * MS);
    assert_eq!(way.offer(9 * MS, 100), Verdict::Drop(DropReason::Cut));
    assert!(matches!(way.offer(10 * MS, 100), Verdict::Deliver { .. }));
    assert_eq!(way.counters().dropped_by_cut, 1);
}

#[test]
fn a_trace_paces_and_its_faults_leave_the_way_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rate.csv");
    fs::write(&path, "t_s,mbps\n0,12\n1,0\n2,24\n").unwrap();
    let source = TraceSource { path, name: None };
    let params = WayParams {
        trace: Some(source),
        ..WayParams::default()
    };
    let mut way = Way::new(&params, 1, 0, 5 * SECOND).unwrap();
    let arrives = |at_ns| Verdict::Deliver {
        at_ns,
        is_late: false,
    };
    assert_eq!(way.offer(5 * SECOND, 1500), arrives(5 * SECOND + MS));
    // Half of it before the outage, half after.
    let half_ms_before = 6 * SECOND - MS / 2;
    assert_eq!(
        way.offer(half_ms_before, 1500),
        arrives(7 * SECOND + MS / 4)
    );
    let missing = TraceSource {
        path: folder.path().join("none.csv"),
        name: None,
    };
    let bad = WayParams {
        trace: Some(missing),
        ..WayParams::default()
    };
    assert!(way.change(&bad, 7 * SECOND).is_err());
    assert_eq!(way.params(), &params);
}
