//! Deterministic simulation of a migration, and of tries to repeat it.
//!
//! ```text
//!   seed ──► Plan ──► World { clock, source, destination, links, guest, journals, faults }
//!                       │  drives the real dwcp_proto::Source and dwcp_proto::Destination
//!                       ├─ safety phase: faults strike, every step is checked
//!                       └─ liveness phase: no more faults, an end must come
//! ```
//! One `u64` decides everything. A failure is therefore a number: `dwcp-sim --seed N --trace`
//! prints what happened, and a test can keep the number.
//!
//! What is real: both machines, the recovery tables, the control messages' encoding. What is
//! modelled: engines (each action takes time, completions come in any order that a real engine
//! could produce), VMMs after QEMU, journals, connections, pages (as version numbers).

#![forbid(unsafe_code)]

mod destination_node;
mod destination_vmm;
mod faults;
mod guest;
mod inject;
mod invariants;
mod journal;
mod link;
pub mod model;
mod mutation;
mod net;
mod pages;
mod plan;
mod postcopy;
mod receiver;
mod recovery;
mod replace;
mod rng;
mod run;
mod schedule;
mod sender;
mod shape;
mod source_node;
mod source_vmm;
mod stats;
mod trace;
mod vmm;
mod world;

pub use invariants::Violation;
pub use mutation::Mutation;
pub use run::{Caught, Report, Summary, hunt, run_many, run_seed, run_shaped};
pub use shape::Shape;
pub use stats::Stats;
