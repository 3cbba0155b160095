//! A source whose disk is full when it learns of the commit. The only test of its program: the limit on the size of
//! files holds for the whole process.

mod common;

use common::disk::{FullDisk, fill_the_disk};
use common::proxy::{CONTROL, Harm, Plan, Proxy, Way};
use common::{TwoNodes, settings, small, until, wait};
use dwcp_api::{MigrationId, RecoverRequest, Role, RunResult};
use dwcp_journal::Stage;
use dwcp_wire::Control;

/// The guest has left. The record of it follows by itself when there is room again: without a restart nobody could
/// bring the VM back and move it again, since the journal went on saying that its owner is in doubt.
#[test]
fn what_a_source_has_learned_is_written_at_last() {
    let TwoNodes { a, b, old, new, .. } =
        &TwoNodes::start(&settings(), |incoming| small(1, incoming));
    let disk = FullDisk;
    let plan = Plan {
        connections: CONTROL..CONTROL + 1,
        way: Way::ToSource,
        harm: Harm::Before {
            message: |message| matches!(message, Control::Committed { .. }),
            act: |_| fill_the_disk(),
        },
    };
    let proxy = Proxy::start(&b.address, plan);
    let id = MigrationId(7);
    a.node
        .start_migration(id, "vm", &proxy.address, settings(), false)
        .unwrap();
    assert_eq!(wait(&a.node, id).result, RunResult::Completed);
    assert!(proxy.has_harmed() && new.is_running() && !old.is_running());
    let stages = || {
        let stage =
            |node: &dwcp_dataplane::migration::Node, role| node.journal().state().stage(id, role);
        [
            stage(&a.node, Role::Source),
            stage(&b.node, Role::Destination),
        ]
    };
    // That the guest runs can be recorded before its message of the commit is on its way.
    let [left, came] = stages();
    assert_eq!(left, Some(Stage::Prepared));
    assert!(matches!(came, Some(Stage::Committed | Stage::Resumed)));

    drop(disk);
    until("the records do not follow", || {
        stages() == [Some(Stage::Committed), Some(Stage::Resumed)]
    });
    for node in [a, b] {
        let left = node.node.recover(&RecoverRequest::List).unwrap();
        assert_eq!(left.half_done, []);
    }
}
