//! Two nodes whose kernels seal the pages that leave by TLS.
//!
//! Hosts often have no such kernel: the tests that move a VM are ignored, and [`in_a_guest`] runs them in a Linux guest that
//! has one, by `tools/testbed/rxe`. On a host that has it, and root or the module `tls`:
//! ```text
//! cargo test -p dwcp-dataplane --test kernel_tls -- --ignored
//! ```

mod common;

use common::flip::flipping;
use common::pki::{peer, with_certificate};
use common::proxy::{Harm, Plan, Proxy, Way};
use common::{TwoNodes, busy, settings, wait};
use dwcp_api::{
    Codec, IoPath, KernelTlsChoice, MigrationId, MigrationReport, RunResult, SendChoice, TlsChoice,
    TransferSettings,
};
use dwcp_dataplane::tls::KernelTls;
use dwcp_testbed::rxe::in_guests;
use dwcp_testbed::synthetic::SyntheticOptions;

const ID: MigrationId = MigrationId(7);

#[test]
fn in_a_guest() {
    let mut options = vec!["--no-rdma", "--modules", "tls"];
    options.extend(["--memory", "1536", "--timeout", "400"]);
    in_guests(&options, "--include-ignored", "kernel_", 8);
}

fn with(kernel_tls: KernelTlsChoice) -> TransferSettings {
    TransferSettings {
        tls: TlsChoice::On,
        kernel_tls,
        // Guests without KVM are slow.
        downtime_limit_ms: 10_000,
        connect_timeout_ms: 20_000,
        peer_silence_ms: 20_000,
        ..settings()
    }
}

/// A guest that writes, and less than its link carries under emulation.
fn calm(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        ram_mib: 32,
        hot_mib: 4,
        rate: 300,
        ..busy(incoming)
    }
}

fn auto() -> TransferSettings {
    with(KernelTlsChoice::Auto)
}

/// Moves a guest from a node to one that takes it with `incoming`, by way of `via`.
fn moves_via(
    settings: &TransferSettings,
    incoming: KernelTlsChoice,
    via: impl Fn(&str) -> String,
) -> ([MigrationReport; 2], TwoNodes) {
    common::log::keep();
    let incoming = TransferSettings {
        kernel_tls: incoming,
        ..settings.clone()
    };
    let nodes = TwoNodes::start_with(&incoming, calm, with_certificate);
    let destination = peer("b", &via(&nodes.b.address));
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings.clone(), false);
    start.unwrap();
    let reports = [wait(&nodes.a.node, ID), wait(&nodes.b.node, ID)];
    (reports, nodes)
}

/// Moves a guest, which looks at all of its memory then. Returns how many connections the kernels sealed.
fn moves(settings: &TransferSettings, incoming: KernelTlsChoice) -> ([u16; 2], MigrationReport) {
    let (reports, nodes) = moves_via(settings, incoming, str::to_owned);
    check_moved(&reports, &nodes);
    let by_kernel = |report: &MigrationReport| report.tls.as_ref().unwrap().kernel_streams;
    let [here, there] = reports;
    println!("{}", serde_json::to_string_pretty(&here).unwrap());
    assert_eq!(here.streams_replaced, 0, "{:?}", here.notes);
    ([by_kernel(&here), by_kernel(&there)], here)
}

fn check_moved(reports: &[MigrationReport; 2], nodes: &TwoNodes) {
    for report in reports {
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        assert!(report.verified);
    }
    assert_eq!(reports[0].ram_root, reports[1].ram_root);
    assert!(nodes.new.is_running() && !nodes.old.is_running());
    assert_eq!(nodes.new.bad_pages(), 0);
}

#[test]
fn where_the_kernel_has_none_the_data_plane_seals_and_says_so() {
    let Err(why) = KernelTls::find() else {
        return println!("this kernel has it");
    };
    let (by_kernel, report) = moves(&auto(), KernelTlsChoice::Auto);
    assert_eq!(by_kernel, [0, 0]);
    let said = |report: &MigrationReport| {
        let notes = report.notes.iter();
        notes.filter(|note| note.contains("no kernel TLS")).count()
    };
    assert_eq!(said(&report), 1, "{why}: {:?}", report.notes);
    let (_, report) = moves(&with(KernelTlsChoice::Off), KernelTlsChoice::Off);
    assert_eq!(said(&report), 0, "{:?}", report.notes);
}

#[test]
#[ignore = "needs kernel TLS"]
fn kernel_seals_by_the_ring_and_by_poll() {
    for (io, name) in [(IoPath::Uring, "tcp-uring"), (IoPath::Poll, "tcp-poll")] {
        let settings = TransferSettings { io, ..auto() };
        let (by_kernel, report) = moves(&settings, KernelTlsChoice::Auto);
        assert_eq!(by_kernel, [2, 2]);
        assert_eq!(report.transport, name);
        assert!(!report.notes.iter().any(|note| note.contains("kernel TLS")));
    }
}

#[test]
#[ignore = "needs kernel TLS"]
fn kernel_takes_pages_out_of_guest_ram_by_every_method() {
    for (send, name) in [
        (SendChoice::Vmsplice, "vmsplice"),
        (SendChoice::Sendfile, "sendfile"),
        (SendChoice::Write, "write"),
        // The ring's references are none of its ways.
        (SendChoice::ZeroCopy, "write"),
        (SendChoice::Copy, ""),
    ] {
        let settings = TransferSettings { send, ..auto() };
        let (by_kernel, report) = moves(&settings, KernelTlsChoice::Auto);
        assert_eq!(by_kernel, [2, 2]);
        assert_eq!(report.send_method, name);
    }
}

/// Each end chooses for itself.
#[test]
#[ignore = "needs kernel TLS"]
fn kernel_at_one_end_and_rustls_at_the_other() {
    use KernelTlsChoice::{Auto, Off};
    for io in [IoPath::Uring, IoPath::Poll] {
        for (here, there) in [(Auto, Off), (Off, Auto)] {
            let settings = TransferSettings { io, ..with(here) };
            let (by_kernel, _) = moves(&settings, there);
            let expected = [here, there].map(|choice| if choice == Auto { 2 } else { 0 });
            assert_eq!(by_kernel, expected);
        }
    }
}

#[test]
#[ignore = "needs kernel TLS"]
fn kernel_seals_encoded_pages_and_many_streams_of_one_worker() {
    let settings = TransferSettings {
        streams: 16,
        workers: 1,
        codec: Codec::Window {
            level: 1,
            window_bytes: 16 << 20,
        },
        ..auto()
    };
    let (by_kernel, report) = moves(&settings, KernelTlsChoice::Auto);
    assert_eq!(by_kernel, [16, 16]);
    assert!(report.pages.compressed > 0);
}

/// Less may be under way than a frame has: nothing of it may wait in the socket for the next one.
#[test]
#[ignore = "needs kernel TLS"]
fn kernel_holds_nothing_back_where_little_may_be_under_way() {
    for send in [
        SendChoice::Vmsplice,
        SendChoice::Sendfile,
        SendChoice::Write,
        SendChoice::Copy,
    ] {
        let settings = TransferSettings {
            window_bytes: 1 << 18,
            send,
            ..auto()
        };
        let (by_kernel, report) = moves(&settings, KernelTlsChoice::Auto);
        assert_eq!(by_kernel, [2, 2]);
        assert!(
            report.total_ms < 20_000.0,
            "{send:?}: {} ms",
            report.total_ms
        );
    }
}

/// The stream is replaced, and the guest moved.
#[test]
#[ignore = "needs kernel TLS"]
fn kernel_finds_a_record_that_was_changed() {
    let (reports, nodes) = moves_via(&auto(), KernelTlsChoice::Auto, flipping);
    check_moved(&reports, &nodes);
    assert!(reports[0].streams_replaced > 0);
    let there = reports[1].notes.join(" ");
    assert!(there.contains("does not decrypt"), "{there}");
}

/// Cut streams are replaced; where the link is gone the guest stays where it is.
#[test]
#[ignore = "needs kernel TLS"]
fn kernel_tells_a_stream_that_was_cut() {
    let cut = |connections, harm| {
        let plan = Plan {
            connections,
            way: Way::ToDestination,
            harm,
        };
        let incoming = KernelTlsChoice::Auto;
        moves_via(&auto(), incoming, |b| Proxy::start(b, plan.clone()).address)
    };
    let (reports, nodes) = cut(1..4, Harm::Cut { bytes: 3_000_000 });
    check_moved(&reports, &nodes);
    assert!(reports[0].streams_replaced > 0);
    let kernel_streams = reports[1].tls.as_ref().unwrap().kernel_streams;
    assert!(kernel_streams > 2, "{kernel_streams}");
    let (reports, nodes) = cut(1..4, Harm::Sever { bytes: 1_000_000 });
    assert_eq!(
        reports[0].result,
        RunResult::Aborted,
        "{}",
        reports[0].reason
    );
    assert!(reports[0].connection_lost, "{}", reports[0].reason);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
}
