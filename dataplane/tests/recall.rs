//! A destination whose data plane was started anew before it ran a guest that it had committed.

mod common;

use common::{TestGuest, node, settings, small, until};
use dwcp_api::{MigrationId, Role};
use dwcp_dataplane::migration::{Node, recover};
use dwcp_journal::{Record, RecordKind, Stage};

const ID: MigrationId = MigrationId(7);

fn write(node: &Node, (role, peer, epoch): (Role, &str, u64), kind: RecordKind) {
    let record = Record {
        sequence: 0,
        migration: ID,
        vm: "vm".into(),
        role,
        peer_node: if role == Role::Source { "b" } else { "a" }.into(),
        peer_address: peer.into(),
        tls: false,
        epoch,
        wall_ms: 0,
        kind,
    };
    node.journal().append(&record).unwrap();
}

/// How a destination ends that had committed, by what its source says; `None` where that has gone.
fn ends(said_by_source: Option<&[RecordKind]>) -> (Option<Stage>, bool) {
    let folder = tempfile::tempdir().unwrap();
    let old = TestGuest::start(folder.path(), "old", &small(1, false));
    let new = TestGuest::start(folder.path(), "new", &small(1, true));
    new.load_from(&old);
    let a = node(folder.path(), "a", &settings());
    let b = node(folder.path(), "b", &settings());
    let begin = |guest: &TestGuest| RecordKind::Begin {
        attachment: guest.attachment.clone(),
    };
    let source = match said_by_source {
        None => "127.0.0.1:9",
        // Another node at its address, or one that has lost its journal.
        Some([]) => &a.address,
        Some(records) => {
            // It cannot tell: nobody listens there.
            let nowhere = "127.0.0.1:9";
            write(&a.node, (Role::Source, nowhere, 0), begin(&old));
            for kind in records {
                let epoch = kind.epochs_ahead();
                write(&a.node, (Role::Source, nowhere, epoch), kind.clone());
            }
            &a.address
        }
    };
    write(&b.node, (Role::Destination, source, 0), begin(&new));
    write(
        &b.node,
        (Role::Destination, source, 1),
        RecordKind::Committed,
    );
    recover(&b.node, &settings());
    let stage = || b.node.journal().state().stage(ID, Role::Destination);
    until("it is not settled", || stage() != Some(Stage::Committed));
    (stage(), new.is_running())
}

#[test]
fn it_is_not_run_when_the_source_says_that_it_was_taken_back() {
    let reason = "test".to_owned();
    let taken_back = [RecordKind::Prepared, RecordKind::TakenBack { reason }];
    assert_eq!(ends(Some(&taken_back)), (Some(Stage::Yielded), false));
}

#[test]
fn it_is_run_when_the_source_knows_nothing_else_or_is_gone() {
    assert_eq!(ends(None), (Some(Stage::Resumed), true));
    assert_eq!(
        ends(Some(&[RecordKind::Prepared])),
        (Some(Stage::Resumed), true)
    );
    assert_eq!(
        ends(Some(&[])),
        (Some(Stage::Resumed), true),
        "who knows nothing of it has not taken it back"
    );
    let learned = [RecordKind::Prepared, RecordKind::Committed];
    assert_eq!(ends(Some(&learned)), (Some(Stage::Resumed), true));
}
