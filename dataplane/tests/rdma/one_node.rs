//! Two nodes in one process, on one device.

use std::process::Command;
use std::time::Duration;

use dwcp_api::{
    Codec, MigrationId, MigrationReport, NotConverged, PhaseName, PostcopyReport, RdmaChoice,
    RunResult, TrackerChoice, TransferSettings, Tune,
};
use dwcp_dataplane::migration::Node;
use dwcp_testbed::synthetic::SyntheticOptions;

use crate::common::proxy::{self, Harm, Plan, Proxy, Way};
use crate::common::{TwoNodes, busy, settings, until, wait};

pub(crate) const ID: MigrationId = MigrationId(7);

/// An address for queue pairs alone: when it is taken away, TCP stays.
const APART: &str = "10.9.1.1";

/// The address of this node's device.
fn own() -> String {
    std::env::var("DWCP_RXE_OWN").expect("DWCP_RXE_OWN is the device's address")
}

fn start(
    settings: &TransferSettings,
    guest: fn(bool) -> SyntheticOptions,
    rdma: Option<&str>,
) -> TwoNodes {
    TwoNodes::start_with(settings, guest, |_, mut options| {
        options.listen = format!("{}:0", own());
        options.rdma_listen = rdma.map(|address| format!("{address}:0"));
        options
    })
}

pub(crate) fn required() -> TransferSettings {
    TransferSettings {
        rdma: RdmaChoice::Required,
        ..settings()
    }
}

/// Moves a guest, while it writes.
fn move_guest(nodes: &TwoNodes, settings: &TransferSettings) {
    std::thread::sleep(Duration::from_millis(100));
    let (node, destination) = (&nodes.a.node, &nodes.b.address);
    node.start_migration(ID, "vm", destination, settings.clone(), false)
        .unwrap();
}

/// Lets the guest check all of its memory at the destination.
fn check_moved(nodes: &TwoNodes) -> [MigrationReport; 2] {
    let reports = [wait(&nodes.a.node, ID), wait(&nodes.b.node, ID)];
    for report in &reports {
        println!("{}", serde_json::to_string_pretty(report).unwrap());
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        assert!(report.verified);
    }
    if reports[0].postcopy.is_none() {
        assert_eq!(reports[0].ram_root, reports[1].ram_root);
    }
    assert!(!nodes.old.is_running(), "the source runs on");
    assert!(nodes.new.is_running(), "the destination does not run");
    assert_eq!(nodes.new.bad_pages(), 0);
    reports
}

/// A guest that is dense: what is not goes through the ring.
fn dense(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        zero_percent: 5,
        ..busy(incoming)
    }
}

/// MiB of pages that the source's adapter has placed, and that went through rings.
pub(crate) fn placed_mib(report: &MigrationReport) -> (u64, u64) {
    let mut notes = report.notes.iter();
    let text = notes.find_map(|note| note.strip_prefix("RDMA: "));
    let numbers = text.expect("a note").split(' ');
    let numbers: Vec<_> = numbers.filter_map(|word| word.parse().ok()).collect();
    (numbers[0], numbers[1])
}

/// Moves a busy guest.
pub(crate) fn moves(settings: &TransferSettings) -> [MigrationReport; 2] {
    let nodes = start(settings, dense, None);
    move_guest(&nodes, settings);
    check_moved(&nodes)
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_busy_guest_is_moved_by_the_adapter() {
    let reports = moves(&required());
    for report in &reports {
        assert_eq!(report.transport, "rdma");
        assert_eq!(report.streams_replaced, 0);
    }
    assert!(reports[0].rounds > 1, "pages were written meanwhile");
    let (placed, ring) = placed_mib(&reports[0]);
    assert!(
        placed > 50 && ring < 5,
        "{placed} MiB placed, {ring} in rings"
    );
}

/// What is encoded goes through the ring.
#[test]
#[ignore = "needs an RDMA device"]
fn encoded_pages_come_by_the_ring() {
    for codec in [
        Codec::Zstd { level: 1 },
        Codec::Window {
            level: 1,
            window_bytes: 8 << 20,
        },
    ] {
        let reports = moves(&TransferSettings {
            codec,
            streams: 3,
            workers: 2,
            ..required()
        });
        assert_eq!(reports[0].transport, "rdma");
        let (placed, ring) = placed_mib(&reports[0]);
        assert!(ring > placed, "{placed} MiB placed, {ring} in rings");
    }
}

#[test]
#[ignore = "needs an RDMA device"]
fn without_queue_pairs_tcp_is_used() {
    let off = TransferSettings {
        rdma: RdmaChoice::Off,
        ..settings()
    };
    for report in moves(&off) {
        assert!(report.transport.starts_with("tcp"), "{}", report.transport);
    }
}

/// KiB of shared memory in this system: RAM of guests, mostly.
fn shared_kib() -> u64 {
    let all = std::fs::read_to_string("/proc/meminfo").unwrap();
    let line = all.lines().find_map(|line| line.strip_prefix("Shmem:"));
    let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
    kib.unwrap().trim().parse().unwrap()
}

/// The same once it stays so: guests of tests before may still be ending.
fn settled_kib() -> u64 {
    let mut last = 0;
    until("memory is given back", || {
        std::thread::sleep(Duration::from_millis(300));
        std::mem::replace(&mut last, shared_kib()) == last
    });
    last
}

/// A guest of 64 MiB, most of which has no memory.
fn sparse(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        zero_percent: 80,
        hot_mib: 1,
        rate: 100,
        // To look at a page gives it memory, too.
        verify_rate: 0,
        ..busy(incoming)
    }
}

/// The same, of which one page in ten has none.
fn with_holes(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        zero_percent: 10,
        rate: 0,
        ..sparse(incoming)
    }
}

/// KiB of memory that both ends have more after a migration. To register memory makes it.
fn made_kib(guest: fn(bool) -> SyntheticOptions) -> u64 {
    let nodes = start(&required(), guest, None);
    let before = settled_kib();
    move_guest(&nodes, &required());
    wait(&nodes.a.node, ID);
    wait(&nodes.b.node, ID);
    let made = settled_kib().saturating_sub(before);
    println!("{made} KiB more than before");
    check_moved(&nodes);
    made
}

#[test]
#[ignore = "needs an RDMA device"]
fn a_sparse_guest_stays_so() {
    assert!(made_kib(sparse) < 20 << 10, "the guest has 13 MiB");
}

/// Without that it would be 64 MiB at the destination, and 6 at the source.
#[test]
#[ignore = "needs an RDMA device"]
fn memory_that_nothing_came_to_goes_back() {
    assert!(made_kib(with_holes) < 67 << 10, "the guest has 58 MiB");
}

pub(crate) fn ip(arguments: &str) {
    let arguments = arguments.split(' ');
    let status = Command::new("ip").args(arguments).status();
    assert!(status.unwrap().success());
}

/// A guest that is moved for seconds.
pub(crate) fn large(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        ram_mib: 128,
        zero_percent: 5,
        ..busy(incoming)
    }
}

/// Waits until so many bytes are on their way or there.
pub(crate) fn until_sent(node: &Node, bytes: u64) {
    until("pages are sent", || {
        let migration = node.migration(ID);
        let status = migration.expect("it is known").status();
        assert!(status.report.is_none(), "over too soon: {status:?}");
        status.progress.wire_bytes >= bytes
    });
}

/// Waits until the adapter of this node, the destination, has read pages that somebody waited for.
pub(crate) fn until_read(node: &Node) {
    until("no pages are read", || {
        // It may not have heard of it yet.
        let Ok(status) = node.status(ID) else {
            return false;
        };
        assert!(status.report.is_none(), "over too soon: {status:?}");
        status.progress.read_pages >= 16
    });
}

/// The adapter's address is gone in the middle: nothing that it has sent is acknowledged any more.
#[test]
#[ignore = "needs an RDMA device"]
fn a_stream_whose_queue_pair_breaks_goes_on_over_tcp() {
    ip(&format!("addr add {APART}/24 dev eth0"));
    let settings = TransferSettings {
        peer_silence_ms: 20_000,
        ..settings()
    };
    let nodes = start(&settings, large, Some(APART));
    move_guest(&nodes, &settings);
    until_sent(&nodes.a.node, 24 << 20);
    ip(&format!("addr del {APART}/24 dev eth0"));
    let reports = check_moved(&nodes);
    assert_eq!(reports[0].transport, "rdma");
    assert!(reports[0].streams_replaced >= 1, "{:?}", reports[0].notes);
    let notes = reports[0].notes.join("\n");
    assert!(notes.contains("went on over TCP"), "{notes}");
}

/// 64 MiB of which 32 MiB are rewritten faster than the limit below lets them go.
fn outruns(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        hot_mib: 32,
        rate: 20_000,
        ..dense(incoming)
    }
}

/// Whether an end had to go back to TCP for what is waited for.
pub(crate) fn reading_broke(report: &MigrationReport) -> bool {
    let mut notes = report.notes.iter();
    notes.any(|note| note.contains("waited for go by TCP"))
}

/// What post-copy took; both ends say the same of it.
fn check_read(reports: &[MigrationReport; 2]) -> PostcopyReport {
    let postcopy = reports[0].postcopy.expect("it was post-copied");
    assert_eq!(reports[1].postcopy, Some(postcopy));
    assert!(postcopy.pages > 1000, "{postcopy:?}");
    let read = format!(
        "RDMA: {} missing pages READ by the adapter",
        postcopy.read_pages
    );
    for report in reports {
        let mut notes = report.notes.iter();
        let is_told = notes.any(|note| note.starts_with(&read));
        assert!(is_told, "{read}: {:?}", report.notes);
    }
    postcopy
}

/// What is missing is taken out of RAM that an adapter had been told of; what is waited for is read by one.
#[test]
#[ignore = "needs an RDMA device"]
fn post_copy_follows_rounds_over_queue_pairs() {
    reads(&required());
}

/// Moves a guest that outruns its link, and has pages read meanwhile.
pub(crate) fn reads(settings: &TransferSettings) {
    let settings = TransferSettings {
        bandwidth_limit_mbit: 100,
        if_not_converged: NotConverged::PostCopy,
        ..settings.clone()
    };
    let nodes = start(&settings, outruns, None);
    move_guest(&nodes, &settings);
    let reports = check_moved(&nodes);
    assert_eq!(reports[0].transport, "rdma");
    assert_eq!(reports[0].streams_replaced, 0, "{:?}", reports[0].notes);
    let postcopy = check_read(&reports);
    assert!(postcopy.read_pages > 100, "{postcopy:?}");
    assert!(!reports.iter().any(reading_broke), "{:?}", reports[1].notes);
}

/// All of it follows the guest, which writes and looks at a page now and then.
pub(crate) fn calm(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        rate: 100,
        verify_rate: 100,
        hot_mib: 32,
        ..dense(incoming)
    }
}

/// The adapter's address is gone while the guest waits for pages: they are asked for by TCP, and nobody is lost.
#[test]
#[ignore = "needs an RDMA device"]
fn post_copy_whose_reads_break_goes_on_over_tcp() {
    ip(&format!("addr add {APART}/24 dev eth0"));
    let settings = TransferSettings {
        bandwidth_limit_mbit: 100,
        peer_silence_ms: 20_000,
        // It does not say which pages were written.
        tracker: TrackerChoice::Fingerprint,
        ..settings()
    };
    let nodes = start(&settings, calm, Some(APART));
    move_guest(&nodes, &settings);
    nodes.a.node.tune(ID, Tune::PostCopy).unwrap();
    until_read(&nodes.b.node);
    ip(&format!("addr del {APART}/24 dev eth0"));
    let left = nodes.b.node.status(ID).unwrap().progress.pages_left;
    assert!(left > 2000, "{left} pages are left: it broke too late");
    let reports = check_moved(&nodes);
    let postcopy = check_read(&reports);
    assert!(postcopy.read_pages > 0, "{postcopy:?}");
    assert!(reports.iter().all(reading_broke), "{:?}", reports[0].notes);
}

/// The way of all but the queue pairs is lost, and found again: no key outlives that, and pages come by TCP.
#[test]
#[ignore = "needs an RDMA device"]
fn post_copy_whose_way_is_lost_reads_nothing_more() {
    let settings = TransferSettings {
        bandwidth_limit_mbit: 100,
        tracker: TrackerChoice::Fingerprint,
        ..settings()
    };
    let nodes = start(&settings, calm, None);
    let plan = Plan {
        connections: proxy::missing(1)..proxy::missing(1) + 1,
        way: Way::ToDestination,
        harm: Harm::Sever { bytes: 8 << 20 },
    };
    let proxy = Proxy::start(&nodes.b.address, plan);
    let node = &nodes.a.node;
    node.start_migration(ID, "vm", &proxy.address, settings, false)
        .unwrap();
    node.tune(ID, Tune::PostCopy).unwrap();
    until("the source is cut off", || {
        node.status(ID).unwrap().phase == PhaseName::PostcopyPaused
    });
    proxy.restore();
    let reports = check_moved(&nodes);
    let postcopy = check_read(&reports);
    assert!(
        postcopy.read_pages > 0 && postcopy.breaks > 0,
        "{postcopy:?}"
    );
    assert!(reports.iter().all(reading_broke), "{:?}", reports[1].notes);
}

/// What the operator forbids is not done.
#[test]
#[ignore = "needs an RDMA device"]
fn post_copy_without_queue_pairs_reads_nothing() {
    let settings = TransferSettings {
        bandwidth_limit_mbit: 100,
        if_not_converged: NotConverged::PostCopy,
        rdma: RdmaChoice::Off,
        ..settings()
    };
    let nodes = start(&settings, outruns, None);
    move_guest(&nodes, &settings);
    let reports = check_moved(&nodes);
    let postcopy = reports[0].postcopy.expect("it was post-copied");
    assert_eq!(postcopy.read_pages, 0);
    let notes = reports.map(|report| report.notes.join(" ")).concat();
    assert!(!notes.contains("RDMA"), "{notes}");
}

/// The device goes while its queue pairs are at work. The name has this test come last: afterwards there is none.
#[test]
#[ignore = "needs an RDMA device, which it takes away"]
fn z_device_that_is_taken_away_is_no_loss() {
    let nodes = start(&settings(), large, None);
    move_guest(&nodes, &settings());
    until_sent(&nodes.a.node, 24 << 20);
    // The kernel waits until nobody has it open, and librdmacm has, as long as this process lives.
    let taken = Command::new("sh")
        .args(["-c", "rdma link delete rxe0 &"])
        .status();
    assert!(taken.unwrap().success());
    let reports = check_moved(&nodes);
    let notes = reports[0].notes.join("\n");
    assert!(notes.contains("went on over TCP"), "{notes}");
}
