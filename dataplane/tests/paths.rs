//! Data streams over several paths: all of them carry pages, and one that fails is left.

mod common;

use common::proxy::{Harm, Plan, Proxy, Way, data};
use common::{TestNode, TwoNodes, busy, log, settings, wait};
use dwcp_api::{
    ApiError, ErrorCode, MigrationId, MigrationReport, RdmaChoice, RunResult, StreamPath,
    TransferSettings,
};

const ID: MigrationId = MigrationId(7);

fn four() -> TransferSettings {
    TransferSettings {
        streams: 4,
        ..settings()
    }
}

/// No connection has this number.
fn whole() -> Plan {
    Plan {
        connections: 999..1000,
        way: Way::ToDestination,
        harm: Harm::Cut { bytes: 0 },
    }
}

fn start(a: &TestNode, b: &TestNode, settings: &TransferSettings) -> Result<(), ApiError> {
    let (vm, to) = ("vm", &b.address);
    a.node.start_migration(ID, vm, to, settings.clone(), false)
}

/// Moves a busy guest by these ways to its destination, the second with this plan.
fn moves(plan: Plan) -> (MigrationReport, [Proxy; 2]) {
    log::keep();
    let nodes = TwoNodes::start(&four(), busy);
    let proxies = [whole(), plan].map(|plan| Proxy::start(&nodes.b.address, plan));
    let from = ["127.0.0.1".parse().ok(), "127.0.0.2".parse().ok()];
    let ways = proxies.iter().zip(from);
    let settings = TransferSettings {
        paths: ways
            .map(|(proxy, from)| StreamPath {
                from,
                to: proxy.address.parse().ok(),
            })
            .collect(),
        ..four()
    };
    start(&nodes.a, &nodes.b, &settings).unwrap();
    let report = wait(&nodes.a.node, ID);
    let place = format!("{} {:?}", report.reason, report.notes);
    assert_eq!(report.result, RunResult::Completed, "{place}");
    assert!(report.verified && nodes.new.is_running(), "{place}");
    assert_eq!(nodes.new.bad_pages(), 0);
    (report, proxies)
}

/// What the report says of the paths: addresses, MiB, streams.
fn told(report: &MigrationReport) -> Vec<(String, u64, u16)> {
    let words = report
        .notes
        .iter()
        .find_map(|note| note.strip_prefix("paths: "));
    let paths = words
        .unwrap_or_else(|| panic!("{:?}", report.notes))
        .split(", ");
    let read = |path: &str| {
        let words: Vec<_> = path.split(' ').collect();
        let [path, mib, "MiB", "by", streams, "streams"] = words[..] else {
            panic!("{path}")
        };
        (
            path.to_owned(),
            mib.parse().unwrap(),
            streams.parse().unwrap(),
        )
    };
    paths.map(read).collect()
}

#[test]
fn every_path_carries_pages_from_its_local_address() {
    let (report, proxies) = moves(whole());
    let told = told(&report);
    let addresses = ["127.0.0.1", "127.0.0.2"].iter().zip(&proxies);
    for ((path, mib, streams), (from, proxy)) in told.iter().zip(addresses) {
        assert_eq!(*path, format!("{from}={}", proxy.address));
        assert!(*mib > 1 && *streams == 2, "{report:?}");
    }
    assert_eq!(told.len(), 2);
}

#[test]
fn the_streams_of_a_path_that_fails_go_on_by_another() {
    let (report, proxies) = moves(Plan {
        connections: data(1)..data(1) + 1,
        way: Way::ToDestination,
        harm: Harm::Sever { bytes: 3 << 20 },
    });
    assert!(proxies[1].has_harmed());
    assert!(report.streams_replaced >= 2, "{report:?}");
    let told = told(&report);
    let streams: Vec<_> = told.iter().map(|(_, _, streams)| *streams).collect();
    assert_eq!(streams, [4, 0]);
    // What it carried before is not forgotten.
    assert!(told[1].1 >= 2, "{told:?}");
}

/// Nobody listens there from the start.
#[test]
fn a_path_that_leads_nowhere_is_left() {
    let (nodes, gone) = (TwoNodes::start(&four(), busy), "127.0.0.1:1");
    let paths = [gone, &nodes.b.address].map(|to| to.parse().unwrap());
    let settings = TransferSettings {
        paths: paths.to_vec(),
        ..four()
    };
    start(&nodes.a, &nodes.b, &settings).unwrap();
    let report = wait(&nodes.a.node, ID);
    let place = format!("{} {:?}", report.reason, report.notes);
    assert_eq!(report.result, RunResult::Completed, "{place}");
    let streams: Vec<_> = told(&report)
        .iter()
        .map(|(_, _, streams)| *streams)
        .collect();
    assert_eq!(streams, [0, 4]);
}

/// What a dry run by these ways ends with.
fn tried(to: impl Fn(&str) -> Vec<String>) -> MigrationReport {
    let nodes = TwoNodes::start(&four(), busy);
    let ways = to(&nodes.b.address);
    let settings = TransferSettings {
        paths: ways.iter().map(|way| way.parse().unwrap()).collect(),
        connect_timeout_ms: 1000,
        ..four()
    };
    let (vm, to) = ("vm", &nodes.b.address);
    nodes
        .a
        .node
        .start_migration(ID, vm, to, settings, true)
        .unwrap();
    let report = wait(&nodes.a.node, ID);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
    report
}

#[test]
fn a_dry_run_tries_each_path() {
    let report = tried(|there| vec![format!("127.0.0.2={there}"), "127.0.0.1:1".into()]);
    assert_eq!(report.result, RunResult::DryRun, "{}", report.reason);
    let notes = report.notes.join("\n");
    assert!(notes.contains("can be taken in "), "{notes}");
    assert!(
        notes.contains("path 127.0.0.1:1 cannot be taken: "),
        "{notes}"
    );
}

#[test]
fn a_dry_run_without_a_path_that_carries_is_an_abort() {
    // The address is nobody's here.
    let report = tried(|there| vec![format!("192.0.2.1={there}"), "127.0.0.1:1".into()]);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(report.reason.contains("no path can be taken"), "{report:?}");
}

#[test]
fn paths_that_cannot_be_taken_are_refused_before_anything_begins() {
    let nodes = TwoNodes::start(&settings(), busy);
    let path: StreamPath = nodes.b.address.parse().unwrap();
    let of = |count: usize| TransferSettings {
        paths: vec![path; count],
        ..four()
    };
    let rdma = TransferSettings {
        rdma: RdmaChoice::Required,
        ..of(2)
    };
    for (settings, why) in [
        (of(5), "5 paths for 4 data streams"),
        (of(9), "9 paths; 8 at most"),
        (rdma, "paths are for TCP"),
    ] {
        let error = start(&nodes.a, &nodes.b, &settings).unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains(why), "{error}");
    }
    start(&nodes.a, &nodes.b, &of(2)).unwrap();
    let report = wait(&nodes.a.node, ID);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
}
