//! Two kernels and a link between them. The same tests run in both, and look where they are: the first is the destination.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::time::Duration;

use dwcp_api::{MigrationReport, RunResult, TrackerChoice, TransferSettings, Tune};
use dwcp_testbed::synthetic::SyntheticOptions;

use crate::common::{TestGuest, TestNode, node_options, node_with, settings, until, wait};
use crate::one_node::{ID, calm, ip, large, reading_broke, until_read, until_sent};

/// Where the first node says that it is there, and stays until the second has gone.
const MEETING: u16 = 7400;

/// The network for queue pairs alone: when the source's address in it is gone, TCP stays.
const APART: &str = "10.9.1";

struct Place {
    is_destination: bool,
    own: String,
    peer: String,
}

fn place() -> Place {
    let of = |name: &str| std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set"));
    Place {
        is_destination: of("DWCP_RXE_NODE") == "1",
        own: of("DWCP_RXE_OWN"),
        peer: of("DWCP_RXE_PEER"),
    }
}

/// One end of a migration.
struct End {
    node: TestNode,
    guest: TestGuest,
    place: Place,
    _folder: tempfile::TempDir,
}

fn end(place: Place, port: u16, guest: fn(bool) -> SyntheticOptions, rdma: Option<String>) -> End {
    let folder = tempfile::tempdir().unwrap();
    let mut options = node_options(folder.path(), &format!("node-{}", place.own));
    options.listen = format!("{}:{port}", place.own);
    options.rdma_listen = rdma.map(|address| format!("{address}:0"));
    let node = node_with(options, &settings());
    let guest = TestGuest::start(folder.path(), "guest", &guest(place.is_destination));
    node.node.attach("vm", guest.attachment.clone()).unwrap();
    End {
        node,
        guest,
        place,
        _folder: folder,
    }
}

/// Both ends are there: neither goes on before.
fn meet(place: &Place) -> TcpStream {
    if place.is_destination {
        let listener = TcpListener::bind((place.own.as_str(), MEETING)).unwrap();
        return listener.accept().unwrap().0;
    }
    let mut met = None;
    until("the other node is not there", || {
        std::thread::sleep(Duration::from_millis(100));
        met = TcpStream::connect((place.peer.as_str(), MEETING)).ok();
        met.is_some()
    });
    met.unwrap()
}

/// Moves the guest from the second node to the first, which listens at `port`; `meanwhile` is done at both, which can talk.
fn moves(
    port: u16,
    (guest, settings): (fn(bool) -> SyntheticOptions, TransferSettings),
    rdma: Option<String>,
    meanwhile: impl FnOnce(&TestNode, &mut TcpStream),
) -> MigrationReport {
    let end = end(place(), port, guest, rdma);
    let mut met = meet(&end.place);
    let node = &end.node.node;
    if !end.place.is_destination {
        let settings = TransferSettings {
            peer_silence_ms: 20_000,
            connect_timeout_ms: 20_000,
            ..settings
        };
        let destination = format!("{}:{port}", end.place.peer);
        node.start_migration(ID, "vm", &destination, settings, false)
            .unwrap();
    }
    until("a migration comes", || node.migration(ID).is_some());
    meanwhile(&end.node, &mut met);
    let report = wait(node, ID);
    println!("{}", serde_json::to_string_pretty(&report).unwrap());
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.verified);
    assert_eq!(report.transport, "rdma");
    assert_eq!(end.guest.is_running(), end.place.is_destination);
    if end.place.is_destination {
        assert_eq!(end.guest.bad_pages(), 0);
    }
    // The other end has all that it needs.
    drop(met);
    report
}

fn small(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        ram_mib: 32,
        hot_mib: 2,
        rate: 200,
        ..large(incoming)
    }
}

#[test]
#[ignore = "needs two nodes with RDMA devices: tools/testbed/rxe --nodes 2"]
fn a_guest_is_moved_over_a_link_that_delays_and_loses() {
    let report = moves(7440, (small, settings()), None, |_, _| ());
    assert_eq!(report.streams_replaced, 0, "{:?}", report.notes);
    if place().is_destination {
        return;
    }
    let again = counter("rcvd_seq_err") + counter("completer_retry_err");
    println!("{again} times packets were sent again");
    assert!(again > 0, "the link has lost nothing");
}

/// Gives this node an address for queue pairs alone.
fn set_apart(place: &Place) -> String {
    let number = if place.is_destination { 1 } else { 2 };
    let apart = format!("{APART}.{number}");
    ip(&format!("addr add {apart}/24 dev eth0"));
    until("the address is one of the device", || {
        let last = format!("ffff:0a09:010{number}");
        let gids = std::fs::read_dir("/sys/class/infiniband/rxe0/ports/1/gids").unwrap();
        let mut gids = gids.map(|gid| std::fs::read_to_string(gid.unwrap().path()));
        gids.any(|gid| gid.is_ok_and(|gid| gid.contains(&last)))
    });
    apart
}

/// Moves a guest by queue pairs over addresses of their own, and takes one end's away in the middle.
fn loses_the_way(port: u16, at_destination: bool) -> MigrationReport {
    let place = place();
    let apart = set_apart(&place);
    let is_here = place.is_destination == at_destination;
    let report = moves(port, (large, settings()), Some(apart.clone()), |node, _| {
        if is_here {
            until_sent(&node.node, 24 << 20);
            ip(&format!("addr del {apart}/24 dev eth0"));
        }
    });
    if !is_here {
        ip(&format!("addr del {apart}/24 dev eth0"));
    }
    assert!(report.streams_replaced >= 1, "{:?}", report.notes);
    report
}

#[test]
#[ignore = "needs two nodes with RDMA devices: tools/testbed/rxe --nodes 2"]
fn b_guest_is_moved_though_its_source_loses_the_way() {
    loses_the_way(7441, false);
}

/// Nobody tells the source: what it sends is not acknowledged any more.
#[test]
#[ignore = "needs two nodes with RDMA devices: tools/testbed/rxe --nodes 2"]
fn c_guest_is_moved_though_its_destination_is_not_reached_any_more() {
    let report = loses_the_way(7442, true);
    if !place().is_destination {
        let notes = report.notes.join("\n");
        assert!(notes.contains("retries exceeded"), "{notes}");
    }
}

/// Pages that the guest waits for are read, and then those reads are answered by nobody.
#[test]
#[ignore = "needs two nodes with RDMA devices: tools/testbed/rxe --nodes 2"]
fn d_guest_is_post_copied_though_reads_are_not_answered_any_more() {
    let place = place();
    let apart = set_apart(&place);
    let settings = TransferSettings {
        bandwidth_limit_mbit: 100,
        // It does not say which pages were written: all of them follow the guest.
        tracker: TrackerChoice::Fingerprint,
        ..settings()
    };
    let report = moves(
        7443,
        (calm, settings),
        Some(apart.clone()),
        |node, other| {
            if place.is_destination {
                until_read(&node.node);
                return other.write_all(&[0]).unwrap();
            }
            node.node.tune(ID, Tune::PostCopy).unwrap();
            other.read_exact(&mut [0]).unwrap();
            ip(&format!("addr del {apart}/24 dev eth0"));
        },
    );
    if place.is_destination {
        ip(&format!("addr del {apart}/24 dev eth0"));
    }
    let postcopy = report.postcopy.expect("it was post-copied");
    assert!(postcopy.read_pages > 0, "{postcopy:?}");
    assert!(reading_broke(&report), "{:?}", report.notes);
}

/// One of what soft-RoCE counts.
fn counter(name: &str) -> u64 {
    let file = format!("/sys/class/infiniband/rxe0/ports/1/hw_counters/{name}");
    let count = std::fs::read_to_string(file).unwrap();
    count.trim().parse().unwrap()
}
