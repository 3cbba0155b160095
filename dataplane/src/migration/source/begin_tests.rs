use dwcp_api::{
    Attachment, Codec, IoPath, KernelTlsChoice, MigrationId, NotConverged, RdmaChoice, SendChoice,
    TlsChoice, TrackerChoice,
};
use dwcp_testbed::synthetic::{SyntheticGuest, SyntheticOptions};

use super::*;
use crate::migration::{NodeOptions, PeerNode};

fn request(vm: &str) -> Request {
    Request {
        id: MigrationId(7),
        vm: vm.into(),
        destination: PeerNode {
            name: None,
            address: "127.0.0.1:1".into(),
        },
        settings: TransferSettings {
            mode: "test".into(),
            streams: 1,
            measure_streams: false,
            workers: 0,
            at_once: 0,
            priority: 10,
            tls: TlsChoice::Auto,
            kernel_tls: KernelTlsChoice::Off,
            rdma: RdmaChoice::Auto,
            io: IoPath::Auto,
            send: SendChoice::Auto,
            window_bytes: 1 << 20,
            codec: Codec::Raw,
            reuse: false,
            remember_bytes: 0,
            tracker: TrackerChoice::Auto,
            verify: Verify::Sample,
            sample_pages: 1,
            downtime_limit_ms: 300,
            downtime_limit_at_last_ms: 0,
            throttle_percent_max: 0,
            deadline_ms: 0,
            rounds_max: 1,
            if_not_converged: NotConverged::Abort,
            connect_timeout_ms: 1000,
            peer_silence_ms: 1000,
            congestion_control: None,
            bandwidth_limit_mbit: 0,
            paths: vec![],
            follow_path: false,
            pin_workers: false,
            busy_poll_us: 0,
        },
        dry_run: false,
    }
}

/// A `Begin` that nobody ends would be recovered after the next restart as if the data plane had
/// died in the middle of it.
#[test]
fn without_a_thread_nothing_begins() {
    let folder = tempfile::tempdir().unwrap();
    let socket = folder.path().join("guest.sock");
    let options = SyntheticOptions {
        socket: socket.clone(),
        ram_mib: 4,
        ..SyntheticOptions::default()
    };
    let _guest = SyntheticGuest::start(options).unwrap();
    let node = Node::new(NodeOptions {
        name: "a".into(),
        state_folder: folder.path().into(),
        listen: "127.0.0.1:0".into(),
        rdma_listen: None,
        store_bytes_max: 0,
        tls: None,
        allow_plain_text: false,
        outgoing_bytes_per_s: 0,
        incoming_at_once: 0,
    });
    let node = Arc::new(node.unwrap());
    let attachment = Attachment::Process {
        socket: socket.to_string_lossy().into_owned(),
    };
    node.attach("vm", attachment).unwrap();
    let none_left = |_| Err(std::io::ErrorKind::WouldBlock.into());
    let error = start_on(&node, &request("vm"), none_left).unwrap_err();
    assert!(error.message.starts_with("no thread: "), "{error}");
    assert_eq!(node.journal().state().ownership(), []);
    assert!(node.migration(MigrationId(7)).is_none());
    node.detach("vm").unwrap();
}
