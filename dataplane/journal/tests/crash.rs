//! Real crashes and real failed writes, in a child process: this test program started again.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use common::{begin, record};
use dwcp_api::Role;
use dwcp_journal::{Journal, JournalError, RecordKind};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

const FOLDER: &str = "DWCP_TEST_JOURNAL";
const COMPACT_ABOVE_BYTES: &str = "DWCP_TEST_COMPACT_ABOVE_BYTES";

fn child(test: &str, dir: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped());
    command
}

/// A child that appends to a journal which is compacted above so many bytes.
fn appends(dir: &std::path::Path, compact_above_bytes: u64) -> Command {
    let mut command = child("child_appends_until_killed", dir);
    command.env(COMPACT_ABOVE_BYTES, compact_above_bytes.to_string());
    command
}

/// The child of the next tests: appends for ever, and says which records were acknowledged.
#[test]
fn child_appends_until_killed() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let limit = std::env::var(COMPACT_ABOVE_BYTES).unwrap().parse().unwrap();
    let journal = Journal::open_with_limit(dir.as_ref(), limit).unwrap();
    let process = u128::from(std::process::id()) << 64;
    for number in 0..1 << 64 {
        let migration = process | number;
        for kind in [begin(), RecordKind::Committed, RecordKind::Resumed] {
            let sequence = journal
                .append(&record(migration, "web", Role::Destination, 1, kind))
                .unwrap();
            println!("acknowledged {sequence}");
        }
    }
}

#[test]
fn kill_9_loses_no_acknowledged_record() {
    let dir = tempfile::tempdir().unwrap();
    let mut expected_at_least = 0;
    for run in 0..8 {
        let mut process = appends(dir.path(), u64::MAX).spawn().unwrap();
        let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
        let mut acknowledged = 0;
        let mut killed = false;
        let mut left = 20 + run * 17;
        while let Some(Ok(line)) = lines.next() {
            let Some(number) = line.split("acknowledged ").nth(1) else {
                continue;
            };
            acknowledged = number.trim().parse::<u64>().unwrap();
            left -= 1;
            if left == 0 && !killed {
                process.kill().unwrap();
                killed = true;
            }
        }
        process.wait().unwrap();
        assert!(acknowledged > expected_at_least);
        let contents = Journal::read(dir.path()).unwrap();
        let sequences: Vec<u64> = contents
            .records
            .iter()
            .map(|record| record.sequence)
            .collect();
        let all: Vec<u64> = (1..=sequences.len() as u64).collect();
        assert_eq!(sequences, all);
        assert!(sequences.len() as u64 >= acknowledged);
        expected_at_least = acknowledged;
    }
}

/// The child of the next test: a file size limit makes write(2) stop in the middle of a record.
#[test]
fn child_meets_a_full_disk() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let journal = Journal::open(dir.as_ref()).unwrap();
    let destination = |kind| record(5, "web", Role::Destination, 1, kind);
    journal.append(&destination(begin())).unwrap();
    let good = std::fs::metadata(journal.path()).unwrap().len();
    // SAFETY: ignoring a signal installs no handler code.
    unsafe { signal(Signal::SIGXFSZ, SigHandler::SigIgn) }.unwrap();
    let (_, hard) = getrlimit(Resource::RLIMIT_FSIZE).unwrap();
    for room in [0, 1, 17, 18, 60] {
        setrlimit(Resource::RLIMIT_FSIZE, good + room, hard).unwrap();
        let error = journal
            .append(&destination(RecordKind::Committed))
            .unwrap_err();
        assert!(matches!(error, JournalError::Io { .. }) && error.is_not_written());
        assert_eq!(std::fs::metadata(journal.path()).unwrap().len(), good);
        assert!(!journal.state().committed(dwcp_api::MigrationId(5)));
    }
    setrlimit(Resource::RLIMIT_FSIZE, hard, hard).unwrap();
    journal.append(&destination(RecordKind::Committed)).unwrap();
}

#[test]
fn a_failed_write_leaves_nothing_behind_and_the_next_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let output = child("child_meets_a_full_disk", dir.path())
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
    let contents = Journal::read(dir.path()).unwrap();
    assert_eq!((contents.records.len(), contents.torn), (2, None));
}

/// A reader beside a busy writer sees whole records only, and no older journal than before, however often it is
/// put into a shorter one.
#[test]
fn a_reader_beside_the_writer_sees_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = appends(dir.path(), 4096).spawn().unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let (mut last, mut records, mut compacted) = (0, 0, 0);
    while compacted < 4 {
        assert!(last < 10_000, "it is never compacted");
        lines.next().unwrap().unwrap();
        let contents = Journal::read(dir.path()).unwrap();
        let sequence = contents.records.last().map_or(0, |last| last.sequence);
        assert!(sequence >= last);
        compacted += u32::from(contents.records.len() < records);
        (last, records) = (sequence, contents.records.len());
    }
    process.kill().unwrap();
    process.wait().unwrap();
}
