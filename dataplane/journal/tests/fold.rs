//! Random histories of two nodes: never two owners, and compaction changes no answer.

mod common;

use common::{aborted, begin, record};
use dwcp_api::{MigrationId, Role};
use dwcp_journal::{Journal, Record, RecordKind, Stage, State};
use proptest::prelude::*;

/// One node's journal in memory, under the same checks as the file.
#[derive(Default)]
struct Node {
    records: Vec<Record>,
}

impl Node {
    fn state(&self) -> State {
        State::from_records(&self.records)
    }

    fn write(&mut self, mut next: Record) -> bool {
        next.sequence = self.records.len() as u64 + 1;
        let allowed = self.state().check(&next).is_ok();
        if allowed {
            self.records.push(next);
        }
        allowed
    }

    fn owner(&self, vm: &str) -> Option<(String, u64)> {
        let ownership = self.state().ownership_of(vm)?;
        Some((ownership.owner, ownership.epoch))
    }
}

#[derive(Clone, Debug)]
enum Step {
    Begin,
    Prepare,
    Commit,
    Refuse,
    Resume,
    Learn,
    GiveUp,
    TakeBack,
    Tell,
    Fail(bool),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => Just(Step::Begin),
        4 => Just(Step::Prepare),
        4 => Just(Step::Commit),
        1 => Just(Step::Refuse),
        3 => Just(Step::Resume),
        4 => Just(Step::Learn),
        1 => Just(Step::GiveUp),
        1 => Just(Step::TakeBack),
        2 => Just(Step::Tell),
        1 => any::<bool>().prop_map(Step::Fail),
    ]
}

/// Two nodes and one VM. `from` is the source of the newest migration.
struct World {
    nodes: [Node; 2],
    from: usize,
    migration: u128,
    epoch: u64,
}

impl World {
    fn write(&mut self, role: Role, epoch: u64, kind: RecordKind) -> bool {
        let node = match role {
            Role::Source => self.from,
            Role::Destination => 1 - self.from,
        };
        self.nodes[node].write(record(self.migration, "web", role, epoch, kind))
    }

    fn stage(&self, role: Role) -> Option<Stage> {
        let node = if role == Role::Source {
            self.from
        } else {
            1 - self.from
        };
        self.nodes[node]
            .state()
            .stage(MigrationId(self.migration), role)
    }

    /// Does what a correct daemon might do next; a step that makes no sense now is skipped.
    fn step(&mut self, step: &Step) {
        let epoch = self.epoch;
        let committed = matches!(
            self.stage(Role::Destination),
            Some(Stage::Committed | Stage::Resumed)
        );
        let over = self.migration == 0
            || matches!(
                self.stage(Role::Source),
                Some(Stage::Aborted | Stage::Committed)
            );
        match step {
            Step::Begin if over => {
                if self.migration != 0 && self.stage(Role::Source) == Some(Stage::Committed) {
                    self.from = 1 - self.from;
                    self.epoch += 1;
                }
                self.migration += 1;
                assert!(self.write(Role::Source, self.epoch, begin()));
                assert!(self.write(Role::Destination, self.epoch, begin()));
            }
            _ if over => {}
            Step::Prepare => {
                self.write(Role::Source, epoch, RecordKind::Prepared);
            }
            Step::Commit if self.stage(Role::Source) == Some(Stage::Prepared) => {
                self.write(Role::Destination, epoch + 1, RecordKind::Committed);
            }
            Step::Refuse => {
                self.write(Role::Destination, epoch, RecordKind::Refused);
            }
            Step::Resume => {
                self.write(Role::Destination, epoch + 1, RecordKind::Resumed);
            }
            Step::Learn if committed => {
                self.write(Role::Source, epoch + 1, RecordKind::Committed);
            }
            Step::GiveUp => {
                let refused = self.nodes[1 - self.from]
                    .state()
                    .refused(MigrationId(self.migration));
                if self.stage(Role::Source) == Some(Stage::Begun) || refused {
                    self.write(Role::Source, epoch, aborted());
                }
            }
            Step::TakeBack => {
                let reason = "test".into();
                self.write(Role::Source, epoch + 2, RecordKind::TakenBack { reason });
            }
            Step::Tell if self.stage(Role::Source) == Some(Stage::TakenBack) => {
                self.tell(committed);
            }
            Step::Fail(source) => {
                let role = if *source {
                    Role::Source
                } else {
                    Role::Destination
                };
                let kind = RecordKind::Failed {
                    reason: "test".into(),
                };
                self.write(role, epoch + u64::from(committed), kind);
            }
            Step::Commit | Step::Learn | Step::Begin | Step::Tell => {}
        }
    }

    /// The destination hears that the guest was taken back, and the source that it has.
    fn tell(&mut self, committed: bool) {
        let (epoch, kind) = if committed {
            (self.epoch + 2, RecordKind::Yielded)
        } else {
            (self.epoch, RecordKind::Refused)
        };
        assert!(self.write(Role::Destination, epoch, kind));
        assert!(self.write(Role::Source, self.epoch + 2, RecordKind::Told));
        self.epoch += 2;
    }

    fn check(&self) {
        let owners: Vec<_> = self
            .nodes
            .iter()
            .filter_map(|node| node.owner("web"))
            .collect();
        let here = owners.iter().filter(|(owner, _)| owner == "here").count();
        // By an operator's word alone, and of two epochs: the newer one is the source's.
        let taken_back = self.migration > 0 && self.stage(Role::Source) == Some(Stage::TakenBack);
        assert!(here <= 1 || taken_back, "two owners: {owners:?}");
        if taken_back {
            let epochs = [self.from, 1 - self.from].map(|node| self.nodes[node].owner("web"));
            let [source, destination] = epochs.map(|owner| owner.expect("has begun").1);
            assert!(source > destination, "{owners:?}");
            return;
        }
        let in_doubt = owners.iter().any(|(owner, _)| owner == "in-doubt");
        assert!(
            owners.is_empty() || here == 1 || in_doubt,
            "nobody: {owners:?}"
        );
        if let Some((_, epoch)) = owners.iter().find(|(owner, _)| owner == "here") {
            assert!(owners.iter().all(|(_, other)| other <= epoch));
        }
        for node in &self.nodes {
            let doubt = node
                .owner("web")
                .is_some_and(|(owner, _)| owner == "in-doubt");
            let asks = node.state().unfinished().iter().any(|unfinished| {
                unfinished.role == Role::Source && unfinished.stage == Stage::Prepared
            });
            assert_eq!(doubt, asks, "a source in doubt must ask, and only it");
        }
    }
}

proptest! {
    #[test]
    fn there_is_never_more_than_one_owner(steps in prop::collection::vec(step(), 1..60)) {
        let mut world = World { nodes: Default::default(), from: 0, migration: 0, epoch: 0 };
        for step in &steps {
            world.step(step);
            world.check();
        }
    }

    /// Any records in any order fold without panic, and to the same answers after compaction.
    #[test]
    fn compaction_keeps_the_answers(
        choices in prop::collection::vec((1..6_u128, 0..3_u8, any::<bool>(), 0..7_u8), 1..80)
    ) {
        let dir = tempfile::tempdir().unwrap();
        let journal = Journal::open(dir.path()).unwrap();
        for (migration, vm, source, kind) in choices {
            let role = if source { Role::Source } else { Role::Destination };
            let kind = match kind {
                0 => begin(),
                1 => RecordKind::Prepared,
                2 => RecordKind::Committed,
                3 => RecordKind::Refused,
                4 => RecordKind::Resumed,
                5 => aborted(),
                _ => RecordKind::Failed { reason: "test".into() },
            };
            let id = migration * 10 + u128::from(vm);
            let _ = journal.append(&record(id, &format!("vm-{vm}"), role, migration as u64, kind));
        }
        let before = journal.state();
        drop(journal);
        let journal = Journal::open_with_limit(dir.path(), 0).unwrap();
        let after = journal.state();
        prop_assert_eq!(before.ownership(), after.ownership());
        prop_assert_eq!(before.unfinished(), after.unfinished());
        for id in 0..60 {
            let id = MigrationId(id);
            prop_assert_eq!(before.refused(id), after.refused(id));
            prop_assert!(!before.committed(id) || after.committed(id)
                || before.stage(id, Role::Source) == Some(Stage::Committed));
        }
        // The next number follows on, and a promise that was dropped cannot be broken.
        prop_assert_eq!(Journal::read(dir.path()).unwrap().state().ownership(), after.ownership());
    }
}

#[test]
fn compaction_makes_the_file_shorter_and_numbers_go_on() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    for migration in 1..=200 {
        journal
            .append(&record(migration, "web", Role::Source, 0, begin()))
            .unwrap();
        journal
            .append(&record(migration, "web", Role::Source, 0, aborted()))
            .unwrap();
    }
    let before = std::fs::metadata(journal.path()).unwrap().len();
    drop(journal);
    let journal = Journal::open_with_limit(dir.path(), 1024).unwrap();
    assert!(std::fs::metadata(journal.path()).unwrap().len() < before / 50);
    let next = journal
        .append(&record(201, "web", Role::Source, 0, begin()))
        .unwrap();
    assert_eq!(next, 401);
    let late = record(5, "web", Role::Source, 0, RecordKind::Prepared);
    assert!(journal.append(&late).is_err());
}

#[test]
fn a_guest_that_came_back_is_here_even_when_an_old_answer_arrives_late() {
    let mut node = Node::default();
    assert!(node.write(record(1, "web", Role::Source, 0, begin())));
    assert!(node.write(record(1, "web", Role::Source, 0, RecordKind::Prepared)));
    assert_eq!(node.owner("web").unwrap().0, "in-doubt");
    assert!(node.write(record(2, "web", Role::Destination, 1, begin())));
    assert_eq!(node.owner("web").unwrap().0, "in-doubt");
    assert!(node.write(record(
        2,
        "web",
        Role::Destination,
        2,
        RecordKind::Committed
    )));
    assert!(node.write(record(1, "web", Role::Source, 1, RecordKind::Committed)));
    assert_eq!(node.owner("web").unwrap(), ("here".to_owned(), 2));
    let unfinished = node.state().unfinished();
    assert_eq!(unfinished.len(), 1);
    assert_eq!(unfinished[0].stage, Stage::Committed);
}

/// Its end could not be written (a full disk, say), and the VM has left by a newer migration since:
/// to recover the old one would run the guest on two nodes.
#[test]
fn an_unfinished_migration_is_superseded_by_a_newer_one_of_the_same_vm() {
    let mut node = Node::default();
    assert!(node.write(record(1, "web", Role::Source, 0, begin())));
    assert!(node.write(record(2, "web", Role::Source, 0, begin())));
    assert!(node.write(record(3, "db", Role::Source, 0, begin())));
    let unfinished = node.state().unfinished();
    let superseded: Vec<_> = unfinished
        .iter()
        .map(|old| (old.migration.0, old.superseded))
        .collect();
    assert_eq!(superseded, [(1, true), (2, false), (3, false)]);
}

/// A question about an old migration writes `Refused` late; that begins nothing.
#[test]
fn a_late_answer_supersedes_nothing() {
    let mut node = Node::default();
    assert!(node.write(record(1, "web", Role::Destination, 0, begin())));
    assert!(node.write(record(9, "web", Role::Destination, 0, RecordKind::Refused)));
    let unfinished = node.state().unfinished();
    assert_eq!(unfinished.len(), 1);
    assert!(!unfinished[0].superseded);
}
