//! Whether a guest converges is foretold when its RAM has been sent once.

mod common;

use common::{TwoNodes, busy, log, settings, wait};
use dwcp_api::{MigrationId, MigrationReport, NotConverged, RunResult, TransferSettings};
use dwcp_testbed::Kind;
use dwcp_testbed::synthetic::SyntheticOptions;

const ID: MigrationId = MigrationId(7);

/// Moves a guest of 64 MiB of which 32 MiB are rewritten at `rate` pages a second, where 6,000 a second leave.
fn moves(rate: u64) -> MigrationReport {
    log::keep();
    let guest = |incoming| SyntheticOptions {
        hot_mib: 32,
        rate,
        kind: Kind::Random,
        ..busy(incoming)
    };
    let settings = TransferSettings {
        bandwidth_limit_mbit: 200,
        if_not_converged: NotConverged::Abort,
        rounds_max: 4,
        ..settings()
    };
    let nodes = TwoNodes::start(&settings, guest);
    let (node, there) = (&nodes.a.node, &nodes.b.address);
    node.start_migration(ID, "vm", there, settings, false)
        .unwrap();
    wait(node, ID)
}

#[test]
fn a_guest_that_converges_and_its_pause() {
    let report = moves(600);
    let ahead = report.forecast.expect("a forecast");
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(ahead.converges && ahead.after_round == 0, "{ahead:?}");
    assert!(
        ahead.ms <= ahead.ms_p90 && ahead.downtime_ms <= 300.0,
        "{ahead:?}"
    );
}

#[test]
fn a_guest_that_does_not() {
    let report = moves(60_000);
    let ahead = report.forecast.expect("a forecast");
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(!ahead.converges && ahead.after_round == 0, "{ahead:?}");
    // All that it rewrites, at what leaves.
    assert!((900.0..3000.0).contains(&ahead.downtime_ms), "{ahead:?}");
}
