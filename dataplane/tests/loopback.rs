//! Two nodes in one process, a synthetic guest under load, TCP over loopback.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::{
    Attachment, Codec, IoPath, MigrationId, MigrationReport, RunResult, TrackerChoice,
    TransferSettings, Verify,
};
use dwcp_dataplane::migration::{Listener, Node, NodeOptions};
use dwcp_guest_page::Kind;
use dwcp_testbed::synthetic::{SyntheticClient, SyntheticGuest, SyntheticOptions};

fn settings() -> TransferSettings {
    TransferSettings {
        mode: "test".into(),
        streams: 2,
        workers: 0,
        io: IoPath::Auto,
        window_bytes: 16 << 20,
        codec: Codec::Raw,
        tracker: TrackerChoice::Auto,
        verify: Verify::Sample,
        sample_pages: 512,
        downtime_limit_ms: 300,
        rounds_max: 30,
        abort_if_not_converged: true,
        connect_timeout_ms: 5000,
        peer_silence_ms: 5000,
        congestion_control: None,
        pin_workers: false,
    }
}

struct TestNode {
    node: Arc<Node>,
    address: String,
}

fn node(folder: &Path, name: &str, incoming: &TransferSettings) -> TestNode {
    let state_folder = folder.join(name);
    std::fs::create_dir_all(&state_folder).unwrap();
    let options = NodeOptions { name: name.into(), state_folder, listen: "127.0.0.1:0".into() };
    let node = Arc::new(Node::new(options).unwrap());
    let listener = Listener::bind(&node).unwrap();
    let address = listener.address().unwrap().to_string();
    let (accepting, incoming) = (Arc::clone(&node), incoming.clone());
    std::thread::spawn(move || listener.run(&accepting, &incoming));
    TestNode { node, address }
}

fn guest(folder: &Path, name: &str, incoming: bool) -> (SyntheticGuest, Attachment) {
    let socket = folder.join(name);
    let options = SyntheticOptions {
        name: name.into(),
        socket: socket.clone(),
        ram_mib: 64,
        hot_mib: 8,
        rate: 2000,
        kind: Kind::Text,
        zero_percent: 30,
        incoming,
        ..SyntheticOptions::default()
    };
    let guest = SyntheticGuest::start(options).unwrap();
    (guest, Attachment::Process { socket: socket.to_string_lossy().into_owned() })
}

fn wait(node: &Node, id: MigrationId) -> MigrationReport {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let status = node.migration(id).expect("the migration is known").status();
        if let Some(report) = status.report {
            return report;
        }
        assert!(Instant::now() < deadline, "still {:?}", status.phase);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Moves a guest and lets it check all of its memory at the destination.
fn moves(settings: &TransferSettings) -> MigrationReport {
    let folder = tempfile::tempdir().unwrap();
    let a = node(folder.path(), "a", settings);
    let b = node(folder.path(), "b", settings);
    let (_source, at_a) = guest(folder.path(), "source.sock", false);
    let (_destination, at_b) = guest(folder.path(), "destination.sock", true);
    a.node.attach("vm", at_a).unwrap();
    b.node.attach("vm", at_b).unwrap();
    std::thread::sleep(Duration::from_millis(100));
    let id = MigrationId(7);
    a.node.start_migration(id, "vm", &b.address, settings.clone(), false).unwrap();
    let report = wait(&a.node, id);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.verified);
    let there = wait(&b.node, id);
    assert_eq!(there.result, RunResult::Completed, "{}", there.reason);
    assert_eq!(there.ram_root, report.ram_root);
    let time = Duration::from_secs(20);
    let mut old = SyntheticClient::connect(folder.path().join("source.sock"), time).unwrap();
    let mut new = SyntheticClient::connect(folder.path().join("destination.sock"), time).unwrap();
    assert!(!old.status().unwrap().running, "the source runs on");
    assert!(new.status().unwrap().running, "the destination does not run");
    let check = new.verify().unwrap();
    assert_eq!(check.bad, 0, "{check:?}");
    report
}

#[test]
fn a_busy_guest_is_moved_and_finds_its_memory_whole() {
    let report = moves(&settings());
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
}

#[test]
fn by_fingerprints() {
    let report = moves(&TransferSettings { tracker: TrackerChoice::Fingerprint, ..settings() });
    assert_eq!(report.tracker, "fingerprint");
}

#[test]
fn by_poll() {
    let report = moves(&TransferSettings { io: IoPath::Poll, ..settings() });
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
