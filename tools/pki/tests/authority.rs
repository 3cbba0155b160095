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
    for bad in ["", "../x", "a b", "a..b", "-a", "a-", "ä", &"x".repeat(64)] {
        let error = authority.issue(bad, &for_node()).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{bad}: {error}");
    }
    for bad in ["", "bad name", "a\nb"] {
        let options = NodeOptions {
            dns_names: vec![bad.into()],
            ..for_node()
        };
        let error = authority.issue("a", &options).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{bad}: {error}");
    }
    assert!(authority.nodes().unwrap().is_empty());
    assert!(Authority::open(&folder.path().join("none")).is_err());
}

/// To whom names are compared without regard to case, the second would be the first.
#[test]
fn a_node_that_differs_by_capital_letters_alone_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    authority.issue("Web", &for_node()).unwrap();
    let error = authority.issue("web", &for_node()).unwrap_err().to_string();
    assert!(error.contains("`Web`"), "{error}");
    authority.renew("Web", SECONDS_PER_DAY).unwrap();
    authority.issue("web-2", &for_node()).unwrap();
}

#[test]
fn no_rotation_takes_the_trust_from_a_certificate_in_use() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    let files = authority.issue("a", &for_node()).unwrap();
    for _ in 0..3 {
        authority.rotate(100 * SECONDS_PER_DAY).unwrap();
    }
    let issuer = authority.node_facts("a").unwrap().issuer_key_id;
    let trusted = read_facts(&std::fs::read_to_string(&files.ca).unwrap()).unwrap();
    assert_eq!(trusted.last().unwrap().key_id, issuer);
    assert!(authority.show().unwrap().nodes[0].is_trusted);
    assert!(authority.drop_old().is_err());
    authority.renew("a", SECONDS_PER_DAY).unwrap();
    authority.drop_old().unwrap();
    assert_eq!(authority.trusted().unwrap(), trusted[..1]);
}

#[test]
fn a_new_ca_has_the_whole_name_of_the_one_before() {
    let folder = tempfile::tempdir().unwrap();
    let name = "Example, Inc.";
    let named = AuthorityOptions {
        name: name.into(),
        ..options()
    };
    let authority = Authority::init(folder.path(), &named).unwrap();
    authority.rotate(SECONDS_PER_DAY).unwrap();
    for ca in authority.trusted().unwrap() {
        assert!(
            ca.subject.starts_with("CN=Example, Inc., OU="),
            "{}",
            ca.subject
        );
    }
    for bad in ["", "a\nb", "a\u{1b}[2J"] {
        let bad = AuthorityOptions {
            name: bad.into(),
            force: true,
            ..options()
        };
        let error = Authority::init(folder.path(), &bad).unwrap_err();
        assert!(matches!(error, PkiError::Name { .. }), "{error}");
    }
}

#[test]
fn nothing_is_signed_with_the_key_of_another_ca() {
    let folder = tempfile::tempdir().unwrap();
    let [one, other] = ["one", "other"].map(|name| folder.path().join(name));
    let authority = Authority::init(&one, &options()).unwrap();
    Authority::init(&other, &options()).unwrap();
    std::fs::copy(other.join("ca-key.pem"), one.join("ca-key.pem")).unwrap();
    let error = authority.issue("a", &for_node()).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem is not the key of"), "{error}");
    assert!(error.contains("--ca` begins a new CA"), "{error}");
    let warnings = authority.show().unwrap().warnings;
    assert!(warnings[0].contains("is not the key of"), "{warnings:?}");
    // What it says helps.
    authority.rotate(SECONDS_PER_DAY).unwrap();
    let files = authority.issue("a", &for_node()).unwrap();
    assert_eq!(authority.show().unwrap().warnings, [""; 0]);
    std::fs::copy(one.join("ca-key.pem"), files.key).unwrap();
    let warnings = authority.show().unwrap().warnings;
    assert!(
        warnings[0].contains("nodes/a/key.pem is not the key of"),
        "{warnings:?}"
    );
    std::fs::write(one.join("ca-key.pem"), "no key").unwrap();
    let error = authority.issue("b", &for_node()).unwrap_err().to_string();
    assert!(error.contains("ca-key.pem is no private key"), "{error}");
}

/// A CA that ends takes its nodes with it, which is said.
#[test]
fn certificates_that_nodes_do_not_trust_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    let files = authority.issue("a", &for_node()).unwrap();
    assert!(authority.show().unwrap().nodes[0].is_trusted);
    let force = AuthorityOptions {
        force: true,
        ..options()
    };
    Authority::init(folder.path(), &force).unwrap();
    let shown = authority.show().unwrap();
    assert!(!shown.nodes[0].is_trusted);
    assert!(
        shown.warnings[0].contains("of no CA that nodes trust"),
        "{:?}",
        shown.warnings
    );
    let given = std::fs::read_to_string(&files.ca).unwrap();
    assert_eq!(read_facts(&given).unwrap(), shown.trusted);
    authority.renew("a", SECONDS_PER_DAY).unwrap();
    let shown = authority.show().unwrap();
    assert!(shown.nodes[0].is_trusted && shown.warnings.is_empty());
}

#[test]
fn what_others_may_read_or_write_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    assert_eq!(authority.warnings(), [""; 0]);
    let allow = |path: &Path, mode| {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    allow(folder.path(), 0o777);
    allow(&folder.path().join("ca-key.pem"), 0o644);
    let warnings = authority.warnings();
    assert!(
        warnings[0].contains("written by others (mode 0777)"),
        "{warnings:?}"
    );
    assert!(
        warnings[1].contains("read by others (mode 0644)"),
        "{warnings:?}"
    );
}

/// Each of them is in the folder alone while it works.
#[test]
fn commands_at_once_follow_one_another() {
    let folder = tempfile::tempdir().unwrap();
    let authority = Authority::init(folder.path(), &options()).unwrap();
    std::thread::scope(|scope| {
        for number in 0..6 {
            let authority = &authority;
            scope.spawn(move || {
                let node = format!("node-{number}");
                authority.issue(&node, &for_node()).unwrap();
                authority.rotate(SECONDS_PER_DAY).unwrap();
                authority.renew(&node, SECONDS_PER_DAY).unwrap();
            });
        }
    });
    let shown = authority.show().unwrap();
    assert_eq!((shown.nodes.len(), shown.trusted.len()), (6, 7));
    assert!(shown.nodes.iter().all(|node| node.is_trusted));
    assert_eq!(shown.warnings, [""; 0]);
}
