//! Bytes of the file: a first line with the version, then a line per record.
//!
//! ```text
//! dwcp.journal/1\n
//! LLLLLLLL CCCCCCCC {json}\n      L: bytes of the JSON, C: CRC-32C of the JSON; both hex
//! ```
//!
//! The length tells a line that was cut short (a crash during its write: it was never acknowledged,
//! so it is dropped) from one that is whole but damaged (an error: it may have been acknowledged).

use crate::{JournalError, Record};

/// First line of the file.
pub(crate) const FIRST_LINE: &[u8] = b"dwcp.journal/1\n";

/// Largest line, newline included.
pub const LINE_BYTES_MAX: usize = 64 * 1024;

const HEAD_BYTES: usize = 18;

/// An unacknowledged write that a crash cut short.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TornTail {
    /// Where it begins: the length of the good part of the file.
    pub offset: u64,
    /// Bytes of it.
    pub bytes: u64,
}

/// Why a line is not a record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Damage {
    pub(crate) offset: u64,
    /// Line of the file, from 1.
    pub(crate) line: u64,
    pub(crate) why: &'static str,
}

/// The records of `bytes` (first line already removed; `base` is its length).
pub(crate) fn decode(bytes: &[u8], base: u64) -> Result<(Vec<Record>, Option<TornTail>), Damage> {
    let mut records: Vec<Record> = Vec::new();
    let mut rest = bytes;
    let mut offset = base;
    while !rest.is_empty() {
        let damage = |why| Damage {
            offset,
            // After the first line and those of the records before.
            line: records.len() as u64 + 2,
            why,
        };
        let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
            check_torn(rest).map_err(damage)?;
            let bytes = rest.len() as u64;
            return Ok((records, Some(TornTail { offset, bytes })));
        };
        let record = decode_line(&rest[..end]).map_err(damage)?;
        check_numbers(&record, records.last()).map_err(damage)?;
        records.push(record);
        rest = &rest[end + 1..];
        offset += end as u64 + 1;
    }
    Ok((records, None))
}

/// Where the last whole line begins.
pub(crate) fn last_at(bytes: &[u8]) -> u64 {
    let end_before = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
    let whole = end_before(bytes).unwrap_or(0);
    end_before(&bytes[..whole]).map_or(0, |end| end as u64 + 1)
}

/// Numbers that this program cannot have written.
fn check_numbers(record: &Record, before: Option<&Record>) -> Result<(), &'static str> {
    if before.is_some_and(|before| before.sequence >= record.sequence) {
        return Err("sequence does not grow");
    }
    if record.sequence == u64::MAX {
        return Err("no record could follow its sequence");
    }
    if record.epoch == u64::MAX {
        return Err("no handover could follow its epoch");
    }
    Ok(())
}

fn decode_line(line: &[u8]) -> Result<Record, &'static str> {
    let (length, crc) = decode_head(line).ok_or("no line head")?;
    let body = &line[HEAD_BYTES..];
    if body.len() != length {
        return Err("length differs");
    }
    if checksum(body) != crc {
        return Err("checksum differs");
    }
    serde_json::from_slice(body).map_err(|_| "not a record of this release")
}

/// Length and checksum that the head of a line announces.
fn decode_head(line: &[u8]) -> Option<(usize, u32)> {
    let head = line.get(..HEAD_BYTES)?;
    let hex = |bytes: &[u8]| {
        let lower = bytes
            .iter()
            .all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        lower.then(|| u32::from_str_radix(std::str::from_utf8(bytes).ok()?, 16).ok())?
    };
    (head[8] == b' ' && head[17] == b' ').then_some(())?;
    Some((hex(&head[..8])? as usize, hex(&head[9..17])?))
}

/// Accepts bytes without a newline as the begin of a write that was cut short: fewer than the head
/// announces, or unwritten blocks (zeros) at the end. Anything else is damage.
fn check_torn(tail: &[u8]) -> Result<(), &'static str> {
    if tail.len() > LINE_BYTES_MAX {
        return Err("no end of line");
    }
    let Some((length, crc)) = decode_head(tail) else {
        let cut = tail.len() < HEAD_BYTES || tail.ends_with(&[0]);
        return if cut { Ok(()) } else { Err("no line head") };
    };
    let body = &tail[HEAD_BYTES..];
    if body.len() <= length {
        return Ok(());
    }
    let whole = checksum(&body[..length]) == crc;
    if !whole && body.ends_with(&[0]) {
        return Ok(());
    }
    Err("end of line is damaged")
}

/// A record's line.
pub(crate) fn encode(record: &Record) -> Result<Vec<u8>, JournalError> {
    let body = serde_json::to_vec(record).map_err(|error| JournalError::Io {
        path: crate::FILE_NAME.into(),
        doing: "encode",
        source: error.into(),
    })?;
    let bytes = HEAD_BYTES + body.len() + 1;
    if bytes > LINE_BYTES_MAX {
        return Err(JournalError::TooLarge {
            bytes,
            limit: LINE_BYTES_MAX,
        });
    }
    let mut line = format!("{:08x} {:08x} ", body.len(), checksum(&body)).into_bytes();
    line.extend_from_slice(&body);
    line.push(b'\n');
    Ok(line)
}

fn checksum(bytes: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(bytes)
}
