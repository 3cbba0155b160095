//! A journal that is written for years: it stays short, every answer stays, and who follows it reads the same.

mod common;

use std::path::Path;

use common::{aborted, begin, record};
use dwcp_api::{MigrationId, Role};
use dwcp_journal::{FILE_NAME, Follower, Journal, RecordKind, Stage, State};

const LIMIT_BYTES: u64 = 16 << 10;

fn write(journal: &Journal, migration: u128, role: Role, kind: RecordKind) {
    let record = record(migration, "vm", role, migration as u64, kind);
    journal.append(&record).unwrap();
}

/// The VM comes, or leaves.
fn moves(journal: &Journal, migration: u128) {
    let comes = migration.is_multiple_of(2);
    let role = if comes {
        Role::Destination
    } else {
        Role::Source
    };
    write(journal, migration, role, begin());
    if !comes {
        write(journal, migration, role, RecordKind::Prepared);
    }
    write(journal, migration, role, RecordKind::Committed);
    if comes {
        write(journal, migration, role, RecordKind::Resumed);
        if fails(migration) {
            let reason = "memory that is not whole".to_owned();
            write(journal, migration, role, RecordKind::Failed { reason });
        }
    }
}

/// Some that came need a look.
const fn fails(migration: u128) -> bool {
    migration % 100 == 50
}

fn followed(follower: &mut Follower) -> (Vec<dwcp_api::node::Ownership>, usize) {
    let (state, records) = follower.state().unwrap();
    (state.ownership(), records)
}

fn bytes(dir: &Path) -> u64 {
    std::fs::metadata(dir.join(FILE_NAME)).unwrap().len()
}

#[test]
fn it_stays_short_while_it_is_written_and_forgets_no_answer() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open_with_limit(dir.path(), LIMIT_BYTES).unwrap();
    let (mut follower, mut all) = (Follower::new(dir.path()), 0);
    for migration in 1..=2000 {
        moves(&journal, migration);
        all += 3;
        if migration % 7 == 0 {
            assert_eq!(followed(&mut follower).0, journal.state().ownership());
        }
    }
    let read = Journal::read(dir.path()).unwrap();
    assert!(
        read.records.len() < all / 2,
        "{} records",
        read.records.len()
    );
    assert_eq!(read.state().ownership(), journal.state().ownership());
    assert_eq!(followed(&mut follower).1, read.records.len());
    // What has ended stays so: it runs here, and nothing is half done.
    assert_eq!(journal.state().unfinished(), vec![]);
    assert_eq!(journal.state().half_done(), vec![]);
    assert_eq!(read.state().unfinished(), vec![]);
    // A source that was down for all that time asks.
    for migration in (2..=2000).step_by(2) {
        let id = MigrationId(migration);
        assert!(journal.state().committed(id), "{migration}");
        assert_eq!(journal.state().needs_a_look(id), fails(migration));
    }
    drop(journal);
    let again = Journal::open_with_limit(dir.path(), LIMIT_BYTES).unwrap();
    assert_eq!(again.state().ownership(), read.state().ownership());
}

#[test]
fn one_that_cannot_be_compacted_goes_on_as_it_is() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open_with_limit(dir.path(), 1024).unwrap();
    // In the place of the file that would be written.
    std::fs::create_dir(dir.path().join(format!("{FILE_NAME}.new"))).unwrap();
    (1..=100).for_each(|migration| moves(&journal, migration));
    assert!(bytes(dir.path()) > 20_000);
    assert_eq!(Journal::read(dir.path()).unwrap().records.len(), 301);
    std::fs::remove_dir(dir.path().join(format!("{FILE_NAME}.new"))).unwrap();
    (101..=400).for_each(|migration| moves(&journal, migration));
    assert!(Journal::read(dir.path()).unwrap().records.len() < 900);
}

#[test]
fn what_is_cut_off_again_is_not_remembered() {
    let dir = tempfile::tempdir().unwrap();
    let mut follower = Follower::new(dir.path());
    assert_eq!(followed(&mut follower), (vec![], 0));
    let journal = Journal::open(dir.path()).unwrap();
    write(&journal, 1, Role::Source, begin());
    let before = std::fs::read(journal.path()).unwrap();
    write(&journal, 1, Role::Source, RecordKind::Prepared);
    assert_eq!(followed(&mut follower).0[0].owner, "in-doubt");
    drop(journal);
    // As if the write had failed, and another record had come in its place.
    std::fs::write(dir.path().join(FILE_NAME), before).unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    assert_eq!(followed(&mut follower).0[0].owner, "here");
    write(&journal, 1, Role::Source, aborted());
    let (state, records) = follower.state().unwrap();
    let stage = |state: &State| state.stage(MigrationId(1), Role::Source);
    assert_eq!((stage(&state), records), (Some(Stage::Aborted), 2));
    // It sees a damaged one as anybody does.
    let mut damaged = std::fs::read(journal.path()).unwrap();
    let at = damaged.len() - 20;
    damaged[at] ^= 1;
    std::fs::write(dir.path().join(FILE_NAME), damaged).unwrap();
    follower.state().unwrap_err();
}
