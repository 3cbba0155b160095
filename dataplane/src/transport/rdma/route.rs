//! The way to another node's adapter, and who asks for connections from there.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_rdma::{
    ConnectionEvent, ConnectionEventKind, ConnectionId, EventChannel, REJECT_DATA_BYTES_MAX,
    RdmaError,
};
use dwcp_wire::rdma::QueueHello;

use super::memory::words;

/// Requests that may wait for the listener.
const BACKLOG: u16 = 64;

/// Between looks at whether anything has come, where nothing has.
const TURN: Duration = Duration::from_secs(60);

/// Finds the device and the route to another node, within `time`.
///
/// # Errors
/// There is none: no device, no network in common, or nobody at the address.
pub fn find_route(peer: SocketAddr, time: Duration) -> io::Result<ConnectionId> {
    let deadline = Instant::now() + time;
    let channel = EventChannel::new().map_err(|error| words(&error))?;
    let id = ConnectionId::new(&channel).map_err(|error| words(&error))?;
    let address = id.resolve_address(peer, time);
    address.map_err(|error| words(&error))?;
    expect(&channel, deadline, "address", peer)?;
    let route = id.resolve_route(deadline.saturating_duration_since(Instant::now()));
    route.map_err(|error| words(&error))?;
    expect(&channel, deadline, "route", peer)?;
    Ok(id)
}

fn expect(
    channel: &Arc<EventChannel>,
    deadline: Instant,
    what: &str,
    peer: SocketAddr,
) -> io::Result<()> {
    let left = deadline.saturating_duration_since(Instant::now());
    let event = channel.wait(left).map_err(|error| words(&error))?;
    match event.as_ref().map(|event| &event.kind) {
        Some(ConnectionEventKind::AddressResolved | ConnectionEventKind::RouteResolved) => Ok(()),
        Some(_) => Err(io::Error::other(format!(
            "RDMA has no {what} to {}",
            peer.ip()
        ))),
        None => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Listens for queue pairs of other nodes.
#[derive(Debug)]
pub struct RdmaListener {
    channel: Arc<EventChannel>,
    id: ConnectionId,
    ip: IpAddr,
}

/// A source asks for a stream to be a queue pair. Dropping it refuses.
#[derive(Debug)]
pub struct RdmaRequest {
    /// The connection.
    pub id: ConnectionId,
    /// What came with it.
    pub hello: QueueHello,
}

impl RdmaRequest {
    /// Refuses, and says why.
    pub fn refuse(self, why: &str) {
        refuse(&self.id, why);
    }
}

/// Refuses a request, in as many words as there is room for.
pub(super) fn refuse(id: &ConnectionId, why: &str) {
    let end = why.len().min(REJECT_DATA_BYTES_MAX);
    // A request that is gone needs no answer.
    let _ = id.reject(&why.as_bytes()[..end]);
}

impl RdmaListener {
    /// Listens at an address, whose port may be 0; at every address where that is unspecified. `None` where the node has no
    /// RDMA.
    ///
    /// # Errors
    /// Where it has, and the address is not one of it.
    pub fn bind(address: SocketAddr) -> io::Result<Option<Self>> {
        let channel = match EventChannel::new() {
            Err(RdmaError::NoRdma) => return Ok(None),
            outcome => outcome.map_err(|error| words(&error))?,
        };
        // The manager may be there, and no device.
        if dwcp_rdma::devices().is_ok_and(|devices| devices.is_empty()) {
            return Ok(None);
        }
        let id = ConnectionId::new(&channel).map_err(|error| words(&error))?;
        let listening = id.listen(address, BACKLOG);
        listening.map_err(|error| words(&error))?;
        let ip = address.ip();
        Ok(Some(Self { channel, id, ip }))
    }

    /// Where it listens, to a node that has reached this one at `reached`.
    #[must_use]
    pub fn address_for(&self, reached: IpAddr) -> SocketAddr {
        let ip = if self.ip.is_unspecified() {
            reached
        } else {
            self.ip
        };
        SocketAddr::new(ip, self.id.local_port())
    }

    /// Takes requests for ever, or until the system fails, or the device is taken away: that waits until this is dropped.
    ///
    /// # Errors
    /// Why no more requests come.
    pub fn run(&self, mut take: impl FnMut(RdmaRequest)) -> io::Result<()> {
        loop {
            if let Some(request) = self.next(TURN)? {
                take(request);
            }
        }
    }

    /// Waits for an event, for so long; it may be another than a request.
    ///
    /// # Errors
    /// From the connection manager.
    pub(in crate::transport) fn next(&self, time: Duration) -> io::Result<Option<RdmaRequest>> {
        let event = self.channel.wait(time).map_err(|error| words(&error))?;
        let is_own = |event: &ConnectionEvent| event.connection == self.id.key();
        if event.as_ref().is_some_and(|event| {
            is_own(event) && matches!(event.kind, ConnectionEventKind::DeviceRemoval)
        }) {
            return Err(io::Error::other("the device was taken away"));
        }
        let Some(ConnectionEvent {
            kind: ConnectionEventKind::ConnectRequest(id),
            private_data,
            ..
        }) = event
        else {
            return Ok(None);
        };
        match QueueHello::from_bytes(&private_data) {
            Ok(hello) => Ok(Some(RdmaRequest { id, hello })),
            Err(error) => {
                tracing::warn!(%error, "a queue pair was refused");
                refuse(&id, "malformed hello");
                Ok(None)
            }
        }
    }
}
