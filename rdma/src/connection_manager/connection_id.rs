//! One connection, or a listener: `rdma_create_id`, `rdma_connect`, `rdma_accept`.

use std::ffi::CStr;
use std::mem::MaybeUninit;
use std::net::SocketAddr;
use std::ptr;
use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use nix::libc;
use nix::sys::socket::{SockaddrLike, SockaddrStorage};
use rdma_sys::{
    ___ibv_query_port, ibv_event_type, ibv_get_device_name, ibv_qp_attr, ibv_qp_state, rdma_accept,
    rdma_bind_addr, rdma_cm_id, rdma_conn_param, rdma_connect, rdma_create_id, rdma_destroy_id,
    rdma_disconnect, rdma_establish, rdma_get_src_port, rdma_init_qp_attr, rdma_listen,
    rdma_migrate_id, rdma_notify, rdma_port_space, rdma_reject, rdma_resolve_addr,
    rdma_resolve_route,
};

use super::{ConnectionKey, EventChannel, done};
use crate::owned::Owned;
use crate::queue_pair::zeroed_attributes;
use crate::{
    Access, Context, LinkLayer, PortInfo, RdmaError, ToInit, ToReadyToReceive, ToReadyToSend,
};

/// Private data of a request, at most: what InfiniBand has, less what the manager needs for addresses.
pub const CONNECT_DATA_BYTES_MAX: usize = 56;
/// Private data of an acceptance, at most.
pub const ACCEPT_DATA_BYTES_MAX: usize = 196;
/// Private data of a rejection, at most.
pub const REJECT_DATA_BYTES_MAX: usize = 148;

/// As many as the device and the peer have.
const DEPTH_OF_THE_DEVICE: u8 = 0xff;

/// Bits of an attribute mask that the kernel sets for RoCE and libibverbs takes as others: they name the parts of a MAC address.
const ROCE_ONLY_BITS: i32 = 0xe0_0000;

/// What is told to the peer, and to the manager, with a request or an acceptance.
#[derive(Clone, Copy, Debug)]
pub struct ConnectParameters<'a> {
    /// Number of the queue pair.
    pub queue_pair: u32,
    /// Whether its receives are shared.
    pub shares_receives: bool,
    /// For the peer.
    pub private_data: &'a [u8],
    /// How often a packet is sent again; 0..=7, see [`Patience`](crate::Patience).
    pub retries: u8,
    /// How often a message is sent again for which the peer has no receive posted; 7 is without end.
    pub receiver_not_ready_retries: u8,
}

/// An id that no event changes.
struct Locked<'id> {
    id: &'id Owned<rdma_cm_id>,
    _turn: MutexGuard<'id, ()>,
}

impl Locked<'_> {
    const fn as_ptr(&self) -> *mut rdma_cm_id {
        self.id.as_ptr()
    }
}

/// A connection in the manager's eyes, or a listener. Dropping it ends the connection: the peer is told.
#[derive(Debug)]
pub struct ConnectionId {
    id: Owned<rdma_cm_id>,
    key: ConnectionKey,
    channel: Arc<EventChannel>,
}

impl ConnectionId {
    /// Makes one whose events come to `channel`.
    ///
    /// # Errors
    /// [`RdmaError::Create`].
    pub fn new(channel: &Arc<EventChannel>) -> Result<Self, RdmaError> {
        let key = ConnectionKey::next();
        let mut id = ptr::null_mut();
        let space = rdma_port_space::RDMA_PS_TCP;
        // SAFETY: the channel is alive, and stays so: the id keeps it, behind itself. `id` is writable, and stays null on
        // failure.
        unsafe { rdma_create_id(channel.as_ptr(), &raw mut id, key.as_context(), space) };
        // SAFETY: null, or made just now, and `rdma_destroy_id` is its destructor.
        let id = unsafe { Owned::new(id, rdma_destroy_id, "connection id") }?;
        let channel = channel.clone();
        Ok(Self { id, key, channel })
    }

    /// One that a peer's request has made.
    pub(super) fn of_request(id: Owned<rdma_cm_id>, channel: Arc<EventChannel>) -> Self {
        let key = ConnectionKey::next();
        // SAFETY: the id is alive and ours; the library does not look at this field. It is set before another event of this
        // id can be taken: the request is not acknowledged yet.
        unsafe { (*id.as_ptr()).context = key.as_context() };
        Self { id, key, channel }
    }

    /// Returns what events call it.
    #[must_use]
    pub const fn key(&self) -> ConnectionKey {
        self.key
    }

    /// Returns the channel of its events.
    #[must_use]
    pub const fn channel(&self) -> &Arc<EventChannel> {
        &self.channel
    }

    /// Opens the device that leads to the peer: after [`AddressResolved`](super::ConnectionEventKind::AddressResolved), or of
    /// a request.
    ///
    /// # Errors
    /// [`RdmaError::NoRdma`] when it is not known yet; as [`Context::open`].
    pub fn open_device(&self) -> Result<Arc<Context>, RdmaError> {
        Context::open(&self.device_name().ok_or(RdmaError::NoRdma)?)
    }

    /// Returns the name of the device that leads to the peer, if that is known.
    #[must_use]
    pub fn device_name(&self) -> Option<String> {
        let id = self.locked();
        // SAFETY: the id is alive, and no event is taken meanwhile, which is what sets `verbs`.
        let verbs = unsafe { (*id.as_ptr()).verbs };
        if verbs.is_null() {
            return None;
        }
        // SAFETY: not null: the manager's own context, open as long as the id is alive.
        let device = unsafe { (*verbs).device };
        // SAFETY: an open context has a device.
        let name = unsafe { ibv_get_device_name(device) };
        // SAFETY: a terminated string inside the device.
        let name = unsafe { CStr::from_ptr(name) };
        Some(name.to_string_lossy().into_owned())
    }

    /// Returns the port of that device, by number from 1; 0 when it is not known.
    #[must_use]
    pub fn device_port(&self) -> u8 {
        let id = self.locked();
        // SAFETY: the id is alive; as in `device_name`.
        unsafe { (*id.as_ptr()).port_num }
    }

    /// Listens for requests at an address of a device, or at all of them. Port 0 is any that is free.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`].
    pub fn listen(&self, address: SocketAddr, backlog: u16) -> Result<(), RdmaError> {
        let address = SockaddrStorage::from(address);
        let at = address.as_ptr().cast_mut();
        let id = self.locked();
        // SAFETY: the id is alive, and the address valid during the call, which only reads it.
        let code = unsafe { rdma_bind_addr(id.as_ptr(), at) };
        done(code, "bind to the address")?;
        // SAFETY: the id is alive.
        let code = unsafe { rdma_listen(id.as_ptr(), i32::from(backlog)) };
        done(code, "listen")
    }

    /// Returns the port that it listens at.
    #[must_use]
    pub fn local_port(&self) -> u16 {
        let id = self.locked();
        // SAFETY: the id is alive.
        u16::from_be(unsafe { rdma_get_src_port(id.as_ptr()) })
    }

    /// Looks for the peer and the device that leads there, for so long.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`]; how it went is an event.
    pub fn resolve_address(&self, peer: SocketAddr, timeout: Duration) -> Result<(), RdmaError> {
        let peer = SockaddrStorage::from(peer);
        let (from, to) = (ptr::null_mut(), peer.as_ptr().cast_mut());
        let id = self.locked();
        // SAFETY: the id is alive, and the address valid during the call, which only reads it; no own address is asked for.
        let code = unsafe { rdma_resolve_addr(id.as_ptr(), from, to, millis(timeout)) };
        done(code, "resolve the address")
    }

    /// Looks for the route, for so long; after the address.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`]; how it went is an event.
    pub fn resolve_route(&self, timeout: Duration) -> Result<(), RdmaError> {
        let step = "resolve the route";
        self.check_device(step)?;
        let id = self.locked();
        // SAFETY: the id is alive, and its address resolved: the library looks at its device.
        let code = unsafe { rdma_resolve_route(id.as_ptr(), millis(timeout)) };
        done(code, step)
    }

    /// Asks the peer for a connection; after the route.
    ///
    /// # Errors
    /// [`RdmaError::PrivateDataTooLong`], [`RdmaError::ConnectionManager`]; what the peer says is an event.
    pub fn connect(&self, parameters: &ConnectParameters<'_>) -> Result<(), RdmaError> {
        let step = "ask for a connection";
        self.check_device(step)?;
        let mut raw = raw_parameters(parameters, CONNECT_DATA_BYTES_MAX)?;
        let id = self.locked();
        // SAFETY: the id is alive and has a device; parameters and private data are valid during the call, which copies them.
        let code = unsafe { rdma_connect(id.as_ptr(), &raw mut raw) };
        done(code, step)
    }

    /// Accepts a request, when its queue pair is ready to send.
    ///
    /// # Errors
    /// [`RdmaError::PrivateDataTooLong`], [`RdmaError::ConnectionManager`].
    pub fn accept(&self, parameters: &ConnectParameters<'_>) -> Result<(), RdmaError> {
        let step = "accept a connection";
        self.check_device(step)?;
        let mut raw = raw_parameters(parameters, ACCEPT_DATA_BYTES_MAX)?;
        let id = self.locked();
        // SAFETY: the id is alive and has a device; parameters and private data are valid during the call, which copies them.
        let code = unsafe { rdma_accept(id.as_ptr(), &raw mut raw) };
        done(code, step)
    }

    /// Refuses a request, and says why.
    ///
    /// # Errors
    /// [`RdmaError::PrivateDataTooLong`], [`RdmaError::ConnectionManager`].
    pub fn reject(&self, private_data: &[u8]) -> Result<(), RdmaError> {
        let length = data_length(private_data, REJECT_DATA_BYTES_MAX)?;
        let data = private_data.as_ptr().cast();
        let id = self.locked();
        // SAFETY: the id is alive; so many bytes are valid during the call, which copies them.
        let code = unsafe { rdma_reject(id.as_ptr(), data, length) };
        done(code, "reject a connection")
    }

    /// Answers [`ConnectResponse`](super::ConnectionEventKind::ConnectResponse), when the queue pair is ready to send.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`].
    pub fn establish(&self) -> Result<(), RdmaError> {
        let id = self.locked();
        // SAFETY: the id is alive.
        let code = unsafe { rdma_establish(id.as_ptr()) };
        done(code, "establish a connection")
    }

    /// Says that something came from the peer before [`Established`](super::ConnectionEventKind::Established) did: the message
    /// that brings it was lost, or is late. The event follows now; when it has come already, nothing does.
    ///
    /// When it was late, and comes after this, the kernel (6.12) goes on sending the acceptance, and waits for the end of that,
    /// a minute, when the id is destroyed.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`] when the connection is not one that was accepted.
    pub fn peer_has_sent(&self) -> Result<(), RdmaError> {
        let event = ibv_event_type::IBV_EVENT_COMM_EST;
        let id = self.locked();
        // SAFETY: the id is alive.
        let code = unsafe { rdma_notify(id.as_ptr(), event) };
        match done(code, "establish a connection by what has come") {
            Err(RdmaError::ConnectionManager { source, .. })
                if source.raw_os_error() == Some(libc::EISCONN) =>
            {
                Ok(())
            }
            outcome => outcome,
        }
    }

    /// Has its events come to another channel from now on: a listener's requests go to whoever serves them.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`]; the id is dropped then.
    pub fn move_to(mut self, channel: &Arc<EventChannel>) -> Result<Self, RdmaError> {
        {
            let id = self.locked();
            // No event of the old channel is between being taken and being acknowledged, so the call does not wait.
            let _turn = channel.turn();
            // SAFETY: the id and both channels are alive, and nobody takes an event of either meanwhile.
            let code = unsafe { rdma_migrate_id(id.as_ptr(), channel.as_ptr()) };
            done(code, "move a connection's events")?;
        }
        // The id keeps the channel that it is on, behind itself.
        self.channel = channel.clone();
        Ok(self)
    }

    /// Ends the connection: both sides get [`Disconnected`](super::ConnectionEventKind::Disconnected). The queue pair is its
    /// owner's to [`fail`](crate::QueuePair::fail).
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`], mostly since there is none.
    pub fn disconnect(&self) -> Result<(), RdmaError> {
        let step = "end a connection";
        self.check_device(step)?;
        let id = self.locked();
        // SAFETY: the id is alive and has a device.
        let code = unsafe { rdma_disconnect(id.as_ptr()) };
        done(code, step)
    }

    /// Returns the step to INIT of a queue pair for this connection. `access` is what the peer may do with regions that
    /// allow it.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`] when it is too early.
    pub fn to_init(&self, access: Access) -> Result<ToInit, RdmaError> {
        let (attributes, mask) = self.attributes(ibv_qp_state::IBV_QPS_INIT)?;
        Ok(ToInit { attributes, mask }.with_access(access))
    }

    /// Returns the step to RTR: of a request at once, otherwise after the peer's response.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`] when it is too early.
    pub fn to_ready_to_receive(&self) -> Result<ToReadyToReceive, RdmaError> {
        let (attributes, mut mask) = self.attributes(ibv_qp_state::IBV_QPS_RTR)?;
        if self.link_layer() == LinkLayer::InfiniBand {
            mask &= !ROCE_ONLY_BITS;
        }
        Ok(ToReadyToReceive { attributes, mask })
    }

    /// Returns the step to RTS.
    ///
    /// # Errors
    /// [`RdmaError::ConnectionManager`] when it is too early.
    pub fn to_ready_to_send(&self) -> Result<ToReadyToSend, RdmaError> {
        let (attributes, mask) = self.attributes(ibv_qp_state::IBV_QPS_RTS)?;
        Ok(ToReadyToSend { attributes, mask })
    }

    /// The id, for a call. Taking an event changes ids, possibly in another thread: not while this is held.
    fn locked(&self) -> Locked<'_> {
        Locked {
            id: &self.id,
            _turn: self.channel.turn(),
        }
    }

    fn attributes(&self, state: u32) -> Result<(ibv_qp_attr, i32), RdmaError> {
        let (mut attributes, mut mask) = (zeroed_attributes(), 0);
        attributes.qp_state = state;
        let (to, bits) = (&raw mut attributes, &raw mut mask);
        let id = self.locked();
        // SAFETY: the id is alive; both places are initialised and writable.
        let code = unsafe { rdma_init_qp_attr(id.as_ptr(), to, bits) };
        done(code, "say how to set up a queue pair")?;
        Ok((attributes, mask))
    }

    /// What the connection runs over, as the manager's own context of the device says.
    fn link_layer(&self) -> LinkLayer {
        let number = self.device_port();
        let mut port = MaybeUninit::zeroed();
        let id = self.locked();
        // SAFETY: the id is alive; as in `device_name`.
        let verbs = unsafe { (*id.as_ptr()).verbs };
        if verbs.is_null() {
            return LinkLayer::Unspecified;
        }
        // SAFETY: not null: the manager's own context, open as long as the id is alive; `port` is writable.
        unsafe { ___ibv_query_port(verbs, number, port.as_mut_ptr()) };
        // SAFETY: plain integers, zeroed above, so every field is initialised even when the query failed.
        PortInfo::of(number, &unsafe { port.assume_init() }).link_layer
    }

    /// The library follows the id's device without looking whether there is one.
    fn check_device(&self, step: &'static str) -> Result<(), RdmaError> {
        match self.device_name() {
            Some(_) => Ok(()),
            None => Err(RdmaError::ConnectionManager {
                step,
                source: std::io::Error::from_raw_os_error(libc::ENOTCONN),
            }),
        }
    }
}

fn raw_parameters(
    parameters: &ConnectParameters<'_>,
    limit: usize,
) -> Result<rdma_conn_param, RdmaError> {
    Ok(rdma_conn_param {
        private_data: parameters.private_data.as_ptr().cast(),
        private_data_len: data_length(parameters.private_data, limit)?,
        responder_resources: DEPTH_OF_THE_DEVICE,
        initiator_depth: DEPTH_OF_THE_DEVICE,
        flow_control: 1,
        retry_count: parameters.retries,
        rnr_retry_count: parameters.receiver_not_ready_retries,
        srq: u8::from(parameters.shares_receives),
        qp_num: parameters.queue_pair,
    })
}

fn data_length(data: &[u8], limit: usize) -> Result<u8, RdmaError> {
    let bytes = data.len();
    match u8::try_from(bytes) {
        Ok(length) if bytes <= limit => Ok(length),
        _ => Err(RdmaError::PrivateDataTooLong { bytes, limit }),
    }
}

fn millis(timeout: Duration) -> i32 {
    i32::try_from(timeout.as_millis()).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_data_has_a_limit() {
        assert_eq!(data_length(&[0; 56], CONNECT_DATA_BYTES_MAX).unwrap(), 56);
        let error = data_length(&[0; 57], CONNECT_DATA_BYTES_MAX).unwrap_err();
        assert_eq!(
            error.to_string(),
            "57 bytes of private data, 56 are the most"
        );
        assert!(data_length(&[0; 256], 1000).is_err());
    }
}
