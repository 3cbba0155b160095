//! Few migrations leave a node at a time; the others wait, and can be called off.

mod common;

use common::{TestGuest, node, settings, small, until, wait};
use dwcp_api::{MigrationId, PhaseName, RunResult, TransferSettings};

#[test]
fn migrations_take_turns_and_one_that_waits_can_be_cancelled() {
    let folder = tempfile::tempdir().unwrap();
    let one_at_once = TransferSettings {
        at_once: 1,
        connect_timeout_ms: 30_000,
        ..settings()
    };
    let a = node(folder.path(), "a", &settings());
    let b = node(folder.path(), "b", &settings());
    let names = ["first", "second", "third"];
    let guests = names.map(|name| {
        let start = |end: &str, incoming| {
            TestGuest::start(folder.path(), &format!("{name}-{end}"), &small(1, incoming))
        };
        let (old, new) = (start("old", false), start("new", true));
        a.node.attach(name, old.attachment.clone()).unwrap();
        b.node.attach(name, new.attachment.clone()).unwrap();
        (old, new)
    });
    // A destination that takes connections and says nothing: the first does not get on.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let silent_address = silent.local_addr().unwrap().to_string();
    for (id, (name, to)) in (1..).zip(names.iter().zip([&silent_address, &b.address, &b.address])) {
        let begun = a
            .node
            .start_migration(MigrationId(id), name, to, one_at_once.clone(), false);
        begun.unwrap();
    }
    let phase = |id| a.node.status(MigrationId(id)).unwrap().phase;
    until("the first does not begin", || {
        phase(1) == PhaseName::Negotiate
    });
    assert_eq!((phase(2), phase(3)), (PhaseName::Queued, PhaseName::Queued));
    // A dry run moves nothing, so it does not wait; the VM itself is spoken for.
    assert!(
        a.node
            .start_migration(MigrationId(9), "third", &b.address, one_at_once, true)
            .is_err()
    );
    a.node.cancel(MigrationId(2)).unwrap();
    let cancelled = wait(&a.node, MigrationId(2));
    assert_eq!(cancelled.result, RunResult::Aborted);
    assert!(guests[1].0.is_running() && !guests[1].1.is_running());
    assert_eq!(
        (phase(1), phase(3)),
        (PhaseName::Negotiate, PhaseName::Queued)
    );
    // The end of the first is the third's turn.
    drop(silent);
    assert_eq!(wait(&a.node, MigrationId(1)).result, RunResult::Aborted);
    let moved = wait(&a.node, MigrationId(3));
    assert_eq!(moved.result, RunResult::Completed, "{}", moved.reason);
    assert!(moved.queued_ms > 0.0);
    assert!(!guests[2].0.is_running() && guests[2].1.is_running());
    assert_eq!(guests[2].1.bad_pages(), 0);
}
