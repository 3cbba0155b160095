//! What happens to connections: `rdma_create_event_channel`, `rdma_get_cm_event`.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::libc;
use rdma_sys::{
    rdma_ack_cm_event, rdma_cm_event, rdma_cm_event_type, rdma_create_event_channel,
    rdma_destroy_event_channel, rdma_destroy_id, rdma_event_channel, rdma_get_cm_event,
};

use super::done;
use crate::completion_queue::wait_readable;
use crate::owned::{Owned, result_of};
use crate::{ConnectionId, RdmaError};

/// Tells connections apart in events. No two of a process have the same.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct ConnectionKey(u64);

impl ConnectionKey {
    pub(super) fn next() -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Self(NEXT.fetch_add(1, Ordering::Relaxed))
    }

    /// As the library keeps it: a pointer that nobody follows.
    pub(super) const fn as_context(self) -> *mut libc::c_void {
        ptr::without_provenance_mut(self.0 as usize)
    }
}

/// Where events of several connections come. Never blocks: readable when there is one.
#[derive(Debug)]
pub struct EventChannel {
    channel: Owned<rdma_event_channel>,
    /// The library writes to an id when it takes an event of it.
    turn: Mutex<()>,
}

/// Something that happened to a connection.
#[derive(Debug)]
pub struct ConnectionEvent {
    /// To which; of a request, the listening one.
    pub connection: ConnectionKey,
    /// What.
    pub kind: ConnectionEventKind,
    /// Why, as an error number or a reason of rejection; 0 when all is well.
    pub status: i32,
    /// What the peer said, and behind it zeros that the network put there.
    pub private_data: Vec<u8>,
}

/// What happened.
#[derive(Debug)]
#[non_exhaustive]
pub enum ConnectionEventKind {
    /// The peer's address is known, and the device that leads there.
    AddressResolved,
    /// There is no device that leads to the peer, or the peer is not there.
    AddressError,
    /// The route is known.
    RouteResolved,
    /// There is no route.
    RouteError,
    /// A peer asks for a connection: accept it by this id, or reject it. Dropping the id rejects.
    ConnectRequest(ConnectionId),
    /// The peer has accepted: bring the queue pair up, then establish.
    ConnectResponse,
    /// The connection failed on its way.
    ConnectError,
    /// The peer does not answer.
    Unreachable,
    /// The peer refused, or nobody listens.
    Rejected,
    /// Both sides are connected.
    Established,
    /// The peer has ended the connection, or its process is gone.
    Disconnected,
    /// The device is being taken away.
    DeviceRemoval,
    /// The connection's leftovers may be used again; nothing to be done.
    TimewaitExit,
    /// Another one.
    Other(u32),
}

impl ConnectionEventKind {
    /// Whether the connection is over, or will never be.
    #[must_use]
    pub const fn is_end(&self) -> bool {
        matches!(
            self,
            Self::AddressError
                | Self::RouteError
                | Self::ConnectError
                | Self::Unreachable
                | Self::Rejected
                | Self::Disconnected
                | Self::DeviceRemoval
        )
    }
}

impl EventChannel {
    /// Opens one.
    ///
    /// # Errors
    /// [`RdmaError::NoRdma`] when the node has no RDMA device or no connection manager, [`RdmaError::Create`] otherwise.
    pub fn new() -> Result<Arc<Self>, RdmaError> {
        // SAFETY: no preconditions; null is handled below.
        let channel = unsafe { rdma_create_event_channel() };
        // SAFETY: it was returned just now, and `destroy_channel` is its destructor.
        let channel = unsafe { Owned::new(channel, destroy_channel, "event channel") };
        let channel = channel.map_err(|error| match error {
            RdmaError::Create { source, .. } if is_absence(&source) => RdmaError::NoRdma,
            error => error,
        })?;
        let turn = Mutex::default();
        let channel = Self { channel, turn };
        let flags = fcntl(channel.as_fd(), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
        flags.map_err(|source| RdmaError::Create {
            what: "event channel",
            source: source.into(),
        })?;
        Ok(Arc::new(channel))
    }

    /// Held by whoever takes an event, and by whoever uses an id.
    pub(super) fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) const fn as_ptr(&self) -> *mut rdma_event_channel {
        self.channel.as_ptr()
    }

    /// Takes an event, if there is one. Never waits.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`].
    pub fn next_event(self: &Arc<Self>) -> Result<Option<ConnectionEvent>, RdmaError> {
        let _turn = self.turn();
        let mut event = ptr::null_mut();
        // SAFETY: the channel is alive and does not block; `event` is writable.
        let code = unsafe { rdma_get_cm_event(self.as_ptr(), &raw mut event) };
        match result_of(code) {
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(None),
            Err(source) => {
                let step = "take an event";
                return Err(RdmaError::ConnectionManager { step, source });
            }
        }
        // SAFETY: the call succeeded, so the event is valid until it is acknowledged, below. Ids in it are alive: destroying
        // one waits for that acknowledgement.
        let taken = self.read(unsafe { &*event });
        // SAFETY: the event is acknowledged here alone, and nothing of it is used any more.
        done(unsafe { rdma_ack_cm_event(event) }, "acknowledge an event")?;
        taken.map(Some)
    }

    /// Waits for an event until `timeout` is over; `None` when it is.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`].
    pub fn wait(self: &Arc<Self>, timeout: Duration) -> Result<Option<ConnectionEvent>, RdmaError> {
        let deadline = Instant::now() + timeout;
        loop {
            let event = self.next_event()?;
            let left = deadline.saturating_duration_since(Instant::now());
            if event.is_some() || left.is_zero() {
                return Ok(event);
            }
            wait_readable(self.as_fd(), left).map_err(|source| {
                let step = "wait for an event";
                RdmaError::ConnectionManager { step, source }
            })?;
        }
    }

    /// Copies an event that is not acknowledged yet.
    fn read(self: &Arc<Self>, event: &rdma_cm_event) -> Result<ConnectionEvent, RdmaError> {
        let is_request = event.event == rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_REQUEST;
        let about = if is_request {
            event.listen_id
        } else {
            event.id
        };
        // SAFETY: by the caller, ids of the event are alive. `context` is what `ConnectionId` put there.
        let context = unsafe { (*about).context };
        let kind = if is_request {
            // SAFETY: the manager has just made this id for us, nobody else destroys it, and this is its destructor. Fields
            // behind it keep the channel.
            let id = unsafe { Owned::new(event.id, rdma_destroy_id, "connection id") }?;
            ConnectionEventKind::ConnectRequest(ConnectionId::of_request(id, self.clone()))
        } else {
            kind_of(event.event)
        };
        Ok(ConnectionEvent {
            connection: ConnectionKey(context.addr() as u64),
            kind,
            status: event.status,
            private_data: private_data(event),
        })
    }
}

impl AsFd for EventChannel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        // SAFETY: the channel is alive; its descriptor was set before it was returned and does not change.
        let descriptor = unsafe { (*self.as_ptr()).fd };
        // SAFETY: it is open as long as the channel, which is borrowed.
        unsafe { BorrowedFd::borrow_raw(descriptor) }
    }
}

/// Copies what the peer said. Ids are of the port space TCP, so the parameters are those of a connection.
fn private_data(event: &rdma_cm_event) -> Vec<u8> {
    // SAFETY: the library fills this member of the union for connections, and zeroes it in events that have none.
    let parameters = unsafe { &event.param.conn };
    if parameters.private_data.is_null() {
        return vec![];
    }
    let length = usize::from(parameters.private_data_len);
    // SAFETY: not null, and by the library so many bytes long, until the event is acknowledged.
    unsafe { std::slice::from_raw_parts(parameters.private_data.cast::<u8>(), length) }.to_vec()
}

const fn kind_of(code: u32) -> ConnectionEventKind {
    use ConnectionEventKind as Kind;
    match code {
        rdma_cm_event_type::RDMA_CM_EVENT_ADDR_RESOLVED => Kind::AddressResolved,
        rdma_cm_event_type::RDMA_CM_EVENT_ADDR_ERROR => Kind::AddressError,
        rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_RESOLVED => Kind::RouteResolved,
        rdma_cm_event_type::RDMA_CM_EVENT_ROUTE_ERROR => Kind::RouteError,
        rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_RESPONSE => Kind::ConnectResponse,
        rdma_cm_event_type::RDMA_CM_EVENT_CONNECT_ERROR => Kind::ConnectError,
        rdma_cm_event_type::RDMA_CM_EVENT_UNREACHABLE => Kind::Unreachable,
        rdma_cm_event_type::RDMA_CM_EVENT_REJECTED => Kind::Rejected,
        rdma_cm_event_type::RDMA_CM_EVENT_ESTABLISHED => Kind::Established,
        rdma_cm_event_type::RDMA_CM_EVENT_DISCONNECTED => Kind::Disconnected,
        rdma_cm_event_type::RDMA_CM_EVENT_DEVICE_REMOVAL => Kind::DeviceRemoval,
        rdma_cm_event_type::RDMA_CM_EVENT_TIMEWAIT_EXIT => Kind::TimewaitExit,
        code => Kind::Other(code),
    }
}

/// What librdmacm says where there is no device, no module, or no device node of it.
fn is_absence(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error(),
        Some(libc::ENODEV | libc::ENOENT | libc::ENOSYS)
    )
}

unsafe extern "C" fn destroy_channel(channel: *mut rdma_event_channel) -> c_int {
    // SAFETY: only `Owned` calls this, once, with the channel that it owns.
    unsafe { rdma_destroy_event_channel(channel) };
    0
}
