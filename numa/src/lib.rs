//! Where things are on this node: processors, memory, devices; and memory that stays there.
//!
//! | question | answer |
//! |---|---|
//! | which NUMA nodes, cores and hardware threads exist? | [`Topology`] |
//! | near which node is this CPU, this network device? | [`Topology::node_of_cpu`], [`Topology::node_of_device`] |
//! | where should the workers run, and why there? | [`Topology::plan_workers`] |
//! | where does this page lie, where will it come from? | [`nodes_of_pages`], [`node_of_policy`] |
//! | may this thread run there? make it | [`allowed_cpus`], [`pin_current_thread`] |
//! | buffers near the worker, in huge pages | [`Arena`], [`BufferSlots`] |
//! | pages of a shared file on a node | [`prefer_node`] |
//!
//! A topology is read once and is plain data from then on; planning is a pure function of it. Unsafe
//! code lives in `mapping.rs`, `policy.rs` and `witness.rs` (system calls) and in `arena.rs` (one slice).

mod affinity;
mod arena;
mod mapping;
mod plan;
mod policy;
mod slots;
mod topology;
mod witness;

pub use affinity::{PinError, allowed_cpus, pin_current_thread};
pub use arena::{Arena, ArenaBacking, ArenaError, ArenaOptions};
pub use plan::{NodeShare, PlannedWorker, WorkerPlan, WorkerWish};
pub use policy::prefer_node;
pub use slots::BufferSlots;
pub use topology::{Core, Device, DeviceKind, Node, Topology, TopologyError};
pub use witness::{node_of_policy, nodes_of_pages};
