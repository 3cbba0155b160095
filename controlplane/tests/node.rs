//! A node in this process, a scripted data plane, a client on the node's socket.

mod fake;
mod local;

use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use dwcp_api::counters::Counters;
use dwcp_api::node::{Reply, Request};
use dwcp_api::{Attachment, ErrorCode, MigrationId, Role, Tune, dataplane};
use dwcp_controlplane::node::Node;
use dwcp_journal::{Journal, Record, RecordKind};
use fake::FakePlane;
use local::{TestNode, attach, detach, migrate, node_with_web, options, wait};

#[test]
fn a_vm_is_attached_moved_and_forgotten() {
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    assert!(matches!(node.ask(&attach("web")), Reply::Vm(vm) if vm.name == "web"));
    let Reply::Started { id } = node.ask(&migrate("b")) else {
        panic!("not started");
    };
    assert!(plane.seen(
        |request| matches!(request, dataplane::Request::StartMigration {
        destination, destination_name, settings, ..
    } if destination == "192.0.2.2:7400"
        && destination_name.as_deref() == Some("b")
        && settings.streams == 4)
    ));
    for which in [None, Some("web".to_owned()), Some(id.to_string())] {
        let Reply::Migrations(list) = node.ask(&Request::Status { which }) else {
            panic!("no status");
        };
        assert_eq!(list[0].id, id);
    }
    assert_eq!(
        node.ask(&Request::Cancel {
            which: "web".into()
        }),
        Reply::Done
    );
    assert!(plane.seen(|request| *request == dataplane::Request::CancelMigration { id }));
    let tune = Request::Tune {
        which: "web".into(),
        bandwidth_limit_mbit: Some(200),
        post_copy: false,
    };
    assert_eq!(node.ask(&tune), Reply::Done);
    assert!(plane.seen(|request| {
        let tune = Tune::BandwidthLimitMbit(200);
        *request == dataplane::Request::TuneMigration { id, tune }
    }));
    assert_eq!(node.ask(&detach("web")), Reply::Done);
    assert_eq!(node.ask(&Request::ListVms), Reply::Vms(Vec::new()));
}

#[test]
fn an_unknown_peer_or_migration_is_not_found_with_a_hint() {
    let node = TestNode::start();
    let _plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    let error = node.refusal(&migrate("c"));
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.hint.as_deref(), Some("did you mean b?"));
    let error = node.refusal(&migrate("a"));
    assert_eq!(error.code, ErrorCode::NotFound);
    assert_eq!(error.message, "no VM web is attached to this node");
    node.ask(&attach("web"));
    let error = node.refusal(&migrate("a"));
    assert_eq!(error.code, ErrorCode::BadRequest);
    assert_eq!(error.message, "`a` is this node");
    for which in ["db".to_owned(), MigrationId(5).to_string()] {
        let error = node.refusal(&Request::Status { which: Some(which) });
        assert_eq!(error.code, ErrorCode::NotFound);
    }
    assert!(matches!(
        node.ask(&migrate("192.0.2.9:7400")),
        Reply::Started { .. }
    ));
    assert_eq!(node.refusal(&attach("../etc")).code, ErrorCode::BadRequest);
}

/// The data plane dies: an answer at once, no waiting. It comes back: found again, and so are the
/// VMs that it knew.
#[test]
fn a_dead_data_plane_is_named_at_once_and_found_again_with_its_vms() {
    let node = node_with_web();
    let began = Instant::now();
    let error = node.refusal(&Request::ListVms);
    assert_eq!(error.code, ErrorCode::PlaneDown);
    assert!(began.elapsed() < Duration::from_secs(1));
    let Reply::Doctor(findings) = node.ask(&Request::Doctor) else {
        panic!("the doctor works without a data plane");
    };
    assert_eq!(findings[0].subject, "data plane");

    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    wait(|| plane.seen(|request| matches!(request, dataplane::Request::AttachVm { .. })));
    assert!(matches!(node.ask(&Request::ListVms), Reply::Vms(vms) if vms[0].name == "web"));
}

#[test]
fn a_restarted_node_keeps_its_id_and_its_vms() {
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    node.ask(&attach("web"));
    let Reply::Node(before) = node.ask(&Request::Node) else {
        panic!("no node");
    };
    let dir = node.stop();
    assert!(!dir.path().join("node.sock").exists());
    drop(plane);

    let node = TestNode::start_in(dir);
    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    wait(|| plane.seen(|request| matches!(request, dataplane::Request::AttachVm { .. })));
    assert!(matches!(node.ask(&Request::Node), Reply::Node(after) if after.node == before.node));
}

#[test]
fn a_data_plane_that_dies_under_a_request_is_plane_down() {
    let node = TestNode::start();
    let _plane = FakePlane::start(&node.plane_path(), Box::new(|_| None));
    node.wait_for_plane();
    assert_eq!(node.refusal(&Request::ListVms).code, ErrorCode::PlaneDown);
}

/// A data plane that is stopped is not started: what helps is another thing.
#[test]
fn a_silent_data_plane_is_told_apart_from_one_that_is_not_there() {
    let node = TestNode::start();
    let error = node.refusal(&Request::ListVms);
    assert_eq!(
        error.message.matches("dataplane.sock").count(),
        1,
        "{error}"
    );
    assert!(error.hint.unwrap().contains("start dwcp-dataplane"));
    // Takes connections, and says nothing.
    let _silent = dwcp_api::Listener::bind(&node.plane_path()).unwrap();
    wait(|| {
        node.refusal(&Request::ListVms)
            .message
            .contains("does not answer")
    });
    let error = node.refusal(&Request::ListVms);
    assert_eq!(error.code, ErrorCode::PlaneDown);
    assert!(error.hint.unwrap().contains("kill -CONT"));
}

/// A VMM that answers slowly holds up the request that needs it, and nobody else.
#[test]
fn a_slow_start_or_attach_delays_no_other_request() {
    let node = TestNode::start();
    let delay = |request: &dataplane::Request| match request {
        dataplane::Request::StartMigration { .. } | dataplane::Request::AttachVm { .. } => {
            Duration::from_secs(3)
        }
        _ => Duration::ZERO,
    };
    let plane = FakePlane::start_slow(&node.plane_path(), fake::obedient(), delay);
    node.wait_for_plane();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| (node.ask(&migrate("b")), Instant::now()));
        let slower = scope.spawn(|| (node.ask(&attach("web")), Instant::now()));
        wait(|| {
            plane.seen(|request| matches!(request, dataplane::Request::StartMigration { .. }))
                && plane.seen(|request| matches!(request, dataplane::Request::AttachVm { .. }))
        });
        node.ask(&Request::Status { which: None });
        node.ask(&Request::ListVms);
        let which = MigrationId(1).to_string();
        node.ask(&Request::Cancel { which });
        node.ask(&Request::Doctor);
        let answered = Instant::now();
        let (started, started_at) = slow.join().unwrap();
        let (attached, attached_at) = slower.join().unwrap();
        assert!(matches!(started, Reply::Started { .. }), "{started:?}");
        assert!(matches!(attached, Reply::Vm(_)), "{attached:?}");
        assert!(answered < started_at && answered < attached_at);
    });
}

#[test]
fn a_running_migration_shows_the_counters_page() {
    let node = TestNode::start();
    let id = MigrationId(9);
    let running = fake::status(id, "web", None);
    let list = vec![running];
    let plane = FakePlane::start(
        &node.plane_path(),
        Box::new(move |_| Some(dataplane::Reply::Migrations(list.clone()))),
    );
    node.wait_for_plane();
    let counters = Counters {
        round: 2,
        pages_in_round: 400,
        pages_done: 100,
        wire_bytes: 9_000_000,
        ..Default::default()
    };
    plane.counters.publish(0, id, counters);
    let Reply::Migrations(list) = node.ask(&Request::Status { which: None }) else {
        panic!("no status");
    };
    let progress = &list[0].progress;
    assert_eq!(
        (progress.round, progress.pages_left, progress.wire_bytes),
        (2, 300, 9_000_000)
    );
    assert_eq!(progress.eta_ms, Some((1000, 3000)));
}

#[test]
fn ownership_is_the_journals_and_a_vm_in_doubt_is_not_moved() {
    let node = TestNode::start();
    let _plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    assert_eq!(node.ask(&Request::Ownership), Reply::Ownership(Vec::new()));
    let journal = Journal::open(node.dir.path()).unwrap();
    let begin = RecordKind::Begin {
        attachment: Attachment::Process {
            socket: "/run/guest.sock".into(),
        },
    };
    for kind in [begin, RecordKind::Prepared] {
        let record = Record {
            sequence: 0,
            migration: MigrationId(3),
            vm: "web".into(),
            role: Role::Source,
            peer_node: "b".into(),
            peer_address: "192.0.2.2:7400".into(),
            tls: false,
            epoch: 0,
            wall_ms: 0,
            kind,
        };
        journal.append(&record).unwrap();
    }
    let Reply::Ownership(list) = node.ask(&Request::Ownership) else {
        panic!("no ownership");
    };
    assert_eq!(
        (list[0].vm.as_str(), list[0].owner.as_str()),
        ("web", "in-doubt")
    );
    assert_eq!(node.refusal(&migrate("b")).code, ErrorCode::Busy);
}

#[test]
fn garbage_is_refused_and_others_are_served() {
    use std::io::{Read, Write};
    let node = TestNode::start();
    let socket = node.dir.path().join("node.sock");
    assert_eq!(
        socket.metadata().unwrap().permissions().mode() & 0o777,
        0o600
    );
    for garbage in [
        &b"\xff\xff\xff\xff"[..],
        b"\x02\0\0\0\x01\xee",
        b"\x02\0\0\0\x09\0",
        b"\0\0\0\0",
    ] {
        let mut client = node.client();
        client.write_all(garbage).unwrap();
        let (reply, _) = dwcp_api::receive::<Reply>(&mut client).unwrap();
        assert!(matches!(reply, Reply::Error(error) if error.code == ErrorCode::BadRequest));
        assert_eq!(client.read(&mut [0; 8]).unwrap(), 0, "closed");
    }
    let half = node.client();
    (&half).write_all(b"\x40\0\0\0\x01").unwrap();
    assert!(matches!(node.ask(&Request::Node), Reply::Node(_)));
}

#[test]
fn a_second_control_plane_is_told_so() {
    let node = TestNode::start();
    let _entered = node.runtime.enter();
    let same_folder = Node::start(options(node.dir.path())).unwrap_err();
    assert!(same_folder.is_in_use() && same_folder.to_string().contains("in use"));
    let other = tempfile::tempdir().unwrap();
    let mut options = options(other.path());
    options.socket = node.dir.path().join("node.sock");
    let same_socket = Node::start(options).unwrap_err();
    assert!(same_socket.is_in_use(), "{same_socket}");
    assert!(matches!(node.ask(&Request::Node), Reply::Node(_)));
}
