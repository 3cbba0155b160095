//! Several migrations at once: they share what may leave a node, and few come in at a time.

mod common;

use common::{TestGuest, TestNode, node_options, node_with, settings, small, until, wait};
use dwcp_api::{MigrationId, MigrationReport, PhaseName, RunResult, TransferSettings};
use dwcp_dataplane::migration::NodeOptions;
use dwcp_testbed::synthetic::SyntheticOptions;

struct Guests {
    a: TestNode,
    b: TestNode,
    guests: Vec<(TestGuest, TestGuest)>,
    _folder: tempfile::TempDir,
}

impl Guests {
    fn start(
        count: u128,
        guest: impl Fn(bool) -> SyntheticOptions,
        change: impl Fn(NodeOptions) -> NodeOptions,
    ) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let node = |name| node_with(change(node_options(folder.path(), name)), &settings());
        let (a, b) = (node("a"), node("b"));
        let guests = (1..=count).map(|id| {
            let start = |end: &str, incoming| {
                TestGuest::start(folder.path(), &format!("{id}-{end}"), &guest(incoming))
            };
            let (old, new) = (start("old", false), start("new", true));
            let name = format!("vm{id}");
            a.node.attach(&name, old.attachment.clone()).unwrap();
            b.node.attach(&name, new.attachment.clone()).unwrap();
            (old, new)
        });
        Self {
            guests: guests.collect(),
            a,
            b,
            _folder: folder,
        }
    }

    fn move_one(&self, id: u128, settings: &TransferSettings) {
        let (name, to) = (format!("vm{id}"), &self.b.address);
        self.a
            .node
            .start_migration(MigrationId(id), &name, to, settings.clone(), false)
            .unwrap();
    }

    fn moved(&self, id: u128) -> MigrationReport {
        let report = wait(&self.a.node, MigrationId(id));
        assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
        let (old, new) = &self.guests[id as usize - 1];
        assert!(!old.is_running() && new.is_running());
        assert_eq!(new.bad_pages(), 0);
        report
    }
}

#[test]
fn what_leaves_a_node_is_shared_by_priority_and_nothing_of_it_is_left_idle() {
    let calm = |incoming| SyntheticOptions {
        ram_mib: 64,
        zero_percent: 0,
        rate: 0,
        ..small(1, incoming)
    };
    // 40 Mbit/s: 5 MB in a second.
    let guests = Guests::start(2, calm, |options| NodeOptions {
        outgoing_bytes_per_s: 5_000_000,
        ..options
    });
    let of = |priority| TransferSettings {
        at_once: 2,
        priority,
        ..settings()
    };
    guests.move_one(1, &of(10));
    guests.move_one(2, &of(30));
    let sent = |id| {
        let handle = guests.a.node.migration(MigrationId(id)).unwrap();
        handle.status().progress.wire_bytes
    };
    // Who began first had all of it till then.
    until("pages do not leave", || sent(1) > 0 && sent(2) > 0);
    let before = (sent(1), sent(2));
    let since = || (sent(1) - before.0, sent(2) - before.1);
    until("pages leave no more", || since().0 + since().1 > 16_000_000);
    let (low, high) = since();
    // A machine that is short of CPU does not keep to it closely.
    let ratio = high as f64 / low as f64;
    assert!(
        (1.8..5.0).contains(&ratio),
        "{high} and {low} bytes, {ratio}"
    );
    guests.a.node.cancel(MigrationId(2)).unwrap();
    wait(&guests.a.node, MigrationId(2));
    // It had a quarter. Now all of it is its own: a quarter would take 50 s more.
    let report = guests.moved(1);
    assert!(report.total_ms < 35_000.0, "{} ms", report.total_ms);
}

#[test]
fn as_many_come_in_at_once_as_the_node_takes() {
    let guests = Guests::start(
        4,
        |incoming| small(1, incoming),
        |options| NodeOptions {
            incoming_at_once: 1,
            ..options
        },
    );
    let settings = TransferSettings {
        at_once: 4,
        // They would have ended before the next is looked at.
        bandwidth_limit_mbit: 16,
        ..settings()
    };
    (1..=4).for_each(|id| guests.move_one(id, &settings));
    let phase = |id| guests.a.node.status(MigrationId(id)).unwrap().phase;
    let mut waited = false;
    until("they do not end", || {
        let phases: Vec<_> = (1..=4).map(phase).collect();
        let is_in = |phase: &&PhaseName| {
            use PhaseName::{Precopy, Setup, Switchover};
            matches!(phase, Setup | Precopy | Switchover)
        };
        assert!(phases.iter().filter(is_in).count() <= 1, "{phases:?}");
        waited |= phases.contains(&PhaseName::Negotiate) && phases.contains(&PhaseName::Precopy);
        phases.iter().all(|phase| *phase == PhaseName::Complete)
    });
    assert!(waited, "nobody had to wait");
    (1..=4).for_each(|id| drop(guests.moved(id)));
}
