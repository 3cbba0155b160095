//! Torn tails are dropped, damage is found, one writer at a time.

mod common;

use std::fs;

use common::{aborted, begin, record};
use dwcp_api::Role;
use dwcp_journal::{FILE_NAME, Journal, JournalError, RecordKind};

fn three_records() -> (tempfile::TempDir, Vec<u8>, usize) {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    journal
        .append(&record(1, "web", Role::Source, 0, begin()))
        .unwrap();
    journal
        .append(&record(1, "web", Role::Source, 0, RecordKind::Prepared))
        .unwrap();
    let two = fs::read(journal.path()).unwrap().len();
    journal
        .append(&record(1, "web", Role::Source, 1, RecordKind::Committed))
        .unwrap();
    let bytes = fs::read(journal.path()).unwrap();
    (dir, bytes, two)
}

/// A crash may leave any prefix of the last line. Each must read as the records before it, be
/// reported, and be gone after the next writer opened.
#[test]
fn a_tail_torn_at_any_byte_is_dropped_and_reported() {
    let (dir, bytes, two) = three_records();
    for length in two + 1..bytes.len() {
        fs::write(dir.path().join(FILE_NAME), &bytes[..length]).unwrap();
        let contents = Journal::read(dir.path()).unwrap();
        assert_eq!(contents.records.len(), 2, "length {length}");
        let torn = contents.torn.unwrap();
        assert_eq!(torn.offset, two as u64);
        assert_eq!(torn.bytes, (length - two) as u64);

        let journal = Journal::open(dir.path()).unwrap();
        assert_eq!(journal.torn_at_open(), Some(torn));
        let again = record(1, "web", Role::Source, 1, RecordKind::Committed);
        assert_eq!(journal.append(&again).unwrap(), 3);
        assert_eq!(fs::read(journal.path()).unwrap(), bytes);
    }
}

/// Unwritten blocks read as zeros after a power cut.
#[test]
fn a_tail_of_zeros_is_torn() {
    let (dir, bytes, two) = three_records();
    for good in [two, two + 5, two + 40] {
        let mut cut = bytes[..good].to_vec();
        cut.resize(bytes.len() + 700, 0);
        fs::write(dir.path().join(FILE_NAME), &cut).unwrap();
        let contents = Journal::read(dir.path()).unwrap();
        assert_eq!(contents.records.len(), 2);
        assert_eq!(contents.torn.unwrap().offset, two as u64);
    }
}

/// A changed byte in acknowledged records never reads as another history. The last line is
/// included: it was acknowledged as well.
#[test]
fn any_corrupt_byte_is_an_error_with_its_offset() {
    let (dir, bytes, _) = three_records();
    let starts: Vec<usize> = std::iter::once(0)
        .chain(
            bytes
                .iter()
                .enumerate()
                .filter_map(|(at, byte)| (*byte == b'\n').then_some(at + 1)),
        )
        .collect();
    for at in 0..bytes.len() {
        let mut damaged = bytes.clone();
        damaged[at] ^= 0x41;
        fs::write(dir.path().join(FILE_NAME), &damaged).unwrap();
        match Journal::read(dir.path()).unwrap_err() {
            JournalError::Version { .. } => assert!(at < starts[1]),
            JournalError::Corrupt { line, offset, .. } => {
                let index = starts.iter().rposition(|start| *start <= at).unwrap();
                assert_eq!(offset, starts[index] as u64, "byte {at}");
                assert_eq!(line, index as u64 + 1, "byte {at}");
            }
            other => panic!("byte {at}: {other}"),
        }
        assert!(Journal::open(dir.path()).is_err());
    }
}

#[test]
fn a_repeated_line_is_found() {
    let (dir, bytes, two) = three_records();
    let mut repeated = bytes.clone();
    repeated.extend_from_slice(&bytes[two..]);
    fs::write(dir.path().join(FILE_NAME), &repeated).unwrap();
    let error = Journal::read(dir.path()).unwrap_err();
    assert!(
        error.to_string().contains("sequence does not grow"),
        "{error}"
    );
}

/// A line with a good checksum can still hold a number that nothing can follow. To add one to it
/// would begin again at 0, or end the process.
#[test]
fn numbers_that_nothing_can_follow_are_damage_and_the_line_is_named() {
    let (dir, bytes, two) = three_records();
    let json = std::str::from_utf8(&bytes[two + 18..]).unwrap().trim_end();
    for (from, to, why) in [
        (
            "\"sequence\":3",
            "\"sequence\":18446744073709551615",
            "its sequence",
        ),
        ("\"epoch\":1", "\"epoch\":18446744073709551615", "its epoch"),
    ] {
        let crafted = json.replace(from, to);
        assert_ne!(crafted, json);
        let checksum = crc_fast::crc32_iscsi(crafted.as_bytes());
        let line = format!("{:08x} {checksum:08x} {crafted}\n", crafted.len());
        let file = [&bytes[..two], line.as_bytes()].concat();
        fs::write(dir.path().join(FILE_NAME), &file).unwrap();
        let error = Journal::open(dir.path()).unwrap_err().to_string();
        assert!(
            error.contains("line 4 is damaged") && error.contains(why),
            "{error}"
        );
    }
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let last = record(1, "web", Role::Source, u64::MAX, begin());
    assert!(
        journal
            .append(&last)
            .unwrap_err()
            .to_string()
            .contains("its epoch")
    );
}

#[test]
fn a_second_writer_is_told_that_the_journal_is_in_use() {
    let dir = tempfile::tempdir().unwrap();
    let first = Journal::open(dir.path()).unwrap();
    let error = Journal::open(dir.path()).unwrap_err();
    assert!(matches!(error, JournalError::InUse { .. }));
    assert!(error.to_string().contains("in use"), "{error}");
    drop(first);
    Journal::open(dir.path()).unwrap();
}

#[test]
fn an_absent_journal_reads_as_empty() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(Journal::read(dir.path()).unwrap().records, []);
}

#[test]
fn a_promise_is_kept_by_the_file_itself() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let to = |kind| record(7, "db", Role::Destination, 1, kind);
    journal.append(&to(begin())).unwrap();
    journal.append(&to(RecordKind::Refused)).unwrap();
    let error = journal.append(&to(RecordKind::Committed)).unwrap_err();
    assert!(matches!(error, JournalError::Forbidden { .. }) && error.is_not_written());

    // Asked about a migration that never reached this node: the promise counts from now on.
    let unknown = |kind| record(8, "db", Role::Destination, 1, kind);
    journal.append(&unknown(RecordKind::Refused)).unwrap();
    assert!(journal.append(&unknown(begin())).is_err());
    assert!(journal.append(&unknown(RecordKind::Committed)).is_err());

    let from = |kind| record(9, "web", Role::Source, 0, kind);
    journal.append(&from(begin())).unwrap();
    assert!(journal.append(&from(RecordKind::Committed)).is_err());
    journal.append(&from(RecordKind::Prepared)).unwrap();
    let other = record(10, "web", Role::Source, 0, begin());
    assert!(
        journal
            .append(&other)
            .unwrap_err()
            .to_string()
            .contains("in doubt")
    );
    journal.append(&from(RecordKind::Committed)).unwrap();
    assert!(journal.append(&from(aborted())).is_err());
    assert_eq!(Journal::read(dir.path()).unwrap().records.len(), 6);
}

#[test]
fn a_record_too_large_or_misnumbered_is_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let journal = Journal::open(dir.path()).unwrap();
    let huge = record(1, &"x".repeat(70_000), Role::Source, 0, begin());
    assert!(matches!(
        journal.append(&huge),
        Err(JournalError::TooLarge { .. })
    ));
    let mut numbered = record(1, "web", Role::Source, 0, begin());
    numbered.sequence = 5;
    assert!(matches!(
        journal.append(&numbered),
        Err(JournalError::Sequence {
            found: 5,
            expected: 1
        })
    ));
    assert_eq!(Journal::read(dir.path()).unwrap().records, []);
}
