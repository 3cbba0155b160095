//! Who is not let in, and what each side says about it.

mod common;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use common::pki::{authority, issue, peer, with_certificate};
use common::stranger::{Stranger, hello, offer, unchecked};
use common::tap::Tap;
use common::{TestNode, TwoNodes, log, node_options, node_with, settings, small, until, wait};
use dwcp_api::{
    Attachment, MigrationId, MigrationReport, Role, RunResult, TlsChoice, TransferSettings,
};
use dwcp_dataplane::migration::{Node, NodeOptions, PeerNode, recover};
use dwcp_dataplane::tls::{Identity, TlsFiles, connect};
use dwcp_journal::{Record, RecordKind};
use dwcp_pki::SECONDS_PER_DAY;
use dwcp_wire::Control;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};

const ID: MigrationId = MigrationId(7);
const TIME: Duration = Duration::from_secs(20);

/// Two nodes, each with what `certificate` gives it.
fn nodes(certificate: impl Fn(&Path, &str) -> Option<TlsFiles>) -> TwoNodes {
    log::keep();
    TwoNodes::start_with(
        &settings(),
        |incoming| small(3, incoming),
        |folder, options| NodeOptions {
            tls: certificate(folder, &options.name),
            ..options
        },
    )
}

/// A certificate of the CA that the nodes of a test have in common.
fn one_ca(folder: &Path, node: &str) -> Option<TlsFiles> {
    with_certificate(folder, node_options(folder, node)).tls
}

fn moves(nodes: &TwoNodes, destination: PeerNode) -> MigrationReport {
    let settings = settings();
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings, false);
    start.unwrap();
    wait(&nodes.a.node, ID)
}

/// The source says `here` in its report, and the destination `there` in its log.
fn refused(nodes: &TwoNodes, destination: &str, here: &str, there: &str) {
    let report = moves(nodes, peer(destination, &nodes.b.address));
    assert_eq!(report.result, RunResult::Aborted);
    assert!(report.refused, "{}", report.reason);
    assert!(report.reason.contains(here), "{}", report.reason);
    assert!(nodes.old.is_running() && !nodes.new.is_running());
    until(
        &format!("{there}: not in {:?}", log::with("refused")),
        || !log::with(there).is_empty(),
    );
}

#[test]
fn a_destination_of_another_ca() {
    let nodes = nodes(|folder, node| {
        let authority = authority(&folder.join(format!("pki-{node}")));
        Some(issue(&authority, node, SECONDS_PER_DAY))
    });
    refused(
        &nodes,
        "b",
        "the other node's certificate is not of a CA that this node trusts",
        "the other node does not trust the CA of this node's certificate",
    );
}

#[test]
fn a_source_of_another_ca() {
    let nodes = nodes(|folder, node| {
        let files = one_ca(folder, node)?;
        if node == "b" {
            return Some(files);
        }
        let other = authority(&folder.join("other"));
        Some(TlsFiles {
            ca: files.ca,
            ..issue(&other, node, SECONDS_PER_DAY)
        })
    });
    refused(
        &nodes,
        "b",
        "the other node does not trust the CA of this node's certificate",
        "the other node's certificate is not of a CA that this node trusts",
    );
}

/// Certificates of one CA; that of the node `of` has ended.
fn expired(of: &'static str) -> TwoNodes {
    nodes(move |folder, node| {
        let files = one_ca(folder, node)?;
        if node == of {
            let authority = dwcp_pki::Authority::open(&folder.join("pki")).unwrap();
            return Some(issue(&authority, node, -60));
        }
        Some(files)
    })
}

#[test]
fn a_destination_whose_certificate_has_expired() {
    refused(
        &expired("b"),
        "b",
        "the other node's certificate expired on",
        "the other node finds this node's certificate expired",
    );
}

#[test]
fn a_source_whose_certificate_has_expired() {
    refused(
        &expired("a"),
        "b",
        "the other node finds this node's certificate expired",
        "the other node's certificate expired on",
    );
}

#[test]
fn another_node_than_the_one_that_was_meant() {
    let nodes = nodes(one_ca);
    refused(
        &nodes,
        "node-c",
        "the certificate at that address does not name `node-c` but `b`",
        "the other node refuses this node's certificate",
    );
}

#[test]
fn plain_text_where_the_destination_has_a_certificate() {
    let nodes = nodes(|folder, node| one_ca(folder, node).filter(|_| node == "b"));
    let why = "plain text is not taken here";
    refused(&nodes, "b", why, why);
}

#[test]
fn plain_text_where_that_is_allowed() {
    let settings = TransferSettings {
        tls: TlsChoice::Off,
        ..settings()
    };
    let nodes = TwoNodes::start_with(
        &settings,
        |incoming| small(3, incoming),
        |folder, options| NodeOptions {
            allow_plain_text: true,
            ..with_certificate(folder, options)
        },
    );
    let destination = peer("b", &nodes.b.address);
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings, false);
    start.unwrap();
    let report = wait(&nodes.a.node, ID);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert_eq!(report.tls, None);
}

#[test]
fn tls_where_the_destination_has_no_certificate() {
    let nodes = nodes(|folder, node| one_ca(folder, node).filter(|_| node == "a"));
    refused(
        &nodes,
        "b",
        "the other node takes no TLS: it was started without --tls-certificate",
        "the other node speaks TLS, and this one was started without --tls-certificate",
    );
}

/// A node with a certificate, and the folder that it lives in.
fn one_node() -> (TestNode, tempfile::TempDir) {
    log::keep();
    let folder = tempfile::tempdir().unwrap();
    let options = with_certificate(folder.path(), node_options(folder.path(), "b"));
    (node_with(options, &settings()), folder)
}

/// What a node answers to these bytes.
fn answer(node: &TestNode, bytes: &[u8]) -> (Vec<u8>, String) {
    let mut stream = TcpStream::connect(&node.address).unwrap();
    stream.set_read_timeout(Some(TIME)).unwrap();
    stream.write_all(bytes).unwrap();
    let mut heard = vec![];
    let _ = stream.read_to_end(&mut heard);
    (heard, stream.local_addr().unwrap().to_string())
}

fn log_says(port: &str, why: &str) {
    until(
        &format!("{why}: not said of {port}: {:?}", log::with(port)),
        || log::with(port).iter().any(|line| line.contains(why)),
    );
}

/// The first words of a client that knows TLS 1.2: no `supported_versions`.
fn client_hello_of_tls_1_2() -> Vec<u8> {
    let mut body = vec![3, 3];
    body.extend([7; 32]);
    body.push(0);
    body.extend([0, 4, 0xc0, 0x2f, 0x00, 0x9c]);
    body.extend([1, 0]);
    // Groups and signature algorithms.
    let extensions = [&[0, 10, 0, 4, 0, 2, 0, 23][..], &[0, 13, 0, 4, 0, 2, 4, 3]].concat();
    body.extend((extensions.len() as u16).to_be_bytes());
    body.extend(extensions);
    let mut message = vec![1, 0];
    message.extend((body.len() as u16).to_be_bytes());
    message.extend(body);
    let mut record = vec![0x16, 3, 1];
    record.extend((message.len() as u16).to_be_bytes());
    record.extend(message);
    record
}

#[test]
fn a_client_of_tls_1_2() {
    let (node, _folder) = one_node();
    let (heard, port) = answer(&node, &client_hello_of_tls_1_2());
    // A fatal alert: protocol_version.
    assert_eq!(heard, [0x15, 3, 3, 0, 2, 2, 70]);
    log_says(&port, "the other side does not speak TLS 1.3");
}

#[test]
fn a_client_without_a_certificate() {
    let (node, folder) = one_node();
    let ca = std::fs::read(folder.path().join("pki/ca.pem")).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(&ca).unwrap())
        .unwrap();
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = rustls::ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"dwcp/1".to_vec()];
    let name = ServerName::try_from("b").unwrap();
    let client = rustls::ClientConnection::new(Arc::new(config), name).unwrap();
    let socket = TcpStream::connect(&node.address).unwrap();
    let port = socket.local_addr().unwrap().to_string();
    let mut stream = rustls::StreamOwned::new(client, socket);
    let error = stream.read(&mut [0; 64]).unwrap_err();
    assert!(error.to_string().contains("CertificateRequired"), "{error}");
    log_says(&port, "the other side shows no certificate");
}

/// What a client said once opens nothing when it is said again: the keys are others.
#[test]
fn a_handshake_that_was_recorded_and_is_said_again() {
    let nodes = nodes(one_ca);
    let tap = Tap::start(&nodes.b.address);
    let destination = peer("b", &tap.address);
    let start = nodes
        .a
        .node
        .start_migration(ID, "vm", destination, settings(), true);
    start.unwrap();
    let report = wait(&nodes.a.node, ID);
    assert_eq!(report.result, RunResult::DryRun, "{}", report.reason);
    wait(&nodes.b.node, ID);
    until("the connection is over", || tap.ways() == 2);
    // The client's words begin with its hello.
    let words = tap.find(|way| way.get(5) == Some(&1)).unwrap();
    let known = nodes.b.node.migrations().len();
    let (_, port) = answer(&nodes.b, &words);
    log_says(&port, "the TLS handshake does not decrypt: it was replayed");
    assert_eq!(nodes.b.node.migrations().len(), known);
}

#[test]
fn a_handshake_that_does_not_go_on() {
    let (node, _folder) = one_node();
    let (_, port) = answer(&node, &[0x16, 3, 1, 2]);
    log_says(&port, "no TLS handshake within 10000 ms");
}

fn identity(files: &TlsFiles) -> Identity {
    let read = |path| std::fs::read(path).unwrap();
    let certificates = |path| {
        CertificateDer::pem_slice_iter(&read(path))
            .collect::<Result<Vec<_>, _>>()
            .unwrap()
    };
    let key = PrivateKeyDer::from_pem_slice(&read(&files.key)).unwrap();
    Identity::new(
        certificates(&files.ca),
        certificates(&files.certificate),
        key,
    )
    .unwrap()
}

/// A node of the CA is not any node: its offers are its own.
#[test]
fn a_source_that_calls_itself_otherwise_than_its_certificate() {
    let (node, folder) = one_node();
    let other = with_certificate(folder.path(), node_options(folder.path(), "c"));
    let socket = TcpStream::connect(&node.address).unwrap();
    let port = socket.local_addr().unwrap().to_string();
    let name = ServerName::try_from("b").unwrap();
    let identity = identity(&other.tls.unwrap());
    let mut connection = connect(&identity, socket, &name, TIME).unwrap();
    connection.set_read_timeout(Some(TIME)).unwrap();
    connection.write_all(&hello()).unwrap();
    let said = unchecked(&Control::Offer(offer("vm")));
    connection.write_all(&said).unwrap();
    let mut heard = vec![];
    let _ = connection.read_to_end(&mut heard);
    let why = "the source calls itself `stranger`, and its certificate names it c";
    let heard = String::from_utf8_lossy(&heard).into_owned();
    assert!(heard.contains(why), "{heard}");
    log_says(&port, why);
}

fn record(role: Role, peer_node: &str, peer_address: &str, kind: RecordKind) -> Record {
    Record {
        sequence: 0,
        migration: ID,
        vm: "vm".into(),
        role,
        peer_node: peer_node.into(),
        peer_address: peer_address.into(),
        tls: true,
        epoch: 0,
        wall_ms: 0,
        kind,
    }
}

/// To be told "not here" gives a guest back, and to be told "taken back" ends one: only its source may say so.
#[test]
fn a_question_of_another_node_than_the_source() {
    let (node, folder) = one_node();
    let attachment = Attachment::Process {
        socket: "/nowhere".into(),
    };
    let begun = record(
        Role::Destination,
        "a",
        "192.0.2.1",
        RecordKind::Begin { attachment },
    );
    node.node.journal().append(&begun).unwrap();
    let other = with_certificate(folder.path(), node_options(folder.path(), "c"));
    let identity = identity(&other.tls.unwrap());
    let (migration, vm) = (ID.0, "vm".to_owned());
    for question in [
        Control::OwnerQuery {
            migration,
            vm: vm.clone(),
            epoch: 1,
        },
        Control::TakenBack {
            migration,
            vm: vm.clone(),
            epoch: 2,
        },
        Control::RecallQuery {
            migration,
            vm,
            epoch: 1,
        },
        Control::PostcopyResume { migration },
    ] {
        let socket = TcpStream::connect(&node.address).unwrap();
        let port = socket.local_addr().unwrap().to_string();
        let name = ServerName::try_from("b").unwrap();
        let mut connection = connect(&identity, socket, &name, TIME).unwrap();
        connection.write_all(&hello()).unwrap();
        connection.write_all(&unchecked(&question)).unwrap();
        log_says(&port, "c asks for a migration whose source is a");
        assert_eq!(node.node.journal().state().unfinished().len(), 1);
    }
}

/// A source that was restarted in doubt asks as it had begun: by TLS, and only the node of that name.
#[test]
fn a_question_after_a_restart() {
    let nodes = nodes(one_ca);
    nodes.old.client().pause().unwrap();
    let attachment = nodes.old.attachment.clone();
    let begin = RecordKind::Begin { attachment };
    for kind in [begin, RecordKind::Prepared] {
        let record = record(Role::Source, "b", &nodes.b.address, kind);
        nodes.a.node.journal().append(&record).unwrap();
    }
    let attachment = nodes.new.attachment.clone();
    let begin = RecordKind::Begin { attachment };
    let begun = record(Role::Destination, "a", "192.0.2.1", begin);
    nodes.b.node.journal().append(&begun).unwrap();
    recover(&nodes.a.node, &settings());
    // The destination had begun only: the guest is the source's.
    let report = wait(&nodes.a.node, ID);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    until("the guest runs on", || nodes.old.is_running());
}

/// Plain words to a node with a certificate open no stream and answer no question.
#[test]
fn plain_words_of_every_kind() {
    let (node, _folder) = one_node();
    let mut stranger = Stranger::connect(&node);
    stranger.say(&hello());
    stranger.say(&unchecked(&Control::OwnerQuery {
        migration: 1,
        vm: "vm".into(),
        epoch: 1,
    }));
    stranger.expect_refusal("plain text is not taken here");
}

/// A node is not started with a certificate that nobody would believe it.
#[test]
fn a_certificate_of_another_node_is_refused_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let other = with_certificate(folder.path(), node_options(folder.path(), "c"));
    let options = NodeOptions {
        tls: other.tls.clone(),
        ..node_options(folder.path(), "a")
    };
    std::fs::create_dir_all(&options.state_folder).unwrap();
    let error = Node::new(options.clone()).unwrap_err().to_string();
    assert!(
        error.contains("it names c, and this node is `a`"),
        "{error}"
    );
    // Another node's key.
    let own = with_certificate(folder.path(), node_options(folder.path(), "a"));
    let mixed = TlsFiles {
        key: other.tls.unwrap().key,
        ..own.tls.unwrap()
    };
    let options = NodeOptions {
        tls: Some(mixed),
        ..options
    };
    let error = Node::new(options).unwrap_err().to_string();
    assert!(error.contains("the certificate and the key"), "{error}");
}

/// A rotation needs no restart: the next connection has the new certificate.
#[test]
fn a_new_certificate_is_used_without_a_restart() {
    let nodes = expired("b");
    let report = moves(&nodes, peer("b", &nodes.b.address));
    assert!(report.reason.contains("expired"), "{}", report.reason);
    let authority = dwcp_pki::Authority::open(&nodes.folder().join("pki")).unwrap();
    authority.renew("b", SECONDS_PER_DAY).unwrap();
    assert!(nodes.b.node.certificate().unwrap().seconds_left() > 0);
    let again = MigrationId(8);
    let destination = peer("b", &nodes.b.address);
    let start = nodes
        .a
        .node
        .start_migration(again, "vm", destination, settings(), false);
    start.unwrap();
    let report = wait(&nodes.a.node, again);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    assert!(report.tls.is_some());
}
