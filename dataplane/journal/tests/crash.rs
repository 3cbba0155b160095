//! Real crashes and real failed writes, in a child process: this test program started again.

mod common;

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use common::{begin, record};
use dwcp_api::Role;
use dwcp_journal::{Journal, JournalError, RecordKind};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{SigHandler, Signal, signal};

const FOLDER: &str = "DWCP_TEST_JOURNAL";

fn child(test: &str, dir: &std::path::Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(FOLDER, dir)
        .stdout(Stdio::piped());
    command
}

/// The child of the next test: appends for ever, and says which records were acknowledged.
#[test]
fn child_appends_until_killed() {
    let Some(dir) = std::env::var_os(FOLDER) else {
        return;
    };
    let journal = Journal::open(dir.as_ref()).unwrap();
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
        let mut process = child("child_appends_until_killed", dir.path())
            .spawn()
            .unwrap();
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

/// A reader beside a busy writer sees whole records only, in order.
#[test]
fn a_reader_beside_the_writer_sees_whole_records() {
    let dir = tempfile::tempdir().unwrap();
    let mut process = child("child_appends_until_killed", dir.path())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let began = std::time::Instant::now();
    let mut last = 0;
    while began.elapsed() < Duration::from_millis(500) && lines.next().is_some() {
        let count = Journal::read(dir.path()).unwrap().records.len();
        assert!(count >= last);
        last = count;
    }
    process.kill().unwrap();
    process.wait().unwrap();
    assert!(last > 0);
}
