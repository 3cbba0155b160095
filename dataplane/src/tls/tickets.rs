//! Tickets of other nodes, by which further connections to them resume.
//!
//! Each is used once. A server gives as many on a connection as a migration has further connections, so
//! that those of the control connection are enough.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use dwcp_wire::limits::STREAMS_MAX;
use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls_pki_types::ServerName;

/// Further connections of one migration: its data streams, and device state.
pub(super) const TICKETS: usize = STREAMS_MAX + 1;

/// Nodes whose tickets are kept.
const NODES_MAX: usize = 256;

#[derive(Debug, Default)]
struct OfNode {
    tickets: VecDeque<Tls13ClientSessionValue>,
    group: Option<NamedGroup>,
}

/// Tickets by node.
#[derive(Debug, Default)]
pub(super) struct Tickets {
    nodes: Mutex<HashMap<ServerName<'static>, OfNode>>,
}

impl Tickets {
    fn with<T>(&self, name: ServerName<'static>, take: impl FnOnce(&mut OfNode) -> T) -> T {
        let mut nodes = self.nodes.lock().unwrap_or_else(PoisonError::into_inner);
        if nodes.len() >= NODES_MAX && !nodes.contains_key(&name) {
            // What is lost is a round of public-key cryptography.
            nodes.clear();
        }
        take(nodes.entry(name).or_default())
    }
}

impl ClientSessionStore for Tickets {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        self.with(name, |node| node.group = Some(group));
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        self.with(name.to_owned(), |node| node.group)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        self.with(name, |node| {
            if node.tickets.len() >= 2 * TICKETS {
                node.tickets.pop_front();
            }
            node.tickets.push_back(ticket);
        });
    }

    /// The newest: a server forgets the oldest first.
    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        self.with(name.to_owned(), |node| node.tickets.pop_back())
    }
}
