//! What happens around the handover, between two nodes: the point of no return.

mod common;

use std::time::Duration;

use common::proxy::{Harm, Plan, Progress, Proxy, Way};
use common::{TestGuest, node, settings, small, wait};
use dwcp_api::{MigrationId, MigrationReport, RunResult};
use dwcp_wire::Control;

/// How long the last words are held back: enough to hear of closed streams before.
const HELD: Duration = Duration::from_millis(300);

/// Moves a guest while all streams but the control connection end before `message` is heard.
fn moves_while_streams_end_before(message: fn(&Control) -> bool) -> MigrationReport {
    let folder = tempfile::tempdir().unwrap();
    let a = node(folder.path(), "a", &settings());
    let b = node(folder.path(), "b", &settings());
    let old = TestGuest::start(folder.path(), "old", &small(1, false));
    let new = TestGuest::start(folder.path(), "new", &small(1, true));
    a.node.attach("vm", old.attachment.clone()).unwrap();
    b.node.attach("vm", new.attachment.clone()).unwrap();
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
        let report = moves_while_streams_end_before(message);
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        assert_eq!(report.reason, "handed over");
        assert!(report.verified);
        // The pause lasted until the words were heard, and the report says in which part.
        let parts = report.downtime_parts_ms;
        let held_ms = [parts.handover, parts.resume][part];
        assert!(held_ms >= HELD.as_secs_f64() * 900.0, "{parts:?}");
    }
}
