//! Connections by IP address and port: librdmacm.
//!
//! The manager exchanges what queue pairs have to know, and private data, and says when a peer is gone. Queue pairs stay
//! their owners': an id is told a queue pair's number and gives the attributes of its steps.
//!
//! ```text
//!   active side                                    passive side
//!   resolve_address   -> AddressResolved           listen
//!   resolve_route     -> RouteResolved
//!   init(to_init)
//!   connect           =========================>   ConnectRequest(private data, an id)
//!                                                  init, ready_to_receive, ready_to_send
//!   ConnectResponse(private data)  <============   accept         (or reject -> Rejected)
//!   ready_to_receive, ready_to_send
//!   establish         =========================>   Established
//! ```
//!
//! What the active side sends may overtake its `establish`, which may also get lost: then the passive side's first completion
//! tells, and [`ConnectionId::peer_has_sent`] makes up for it.
//!
//! Receives are posted before `connect` and `accept`: a peer may send as soon as it can.

mod connection_id;
mod event_channel;

pub use connection_id::{
    ACCEPT_DATA_BYTES_MAX, CONNECT_DATA_BYTES_MAX, ConnectParameters, ConnectionId,
    REJECT_DATA_BYTES_MAX,
};
pub use event_channel::{ConnectionEvent, ConnectionEventKind, ConnectionKey, EventChannel};

use std::ffi::c_int;

use crate::RdmaError;
use crate::owned::result_of;

fn done(code: c_int, step: &'static str) -> Result<(), RdmaError> {
    result_of(code).map_err(|source| RdmaError::ConnectionManager { step, source })
}
