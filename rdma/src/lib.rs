//! RDMA verbs, each object under its own name.
//!
//! | object | file | made from | released by |
//! |---|---|---|---|
//! | [`DeviceList`] | `device.rs` | the system | `ibv_free_device_list` |
//! | [`Context`] | `context.rs` | a device of the list | `ibv_close_device` |
//! | [`ProtectionDomain`] | `protection_domain.rs` | a context | `ibv_dealloc_pd` |
//! | [`MemoryRegion`] | `memory_region.rs` | a domain, and [`RegisteredMemory`] | `ibv_dereg_mr` |
//! | [`CompletionQueue`] | `completion_queue.rs` | a context | `ibv_destroy_cq`, `ibv_destroy_comp_channel` |
//! | [`SharedReceiveQueue`] | `shared_receive_queue.rs` | a domain | `ibv_destroy_srq` |
//! | [`QueuePair`] | `queue_pair.rs` | a domain, completion queues | `ibv_destroy_qp` |
//! | [`EventChannel`] | `connection_manager/` | the system | `rdma_destroy_event_channel` |
//! | [`ConnectionId`] | `connection_manager/` | a channel | `rdma_destroy_id` |
//!
//! Who owns what: an object keeps what it was made from, a posted request keeps the [`MemoryRegion`]s that it names until its
//! completion has been polled or its queue is destroyed, and a region keeps its memory. So nothing that an adapter may still
//! read or write is unmapped under it. Memory of the peer is a [`RemoteAddress`]; nothing here follows one.
//!
//! How bytes get to a peer: [`SendRequest`]s are pushed into a [`SendBatch`] and posted, and come back from
//! [`CompletionQueue::poll`] as [`WorkCompletion`]s. What happens below, `ibv_post_send(3)` and `ibv_poll_cq(3)`, are functions
//! of the adapter's driver in this process: no system call on adapters that are hardware.
//!
//! A node without RDMA is normal: that is [`RdmaError::NoRdma`], never a crash. See `ibv_get_device_list(3)`,
//! `ibv_open_device(3)`, `ibv_query_device(3)`, `ibv_query_port(3)`, `rdma_cm(7)`.

mod completion_queue;
mod connection_manager;
mod context;
mod device;
mod error;
mod gid;
mod in_flight;
mod memory;
mod memory_region;
mod owned;
mod path;
mod port;
mod protection_domain;
mod queue_pair;
mod shared_receive_queue;
mod work_completion;
mod work_request;

pub use completion_queue::{CompletionQueue, Notify};
pub use connection_manager::{
    ACCEPT_DATA_BYTES_MAX, CONNECT_DATA_BYTES_MAX, ConnectParameters, ConnectionEvent,
    ConnectionEventKind, ConnectionId, ConnectionKey, EventChannel, REJECT_DATA_BYTES_MAX,
};
pub use context::{Context, DeviceInfo};
pub use device::{Device, DeviceList};
pub use error::RdmaError;
pub use gid::{Gid, GidKind};
pub use memory::{Buffer, RegisteredMemory};
pub use memory_region::{Access, LocalSpan, MemoryRegion, RemoteAddress};
pub use path::{Endpoint, Path, Patience, ToInit, ToReadyToReceive, ToReadyToSend};
pub use port::{LinkLayer, PortInfo, PortState};
pub use protection_domain::ProtectionDomain;
pub use queue_pair::{
    Init, QueuePair, QueuePairOptions, QueuePairState, ReadyToReceive, ReadyToSend, Reset,
};
pub use shared_receive_queue::{RECEIVE_SPANS_MAX, ReceiveRequest, SharedReceiveQueue};
pub use work_completion::{CompletedOperation, CompletionStatus, WorkCompletion};
pub use work_request::{Payload, SendBatch, SendRequest};

/// Returns what is known of every RDMA device of this node.
///
/// # Errors
/// [`RdmaError::NoRdma`] when there is none; the first device that cannot be asked ends the search.
pub fn devices() -> Result<Vec<DeviceInfo>, RdmaError> {
    let list = DeviceList::get()?;
    list.iter().map(|device| device.open()?.info()).collect()
}
