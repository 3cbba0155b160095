//! A node in this process, a scripted data plane, a client on the node's socket.

mod fake;

use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dwcp_api::counters::Counters;
use dwcp_api::node::{Reply, Request};
use dwcp_api::{Attachment, ErrorCode, MigrationId, Role, dataplane};
use dwcp_controlplane::node::{Node, Options, Reloadable};
use dwcp_controlplane::profile;
use dwcp_journal::{Journal, Record, RecordKind};
use fake::FakePlane;
use tokio::sync::oneshot;

struct TestNode {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
    end: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl TestNode {
    fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    fn start_in(dir: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let options = options(dir.path());
        let (end, ended) = oneshot::channel::<()>();
        let running = runtime.block_on(async { Node::start(options).unwrap() });
        let served = runtime.spawn(running.run(async {
            let _ = ended.await;
        }));
        Self {
            dir,
            runtime,
            end: Some(end),
            served: Some(served),
        }
    }

    fn plane_path(&self) -> PathBuf {
        self.dir.path().join("dataplane.sock")
    }

    fn client(&self) -> UnixStream {
        dwcp_api::connect(&self.dir.path().join("node.sock"), Duration::from_secs(20)).unwrap()
    }

    fn ask(&self, request: &Request) -> Reply {
        let mut client = self.client();
        dwcp_api::send(&mut client, request, &[]).unwrap();
        dwcp_api::receive(&mut client).unwrap().0
    }

    fn refusal(&self, request: &Request) -> dwcp_api::ApiError {
        match self.ask(request) {
            Reply::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }

    fn wait_for_plane(&self) {
        wait(|| matches!(self.ask(&Request::Node), Reply::Node(node) if node.dataplane.is_some()));
    }

    fn stop(mut self) -> tempfile::TempDir {
        drop(self.end.take());
        self.runtime.block_on(self.served.take().unwrap()).unwrap();
        self.dir
    }
}

fn options(dir: &Path) -> Options {
    Options {
        name: "a".into(),
        state_folder: dir.to_owned(),
        socket: dir.join("node.sock"),
        dataplane_socket: dir.join("dataplane.sock"),
        reloadable: Reloadable {
            peers: vec![("b".into(), "192.0.2.2:7400".into())],
            default_settings: profile::load("datacenter").unwrap(),
        },
    }
}

fn wait(mut until: impl FnMut() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited too long");
        std::thread::yield_now();
    }
}

fn attach(name: &str) -> Request {
    Request::AttachVm {
        name: name.into(),
        attachment: Attachment::Process {
            socket: "/run/guest.sock".into(),
        },
    }
}

fn migrate(to: &str) -> Request {
    Request::Migrate {
        vm: "web".into(),
        to: to.into(),
        settings: profile::load("internet").unwrap(),
        dry_run: false,
    }
}

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
    assert_eq!(
        node.ask(&Request::DetachVm { name: "web".into() }),
        Reply::Done
    );
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
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    node.ask(&attach("web"));
    drop(plane);
    wait(|| matches!(node.ask(&Request::Node), Reply::Node(node) if node.dataplane.is_none()));
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

/// A data plane that was started anew, with a VMM that does not answer it for some tries.
fn restarted_with(node: &TestNode, refusals: usize) -> FakePlane {
    let mut obedient = fake::obedient();
    let mut left = refusals;
    let script = move |request: &dataplane::Request| match request {
        dataplane::Request::AttachVm { name, .. } if name == "web" && left > 0 => {
            left -= 1;
            let text = "VM web: VMM is gone: /run/guest.sock";
            let error = dwcp_api::ApiError::new(ErrorCode::NotFound, text);
            Some(dataplane::Reply::Error(error))
        }
        other => obedient(other),
    };
    FakePlane::start(&node.plane_path(), Box::new(script))
}

/// A node with the VM `web` on record whose data plane has ended.
fn node_with_web() -> TestNode {
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    node.ask(&attach("web"));
    drop(plane);
    wait(|| matches!(node.ask(&Request::Node), Reply::Node(node) if node.dataplane.is_none()));
    node
}

fn tries(plane: &FakePlane) -> usize {
    let requests = plane.requests.lock().unwrap();
    let attach = |request: &&dataplane::Request| matches!(request, dataplane::Request::AttachVm { name, .. } if name == "web");
    requests.iter().filter(attach).count()
}

fn web(node: &TestNode) -> dwcp_api::VmInfo {
    match node.ask(&Request::ListVms) {
        Reply::Vms(mut vms) => vms.remove(0),
        other => panic!("{other:?}"),
    }
}

/// A VMM that does not answer in the moment in which the data plane starts is not lost for ever.
#[test]
fn a_vm_that_cannot_be_attached_again_is_tried_on_and_listed_with_the_reason() {
    let node = node_with_web();
    let plane = restarted_with(&node, 2);
    node.wait_for_plane();
    wait(|| tries(&plane) == 1);
    wait(|| !web(&node).note.is_empty());
    let vm = web(&node);
    assert_eq!(
        (vm.state.as_str(), vm.note.as_str()),
        ("not attached", "VMM is gone: /run/guest.sock")
    );
    wait(|| web(&node).state == "running");
    assert_eq!((tries(&plane), web(&node).note), (3, String::new()));
}

/// What a user says of a VM ends the tries that wait for it.
#[test]
fn a_vm_that_is_detached_or_attached_by_hand_is_not_tried_again() {
    for by_hand in [Request::DetachVm { name: "web".into() }, attach("web")] {
        let node = node_with_web();
        let plane = restarted_with(&node, 1);
        node.wait_for_plane();
        wait(|| tries(&plane) == 1);
        assert!(!matches!(node.ask(&by_hand), Reply::Error(_)));
        let tried = tries(&plane);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(tries(&plane), tried, "{by_hand:?}");
    }
}

/// The tries for a VM that is slow hold up nobody who attaches another.
#[test]
fn a_vm_that_is_slow_to_attach_again_delays_no_other_vm() {
    let node = node_with_web();
    let delay = |request: &dataplane::Request| match request {
        dataplane::Request::AttachVm { name, .. } if name == "web" => Duration::from_secs(3),
        _ => Duration::ZERO,
    };
    let plane = FakePlane::start_slow(&node.plane_path(), fake::obedient(), delay);
    node.wait_for_plane();
    wait(|| tries(&plane) == 1);
    let began = Instant::now();
    assert!(matches!(node.ask(&attach("db")), Reply::Vm(_)));
    assert!(began.elapsed() < Duration::from_secs(2));
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
