//! Post-copy between two nodes: a guest that outruns its link runs at the destination before its pages are there.

mod common;

use std::time::Duration;

use common::{TwoNodes, busy, log, settings, until, wait};
use dwcp_api::{
    Codec, MigrationId, MigrationReport, NotConverged, PhaseName, RunResult, TransferSettings, Tune,
};
use dwcp_testbed::synthetic::SyntheticOptions;

const ID: MigrationId = MigrationId(7);

/// 64 MiB of which 32 MiB are rewritten faster than the link below takes them.
fn outruns(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        hot_mib: 32,
        rate: 20_000,
        ..busy(incoming)
    }
}

fn slow() -> TransferSettings {
    TransferSettings {
        bandwidth_limit_mbit: 200,
        if_not_converged: NotConverged::PostCopy,
        ..settings()
    }
}

fn check(nodes: &TwoNodes, report: &MigrationReport) {
    let place = format!("{} {:?}", report.reason, report.notes);
    assert_eq!(report.result, RunResult::Completed, "{place}");
    assert!(report.verified, "{place}");
    let there = wait(&nodes.b.node, ID);
    assert_eq!(there.result, RunResult::Completed, "{}", there.reason);
    assert!(there.verified, "{:?}", there.notes);
    assert_eq!(there.postcopy, report.postcopy);
    assert!(!nodes.old.is_running(), "the source runs on");
    assert!(nodes.new.is_running(), "the destination does not run");
    assert_eq!(nodes.new.bad_pages(), 0);
}

#[test]
fn a_guest_that_outruns_its_link_is_post_copied() {
    log::keep();
    let settings = slow();
    let nodes = TwoNodes::start(&settings, outruns);
    let begun = nodes
        .a
        .node
        .start_migration(ID, "vm", &nodes.b.address, settings, false);
    begun.unwrap();
    let report = wait(&nodes.a.node, ID);
    check(&nodes, &report);
    let postcopy = report.postcopy.expect("it does not converge");
    assert!(postcopy.pages > 1000, "{postcopy:?}");
    assert!(report.rounds < 10, "{} rounds", report.rounds);
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
}
