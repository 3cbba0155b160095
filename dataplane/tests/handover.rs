//! What happens around the handover, between two nodes: the point of no return.

mod common;

use std::time::Duration;

use common::proxy::{Harm, Plan, Progress, Proxy, Way};
use common::stranger::{Stranger, hello, unchecked};
use common::{TestGuest, TwoNodes, node, settings, small, until, wait};
use dwcp_api::{ErrorCode, MigrationId, MigrationReport, PhaseName, Role, RunResult};
use dwcp_dataplane::migration::Node;
use dwcp_journal::{Record, RecordKind, Stage};
use dwcp_wire::Control;

/// How long the last words are held back: enough to hear of closed streams before.
const HELD: Duration = Duration::from_millis(300);

/// Moves a guest while all streams but the control connection end before `message` is heard.
fn moves_while_streams_end_before(
    message: fn(&Control) -> bool,
    meanwhile: impl FnOnce(&Node, MigrationId),
) -> MigrationReport {
    let TwoNodes { a, b, old, new, .. } =
        &TwoNodes::start(&settings(), |incoming| small(1, incoming));
    let act = |progress: &Progress| {
        progress.close_streams();
        std::thread::sleep(HELD);
    };
    let plan = Plan {
        connections: 0..1,
        way: Way::ToSource,
        harm: Harm::Before { message, act },
    };
    let proxy = Proxy::start(&b.address, plan);
    let id = MigrationId(7);
    a.node
        .start_migration(id, "vm", &proxy.address, settings(), false)
        .unwrap();
    meanwhile(&a.node, id);
    let report = wait(&a.node, id);
    assert!(proxy.has_harmed());
    assert_eq!(wait(&b.node, id).result, RunResult::Completed);
    assert!(new.is_running() && !old.is_running());
    assert_eq!(new.bad_pages(), 0);
    report
}

/// A destination that has taken over closes its streams. What the source makes of that must not
/// depend on which it hears first.
#[test]
fn streams_that_end_before_the_last_words_hide_nothing() {
    let committed = |message: &Control| matches!(message, Control::Committed { .. });
    let resumed = |message: &Control| matches!(message, Control::Resumed);
    for (message, part) in [(committed as fn(&Control) -> bool, 0), (resumed, 1)] {
        let report = moves_while_streams_end_before(message, |_, _| {});
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        assert_eq!(report.reason, "handed over");
        assert!(report.verified);
        // The pause lasted until the words were heard, and the report says in which part.
        let parts = report.downtime_parts_ms;
        let held_ms = [parts.handover, parts.resume][part];
        assert!(held_ms >= HELD.as_secs_f64() * 900.0, "{parts:?}");
    }
}

/// "Cancelling" would be a lie: only the destination decides.
#[test]
fn a_handover_under_way_is_not_cancelled_and_that_is_said() {
    let message = |message: &Control| matches!(message, Control::Committed { .. });
    let report = moves_while_streams_end_before(message, |node, id| {
        until("no handover", || {
            node.status(id).unwrap().phase == PhaseName::Handover
        });
        let refused = node.cancel(id).unwrap_err();
        assert_eq!(refused.code, ErrorCode::TooLate);
        assert!(
            refused.message.contains("cannot be taken back"),
            "{refused}"
        );
    });
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
}

/// A migration whose driver has ended without a word in the journal: what it had loaded must not
/// stand here when the source is told that it may run the guest.
#[test]
fn a_copy_without_a_driver_is_ended_before_the_source_hears_no() {
    let folder = tempfile::tempdir().unwrap();
    let b = node(folder.path(), "b", &settings());
    let old = TestGuest::start(folder.path(), "old", &small(1, false));
    let new = TestGuest::start(folder.path(), "new", &small(1, true));
    b.node.attach("vm", new.attachment.clone()).unwrap();
    new.load_from(&old);
    let mut copy = new.client();
    let id = MigrationId(5);
    let begin = Record {
        sequence: 0,
        migration: id,
        vm: "vm".into(),
        role: Role::Destination,
        peer_node: "a".into(),
        peer_address: "127.0.0.1:1".into(),
        tls: false,
        epoch: 0,
        wall_ms: 0,
        kind: RecordKind::Begin {
            attachment: new.attachment.clone(),
        },
    };
    b.node.journal().append(&begin).unwrap();

    for _ in 0..2 {
        let mut stranger = Stranger::connect(&b);
        stranger.say(&hello());
        stranger.say(&unchecked(&Control::OwnerQuery {
            migration: id.0,
            vm: "vm".into(),
            epoch: 1,
        }));
        let answer = stranger.hear_control();
        assert_eq!(answer, Some(Control::OwnerAnswer { committed: false }));
        until("the copy stays", || copy.status().is_err());
    }
    let state = b.node.journal().state();
    assert_eq!(state.stage(id, Role::Destination), Some(Stage::Aborted));
    assert_eq!(state.ownership_of("vm").unwrap().peer, "a");
}
