//! Everything that can go wrong between us and a monitor socket.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// Why a QMP call failed. After anything but [`QmpError::Command`] and [`QmpError::Timeout`] the
/// connection is of no further use.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QmpError {
    /// The socket could not be opened before the deadline.
    #[error("Cannot connect to the QMP socket {}", path.display())]
    Connect {
        /// The socket that was tried.
        path: PathBuf,
        /// What the last attempt met.
        source: io::Error,
    },
    /// QEMU closed the connection: it quit, crashed or was killed.
    #[error("QEMU went away while {during}")]
    Closed {
        /// What we were doing.
        during: String,
    },
    /// No answer in time. A late answer is recognised by its id and dropped.
    #[error("No answer from QEMU within {after:?} while {during}")]
    Timeout {
        /// What we were doing.
        during: String,
        /// How long we waited.
        after: Duration,
    },
    /// QEMU refused the command; its state is what the command's documentation says.
    #[error("QEMU refused {command}: {desc} ({class})")]
    Command {
        /// The command that was refused.
        command: String,
        /// QEMU's error class, nearly always `GenericError`.
        class: String,
        /// QEMU's own words.
        desc: String,
    },
    /// The peer said something that is not QMP, or more than we agreed to read.
    #[error("Not QMP: {detail}")]
    Protocol {
        /// What was wrong.
        detail: String,
    },
    /// The kernel refused a read or a write for another reason.
    #[error("Socket error while {during}")]
    Io {
        /// What we were doing.
        during: String,
        /// The kernel's error.
        source: io::Error,
    },
}

impl QmpError {
    /// A peer that does not speak QMP.
    pub(crate) fn protocol(detail: impl Into<String>) -> Self {
        Self::Protocol {
            detail: detail.into(),
        }
    }

    /// Sorts a socket error into "gone", "late" and the rest.
    pub(crate) fn from_io(source: io::Error, during: &str, after: Duration) -> Self {
        let during = during.to_owned();
        match source.kind() {
            io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => Self::Timeout { during, after },
            io::ErrorKind::BrokenPipe
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::UnexpectedEof => Self::Closed { during },
            _ => Self::Io { during, source },
        }
    }

    /// Whether QEMU itself is gone, so that asking again is pointless.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        matches!(self, Self::Closed { .. })
    }
}
