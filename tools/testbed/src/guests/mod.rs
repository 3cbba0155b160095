//! Guests that run in a QEMU: their images, the QEMU around them, and what they report.
//!
//! | file        | what                                                             |
//! |-------------|------------------------------------------------------------------|
//! | `images.rs` | finds or builds the bare kernel, the Linux init and its initramfs |
//! | `cpio.rs`   | writes the initramfs                                             |
//! | `program.rs`| a program of this machine, packed to run in the Linux guest      |
//! | `builder.rs`| the arguments of one QEMU, and its start                         |
//! | `qemu.rs`   | one running QEMU: waiting for it, its end                        |
//! | `serial.rs` | reads the guest's own account of itself                          |
//! | `workload.rs` | a Debian with a database, a store or little to do, warm and saved |
//! | `progress.rs` | whether a workload goes on after a move                          |
//!
//! ```no_run
//! use dwcp_testbed::guests::{GuestKind, QemuGuest};
//! use std::time::Duration;
//!
//! # fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let folder = std::env::temp_dir();
//! let mut guest = QemuGuest::builder("demo", &folder).guest(GuestKind::Bare).memory_mib(256).spawn()?;
//! guest.wait_ready(Duration::from_secs(30))?;
//! println!("{:?}", guest.serial().latest());
//! # Ok(())
//! # }
//! ```

mod builder;
mod cpio;
mod images;
mod program;
mod progress;
mod qemu;
mod serial;
mod workload;

use std::io;
use std::path::PathBuf;
use std::time::Duration;

pub use builder::{Backend, QemuBuilder, qemu_binary};
pub use cpio::CpioWriter;
pub use dwcp_guest_page::GuestOptions;
pub use images::{GuestKind, Images, repository_root};
pub use program::Program;
pub use progress::{WorkLine, goes_on};
pub use qemu::QemuGuest;
pub use serial::{SerialLog, TickLine, Verdict, verify};
pub use workload::{Workload, WorkloadGuest, workload_disk};

/// Why a guest cannot be had, started or followed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// An image is neither next to the program nor can it be built.
    #[error("No {what}: {hint}")]
    NoImage {
        /// What is missing.
        what: &'static str,
        /// What to do about it.
        hint: String,
    },
    /// Building an image failed.
    #[error("Building {what} failed:\n{output}")]
    Build {
        /// What was built.
        what: &'static str,
        /// The end of what the build printed.
        output: String,
    },
    /// A file cannot be read or written.
    #[error("File {}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// QEMU cannot be started.
    #[error("Cannot start {binary} (set DWCP_QEMU to another one)")]
    Spawn {
        /// What was started.
        binary: String,
        /// The kernel's reason.
        source: io::Error,
    },
    /// QEMU ended although it should run.
    #[error("QEMU {name} ended ({status}): {output}")]
    Ended {
        /// The guest.
        name: String,
        /// How it ended.
        status: String,
        /// The end of what it printed.
        output: String,
    },
    /// The guest did not say what we waited for.
    #[error("Guest {name}: no {what} within {after:?}; the log ends with: {tail}")]
    Timeout {
        /// The guest.
        name: String,
        /// What we waited for.
        what: String,
        /// How long.
        after: Duration,
        /// The end of its serial log.
        tail: String,
    },
    /// The guest says that it cannot work.
    #[error("Guest {name} failed: {detail}")]
    Failed {
        /// The guest.
        name: String,
        /// Its words.
        detail: String,
    },
    /// QEMU's monitor.
    #[error(transparent)]
    Qmp(#[from] dwcp_qmp::QmpError),
}

/// The end of a text, for messages.
pub(crate) fn tail(text: &str, bytes: usize) -> String {
    let from = text.len().saturating_sub(bytes);
    let from = (from..text.len())
        .find(|&at| text.is_char_boundary(at))
        .unwrap_or(text.len());
    text[from..].trim().to_owned()
}
