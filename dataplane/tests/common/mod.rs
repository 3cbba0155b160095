//! Two nodes in one process, synthetic guests, a seeded random source.

#![allow(dead_code, reason = "each test file uses a part")]

pub(crate) mod calls;
pub(crate) mod daemon;
pub(crate) mod disk;
pub(crate) mod flip;
pub(crate) mod line;
pub(crate) mod log;
pub(crate) mod pki;
pub(crate) mod proxy;
pub(crate) mod stranger;
pub(crate) mod tap;

use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::{
    Attachment, Codec, IoPath, KernelTlsChoice, MigrationId, MigrationReport, NotConverged,
    RdmaChoice, SendChoice, TlsChoice, TrackerChoice, TransferSettings, Verify,
};
use dwcp_dataplane::migration::{Listener, Node, NodeOptions};
use dwcp_guest_page::Kind;
use dwcp_testbed::synthetic::{ClientError, SyntheticClient, SyntheticGuest, SyntheticOptions};

/// Longest wait for anything; a loaded machine is slow, a hang is for ever.
const PATIENCE: Duration = Duration::from_secs(60);

/// A sequence that its seed decides.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        // A state of 0 would stay 0; neighbouring seeds must part at once.
        let mut random = Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1);
        random.next();
        random
    }

    pub(crate) fn next(&mut self) -> u64 {
        self.0 = dwcp_guest_page::next_random(self.0);
        self.0
    }

    /// A number in `0..most`.
    pub(crate) fn below(&mut self, most: u64) -> u64 {
        (self.next() >> 8) % most
    }

    /// True `percent` times of a hundred.
    pub(crate) fn chance(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }

    pub(crate) fn pick<T: Copy>(&mut self, of: &[T]) -> T {
        of[self.below(of.len() as u64) as usize]
    }
}

pub(crate) fn settings() -> TransferSettings {
    TransferSettings {
        mode: "test".into(),
        streams: 2,
        measure_streams: false,
        workers: 0,
        at_once: 0,
        priority: 10,
        tls: TlsChoice::Auto,
        kernel_tls: KernelTlsChoice::Off,
        rdma: RdmaChoice::Auto,
        io: IoPath::Auto,
        send: SendChoice::Auto,
        window_bytes: 16 << 20,
        codec: Codec::Raw,
        reuse: false,
        remember_bytes: 0,
        tracker: TrackerChoice::Auto,
        verify: Verify::Sample,
        sample_pages: 512,
        downtime_limit_ms: 300,
        downtime_limit_at_last_ms: 0,
        throttle_percent_max: 0,
        deadline_ms: 0,
        rounds_max: 30,
        if_not_converged: NotConverged::Abort,
        connect_timeout_ms: 5000,
        peer_silence_ms: 5000,
        congestion_control: None,
        pin_workers: false,
        busy_poll_us: 0,
        bandwidth_limit_mbit: 0,
        follow_path: false,
        paths: vec![],
    }
}

pub(crate) struct TestNode {
    pub(crate) node: Arc<Node>,
    pub(crate) address: String,
}

pub(crate) fn node(folder: &Path, name: &str, incoming: &TransferSettings) -> TestNode {
    node_with(node_options(folder, name), incoming)
}

pub(crate) fn node_options(folder: &Path, name: &str) -> NodeOptions {
    NodeOptions {
        name: name.into(),
        state_folder: folder.join(name),
        listen: "127.0.0.1:0".into(),
        rdma_listen: None,
        store_bytes_max: 256 << 20,
        tls: None,
        allow_plain_text: false,
        outgoing_bytes_per_s: 0,
        incoming_at_once: 0,
    }
}

pub(crate) fn node_with(options: NodeOptions, incoming: &TransferSettings) -> TestNode {
    std::fs::create_dir_all(&options.state_folder).unwrap();
    let node = Arc::new(Node::new(options).unwrap());
    let listener = Listener::bind(&node).unwrap();
    let address = listener.address().unwrap().to_string();
    let (accepting, incoming) = (Arc::clone(&node), incoming.clone());
    std::thread::spawn(move || listener.run(&accepting, &incoming));
    TestNode { node, address }
}

/// A guest, how a node reaches it, and how a test does.
pub(crate) struct TestGuest {
    guest: SyntheticGuest,
    pub(crate) attachment: Attachment,
    socket: std::path::PathBuf,
}

impl TestGuest {
    pub(crate) fn start(folder: &Path, name: &str, options: &SyntheticOptions) -> Self {
        let socket = folder.join(format!("{name}.sock"));
        let options = SyntheticOptions {
            name: name.into(),
            socket: socket.clone(),
            ..options.clone()
        };
        Self {
            guest: SyntheticGuest::start(options).unwrap(),
            attachment: Attachment::Process {
                socket: socket.to_string_lossy().into_owned(),
            },
            socket,
        }
    }

    /// `None` when the guest has ended: a node ends a guest that was loaded and must never run.
    fn try_client(&self) -> Option<SyntheticClient> {
        let stream = UnixStream::connect(&self.socket).ok()?;
        SyntheticClient::from_stream(stream, PATIENCE).ok()
    }

    pub(crate) fn client(&self) -> SyntheticClient {
        self.try_client().expect("the guest has ended")
    }

    /// Takes over the state of `from`, which stands then, as this one does: a copy that somebody could run.
    pub(crate) fn load_from(&self, from: &Self) {
        let (mut from, mut to) = (from.client(), self.client());
        from.pause().unwrap();
        let (out, into) = UnixStream::pair().unwrap();
        let saving = std::thread::spawn(move || from.save(out.as_fd()).map(drop));
        to.load(into.as_fd()).unwrap();
        saving.join().unwrap().unwrap();
    }

    pub(crate) fn is_running(&self) -> bool {
        let status = self.try_client().map(|mut client| client.status());
        match status {
            Some(Ok(status)) => status.running,
            None | Some(Err(ClientError::Closed { .. })) => false,
            Some(Err(error)) => panic!("{error}"),
        }
    }

    /// Pages that are not what the guest wrote, now or at any time before.
    pub(crate) fn bad_pages(&self) -> u64 {
        let mut client = self.client();
        let now = client.verify().unwrap().bad;
        now + client.status().unwrap().bad
    }
}

/// 64 MiB, a part of them zero, under load.
pub(crate) fn busy(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        ram_mib: 64,
        hot_mib: 8,
        rate: 2000,
        kind: Kind::Text,
        zero_percent: 30,
        incoming,
        ..SyntheticOptions::default()
    }
}

/// The same, and rewritten faster than 200 Mbit/s take: 32 MiB.
pub(crate) fn outruns(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        hot_mib: 32,
        rate: 20_000,
        ..busy(incoming)
    }
}

/// Small enough to be moved many times in a test.
pub(crate) fn small(seed: u64, incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        ram_mib: 4,
        hot_mib: 1,
        rate: 500,
        verify_rate: 2000,
        seed,
        ..busy(incoming)
    }
}

/// Two nodes, and both ends of the guest `vm`.
pub(crate) struct TwoNodes {
    pub(crate) a: TestNode,
    pub(crate) b: TestNode,
    pub(crate) old: TestGuest,
    pub(crate) new: TestGuest,
    folder: tempfile::TempDir,
}

impl TwoNodes {
    /// `guest` says what the guest is like, given whether it waits at the destination.
    pub(crate) fn start(
        settings: &TransferSettings,
        guest: impl Fn(bool) -> SyntheticOptions,
    ) -> Self {
        Self::start_with(settings, guest, |_, options| options)
    }

    /// As [`Self::start`]; `change` says how each node's options differ, given the tests' folder.
    pub(crate) fn start_with(
        settings: &TransferSettings,
        guest: impl Fn(bool) -> SyntheticOptions,
        change: impl Fn(&Path, NodeOptions) -> NodeOptions,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let start = |name| {
            let options = node_options(folder.path(), name);
            node_with(change(folder.path(), options), settings)
        };
        let (a, b) = (start("a"), start("b"));
        let old = TestGuest::start(folder.path(), "source", &guest(false));
        let new = TestGuest::start(folder.path(), "destination", &guest(true));
        a.node.attach("vm", old.attachment.clone()).unwrap();
        b.node.attach("vm", new.attachment.clone()).unwrap();
        Self {
            a,
            b,
            old,
            new,
            folder,
        }
    }

    /// Of the nodes' states and the guests' sockets.
    pub(crate) fn folder(&self) -> &Path {
        self.folder.path()
    }
}

/// The report of a migration that this node knows.
pub(crate) fn wait(node: &Node, id: MigrationId) -> MigrationReport {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = node.migration(id).expect("the migration is known").status();
        if let Some(report) = status.report {
            return report;
        }
        assert!(Instant::now() < deadline, "still {:?}", status.phase);
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Waits until `done` holds; `what` is said when it does not come to that.
pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}
