//! Commands that stop before any step of their writing: a disk that is full for a moment, or a kill. What
//! they leave still issues certificates that verify, and the same command ends what it began.

use std::path::Path;
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::crypto::aws_lc_rs::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::sign::CertifiedKey;

use crate::files::stops::{self, Stop};
use crate::{Authority, AuthorityOptions, NodeFiles, NodeOptions, PkiError, SECONDS_PER_DAY};

type Command = fn(&Path) -> Result<(), PkiError>;

fn init(folder: &Path, force: bool) -> Result<(), PkiError> {
    let options = AuthorityOptions {
        name: "test".into(),
        seconds: SECONDS_PER_DAY,
        force,
    };
    Authority::init(folder, &options).map(drop)
}

fn issue(folder: &Path, node: &str, force: bool) -> Result<(), PkiError> {
    let options = NodeOptions {
        seconds: SECONDS_PER_DAY,
        force,
        ..NodeOptions::default()
    };
    Authority::open(folder)?.issue(node, &options).map(drop)
}

fn rotate(folder: &Path) -> Result<(), PkiError> {
    Authority::open(folder)?.rotate(SECONDS_PER_DAY)
}

fn renew(folder: &Path) -> Result<(), PkiError> {
    let renewed = Authority::open(folder)?.renew("a", SECONDS_PER_DAY);
    renewed.map(drop)
}

/// A CA with the node `a`.
fn with_node(folder: &Path) -> Result<(), PkiError> {
    init(folder, false)?;
    issue(folder, "a", false)
}

/// The same, with a new CA of which its certificate is.
fn rotated(folder: &Path) -> Result<(), PkiError> {
    with_node(folder)?;
    rotate(folder)?;
    renew(folder)
}

/// Whether who has `ca` trusts that certificate.
fn verifies(certificate: &Path, ca: &Path, node: &str) -> bool {
    let mut roots = RootCertStore::empty();
    for ca in CertificateDer::pem_file_iter(ca).unwrap() {
        roots.add(ca.unwrap()).unwrap();
    }
    let provider = Arc::new(default_provider());
    let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
        .build()
        .unwrap();
    let own = CertificateDer::from_pem_file(certificate).unwrap();
    let name = ServerName::try_from(node.to_owned()).unwrap();
    verifier
        .verify_server_cert(&own, &[], &name, &[], UnixTime::now())
        .is_ok()
}

/// What a node is given works.
fn assert_works(files: &NodeFiles, node: &str, what: &str) {
    assert!(verifies(&files.certificate, &files.ca, node), "{what}");
    let own = CertificateDer::from_pem_file(&files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(&files.key).unwrap();
    let pair = CertifiedKey::from_der(vec![own], key, &default_provider());
    assert!(pair.is_ok(), "{what}: {:?}", pair.err());
}

/// Stops `command` at every step after `before`, by both kinds of stop, and hands each folder to `check`.
fn stop_everywhere(before: Command, command: Command, check: impl Fn(&Path, &str)) {
    for kind in [Stop::Once, Stop::From] {
        let mut step = 0;
        loop {
            let folder = tempfile::tempdir().unwrap();
            let folder = folder.path().join("pki");
            before(&folder).unwrap();
            stops::set(kind(step));
            let ended = command(&folder);
            stops::set(Stop::Never);
            let what = format!("{:?}: {ended:?}", kind(step));
            if ended.is_ok() {
                // Folders and files: no command is done in fewer steps.
                assert!(step > 5, "{what}");
                break;
            }
            check(&folder, &what);
            step += 1;
        }
    }
}

/// Whatever was stopped, and however, certificates of the CA verify; and nothing half written stays.
fn assert_issues(folder: &Path, what: &str) {
    if let Ok(authority) = Authority::open(folder) {
        let warnings = authority.show().unwrap().warnings;
        let is_wrong = |warning: &String| warning.contains("is not the key of");
        assert!(!warnings.iter().any(is_wrong), "{what}: {warnings:?}");
    }
    issue(folder, "new", false).unwrap_or_else(|error| panic!("{what}: {error}"));
    let authority = Authority::open(folder).unwrap();
    assert_works(&authority.node_files("new"), "new", what);
    for folder in [folder.to_owned(), folder.join("nodes/new")] {
        for entry in folder.read_dir().unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(
                !name.contains("part") && !name.contains("next"),
                "{what}: {name}"
            );
        }
    }
}

#[test]
fn a_stopped_command_leaves_a_ca_that_issues() {
    let commands: [(Command, Command); 6] = [
        (with_node, rotate),
        (with_node, renew),
        (with_node, |folder| issue(folder, "b", false)),
        (with_node, |folder| issue(folder, "a", true)),
        (with_node, |folder| init(folder, true)),
        (rotated, |folder| Authority::open(folder)?.drop_old()),
    ];
    for (number, (before, command)) in commands.into_iter().enumerate() {
        stop_everywhere(before, command, |folder, what| {
            let what = format!("command {number}, {what}");
            assert_issues(folder, &what);
            let authority = Authority::open(folder).unwrap();
            // `init --force` alone cuts nodes off.
            if number != 4 {
                assert_works(&authority.node_files("a"), "a", &what);
            }
        });
    }
}

#[test]
fn a_stopped_command_is_ended_by_the_same_command() {
    let commands: [(Command, Command); 5] = [
        (with_node, rotate),
        (with_node, renew),
        (with_node, |folder| issue(folder, "a", true)),
        (with_node, |folder| init(folder, true)),
        (rotated, |folder| Authority::open(folder)?.drop_old()),
    ];
    for (before, command) in commands {
        stop_everywhere(before, command, |folder, what| {
            command(folder).unwrap_or_else(|error| panic!("{what}: {error}"));
            assert_issues(folder, what);
        });
    }
}

/// These refuse to do it twice; then it is done.
#[test]
fn what_is_made_once_is_made_when_a_stopped_command_runs_again() {
    let nothing: Command = |_| Ok(());
    stop_everywhere(
        nothing,
        |folder| init(folder, false),
        |folder, what| {
            let again = init(folder, false);
            let is_made = matches!(again, Ok(()) | Err(PkiError::Exists { .. }));
            assert!(is_made, "{what}: {again:?}");
            assert_issues(folder, what);
        },
    );
    let first: Command = |folder| init(folder, false);
    stop_everywhere(
        first,
        |folder| issue(folder, "a", false),
        |folder, what| {
            let again = issue(folder, "a", false);
            let is_made = matches!(again, Ok(()) | Err(PkiError::Exists { .. }));
            assert!(is_made, "{what}: {again:?}");
            let authority = Authority::open(folder).unwrap();
            assert_works(&authority.node_files("a"), "a", what);
        },
    );
}

/// A new CA that was stopped takes nothing from nodes that still run with what they have.
#[test]
fn a_stopped_rotation_keeps_the_trust_in_certificates_in_use() {
    let before: Command = |folder| {
        with_node(folder)?;
        let in_use = folder.join("nodes/a/certificate.pem");
        std::fs::copy(in_use, folder.join("in-use.pem")).unwrap();
        Ok(())
    };
    stop_everywhere(before, rotate, |folder, what| {
        for ca in ["ca.pem", "nodes/a/ca.pem"] {
            let (in_use, ca) = (folder.join("in-use.pem"), folder.join(ca));
            assert!(verifies(&in_use, &ca, "a"), "{what}");
        }
        rotate(folder).unwrap();
        let (in_use, ca) = (folder.join("in-use.pem"), folder.join("nodes/a/ca.pem"));
        assert!(verifies(&in_use, &ca, "a"), "{what}");
    });
}
