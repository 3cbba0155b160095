//! Whether a guest converges is foretold when its RAM has been sent once.

mod common;

use common::{TwoNodes, busy, log, settings, until, wait};
use dwcp_api::{MigrationId, MigrationReport, NotConverged, Prospect, RunResult, TransferSettings};
use dwcp_testbed::Kind;
use dwcp_testbed::synthetic::SyntheticOptions;

fn limited() -> TransferSettings {
    TransferSettings {
        bandwidth_limit_mbit: 200,
        if_not_converged: NotConverged::Abort,
        rounds_max: 4,
        ..settings()
    }
}

/// A guest of 64 MiB of which 32 MiB are rewritten at `rate` pages a second, where 6,000 a second leave.
fn nodes(rate: u64) -> TwoNodes {
    log::keep();
    TwoNodes::start(&limited(), |incoming| SyntheticOptions {
        hot_mib: 32,
        rate,
        kind: Kind::Random,
        ..busy(incoming)
    })
}

fn run(
    nodes: &TwoNodes,
    (id, settings, dry_run): (u128, TransferSettings, bool),
) -> MigrationReport {
    let (node, there, id) = (&nodes.a.node, &nodes.b.address, MigrationId(id));
    node.start_migration(id, "vm", there, settings, dry_run)
        .unwrap();
    wait(node, id)
}

fn moves(rate: u64) -> MigrationReport {
    run(&nodes(rate), (7, limited(), false))
}

fn foretold(nodes: &TwoNodes, (id, settings): (u128, TransferSettings)) -> Prospect {
    let report = run(nodes, (id, settings, true));
    assert_eq!(report.result, RunResult::DryRun, "{}", report.reason);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
    report
        .prospect
        .unwrap_or_else(|| panic!("{:?}", report.notes))
}

/// Foretold before anything has been sent, and then done.
#[test]
fn a_dry_run_foretells_what_comes() {
    for (rate, converges) in [(600, true), (60_000, false)] {
        let nodes = nodes(rate);
        let ahead = foretold(&nodes, (1, limited()));
        let forecast = ahead.forecast.expect("a forecast");
        assert_eq!(forecast.converges, converges, "{ahead:?}");
        assert!(ahead.basis.contains("limit"), "{ahead:?}");
        assert!(
            ahead.mbit.is_some_and(|mbit| (mbit - 200.0).abs() < 1.0),
            "{ahead:?}"
        );
        let least = ahead.least_mbit.expect("a link that is fast enough");
        assert_eq!(least <= 200, converges, "{ahead:?}");
        let report = run(&nodes, (2, limited(), false));
        let result = if converges {
            RunResult::Completed
        } else {
            RunResult::Aborted
        };
        assert_eq!(report.result, result, "{}", report.reason);
        assert_eq!(report.prospect, None);
        if converges {
            let pause_at = report.total_ms - report.downtime_ms;
            // All pages at 200 Mbit/s take 2.7 s at most.
            assert!((1000.0..5000.0).contains(&forecast.ms), "{ahead:?}");
            assert!(
                pause_at < forecast.ms_p90 * 1.5 + 500.0,
                "{pause_at} ms, {ahead:?}"
            );
        }
    }
}

/// Nothing is known of the way until something has gone it.
#[test]
fn a_dry_run_knows_what_the_last_migration_had() {
    let nodes = nodes(60_000);
    let ahead = foretold(&nodes, (1, settings()));
    assert_eq!((ahead.mbit, &ahead.forecast), (None, &None));
    assert!(ahead.basis.contains("nothing has been moved"), "{ahead:?}");
    assert!(
        ahead.least_mbit.is_some() && ahead.pages > 10_000,
        "{ahead:?}"
    );
    // It is given back when its RAM has been sent once.
    let impossible = TransferSettings {
        rounds_max: 1,
        downtime_limit_ms: 1,
        ..settings()
    };
    let report = run(&nodes, (2, impossible, false));
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    // The destination clears what had come.
    until("the place is not free again", || {
        nodes.b.node.list()[0].state == "incoming"
    });
    let ahead = foretold(&nodes, (3, settings()));
    assert!(ahead.basis.contains("as the last migration"), "{ahead:?}");
    assert!(
        ahead.mbit.is_some_and(|mbit| mbit > 200.0) && ahead.forecast.is_some(),
        "{ahead:?}"
    );
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
