//! A data plane dies while pages of a guest that runs already are missing, and is started anew: the guest waits,
//! and then runs on.

mod common;

use std::net::TcpListener;
use std::path::Path;

use common::daemon::Daemon;
use common::proxy::{self, Harm, Plan, Proxy, Way};
use common::{TestGuest, outruns, settings, until};
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{
    MigrationId, MigrationReport, NotConverged, PhaseName, RunResult, TransferSettings,
};

const ID: MigrationId = MigrationId(7);

/// An address that nobody has for the moment.
fn free_address() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

fn daemon(folder: &Path, name: &str, listen: &str) -> Daemon {
    Daemon::start(folder, name, (listen, "auto"))
}

fn phase(daemon: &mut Daemon) -> PhaseName {
    match daemon.ask(&Request::Status { id: ID }) {
        Reply::Migration(status) => status.phase,
        other => panic!("{other:?}"),
    }
}

/// Moves a guest by a link that is lost with a part of the missing pages; `restart` says which data planes
/// die then.
fn moves(restart: [bool; 2]) -> [MigrationReport; 2] {
    let folder = tempfile::tempdir().unwrap();
    let addresses = [free_address(), free_address()];
    let start = |at: usize| daemon(folder.path(), ["a", "b"][at], &addresses[at]);
    let mut daemons = [start(0), start(1)];
    let old = TestGuest::start(folder.path(), "source", &outruns(false));
    let new = TestGuest::start(folder.path(), "destination", &outruns(true));
    daemons[0].attach(&old);
    daemons[1].attach(&new);
    let plan = Plan {
        connections: proxy::missing(1)..proxy::missing(1) + 1,
        way: Way::ToDestination,
        harm: Harm::Sever { bytes: 1 << 20 },
    };
    let proxy = Proxy::start(&addresses[1], plan);
    daemons[0].ask(&Request::StartMigration {
        id: ID,
        vm: "vm".into(),
        destination: proxy.address.clone(),
        destination_name: None,
        settings: TransferSettings {
            bandwidth_limit_mbit: 200,
            if_not_converged: NotConverged::PostCopy,
            ..settings()
        },
        dry_run: false,
    });
    until("the source is cut off", || {
        phase(&mut daemons[0]) == PhaseName::PostcopyPaused
    });
    assert!(proxy.has_harmed());
    let mut at = 0;
    daemons = daemons.map(|daemon| {
        let at = std::mem::replace(&mut at, 1);
        if !restart[at] {
            return daemon;
        }
        daemon.kill();
        start(at)
    });
    proxy.restore();
    let reports = daemons.each_mut().map(|daemon| {
        until("it goes on", || {
            matches!(daemon.ask(&Request::ListMigrations), Reply::Migrations(all) if !all.is_empty())
        });
        daemon.report(ID)
    });
    for report in &reports {
        let place = format!("{} {:?}", report.reason, report.notes);
        assert_eq!(report.result, RunResult::Completed, "{place}");
    }
    assert!(!old.is_running() && new.is_running());
    assert_eq!(new.bad_pages(), 0);
    // The next start has nothing left to do.
    let _ = daemons.map(Daemon::kill);
    let mut daemons = [start(0), start(1)];
    for daemon in &mut daemons {
        let Reply::Migrations(all) = daemon.ask(&Request::ListMigrations) else {
            panic!("no list");
        };
        assert_eq!(all, []);
    }
    reports
}

#[test]
fn of_the_source() {
    let [source, destination] = moves([true, false]);
    assert!(source.verified && destination.verified);
    assert_eq!(
        destination.reason,
        "handed over, and all pages have followed"
    );
}

/// What it held is in the guest's memory, and in no root.
#[test]
fn of_the_destination() {
    let [source, destination] = moves([false, true]);
    assert_eq!(source.reason, destination.reason);
    assert!(
        source.reason.contains("each was proven by itself"),
        "{}",
        source.reason
    );
}

#[test]
fn of_both() {
    let [source, destination] = moves([true, true]);
    assert_eq!(source.reason, destination.reason);
}
