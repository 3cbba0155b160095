//! A node that follows the path of a migration, whose data plane is scripted.

mod fake;
mod local;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use dwcp_api::dataplane::{Reply as PlaneReply, Request as PlaneRequest};
use dwcp_api::node::{Reply, Request};
use dwcp_api::{MigrationId, PathSample, RunResult, TransferSettings, Tune};
use dwcp_controlplane::profile;
use fake::{FakePlane, Script};
use local::{TestNode, attach, wait};

const SHORT: PathSample = PathSample {
    rtt_us: 300,
    rtt_var_us: 50,
    delivery_bytes_per_s: 1_000_000_000,
    is_app_limited: false,
    sent_bytes: 0,
    retransmitted_bytes: 0,
};

const LONG: PathSample = PathSample {
    rtt_us: 120_000,
    ..SHORT
};

/// A plane whose path gets long when told so, and whose migration ends when told so.
fn plane(is_long: &Arc<AtomicBool>, ends: &Arc<AtomicBool>, asked: &Arc<AtomicU64>) -> Script {
    let (is_long, ends, asked) = (Arc::clone(is_long), Arc::clone(ends), Arc::clone(asked));
    let mut others = fake::obedient();
    Box::new(move |request| match request {
        PlaneRequest::ProbePath { .. } => Some(PlaneReply::Path(LONG)),
        PlaneRequest::Status { id } => {
            asked.fetch_add(1, Ordering::SeqCst);
            let report = ends.load(Ordering::SeqCst);
            let report = report.then(|| fake::report(*id, "web", RunResult::Completed));
            let mut status = fake::status(*id, "web", report);
            let is_long = is_long.load(Ordering::SeqCst);
            status.path = Some(if is_long { LONG } else { SHORT });
            Some(PlaneReply::Migration(Box::new(status)))
        }
        request => others(request),
    })
}

fn settings(follow_path: bool) -> TransferSettings {
    let datacenter = profile::load("datacenter").unwrap();
    TransferSettings {
        follow_path,
        ..datacenter
    }
}

fn start(node: &TestNode, follow_path: bool) -> MigrationId {
    let request = Request::Migrate {
        vm: "web".into(),
        to: "b".into(),
        settings: settings(follow_path),
        dry_run: false,
    };
    match node.ask(&request) {
        Reply::Started { id } => id,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_path_that_gets_long_changes_the_migrations_mode() {
    let [is_long, ends] = [false, false].map(|on| Arc::new(AtomicBool::new(on)));
    let asked = Arc::default();
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), plane(&is_long, &ends, &asked));
    node.wait_for_plane();
    node.ask(&attach("web"));
    let id = start(&node, true);
    // Enough to have been sure of the first mode.
    wait(|| asked.load(Ordering::SeqCst) > 12);
    let is_tuned = |request: &PlaneRequest| matches!(request, PlaneRequest::TuneMigration { .. });
    assert!(!plane.seen(is_tuned));
    is_long.store(true, Ordering::SeqCst);
    wait(|| plane.seen(is_tuned));
    assert!(plane.seen(|request| matches!(
        request,
        PlaneRequest::TuneMigration { id: of, tune: Tune::PathMode(path) }
            if *of == id && path.mode == "internet" && path.why == "round trip 120 ms"
                && path.congestion_control.as_deref() == Some("bbr")
    )));
    ends.store(true, Ordering::SeqCst);
    let before = asked.load(Ordering::SeqCst);
    wait(|| asked.load(Ordering::SeqCst) > before);
    let after = asked.load(Ordering::SeqCst);
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert!(
        asked.load(Ordering::SeqCst) <= after + 1,
        "nobody asks for a migration that has ended"
    );
}

#[test]
fn a_migration_that_does_not_follow_is_left_alone() {
    let [is_long, ends] = [true, false].map(|on| Arc::new(AtomicBool::new(on)));
    let asked = Arc::default();
    let node = TestNode::start();
    let _plane = FakePlane::start(&node.plane_path(), plane(&is_long, &ends, &asked));
    node.wait_for_plane();
    node.ask(&attach("web"));
    start(&node, false);
    std::thread::sleep(std::time::Duration::from_millis(700));
    assert_eq!(asked.load(Ordering::SeqCst), 0);
}

#[test]
fn a_path_is_looked_at_before_anything_is_moved() {
    let [is_long, ends] = [false, false].map(|on| Arc::new(AtomicBool::new(on)));
    let node = TestNode::start();
    let _plane = FakePlane::start(&node.plane_path(), plane(&is_long, &ends, &Arc::default()));
    node.wait_for_plane();
    match node.ask(&Request::Probe { to: "b".into() }) {
        Reply::Path { sample, mode, why } => {
            assert_eq!((sample, mode.as_str()), (LONG, "internet"));
            assert_eq!(why, "round trip 120 ms");
        }
        other => panic!("{other:?}"),
    }
    let error = node.refusal(&Request::Probe { to: "c".into() });
    assert_eq!(error.hint.as_deref(), Some("did you mean b?"));
}
