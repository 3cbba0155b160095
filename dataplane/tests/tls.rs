//! Two nodes with certificates: a guest is moved, and nobody on the way reads its pages.

mod common;

use std::collections::BTreeSet;
use std::fs::File;
use std::os::unix::fs::FileExt;

use common::flip::flipping;
use common::pki::{peer, with_certificate};
use common::proxy::{Harm, Plan, Proxy, Way};
use common::stranger::hello;
use common::tap::Tap;
use common::{TwoNodes, busy, settings, small, wait};
use dwcp_api::{
    Codec, ErrorCode, IoPath, MigrationId, MigrationReport, RunResult, TlsChoice, TransferSettings,
    Verify,
};
use dwcp_dataplane::migration::NodeOptions;
use dwcp_testbed::synthetic::SyntheticOptions;

const ID: MigrationId = MigrationId(7);

fn tls() -> TransferSettings {
    TransferSettings {
        tls: TlsChoice::On,
        ..settings()
    }
}

/// Moves a guest between nodes with certificates, by way of `via`.
fn moves_via(
    settings: &TransferSettings,
    guest: impl Fn(bool) -> SyntheticOptions,
    via: impl Fn(&str) -> String,
) -> (MigrationReport, TwoNodes) {
    common::log::keep();
    let nodes = TwoNodes::start_with(settings, guest, with_certificate);
    let destination = peer("b", &via(&nodes.b.address));
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings.clone(), false);
    start.unwrap();
    (wait(&nodes.a.node, ID), nodes)
}

fn moves(settings: &TransferSettings) -> MigrationReport {
    let (report, nodes) = moves_via(settings, busy, str::to_owned);
    let log = common::log::with("");
    assert_eq!(
        report.result,
        RunResult::Completed,
        "{} {log:?}",
        report.reason
    );
    assert!(report.verified && nodes.new.is_running() && !nodes.old.is_running());
    assert_eq!(nodes.new.bad_pages(), 0);
    let there = wait(&nodes.b.node, ID);
    assert_eq!(there.ram_root, report.ram_root);
    let (here, there) = (report.tls.clone().unwrap(), there.tls.unwrap());
    assert_eq!(here.version, "TLS1.3");
    assert!(here.cipher_suite.starts_with("TLS13_"), "{here:?}");
    assert_eq!(here.cipher_suite, there.cipher_suite);
    assert_eq!(
        (here.peer_names, there.peer_names),
        (vec!["b".into()], vec!["a".into()])
    );
    // Every further connection takes a ticket of the control connection's.
    assert_eq!(
        (here.resumed, there.resumed),
        (report.streams + 1, report.streams + 1)
    );
    report
}

#[test]
fn by_the_ring_with_many_streams_of_one_worker() {
    let report = moves(&TransferSettings {
        streams: 16,
        workers: 1,
        ..tls()
    });
    assert_eq!(report.streams, 16);
}

#[test]
fn by_poll_and_read_again_in_full() {
    let report = moves(&TransferSettings {
        io: IoPath::Poll,
        verify: Verify::Full,
        ..tls()
    });
    assert_eq!(report.transport, "tcp-poll");
}

#[test]
fn compressed_in_mode_internet() {
    let report = moves(&TransferSettings {
        mode: "internet".into(),
        // An adapting codec sends raw pages over a link as fast as this one.
        codec: Codec::Window {
            level: 1,
            window_bytes: 16 << 20,
        },
        ..tls()
    });
    assert!(report.pages.compressed > 0);
}

/// A guest that does not write: what is in a page of it stands in the stream as it is.
fn quiet(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        rate: 0,
        ..small(7, incoming)
    }
}

/// Moves a guest past a tap. Returns whether the tap heard a page of it, and the first words.
fn is_heard(tls: TlsChoice) -> [bool; 2] {
    let settings = TransferSettings { tls, ..settings() };
    let plain = |folder: &std::path::Path, options: NodeOptions| match tls {
        TlsChoice::Off => options,
        _ => with_certificate(folder, options),
    };
    let nodes = TwoNodes::start_with(&settings, quiet, plain);
    let tap = Tap::start(&nodes.b.address);
    let page = a_page_of(&nodes);
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", peer("b", &tap.address), settings, false);
    start.unwrap();
    let report = wait(&nodes.a.node, ID);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    // The connections' ends were carried, too.
    let connections = 2 * (usize::from(report.streams) + 2);
    common::until("the tap has heard all", || tap.ways() == connections);
    [page, hello()].map(|bytes| tap.heard(&bytes))
}

/// Content of a page with data, as the guest's memory has it.
fn a_page_of(nodes: &TwoNodes) -> Vec<u8> {
    let client = nodes.old.client();
    let memory = File::from(client.ram_descriptors()[0].try_clone().unwrap());
    let mut page = [0; 4096];
    for at in (0..).step_by(page.len()) {
        memory
            .read_exact_at(&mut page, at)
            .expect("a page with data");
        if page.iter().collect::<BTreeSet<_>>().len() > 8 {
            break;
        }
    }
    page[1024..1088].to_vec()
}

#[test]
fn a_capture_shows_no_page_content_and_without_tls_it_does() {
    assert_eq!(is_heard(TlsChoice::Off), [true, true]);
    assert_eq!(is_heard(TlsChoice::On), [false, false]);
}

/// Plain text where it may not be is refused before anything begins.
#[test]
fn mode_internet_is_never_plain_text() {
    let nodes = TwoNodes::start(&settings(), quiet);
    for (tls, words) in [
        (TlsChoice::On, "has no certificate"),
        (TlsChoice::Auto, "has no certificate"),
        (TlsChoice::Off, "never plain text"),
    ] {
        let settings = TransferSettings {
            mode: "internet".into(),
            tls,
            ..settings()
        };
        let destination = peer("b", &nodes.b.address);
        let start = nodes
            .a
            .node
            .start_migration(ID, "vm", destination, settings, false);
        let error = start.unwrap_err();
        assert_eq!(error.code, ErrorCode::BadRequest);
        assert!(error.message.contains(words), "{error}");
        assert!(error.hint.is_some(), "{error}");
    }
    assert!(nodes.a.node.migrations().is_empty());
    assert!(nodes.old.is_running());
}

/// A link that is gone ends the migration with words, and the guest runs on. A record that was changed on its
/// way ends its stream, which is replaced.
#[test]
fn a_broken_record_ends_its_stream_and_says_so() {
    let cut = Harm::Sever { bytes: 1_000_000 };
    let connections = 1..4;
    let plan = Plan {
        connections,
        way: Way::ToDestination,
        harm: cut,
    };
    let (report, nodes) = moves_via(&tls(), busy, |b| Proxy::start(b, plan.clone()).address);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(report.connection_lost, "{}", report.reason);
    assert!(nodes.old.is_running());
    let (report, nodes) = moves_via(&tls(), busy, flipping);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.streams_replaced > 0);
    let there = wait(&nodes.b.node, ID).notes.join(" ");
    assert!(there.contains("does not decrypt"), "{there}");
    assert!(nodes.new.is_running() && !nodes.old.is_running());
    assert_eq!(nodes.new.bad_pages(), 0);
}
