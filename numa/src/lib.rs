//! Where things are on this node: processors, memory, devices; and memory that stays there.
//!
//! | question | answer |
//! |---|---|
//! | which NUMA nodes, cores and hardware threads exist? | [`Topology`] |
//! | near which node is this CPU, this network device? | [`Topology::node_of_cpu`], [`Topology::node_of_device`] |
//! | where should the workers run, and why there? | [`Topology::plan_workers`] |
//! | may this thread run there? make it | [`allowed_cpus`], [`pin_current_thread`] |
//! | buffers near the worker, in huge pages | [`Arena`], [`BufferSlots`] |
//!
//! A topology is read once and is plain data from then on; planning is a pure function of it. Unsafe
//! code lives in `mapping.rs` and `policy.rs` (system calls) and in `arena.rs` (one slice).

mod affinity;
mod arena;
mod mapping;
mod plan;
mod policy;
mod slots;
mod topology;

pub use affinity::{PinError, allowed_cpus, pin_current_thread};
pub use arena::{Arena, ArenaBacking, ArenaError, ArenaOptions};
pub use plan::{PlannedWorker, WorkerPlan};
pub use slots::BufferSlots;
pub use topology::{Core, Device, DeviceKind, Node, Topology, TopologyError};
