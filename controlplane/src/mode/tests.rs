use std::path::Path;
use std::process::Command;

use super::*;

/// Between samples.
const STEP: Duration = Duration::from_millis(200);

/// A path that is made up.
#[derive(Clone, Copy)]
struct PathKind {
    rtt_ms: f64,
    /// Deviation of the round trip, as a part of it.
    jitter: f64,
    loss: f64,
    bytes_per_s: f64,
}

const fn kind(rtt_ms: f64, jitter: f64, loss: f64, bytes_per_s: f64) -> PathKind {
    PathKind {
        rtt_ms,
        jitter,
        loss,
        bytes_per_s,
    }
}

const RACK: PathKind = kind(0.2, 0.4, 0.0, 1.2e9);
const METRO: PathKind = kind(12.0, 0.05, 1e-5, 600e6);
const OCEAN: PathKind = kind(150.0, 0.02, 1e-5, 100e6);
const LOSSY: PathKind = kind(20.0, 0.05, 4e-3, 60e6);
const MOBILE: PathKind = kind(35.0, 0.6, 1e-4, 1e6);
const SLOW_LAN: PathKind = kind(0.4, 0.2, 0.0, 12e6);

/// A detector, a clock and a path.
struct Walk {
    detector: Detector,
    now: Duration,
    state: u64,
    sent: f64,
    lost: f64,
}

impl Walk {
    fn new(mode: Mode, seed: u64) -> Self {
        Self {
            detector: Detector::new(mode),
            now: Duration::ZERO,
            state: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1,
            sent: 0.0,
            lost: 0.0,
        }
    }

    /// Between 0 and 1.
    fn chance(&mut self) -> f64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        (self.state >> 11) as f64 / (1_u64 << 53) as f64
    }

    fn sample(&mut self, path: &PathKind) -> PathSample {
        // Sum of three: nearly normal, with a deviation of a half.
        let noise = self.chance() + self.chance() + self.chance() - 1.5;
        let rtt_ms = path.rtt_ms * (1.0 + path.jitter * noise).max(0.1);
        let sent = path.bytes_per_s * STEP.as_secs_f64();
        self.sent += sent;
        self.lost += sent * path.loss * 2.0 * self.chance();
        PathSample {
            rtt_us: (rtt_ms * 1000.0) as u64,
            rtt_var_us: (path.rtt_ms * path.jitter * 1000.0 * (0.7 + 0.6 * self.chance())) as u64,
            delivery_bytes_per_s: (path.bytes_per_s * (0.8 + 0.4 * self.chance())) as u64,
            is_app_limited: self.chance() < 0.2,
            sent_bytes: self.sent as u64,
            retransmitted_bytes: self.lost as u64,
        }
    }

    /// Goes on for some seconds; returns when the mode changed, and to what.
    fn go(&mut self, path: &PathKind, seconds: f64) -> Vec<(f64, Mode)> {
        let (began, mut changes) = (self.now, vec![]);
        while self.now < began + Duration::from_secs_f64(seconds) {
            self.now += STEP;
            let sample = self.sample(path);
            if let Some(finding) = self.detector.observe(self.now, &sample) {
                changes.push(((self.now - began).as_secs_f64(), finding.mode));
            }
        }
        changes
    }
}

#[test]
fn each_kind_of_path_is_known() {
    let kinds = [
        (RACK, Mode::Datacenter),
        (METRO, Mode::Hybrid),
        (SLOW_LAN, Mode::Hybrid),
        (OCEAN, Mode::Internet),
        (LOSSY, Mode::Internet),
        (MOBILE, Mode::Internet),
    ];
    for (path, mode) in kinds {
        for from in [Mode::Datacenter, Mode::Hybrid, Mode::Internet] {
            for seed in 1..20 {
                let mut walk = Walk::new(from, seed);
                let changes = walk.go(&path, 60.0);
                assert_eq!(walk.detector.mode(), mode, "{from} {seed}: {changes:?}");
                // Loss shows later than length.
                assert!(changes.len() <= 2, "{from} {seed}: {changes:?}");
            }
        }
    }
}

#[test]
fn a_path_that_changes_is_seen_within_two_seconds() {
    let paths = [
        (RACK, Mode::Datacenter),
        (METRO, Mode::Hybrid),
        (OCEAN, Mode::Internet),
    ];
    for seed in 1..50 {
        for (before, from) in paths {
            for (after, to) in paths {
                let mut walk = Walk::new(from, seed);
                assert_eq!(walk.go(&before, 30.0), []);
                let changes = walk.go(&after, 10.0);
                match changes[..] {
                    [] => assert_eq!(from, to),
                    [(at, mode)] => assert!(mode == to && at < 2.0, "{changes:?}"),
                    _ => panic!("{changes:?}"),
                }
            }
        }
    }
}

#[test]
fn at_a_boundary_it_does_not_flap() {
    for rtt_ms in [2.0, 50.0] {
        for rate in [20e6, 1e9] {
            for seed in 1..30 {
                let path = kind(rtt_ms, 0.25, 1e-5, rate);
                let changes = Walk::new(Mode::Hybrid, seed).go(&path, 600.0);
                assert!(changes.len() <= 2, "{rtt_ms} ms, {rate}: {changes:?}");
            }
        }
    }
    for seed in 1..30 {
        let path = kind(20.0, 0.1, 1e-3, 100e6);
        let changes = Walk::new(Mode::Hybrid, seed).go(&path, 600.0);
        assert!(changes.len() <= 2, "{changes:?}");
    }
}

#[test]
fn one_that_goes_back_and_forth_is_left_alone_for_longer() {
    let mut walk = Walk::new(Mode::Hybrid, 7);
    let mut changes = 0;
    for _ in 0..30 {
        changes += walk.go(&OCEAN, 10.0).len();
        changes += walk.go(&METRO, 10.0).len();
    }
    // Twenty seconds long each, sixty changes of the path.
    assert!((2..=14).contains(&changes), "{changes}");
}

#[test]
fn one_burst_of_losses_is_no_lossy_path() {
    // Slow start that went too far: half a megabyte at once, then none.
    for seed in 1..20 {
        let mut walk = Walk::new(Mode::Hybrid, seed);
        walk.go(&METRO, 0.4);
        walk.lost += 700_000.0;
        assert_eq!(walk.go(&METRO, 30.0), []);
    }
}

#[test]
fn connections_that_were_opened_anew_are_no_loss() {
    let mut walk = Walk::new(Mode::Hybrid, 3);
    walk.go(&METRO, 20.0);
    (walk.sent, walk.lost) = (0.0, 0.0);
    assert_eq!(walk.go(&METRO, 20.0), []);
}

/// Round trips between 63 regions of three clouds: smallest, mean, deviation; ms.
fn cloud_round_trips(file: &Path) -> Vec<(f64, f64)> {
    let output = Command::new("gzip").arg("-dc").arg(file).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let row = |line: &str| {
        let fields: Vec<_> = line.split(',').collect();
        // Some have no deviation.
        Some((
            fields.get(3)?.parse().ok()?,
            fields.get(5)?.parse().unwrap_or(0.0),
        ))
    };
    text.lines().filter_map(row).collect()
}

#[test]
fn paths_between_clouds_are_known() {
    let file = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../../shared/data/topology/cloud_rtt_2022.csv.gz");
    if !file.is_file() {
        eprintln!("skipped: no ../shared/data");
        return;
    }
    let trips = cloud_round_trips(&file);
    assert!(trips.len() > 4000);
    let mut right = 0;
    for (index, (rtt_ms, deviation_ms)) in trips.iter().enumerate() {
        let path = kind(*rtt_ms, deviation_ms / rtt_ms, 1e-5, 50e6);
        let truth = match rtt_ms {
            _ if *rtt_ms > 50.0 || path.jitter > INTERNET_JITTER => Mode::Internet,
            _ => Mode::Hybrid,
        };
        let mut walk = Walk::new(Mode::Hybrid, index as u64);
        let first = walk.sample(&path);
        walk.detector = Detector::new(Detector::first(&first).mode);
        let changes = walk.go(&path, 30.0);
        right += usize::from(walk.detector.mode() == truth && changes.len() <= 1);
    }
    let share = right as f64 / trips.len() as f64;
    assert!(share >= 0.98, "{share:.4}");
}
