//! A process that plays a guest: its RAM is a memfd that a mover can map, it rewrites pages at a known
//! rate and never stops checking them.
//!
//! RAM is a memfd, mapped shared, optionally of 2 MiB huge pages. Page `i` holds what
//! `dwcp-guest-page` says for (kind, `i`, generation of `i`). The table of generations, the progress
//! counters and the random state are the *device state*: they are not in RAM, so a RAM copy that is
//! not exactly the one of the moment of the pause is found out by the first check.
//!
//! # Protocol
//! A Unix stream socket of mode 0600; peers of another user than ours (or root) are dropped. Both
//! sides send one JSON object per line, of at most 64 KiB. Several clients at once.
//!
//! On connect the guest sends a greeting, with the memfd of each RAM block and then, when
//! `userfaultfd` is true, a userfaultfd, by `SCM_RIGHTS`:
//! ```text
//! {"dwcp_guest":1,"name":"g","pid":7,"incoming":false,"userfaultfd":true,
//!  "ram":[{"name":"ram0","bytes":1073741824,"va":139900000000000,"page_bytes":4096}]}
//! ```
//! `va` is where the guest itself has mapped the block: addresses of userfault events and of
//! `/proc/PID/pagemap`. `page_bytes` is the size of the pages behind it: 4096 or 2097152. The
//! userfaultfd is made by the guest and nothing more: `UFFDIO_API` and everything after are the
//! mover's. It is the same one for every client, and the guest keeps it for life. After `UFFDIO_API`
//! by one mover, the next one finds it done.
//!
//! | request                        | answer in `return`                        | remarks              |
//! |--------------------------------|-------------------------------------------|----------------------|
//! | `{"execute":"pause"}`          | `{"timestamp_us":…}`                      | wall clock, when the last page write was over |
//! | `{"execute":"resume"}`         | `{"timestamp_us":…}`                      | wall clock, before the first page access |
//! | `{"execute":"status"}`         | `running writes verified bad passes max_gap_ms incoming` | never waits for the guest |
//! | `{"execute":"save"}` + socket  | `{"bytes":N}`                             | paused only; writes the device state, shuts the socket down, then answers |
//! | `{"execute":"load"}` + socket  | `{"bytes":N}`                             | incoming only; reads to the end, checks |
//! | `{"execute":"verify"}`         | `{"bad":N,"pages":N}`                     | every page; slow     |
//! | `{"execute":"quit"}`           | `{}`                                      | then the guest ends  |
//!
//! A refusal is `{"error":{"desc":"…"}}`. An incoming guest has RAM of zeros and waits for `load`, then
//! `resume`. `max_gap_ms` is the longest time between two turns of the guest's loop by the wall clock,
//! over its whole life and across moves: pauses and slow page faults show here.

mod client;
mod machine;
mod memory;
mod server;
mod state;

use std::io;
use std::path::PathBuf;

use dwcp_guest_page::Kind;

pub use client::{ClientError, GuestStatus, RamBlock, SyntheticClient, VerifyReport};
pub use server::SyntheticGuest;

/// Most RAM that a synthetic guest may have, in MiB: 64 GiB.
pub const RAM_MIB_MAX: u64 = 64 << 10;

/// What a synthetic guest is like.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SyntheticOptions {
    /// Its name, shown to clients.
    pub name: String,
    /// The socket to listen on; a stale socket there is replaced.
    pub socket: PathBuf,
    /// RAM in MiB, 1..=[`RAM_MIB_MAX`]; a multiple of 2 with huge pages.
    pub ram_mib: u64,
    /// The window that is rewritten, in MiB from the first page on; cut to the RAM.
    pub hot_mib: u64,
    /// Pages rewritten per second; 0 = idle.
    pub rate: u64,
    /// Pages checked per second, besides each page before it is rewritten.
    pub verify_rate: u64,
    /// What pages look like.
    pub kind: Kind,
    /// How many of a hundred pages stay zero until the hot window reaches them.
    pub zero_percent: u8,
    /// Makes two guests with the same options differ.
    pub seed: u64,
    /// Whether RAM is made of 2 MiB huge pages.
    pub hugetlb: bool,
    /// Whether to start empty and wait for `load`.
    pub incoming: bool,
    /// Whether an empty guest has its RAM allocated, as QEMU does with `prealloc=on`.
    pub prealloc: bool,
    /// NUMA nodes that RAM comes from, in equal shares of whole 2 MiB; empty leaves it to the kernel.
    pub nodes: Vec<usize>,
}

impl Default for SyntheticOptions {
    fn default() -> Self {
        Self {
            name: "guest".into(),
            socket: PathBuf::from("guest.sock"),
            ram_mib: 256,
            hot_mib: 16,
            rate: 300,
            verify_rate: 20_000,
            kind: Kind::Text,
            zero_percent: 0,
            seed: 1,
            hugetlb: false,
            incoming: false,
            prealloc: false,
            nodes: vec![],
        }
    }
}

/// Why a synthetic guest cannot run.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SyntheticError {
    /// An option is out of its range.
    #[error("Option {option}: {detail}")]
    Options {
        /// The field of [`SyntheticOptions`].
        option: &'static str,
        /// What is wrong with it.
        detail: String,
    },
    /// No RAM of the kind that was asked for.
    #[error("Cannot get {mib} MiB of RAM ({kind})")]
    Memory {
        /// How much was asked for.
        mib: u64,
        /// Plain or huge pages.
        kind: &'static str,
        /// The kernel's reason.
        source: io::Error,
    },
    /// The socket cannot be made or served.
    #[error("Socket {}", path.display())]
    Socket {
        /// The socket's path.
        path: PathBuf,
        /// The kernel's reason.
        source: io::Error,
    },
    /// A thread cannot be started.
    #[error("Cannot start a thread")]
    Thread {
        /// The kernel's reason.
        source: io::Error,
    },
}

/// Runs a synthetic guest until a client says `quit`.
///
/// RAM is filled before the socket appears, so a guest that can be connected to is ready.
///
/// # Errors
/// Only before the guest is ready; after that, a client's mistakes are the client's.
pub fn run_synthetic_guest(options: SyntheticOptions) -> Result<(), SyntheticError> {
    SyntheticGuest::start(options)?.wait();
    Ok(())
}

impl SyntheticOptions {
    /// Refuses what cannot be meant, before anything is allocated.
    fn check(&self) -> Result<(), SyntheticError> {
        let refuse = |option, detail: String| Err(SyntheticError::Options { option, detail });
        if self.ram_mib == 0 || self.ram_mib > RAM_MIB_MAX {
            return refuse(
                "ram_mib",
                format!("{} is not in 1..={RAM_MIB_MAX}", self.ram_mib),
            );
        }
        if self.hugetlb && !self.ram_mib.is_multiple_of(2) {
            return refuse("ram_mib", "must be even with 2 MiB huge pages".into());
        }
        if !self.nodes.is_empty() && !self.ram_mib.is_multiple_of(2 * self.nodes.len() as u64) {
            return refuse("ram_mib", "must be 2 MiB, or a multiple, per node".into());
        }
        if self.zero_percent > 100 {
            return refuse(
                "zero_percent",
                format!("{} is more than 100", self.zero_percent),
            );
        }
        Ok(())
    }
}
