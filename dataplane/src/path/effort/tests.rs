use super::*;

const FRAME_BYTES: u64 = 512 << 10;

/// What the sockets of a worker take.
const ROOM_BYTES: u64 = 4 << 20;

/// Pages that are sent without a codec, GB/s.
const RAW: f64 = 4.0;

/// Codec speed in GB/s, and how many times smaller pages get; after raw.
type Codec = [(f64, f64); EFFORTS.len()];

const TYPICAL: Codec = [
    (f64::INFINITY, 1.0),
    (0.5, 3.4),
    (0.33, 4.5),
    (0.28, 4.65),
    (0.22, 4.8),
    (0.18, 5.1),
];

/// A worker, its sockets and a link.
struct Road {
    chooser: EffortChooser,
    start: Instant,
    now: f64,
    /// When the link will have sent all that is queued.
    sent: f64,
    link: f64,
}

impl Road {
    fn new(link: f64, is_short: bool) -> Self {
        Self {
            chooser: EffortChooser::new(ROOM_BYTES, is_short, 1.0, Prefer::Time),
            start: Instant::now(),
            now: 0.0,
            sent: 0.0,
            link,
        }
    }

    fn frame(&mut self, codec: &Codec) {
        let (speed, ratio) = codec[self.chooser.at];
        let encoding = FRAME_BYTES as f64 / speed / 1e9;
        self.now += encoding + FRAME_BYTES as f64 / RAW / 1e9;
        let wire_bytes = FRAME_BYTES as f64 / ratio;
        self.sent = self.sent.max(self.now) + wire_bytes / self.link;
        let wait = self.sent - ROOM_BYTES as f64 / self.link - self.now;
        let frame = BuiltFrame {
            page_bytes: FRAME_BYTES,
            wire_bytes: wire_bytes as u64,
            encoding: Duration::from_secs_f64(encoding),
        };
        let now = self.start + Duration::from_secs_f64(self.now);
        self.chooser.built(now, &frame);
        if wait > 0.0 {
            self.now += wait;
            self.chooser.waited(Duration::from_secs_f64(wait));
        }
    }

    /// Bytes of pages that left within a time.
    fn go(&mut self, codec: &Codec, seconds: f64) -> f64 {
        let (end, mut frames) = (self.now + seconds, 0);
        while self.now < end {
            self.frame(codec);
            frames += 1;
        }
        (frames * FRAME_BYTES) as f64
    }
}

fn speed(codec: &Codec, at: usize, link: f64) -> f64 {
    let busy = 1.0 / (RAW * 1e9) + 1.0 / (codec[at].0 * 1e9);
    1.0 / busy.max(1.0 / codec[at].1 / link)
}

fn best(codec: &Codec, link: f64) -> f64 {
    let speeds = (0..EFFORTS.len()).map(|at| speed(codec, at, link));
    speeds.fold(0.0, f64::max)
}

const LINKS: [f64; 9] = [
    1.25e6, 12.5e6, 62.5e6, 125e6, 200e6, 500e6, 1250e6, 3000e6, 10_000e6,
];

#[test]
fn it_is_near_the_best_on_every_link() {
    for link in LINKS {
        for is_short in [false, true] {
            let mut road = Road::new(link, is_short);
            road.go(&TYPICAL, 10.0);
            let share = road.go(&TYPICAL, 20.0) / 20.0 / best(&TYPICAL, link);
            let effort = road.chooser.effort();
            assert!(share > 0.95, "{link} B/s: {share:.3} at {effort:?}");
        }
    }
}

#[test]
fn it_is_there_within_a_second() {
    for is_short in [false, true] {
        // A long path that carries more than a gigabit is found out step by step.
        let links = if is_short { 1..LINKS.len() } else { 1..5 };
        for link in LINKS[links].iter().copied() {
            let mut road = Road::new(link, is_short);
            let share = road.go(&TYPICAL, 1.5) / 1.5 / best(&TYPICAL, link);
            assert!(share > 0.8, "{link} B/s, {is_short}: {share:.3}");
        }
    }
}

#[test]
fn over_a_short_fast_link_nothing_is_ever_encoded() {
    let mut road = Road::new(10_000e6, true);
    for _ in 0..20_000 {
        road.frame(&TYPICAL);
        assert_eq!(road.chooser.effort(), Effort::Raw);
    }
}

#[test]
fn what_does_not_shrink_costs_no_more_than_raw() {
    let codec = TYPICAL.map(|(speed, _)| (speed, 1.0));
    for link in LINKS {
        let mut road = Road::new(link, true);
        road.go(&codec, 5.0);
        let share = road.go(&codec, 30.0) / 30.0 / speed(&codec, 0, link);
        assert!(share > 0.99, "{link} B/s: {share:.4}");
    }
}

#[test]
fn a_codec_that_is_not_what_was_foretold_is_found_out() {
    // Long-distance matching finds nothing here, and costs much.
    let mut codec = TYPICAL;
    for (at, of_it) in codec.iter_mut().enumerate().skip(3) {
        *of_it = (0.05 - at as f64 / 1000.0, 4.5);
    }
    for link in LINKS {
        let mut road = Road::new(link, false);
        road.go(&codec, 10.0);
        let share = road.go(&codec, 20.0) / 20.0 / best(&codec, link);
        let effort = road.chooser.effort();
        assert!(share > 0.93, "{link} B/s: {share:.3} at {effort:?}");
    }
}

/// As fast as may be, but never by sending more.
#[test]
fn where_bytes_count_they_are_few() {
    for link in LINKS {
        let mut road = Road::new(link, true);
        road.chooser = EffortChooser::new(ROOM_BYTES, true, 1.0, Prefer::Bytes);
        for _ in 0..20_000 {
            road.frame(&TYPICAL);
            assert!(road.chooser.at >= FIRST, "{link} B/s");
        }
        let speeds = (FIRST..EFFORTS.len()).map(|at| speed(&TYPICAL, at, link));
        let best = speeds.fold(0.0, f64::max);
        let share = road.go(&TYPICAL, 20.0) / 20.0 / best;
        assert!(share > 0.95, "{link} B/s: {share:.3}");
    }
}

/// RAM that does not shrink, and then some that does.
#[test]
fn it_follows_pages_that_change() {
    let random = TYPICAL.map(|(speed, _)| (speed, 1.0));
    for link in [12.5e6, 62.5e6] {
        for is_short in [false, true] {
            let mut road = Road::new(link, is_short);
            road.go(&random, 20.0);
            road.go(&TYPICAL, 10.0);
            let share = road.go(&TYPICAL, 20.0) / 20.0 / best(&TYPICAL, link);
            let effort = road.chooser.effort();
            assert!(share > 0.9, "{link} B/s: {share:.3} at {effort:?}");
        }
    }
}

/// Pages that shrink now more, now less: with a CPU that waits for the link, the hardest effort is kept.
#[test]
fn pages_of_many_kinds_do_not_mislead_it() {
    let kinds = [0.3, 1.0, 0.5, 1.6, 0.1, 0.8];
    let mut road = Road::new(12.5e6, false);
    let mut hardest = 0;
    for turn in 0..600 {
        let kind = kinds[turn % kinds.len()];
        let codec = TYPICAL.map(|(speed, ratio)| (speed, ratio.powf(kind)));
        road.go(&codec, 0.1);
        hardest += u32::from(turn >= 100 && road.chooser.at + 1 == EFFORTS.len());
    }
    assert!(hardest > 400, "{hardest} of 500");
}

#[test]
fn it_follows_a_link_that_changes() {
    let mut road = Road::new(12.5e6, false);
    road.go(&TYPICAL, 10.0);
    for link in [1250e6, 12.5e6, 125e6] {
        road.link = link;
        road.go(&TYPICAL, 30.0);
        let share = road.go(&TYPICAL, 10.0) / 10.0 / best(&TYPICAL, link);
        let effort = road.chooser.effort();
        assert!(share > 0.9, "{link} B/s: {share:.3} at {effort:?}");
    }
}

#[test]
fn a_pause_is_nobodys_fault() {
    let mut chooser = EffortChooser::new(ROOM_BYTES, false, 1.0, Prefer::Time);
    let mut now = Instant::now();
    for frame in 0..2000 {
        now += Duration::from_millis(10);
        if frame % 4 == 3 {
            chooser.paused();
            now += Duration::from_secs(60);
        }
        let built = BuiltFrame {
            page_bytes: FRAME_BYTES,
            wire_bytes: FRAME_BYTES,
            encoding: Duration::from_millis(1),
        };
        chooser.built(now, &built);
    }
    // No interval was ever long enough to be judged.
    assert_eq!(chooser.effort(), EFFORTS[FIRST]);
}
