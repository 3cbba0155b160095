//! Why verbs failed.

use std::io;

use crate::QueuePairState;

/// Why a verbs call failed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RdmaError {
    /// There is no device, no driver, or no permission to see either.
    #[error("no RDMA device on this node")]
    NoRdma,
    /// There are devices, but none of that name.
    #[error("there is no RDMA device {device} on this node")]
    NoSuchDevice {
        /// The name asked for.
        device: String,
    },
    /// A device is listed but cannot be opened.
    #[error("Cannot open RDMA device {device}")]
    Open {
        /// The device's name.
        device: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An open device does not answer a query.
    #[error("Cannot query {what} of RDMA device {device}")]
    Query {
        /// The device's name.
        device: String,
        /// What was asked: `attributes`, `port 1`.
        what: String,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// An object cannot be made.
    #[error("Cannot make a {what}")]
    Create {
        /// The kind of object, as verbs name it.
        what: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Memory cannot be registered. `ENOMEM` mostly means the limit of locked memory.
    #[error(
        "Cannot register {bytes} bytes, of which RLIMIT_MEMLOCK allows {memlock_bytes} to a process"
    )]
    Register {
        /// How much was to be registered.
        bytes: usize,
        /// The limit of locked memory; `u64::MAX` when there is none.
        memlock_bytes: u64,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// Memory cannot be deregistered: keys to it may still be good.
    #[error("Cannot deregister memory")]
    Deregister {
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// A region is held by a request that is not complete, or by somebody else.
    #[error("the memory region is in use")]
    InUse,
    /// A range does not lie in its memory, or is too long for one request (4 GiB).
    #[error("Bytes {offset}.. ({bytes} of them) do not lie in memory of {length} bytes")]
    OutsideMemory {
        /// Where the range begins.
        offset: usize,
        /// How long it is.
        bytes: usize,
        /// How long the memory is.
        length: usize,
    },
    /// Bytes would come into a region that was not registered to be written.
    #[error("the memory region was not registered for local writes")]
    NotWritable,
    /// A region and the queue that is to use it are of different protection domains.
    #[error("the memory region belongs to another protection domain")]
    OtherProtectionDomain,
    /// More spans in one request than the queue was made for.
    #[error("{spans} spans in a request, {limit} are the most")]
    TooManySpans {
        /// How many there are.
        spans: usize,
        /// How many the queue takes.
        limit: u32,
    },
    /// More inline bytes in one request than the queue was made for.
    #[error("{bytes} inline bytes in a request, {limit} are the most")]
    InlineTooLong {
        /// How many there are.
        bytes: usize,
        /// How many the queue takes.
        limit: u32,
    },
    /// The queue has no room: completions have to be polled first. Nothing was posted.
    #[error(
        "{outstanding} requests are outstanding and {more} more were to be posted, {limit} are the most"
    )]
    QueueFull {
        /// Requests whose completion has not been polled.
        outstanding: usize,
        /// How many were to be posted.
        more: usize,
        /// How many the queue takes.
        limit: u32,
    },
    /// The driver refused a request. Those before it are posted, the others are not.
    #[error("Cannot post request {posted} of {requests}")]
    Post {
        /// Requests that were posted.
        posted: usize,
        /// Requests in the batch.
        requests: usize,
        /// What the driver said.
        #[source]
        source: io::Error,
    },
    /// A queue pair did not change its state. It is destroyed.
    #[error("Cannot move a queue pair from {from} to {to}")]
    Transition {
        /// The state it was in.
        from: QueuePairState,
        /// The state it was to get to.
        to: QueuePairState,
        /// What the driver said.
        #[source]
        source: io::Error,
    },
    /// A completion queue cannot be polled or armed, or overran.
    #[error("Cannot {step} a completion queue")]
    CompletionQueue {
        /// `poll`, `arm`, `wait for`.
        step: &'static str,
        /// What the driver said.
        #[source]
        source: io::Error,
    },
    /// The connection manager refused a call.
    #[error("RDMA connection manager: cannot {step}")]
    ConnectionManager {
        /// What was asked: `resolve the address`.
        step: &'static str,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// More private data than a message of the connection manager carries.
    #[error("{bytes} bytes of private data, {limit} are the most")]
    PrivateDataTooLong {
        /// How many there are.
        bytes: usize,
        /// How many go into that message.
        limit: usize,
    },
}

impl RdmaError {
    /// Returns whether the node simply has no RDMA: use another transport and do not complain.
    #[must_use]
    pub const fn is_absence(&self) -> bool {
        matches!(self, Self::NoRdma)
    }

    /// Returns whether the limit of locked memory is in the way: register less, or ask for more (`LimitMEMLOCK=`).
    #[must_use]
    pub fn is_memlock(&self) -> bool {
        matches!(self, Self::Register { source, .. } if source.raw_os_error() == Some(nix::libc::ENOMEM))
    }
}
