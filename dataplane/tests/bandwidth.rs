//! What changes while a guest is moved: a limit on bandwidth, which is not in the way of the pause, and the
//! mode of the path.

mod common;

use std::time::Instant;

use common::{TwoNodes, busy, settings, until, wait};
use dwcp_api::{
    ErrorCode, Limit, MigrationId, MigrationReport, PathMode, RunResult, TransferSettings, Tune,
};
use dwcp_dataplane::migration::probe_path;
use dwcp_testbed::synthetic::SyntheticOptions;

const ID: MigrationId = MigrationId(7);

/// 200 Mbit/s, in bytes.
const LIMIT_MBIT: u32 = 200;
const BYTES_PER_S: f64 = LIMIT_MBIT as f64 * 1e6 / 8.0;

const NO_LIMIT: Tune = Tune::BandwidthLimitMbit(0);

fn limited() -> TransferSettings {
    TransferSettings {
        bandwidth_limit_mbit: LIMIT_MBIT,
        ..settings()
    }
}

/// 64 MiB that change slowly.
fn calm(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        rate: 50,
        ..busy(incoming)
    }
}

fn begin(settings: TransferSettings) -> TwoNodes {
    let nodes = TwoNodes::start(&settings, calm);
    let started = nodes
        .a
        .node
        .start_migration(ID, "vm", &nodes.b.address, settings, false);
    started.unwrap();
    nodes
}

fn check_moved(report: &MigrationReport, nodes: &TwoNodes) {
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.verified && nodes.new.is_running());
    assert_eq!(nodes.new.bad_pages(), 0);
}

#[test]
fn a_limit_is_kept_and_the_pause_is_short() {
    let nodes = begin(limited());
    let report = wait(&nodes.a.node, ID);
    check_moved(&report, &nodes);
    // The last round is not limited, and 10 ms may be ahead.
    let first = &report.round_reports[0];
    let least = first.wire_bytes as f64 / BYTES_PER_S - 0.1;
    assert!(least > 1.0, "{first:?}");
    assert!(first.ms > least * 1000.0, "{first:?}, at least {least} s");
    assert!(
        first.ms < least * 1000.0 * 1.4 + 400.0,
        "{first:?}: no use is made of it"
    );
    assert!(report.downtime_ms < 300.0, "{}", report.downtime_ms);
}

#[test]
fn a_limit_changes_while_the_guest_is_moved() {
    let nodes = begin(TransferSettings {
        // Half a minute.
        bandwidth_limit_mbit: 12,
        ..settings()
    });
    let node = &nodes.a.node;
    let progress = |of: &TwoNodes, at: usize| {
        let node = [&of.a.node, &of.b.node][at];
        node.migration(ID).unwrap().status().progress
    };
    until("the limit is what it waits for", || {
        let now = progress(&nodes, 0);
        now.wire_bytes > 1 << 20 && now.limit == Limit::Bandwidth
    });
    // It knows nothing of what is to come.
    let there = progress(&nodes, 1);
    assert_eq!((there.limit, there.eta_ms), (Limit::Unknown, None));
    let refused = nodes.b.node.tune(ID, NO_LIMIT).unwrap_err();
    assert_eq!(refused.code, ErrorCode::BadRequest);
    node.tune(ID, NO_LIMIT).unwrap();
    let freed = Instant::now();
    let report = wait(node, ID);
    assert!(freed.elapsed().as_secs() < 15, "{:?}", freed.elapsed());
    check_moved(&report, &nodes);
    let note = "bandwidth is not limited any more";
    assert!(
        report.notes.iter().any(|text| text == note),
        "{:?}",
        report.notes
    );
    assert_eq!(
        node.tune(ID, NO_LIMIT).unwrap_err().code,
        ErrorCode::TooLate
    );
}

#[test]
fn the_path_is_watched_and_its_mode_changes_while_the_guest_is_moved() {
    let nodes = begin(TransferSettings {
        bandwidth_limit_mbit: 12,
        congestion_control: Some("cubic".into()),
        ..settings()
    });
    let node = &nodes.a.node;
    let path = || node.migration(ID).unwrap().status().path;
    until("no path is seen", || {
        path().is_some_and(|path| path.sent_bytes > 1 << 19)
    });
    let seen = path().unwrap();
    assert!(seen.rtt_us > 0 && seen.rtt_us < 1_000_000, "{seen:?}");
    // reno is in every kernel.
    let mode = PathMode {
        mode: "internet".into(),
        why: "round trip 120 ms".into(),
        congestion_control: Some("reno".into()),
    };
    node.tune(ID, Tune::PathMode(mode)).unwrap();
    node.tune(ID, NO_LIMIT).unwrap();
    let report = wait(node, ID);
    check_moved(&report, &nodes);
    assert_eq!(report.mode, "internet");
    let note = "mode test -> internet: round trip 120 ms; streams under reno";
    assert!(
        report.notes.iter().any(|text| text == note),
        "{:?}",
        report.notes
    );
}

#[test]
fn a_path_is_looked_at_by_a_connection() {
    let nodes = TwoNodes::start(&settings(), calm);
    let seen = probe_path(&nodes.b.address).unwrap();
    assert!(seen.rtt_us > 0 && seen.rtt_us < 1_000_000, "{seen:?}");
    let error = probe_path("127.0.0.1:1").unwrap_err();
    assert!(
        error.message.starts_with("cannot connect to 127.0.0.1:1"),
        "{error:?}"
    );
}
