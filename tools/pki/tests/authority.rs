//! The CA in its folder: what is made, what is kept, what is refused.

#![cfg(feature = "issue")]

use std::net::IpAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use dwcp_pki::{Authority, AuthorityOptions, NodeOptions, PkiError, SECONDS_PER_DAY, read_facts};

fn options() -> AuthorityOptions {
    AuthorityOptions {
        name: "test".into(),
        seconds: 100 * SECONDS_PER_DAY,
        force: false,
    }
}

fn for_node() -> NodeOptions {
    NodeOptions {
        dns_names: vec!["a.example.org".into()],
        addresses: vec![[192, 0, 2, 1].into()],
        seconds: 10 * SECONDS_PER_DAY,
        force: false,
    }
}

fn mode(path: &Path) -> u32 {
    path.metadata().unwrap().permissions().mode() & 0o777
}

#[test]
fn a_node_gets_a_certificate_that_names_it_and_a_key_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().join("pki");
    let authority = Authority::init(&folder, &options()).unwrap();
    let files = authority.issue("node-a", &for_node()).unwrap();
    let facts = authority.node_facts("node-a").unwrap();
    assert_eq!(facts.dns_names, ["node-a", "a.example.org"]);
    assert_eq!(facts.addresses, [IpAddr::from([192, 0, 2, 1])]);
    assert!(!facts.is_ca);
    let left = facts.seconds_left();
    assert!((left - 10 * SECONDS_PER_DAY).abs() < 60, "{left} s");
    assert_eq!(mode(&files.key), 0o600);
    assert_eq!(mode(&folder.join("ca-key.pem")), 0o600);
    assert_eq!(mode(&folder), 0o700);
    let ca = read_facts(&std::fs::read_to_string(&files.ca).unwrap()).unwrap();
    assert!(ca[0].is_ca);
    assert_eq!(ca[0].key_id, facts.issuer_key_id);
    assert_eq!(authority.show().unwrap().nodes[0].name, "node-a");
}

#[test]
fn nothing_is_overwritten_unless_that_is_asked_for() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    let again = Authority::init(folder.path(), &options());
    assert!(matches!(again, Err(PkiError::Exists { .. })), "{again:?}");
    let files = authority.issue("a", &for_node()).unwrap();
    let key = std::fs::read(&files.key).unwrap();
    let again = authority.issue("a", &for_node());
    assert!(matches!(again, Err(PkiError::Exists { .. })), "{again:?}");
    assert_eq!(std::fs::read(&files.key).unwrap(), key);
    let force = NodeOptions {
        force: true,
        ..for_node()
    };
    authority.issue("a", &force).unwrap();
    assert_ne!(std::fs::read(&files.key).unwrap(), key);
}

#[test]
fn a_node_is_renewed_with_what_its_certificate_said() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    authority.issue("a", &for_node()).unwrap();
    let before = authority.node_facts("a").unwrap();
    authority.renew("a", 20 * SECONDS_PER_DAY).unwrap();
    let after = authority.node_facts("a").unwrap();
    assert_eq!(after.dns_names, before.dns_names);
    assert_eq!(after.addresses, before.addresses);
    assert!(after.not_after > before.not_after);
    assert_ne!(after.key_id, Some(String::new()));
}

#[test]
fn a_new_ca_is_trusted_beside_the_old_one_until_no_node_needs_that() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    let files = authority.issue("a", &for_node()).unwrap();
    authority.rotate(100 * SECONDS_PER_DAY).unwrap();
    let bundle = std::fs::read_to_string(&files.ca).unwrap();
    let both = read_facts(&bundle).unwrap();
    assert_eq!(both.len(), 2);
    assert!(both.iter().all(|ca| ca.subject.starts_with("CN=test, OU=")));
    assert_ne!(both[0].subject, both[1].subject);
    assert_ne!(both[0].key_id, both[1].key_id);
    let old = authority.node_facts("a").unwrap();
    assert_eq!(old.issuer_key_id, both[1].key_id);
    let early = authority.drop_old().unwrap_err();
    assert!(early.to_string().contains("still needed by a"), "{early}");
    authority.renew("a", SECONDS_PER_DAY).unwrap();
    authority.drop_old().unwrap();
    let one = read_facts(&std::fs::read_to_string(&files.ca).unwrap()).unwrap();
    assert_eq!(one, both[..1]);
}

#[test]
fn names_that_no_certificate_carries_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    for bad in ["", "../x", "a b", "a..b", "-a", "ä"] {
        let error = authority.issue(bad, &for_node()).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{bad}: {error}");
    }
    assert!(Authority::open(&folder.path().join("none")).is_err());
}
