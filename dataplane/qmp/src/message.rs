//! What QEMU may say, and the only place where its JSON is taken apart.

use serde::Deserialize;
use serde_json::Value;
use std::fmt;

use crate::error::QmpError;

/// Version of a QEMU, as its greeting gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Deserialize)]
pub struct QemuVersion {
    /// First number: 7 in 7.2.22.
    pub major: u32,
    /// Second number: 2 in 7.2.22.
    pub minor: u32,
    /// Third number: 22 in 7.2.22.
    pub micro: u32,
}

impl QemuVersion {
    /// Whether this QEMU is `major.minor` or newer.
    #[must_use]
    pub fn at_least(&self, major: u32, minor: u32) -> bool {
        (self.major, self.minor) >= (major, minor)
    }
}

impl fmt::Display for QemuVersion {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}.{}.{}", self.major, self.minor, self.micro)
    }
}

/// Something that happened in QEMU without being asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct QmpEvent {
    /// Its name: `STOP`, `RESUME`, `MIGRATION`, …
    pub name: String,
    /// What the event carries; `Null` when it carries nothing.
    pub data: Value,
    /// QEMU's wall clock when it happened, in microseconds since 1970; 0 when QEMU had no clock.
    pub timestamp_us: u64,
}

/// One line from QEMU after the greeting.
#[derive(Debug)]
pub(crate) enum Message {
    Return {
        id: Option<u64>,
        value: Value,
    },
    Error {
        id: Option<u64>,
        class: String,
        desc: String,
    },
    Event(QmpEvent),
}

#[derive(Deserialize)]
struct GreetingLine {
    #[serde(rename = "QMP")]
    qmp: GreetingBody,
}

#[derive(Deserialize)]
struct GreetingBody {
    version: GreetingVersion,
}

#[derive(Deserialize)]
struct GreetingVersion {
    qemu: QemuVersion,
}

#[derive(Deserialize)]
struct MessageLine {
    event: Option<String>,
    #[serde(default)]
    data: Value,
    timestamp: Option<Timestamp>,
    // A present `null` must differ from an absent member, hence not `Option<Value>`.
    #[serde(default, rename = "return", deserialize_with = "present")]
    value: Option<Value>,
    error: Option<ErrorBody>,
    id: Option<u64>,
}

/// Seconds are -1 when QEMU could not read its clock.
#[derive(Deserialize)]
struct Timestamp {
    seconds: i64,
    microseconds: i64,
}

#[derive(Deserialize)]
struct ErrorBody {
    class: String,
    desc: String,
}

fn present<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Value>, D::Error> {
    Value::deserialize(from).map(Some)
}

impl Timestamp {
    fn to_us(&self) -> u64 {
        let us = self
            .seconds
            .checked_mul(1_000_000)
            .and_then(|s| s.checked_add(self.microseconds));
        us.and_then(|us| u64::try_from(us).ok()).unwrap_or(0)
    }
}

/// Reads the first line of a connection.
pub(crate) fn parse_greeting(line: &[u8]) -> Result<QemuVersion, QmpError> {
    let greeting: GreetingLine = serde_json::from_slice(line)
        .map_err(|error| QmpError::protocol(format!("bad greeting: {error}")))?;
    Ok(greeting.qmp.version.qemu)
}

/// Reads any later line.
pub(crate) fn parse_message(line: &[u8]) -> Result<Message, QmpError> {
    let message: MessageLine = serde_json::from_slice(line)
        .map_err(|error| QmpError::protocol(format!("bad message: {error}")))?;
    match (message.event, message.value, message.error) {
        (Some(name), None, None) => {
            let timestamp_us = message.timestamp.map_or(0, |stamp| stamp.to_us());
            Ok(Message::Event(QmpEvent {
                name,
                data: message.data,
                timestamp_us,
            }))
        }
        (None, Some(value), None) => Ok(Message::Return {
            id: message.id,
            value,
        }),
        (None, None, Some(error)) => Ok(Message::Error {
            id: message.id,
            class: error.class,
            desc: error.desc,
        }),
        _ => Err(QmpError::protocol(
            "a message must be one of event, return and error",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greeting_gives_the_version() {
        let line = br#"{"QMP": {"version": {"qemu": {"micro": 22, "minor": 2, "major": 7},
            "package": "Debian"}, "capabilities": ["oob"]}}"#;
        let version = parse_greeting(line).expect("greeting");
        assert_eq!(version.to_string(), "7.2.22");
        assert!(version.at_least(7, 2) && !version.at_least(8, 0));
    }

    #[test]
    fn each_kind_of_message_is_told_apart() {
        let event = br#"{"timestamp": {"seconds": 2, "microseconds": 5}, "event": "STOP"}"#;
        let Ok(Message::Event(event)) = parse_message(event) else {
            panic!("event")
        };
        assert_eq!(
            (event.name.as_str(), event.timestamp_us),
            ("STOP", 2_000_005)
        );
        assert!(matches!(
            parse_message(br#"{"return": null, "id": 4}"#),
            Ok(Message::Return {
                id: Some(4),
                value: Value::Null
            })
        ));
        assert!(matches!(
            parse_message(br#"{"error": {"class": "GenericError", "desc": "no"}}"#),
            Ok(Message::Error { id: None, .. })
        ));
    }

    #[test]
    fn a_clock_that_makes_no_sense_reads_as_zero() {
        for stamp in [(-1, -1), (i64::MAX, 1)] {
            let stamp = Timestamp {
                seconds: stamp.0,
                microseconds: stamp.1,
            };
            assert_eq!(stamp.to_us(), 0);
        }
    }

    #[test]
    fn hostile_lines_are_errors_not_panics() {
        let deep = vec![b'['; 100_000];
        let lines: [&[u8]; 9] = [
            b"",
            b"\xff\xfe",
            b"7",
            b"{}",
            b"[]",
            br#"{"event": 5}"#,
            br#"{"return": {}, "event": "STOP"}"#,
            br#"{"return": {}, "id": "x"}"#,
            &deep,
        ];
        for line in lines {
            assert!(matches!(
                parse_message(line),
                Err(QmpError::Protocol { .. })
            ));
            assert!(matches!(
                parse_greeting(line),
                Err(QmpError::Protocol { .. })
            ));
        }
    }
}
