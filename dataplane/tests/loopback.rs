//! Two nodes in one process, a synthetic guest under load, TCP over loopback.

mod common;

use std::time::Duration;

use common::{TwoNodes, busy, settings, wait};
use dwcp_api::{
    Codec, IoPath, MigrationId, MigrationReport, RunResult, TrackerChoice, TransferSettings, Verify,
};
use dwcp_testbed::Kind;
use dwcp_testbed::synthetic::SyntheticOptions;

/// Moves a guest and lets it check all of its memory at the destination.
fn moves(settings: &TransferSettings) -> MigrationReport {
    moves_guest(settings, busy)
}

fn moves_guest(
    settings: &TransferSettings,
    guest: fn(bool) -> SyntheticOptions,
) -> MigrationReport {
    let TwoNodes { a, b, old, new, .. } = &TwoNodes::start(settings, guest);
    std::thread::sleep(Duration::from_millis(100));
    let id = MigrationId(7);
    a.node
        .start_migration(id, "vm", &b.address, settings.clone(), false)
        .unwrap();
    let report = wait(&a.node, id);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.verified);
    let there = wait(&b.node, id);
    assert_eq!(there.result, RunResult::Completed, "{}", there.reason);
    assert_eq!(there.ram_root, report.ram_root);
    // The same frames went through both ends; a last acknowledgement may be unread.
    let apart = report.wire_bytes.abs_diff(there.wire_bytes);
    assert!(apart <= 256, "{apart} bytes apart");
    // Device state is a byte for each page, and more.
    let pages = report.round_reports.iter().map(|round| round.wire_bytes);
    let beside = report.wire_bytes - pages.sum::<u64>();
    assert!(
        beside > report.ram_bytes / 4096,
        "{beside} bytes beside pages"
    );
    assert!(!old.is_running(), "the source runs on");
    assert!(new.is_running(), "the destination does not run");
    assert_eq!(new.bad_pages(), 0);
    report
}

#[test]
fn a_busy_guest_is_moved_and_finds_its_memory_whole() {
    let report = moves(&settings());
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
}

/// Each stream ends a round with a mark of its own, however few buffers a worker has.
#[test]
fn many_streams_of_one_worker() {
    let report = moves(&TransferSettings {
        streams: 16,
        workers: 1,
        ..settings()
    });
    assert_eq!(report.streams, 16);
}

/// Without a path that limits it, no more streams carry pages than at first, and every worker has one.
#[test]
fn streams_by_measurement() {
    let report = moves(&TransferSettings {
        streams: 32,
        measure_streams: true,
        codec: WINDOW,
        ..settings()
    });
    assert_eq!(report.streams, 32);
    assert!((1..=8).contains(&report.streams_in_use), "{report:?}");
}

/// A destination acknowledges a stream after 64 KiB at the latest: so much of each may stay unacknowledged.
#[test]
fn many_streams_with_a_small_window() {
    for measure_streams in [false, true] {
        let report = moves(&TransferSettings {
            streams: 32,
            measure_streams,
            window_bytes: 1 << 20,
            codec: Codec::Zstd { level: 1 },
            ..settings()
        });
        assert_eq!(report.streams, 32);
    }
}

#[test]
fn by_fingerprints() {
    let report = moves(&TransferSettings {
        tracker: TrackerChoice::Fingerprint,
        ..settings()
    });
    assert_eq!(report.tracker, "fingerprint");
}

#[test]
fn by_poll() {
    let report = moves(&TransferSettings {
        io: IoPath::Poll,
        ..settings()
    });
    assert_eq!(report.transport, "tcp-poll");
}

#[test]
fn compressed_and_read_again_in_full() {
    let report = moves(&TransferSettings {
        codec: Codec::Zstd { level: 1 },
        verify: Verify::Full,
        streams: 4,
        ..settings()
    });
    assert!(report.pages.compressed > 0);
    assert!(report.wire_bytes < report.ram_bytes / 2, "{report:?}");
}

const WINDOW: Codec = Codec::Window {
    level: 1,
    window_bytes: 1 << 20,
};

#[test]
fn all_kinds_of_pages_are_in_the_report() {
    let sparse = |incoming| SyntheticOptions {
        kind: Kind::Sparse,
        ..busy(incoming)
    };
    let settings = TransferSettings {
        codec: WINDOW,
        remember_bytes: 128 << 20,
        ..settings()
    };
    let report = moves_guest(&settings, sparse);
    let rounds = report.round_reports.iter();
    let deltas: u64 = rounds.map(|round| round.classes.delta).sum();
    assert!(deltas > 0, "{:?}", report.round_reports);
    assert_eq!(report.pages.delta, deltas);
    let explained = |note: &String| note.contains("were sent as they are");
    assert!(!report.notes.iter().any(explained), "{:?}", report.notes);
}

#[test]
fn memory_that_does_not_shrink_is_explained() {
    let random = |incoming| SyntheticOptions {
        kind: Kind::Random,
        ..busy(incoming)
    };
    let settings = TransferSettings {
        codec: WINDOW,
        ..settings()
    };
    let report = moves_guest(&settings, random);
    let note = "of the pages with data were sent as they are: they look encrypted or compressed, and \
                no codec makes such pages smaller";
    let is_explained = report.notes.iter().any(|text| text.ends_with(note));
    assert!(is_explained, "{:?} {:?}", report.pages, report.notes);
}
