//! Bytes damaged on the way, connections cut anywhere: the guest goes on at exactly one node, and
//! never with a page that is not what it wrote.

mod common;

use std::ops::Range;

use common::proxy::{self, Harm, Part, Plan, Proxy, Way};
use common::{Random, TestGuest, TestNode, node, settings, small, wait};
use dwcp_api::{Codec, MigrationId, MigrationReport, RunResult, SendChoice, TransferSettings};
use tempfile::TempDir;

const STREAMS: u16 = 2;

const CONTROL: Range<usize> = proxy::CONTROL..proxy::CONTROL + 1;
const DATA: Range<usize> = proxy::data(0)..proxy::data(STREAMS);
const DEVICE: Range<usize> = proxy::DEVICE..proxy::DEVICE + 1;

/// Two nodes for many migrations.
struct Pair {
    folder: TempDir,
    a: TestNode,
    b: TestNode,
}

/// What came of one migration through a proxy.
struct Moved {
    report: MigrationReport,
    harmed: bool,
}

impl Pair {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let a = node(folder.path(), "a", &settings());
        let b = node(folder.path(), "b", &settings());
        Self { folder, a, b }
    }

    /// Moves a new guest from a to b under `plan` and checks what must hold whatever happens: it
    /// runs at one node, the one that the reports name, and all of its pages are right.
    fn moves(&self, seed: u64, plan: &Plan, codec: Codec) -> Moved {
        let vm = format!("vm{seed}");
        let folder = self.folder.path();
        let old = TestGuest::start(folder, &format!("{vm}-a"), &small(seed, false));
        let new = TestGuest::start(folder, &format!("{vm}-b"), &small(seed, true));
        self.a.node.attach(&vm, old.attachment.clone()).unwrap();
        self.b.node.attach(&vm, new.attachment.clone()).unwrap();
        let proxy = Proxy::start(&self.b.address, plan.clone());
        let settings = TransferSettings {
            streams: STREAMS,
            codec,
            // By reference the guest's own writes make pages suspect too; here the harm is counted.
            send: SendChoice::Copy,
            ..settings()
        };
        let id = MigrationId(u128::from(seed) + 1);
        let started = self
            .a
            .node
            .start_migration(id, &vm, &proxy.address, settings, false);
        started.unwrap();
        let report = wait(&self.a.node, id);
        let harmed = proxy.has_harmed();
        let place = format!("seed {seed}, {plan:?}, harmed {harmed}: {}", report.reason);
        // A destination that never understood the offer knows of no migration.
        let there = self.b.node.migration(id).map(|_| wait(&self.b.node, id));
        let (here, runs, stands) = match report.result {
            RunResult::Completed => ("destination", &new, &old),
            RunResult::Aborted => ("source", &old, &new),
            RunResult::Failed | RunResult::DryRun => panic!("{place}"),
        };
        assert!(runs.is_running(), "{place}: the guest runs nowhere");
        assert!(!stands.is_running(), "{place}: the guest runs twice");
        assert_eq!(report.owner, here, "{place}");
        assert_eq!(runs.bad_pages(), 0, "{place}");
        if let Some(there) = there {
            assert_eq!(there.owner, here, "{place}, there: {}", there.reason);
        }
        assert!(harmed || report.result == RunResult::Completed, "{place}");
        Moved { report, harmed }
    }
}

fn codec(random: &mut Random) -> Codec {
    let window = Codec::Window {
        level: 1,
        window_bytes: 1 << 20,
    };
    random.pick(&[Codec::Raw, Codec::Zstd { level: 1 }, window])
}

fn flip(random: &mut Random, frames: u64, part: Part) -> Harm {
    Harm::Flip {
        frame: random.below(frames) as usize,
        part,
        seed: random.next(),
    }
}

#[test]
fn damaged_page_data_is_sent_again() {
    let pair = Pair::new();
    for seed in 0..24 {
        let random = &mut Random::new(seed);
        let plan = Plan {
            connections: DATA,
            way: Way::ToDestination,
            harm: flip(random, 8, Part::Data),
        };
        let Moved { report, harmed } = pair.moves(seed, &plan, Codec::Raw);
        assert!(harmed, "seed {seed}: {plan:?}");
        let place = format!("seed {seed}, {plan:?}: {report:?}");
        assert_eq!(report.result, RunResult::Completed, "{place}");
        let suspects = report.round_reports.iter().map(|round| round.suspect_pages);
        assert_eq!(suspects.sum::<u64>(), 1, "{place}");
    }
}

#[test]
fn damaged_compressed_data_is_sent_again() {
    let pair = Pair::new();
    let mut suspects = 0;
    for seed in 0..16 {
        let random = &mut Random::new(seed);
        let plan = Plan {
            connections: DATA,
            way: Way::ToDestination,
            harm: flip(random, 8, Part::Data),
        };
        let Moved { report, harmed } = pair.moves(seed, &plan, Codec::Zstd { level: 1 });
        assert!(harmed, "seed {seed}: {plan:?}");
        assert_eq!(
            report.result,
            RunResult::Completed,
            "seed {seed}: {}",
            report.reason
        );
        // A bit that the format ignores harms nothing; most are not of that kind.
        suspects += report
            .round_reports
            .iter()
            .map(|round| round.suspect_pages)
            .sum::<u64>();
    }
    assert!(suspects >= 8, "{suspects}");
}

#[test]
fn a_damaged_header_or_table_ends_the_migration_at_the_source() {
    let pair = Pair::new();
    for seed in 0..24 {
        let random = &mut Random::new(seed);
        let part = random.pick(&[Part::Header, Part::Table]);
        let plan = Plan {
            connections: DATA,
            way: Way::ToDestination,
            harm: flip(random, 8, part),
        };
        let Moved { report, harmed } = pair.moves(seed, &plan, codec(random));
        assert!(harmed, "seed {seed}: {plan:?}");
        assert_eq!(report.result, RunResult::Aborted, "seed {seed}, {plan:?}");
    }
}

/// Where the harm comes too late to matter, the guest is at the destination.
#[test]
fn damaged_control_and_device_messages_leave_one_guest() {
    let pair = Pair::new();
    let mut aborted = 0;
    for seed in 0..40 {
        let random = &mut Random::new(seed);
        let part = random.pick(&[Part::Header, Part::Table]);
        let (connections, way) = match random.below(6) {
            0..2 => (CONTROL, Way::ToDestination),
            2..4 => (CONTROL, Way::ToSource),
            4 => (DEVICE, random.pick(&[Way::ToDestination, Way::ToSource])),
            // Acknowledgements.
            _ => (DATA, Way::ToSource),
        };
        let part = if connections == DATA {
            Part::Header
        } else {
            part
        };
        let plan = Plan {
            connections,
            way,
            harm: flip(random, 9, part),
        };
        let report = pair.moves(seed, &plan, codec(random)).report;
        aborted += u64::from(report.result == RunResult::Aborted);
    }
    assert!(aborted >= 6, "{aborted}");
}

#[test]
fn connections_cut_anywhere_leave_one_guest() {
    let pair = Pair::new();
    let mut aborted = 0;
    for seed in 0..48 {
        let random = &mut Random::new(seed);
        let way = random.pick(&[Way::ToDestination, Way::ToSource]);
        let stream = DATA.start + random.below(u64::from(STREAMS)) as usize;
        let connections = random.pick(&[CONTROL.start, stream, DEVICE.start]);
        let most = match (connections, way) {
            (0, _) => 1000,
            (stream, Way::ToDestination) if stream < DEVICE.start => 2 << 20,
            (stream, Way::ToSource) if stream < DEVICE.start => 200,
            _ => 1500,
        };
        let plan = Plan {
            connections: connections..connections + 1,
            way,
            harm: Harm::Cut {
                bytes: random.below(most),
            },
        };
        let report = pair.moves(seed, &plan, codec(random)).report;
        aborted += u64::from(report.result == RunResult::Aborted);
    }
    assert!(aborted >= 8, "{aborted}");
}
