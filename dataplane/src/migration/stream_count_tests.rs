use super::*;

const TICK: Duration = Duration::from_millis(200);

/// A path as the kernel shows it, and a migration over it.
struct Path {
    count: StreamCount,
    at: Instant,
    carried: Carried,
    changes: Vec<u16>,
}

impl Path {
    fn new(count: StreamCount, rtt_ms: u64) -> Self {
        Self {
            count,
            at: Instant::now(),
            carried: Carried {
                is_limited: true,
                rtt: Duration::from_millis(rtt_ms),
                ..Carried::default()
            },
            changes: vec![],
        }
    }

    /// Carries for so long, as many Mbit/s as that many streams do; `resent` of the bytes are sent twice.
    fn carry(&mut self, seconds: u64, resent: f64, mbit: impl Fn(u16) -> f64) {
        self.carry_for(Duration::from_secs(seconds), resent, mbit);
    }

    fn carry_for(&mut self, time: Duration, resent: f64, mbit: impl Fn(u16) -> f64) {
        for _ in 0..time.as_millis() / TICK.as_millis() {
            self.at += TICK;
            let bytes = mbit(self.count.now()) * 1e6 / 8.0 * TICK.as_secs_f64();
            self.carried.acked_bytes += bytes as u64;
            self.carried.sent_bytes += (bytes * (1.0 + resent)) as u64;
            self.carried.resent_bytes += (bytes * resent) as u64;
            self.changes.extend(self.count.read(self.at, self.carried));
        }
    }
}

#[test]
fn a_path_that_gives_each_connection_so_much_gets_as_many_as_it_takes() {
    let mut path = Path::new(StreamCount::new(1, 32, false), 100);
    path.carry(12, 0.001, |streams| (13.0 * f64::from(streams)).min(200.0));
    assert_eq!(path.changes, [8, 16, 32, 16]);
    let text = path.count.explain().unwrap();
    assert_eq!(
        text,
        "streams in use at the end 16 of 32; Mbit/s by streams, as they were measured: 4: 52, 8: 104, \
         16: 200, 32: 200, 16: 200"
    );
}

#[test]
fn where_more_do_not_help_they_are_tried_seldom() {
    let mut path = Path::new(StreamCount::new(1, 32, false), 50);
    path.carry(120, 0.0, |_| 94.0);
    let trials = path.changes.iter().filter(|count| **count == 8).count();
    assert!((3..=6).contains(&trials), "{:?}", path.changes);
    assert_eq!(path.count.now(), 4);
}

#[test]
fn streams_that_crowd_each_other_are_fewer() {
    let mut path = Path::new(StreamCount::new(1, 32, false), 50);
    path.carry(120, 0.08, |streams| 100.0 - f64::from(streams));
    assert!(path.count.now() <= 2, "{:?}", path.changes);
    // Not because packets are lost: each of them loses its share.
    let mut path = Path::new(StreamCount::new(1, 32, false), 50);
    path.carry(120, 0.08, |streams| 3.0 * f64::from(streams));
    assert_eq!(path.count.now(), 32, "{:?}", path.changes);
}

#[test]
fn a_path_that_changes_is_measured_again() {
    let mut path = Path::new(StreamCount::new(1, 32, false), 50);
    path.carry(20, 0.0, |_| 94.0);
    assert_eq!(path.count.now(), 4);
    path.carry(60, 0.01, |streams| 5.0 * f64::from(streams));
    assert_eq!(path.count.now(), 32, "{:?}", path.changes);
}

#[test]
fn nothing_is_tried_while_something_else_is_the_limit() {
    let mut path = Path::new(StreamCount::new(2, 32, true), 1);
    assert_eq!(path.count.now(), 2);
    path.carried.is_limited = false;
    path.carry(60, 0.0, |streams| 13.0 * f64::from(streams));
    assert!(path.changes.is_empty(), "{:?}", path.changes);
    assert_eq!(path.count.explain(), None);
}

/// Between two rounds nothing is sent: that is nobody's speed.
#[test]
fn the_time_between_rounds_does_not_mislead_it() {
    let mut path = Path::new(StreamCount::new(4, 32, false), 50);
    for turn in 0..100 {
        path.carried.is_limited = false;
        path.at += Duration::from_millis(130 + 40 * (turn % 5));
        path.carry_for(Duration::from_millis(200), 0.0, |_| 0.0);
        path.carried.is_limited = true;
        path.carry_for(Duration::from_millis(800), 0.0, |_| 94.0);
    }
    assert!(!path.changes.contains(&16), "{:?}", path.changes);
}

/// What is lost may be why more are needed: that is tried again, too.
#[test]
fn crowded_streams_may_become_more() {
    let mut path = Path::new(StreamCount::new(4, 32, false), 50);
    path.carry(60, 0.08, |streams| 12.0 * f64::from(streams.min(8)));
    path.carry(400, 0.08, |streams| 12.0 * f64::from(streams));
    assert_eq!(path.count.now(), 32, "{:?}", path.changes);
}

#[test]
fn a_replaced_stream_counts_for_nothing() {
    let mut path = Path::new(StreamCount::new(1, 32, false), 50);
    for _ in 0..20 {
        path.carry(1, 0.0, |_| 94.0);
        // Its successor begins at nothing.
        path.carried.acked_bytes = 0;
    }
    let goodputs = path
        .count
        .measured
        .iter()
        .map(|(_, goodput)| goodput * 8.0 / 1e6);
    let goodputs: Vec<_> = goodputs.collect();
    assert!(goodputs.len() > 1);
    assert!(
        goodputs.iter().all(|mbit| (93.0..95.0).contains(mbit)),
        "{goodputs:?}"
    );
}

proptest::proptest! {
    /// Whatever the kernel says, the count stays within its bounds.
    #[test]
    fn bounds_are_kept(
        least in 1u16..5,
        more in 0u16..28,
        readings in proptest::collection::vec(
            (0u64..1 << 40, 0u64..1 << 40, 0u64..1 << 40, 0u64..2000, proptest::bool::ANY, 0u64..4000), 0..200),
    ) {
        let mut count = StreamCount::new(least, least + more, false);
        let mut at = Instant::now();
        for (acked_bytes, sent_bytes, resent_bytes, rtt_ms, is_limited, pause_ms) in readings {
            at += Duration::from_millis(pause_ms);
            let rtt = Duration::from_millis(rtt_ms);
            let carried = Carried { acked_bytes, sent_bytes, resent_bytes, rtt, is_limited, connections: 32 };
            let changed = count.read(at, carried);
            proptest::prop_assert!(changed.is_none_or(|new| new == count.now()));
            proptest::prop_assert!((least..=least + more).contains(&count.now()));
        }
    }
}
