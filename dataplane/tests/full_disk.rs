//! A destination whose disk is full at the commit. The only test of its program: the limit on the
//! size of files holds for the whole process.

mod common;

use std::time::Duration;

use common::disk::{FullDisk, fill_the_disk};
use common::proxy::{Harm, Plan, Proxy, Way};
use common::{TwoNodes, settings, small, until, wait};
use dwcp_api::{MigrationId, Role, RunResult};
use dwcp_journal::Stage;
use dwcp_wire::Control;

/// Neither the commit nor its refusal can be written, and both guests stand. When there is room
/// again the refusal follows by itself, the loaded copy is ended, and the source runs on.
#[test]
fn a_refused_copy_does_not_stay_loaded() {
    let TwoNodes { a, b, old, new, .. } =
        &TwoNodes::start(&settings(), |incoming| small(1, incoming));
    let disk = FullDisk;
    let plan = Plan {
        connections: 0..1,
        way: Way::ToDestination,
        harm: Harm::Before {
            message: |message| matches!(message, Control::Handover { .. }),
            act: |_| fill_the_disk(),
        },
    };
    let proxy = Proxy::start(&b.address, plan);
    let id = MigrationId(7);
    a.node
        .start_migration(id, "vm", &proxy.address, settings(), false)
        .unwrap();
    until("the handover was not sent", || proxy.has_harmed());

    // Several tries fail meanwhile.
    std::thread::sleep(Duration::from_millis(1500));
    assert!(!old.is_running() && !new.is_running());
    let there = b.node.migration(id).unwrap().status();
    assert_eq!(there.report, None, "the destination has given up");
    assert_eq!(
        b.node.journal().state().stage(id, Role::Destination),
        Some(Stage::Begun)
    );
    let mut copy = new.client();

    drop(disk);
    let report = wait(&a.node, id);
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    let there = wait(&b.node, id);
    assert_eq!(there.result, RunResult::Aborted, "{}", there.reason);
    assert_eq!(there.owner, "source");
    assert!(old.is_running());
    assert_eq!(old.bad_pages(), 0);
    assert_eq!(
        b.node.journal().state().stage(id, Role::Destination),
        Some(Stage::Aborted)
    );
    until("the refused copy stays loaded", || copy.status().is_err());
}
