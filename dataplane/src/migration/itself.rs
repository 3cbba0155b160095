//! Whether the other node is this one.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

use dwcp_api::{ApiError, ErrorCode, MigrationId, Role};

use super::node::{Node, PeerNode};

impl Node {
    pub(super) fn listens_on(&self, address: SocketAddr) {
        // Bound once; a second listener would change nothing.
        let _ = self.listening.set(address);
    }

    /// Refuses to be both ends of a migration, as far as the address alone shows it: whoever asks does
    /// not wait for the lookup of a name. One that leads back here is refused by the listener.
    pub(super) fn check_other(&self, vm: &str, destination: &PeerNode) -> Result<(), ApiError> {
        let address = &destination.address;
        let listening = self.listening.get();
        if !listening.is_some_and(|own| leads_here(address, *own)) {
            return Ok(());
        }
        let text = format!("VM {vm} is on this node already: {address} leads back to it");
        Err(ApiError::new(ErrorCode::BadRequest, text)
            .with_hint("name another node: `dwcp node` shows the peers"))
    }

    /// The source of a migration that came, or comes, to this node.
    pub(super) fn source_of(&self, id: MigrationId) -> Option<String> {
        let status = self.migration(id).map(|handle| handle.status());
        if let Some(status) = status.filter(|status| status.role == Role::Destination) {
            return Some(status.peer);
        }
        let known = self.journal().state().find(id, Role::Destination)?;
        Some(known.peer_node)
    }

    /// Whether this node is the source of a migration that is offered to it.
    pub(super) fn is_source_of(&self, id: MigrationId) -> bool {
        self.migration(id)
            .is_some_and(|handle| handle.status().role == Role::Source)
    }
}

/// Whether `address`, an IP address and a port, leads to the data plane that listens on `listening`.
fn leads_here(address: &str, listening: SocketAddr) -> bool {
    address
        .parse()
        .is_ok_and(|candidate| is_served(candidate, listening))
}

fn is_served(candidate: SocketAddr, listening: SocketAddr) -> bool {
    let (ip, own) = (target(candidate.ip()), listening.ip().to_canonical());
    let every_interface = own.is_unspecified() && (own.is_ipv6() || ip.is_ipv4());
    candidate.port() == listening.port() && (ip == own || (every_interface && is_of_machine(ip)))
}

/// Where a connection to `ip` goes: to the loopback address when it names no machine.
fn target(ip: IpAddr) -> IpAddr {
    match ip.to_canonical() {
        IpAddr::V4(ip) if ip.is_unspecified() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V6(ip) if ip.is_unspecified() => Ipv6Addr::LOCALHOST.into(),
        ip => ip,
    }
}

/// The kernel answers an address of its own from that very address. Nothing is sent.
fn is_of_machine(ip: IpAddr) -> bool {
    if ip.is_loopback() {
        return true;
    }
    let any: SocketAddr = match ip {
        IpAddr::V4(_) => ([0, 0, 0, 0], 0).into(),
        IpAddr::V6(_) => ([0_u16; 8], 0).into(),
    };
    let source = UdpSocket::bind(any).and_then(|socket| {
        socket.connect((ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leads(address: &str, listening: &str) -> bool {
        leads_here(address, listening.parse().unwrap())
    }

    #[test]
    fn an_address_of_this_machine_and_the_port_are_this_node() {
        assert!(leads("127.0.0.1:7440", "127.0.0.1:7440"));
        assert!(leads("127.0.0.1:7440", "0.0.0.0:7440"));
        assert!(leads("127.3.2.1:7440", "0.0.0.0:7440"));
        assert!(leads("0.0.0.0:7440", "0.0.0.0:7440"));
        assert!(leads("0.0.0.0:7440", "127.0.0.1:7440"));
        assert!(leads("[::]:7440", "[::1]:7440"));
        assert!(leads("[::]:7440", "[::]:7440"));
        assert!(leads("127.0.0.1:7440", "[::]:7440"));
    }

    #[test]
    fn another_port_or_machine_is_another_node() {
        assert!(!leads("127.0.0.1:7441", "0.0.0.0:7440"));
        assert!(!leads("127.0.0.2:7440", "127.0.0.1:7440"));
        assert!(!leads("192.0.2.77:7440", "0.0.0.0:7440"));
        assert!(!leads("0.0.0.0:7440", "192.0.2.77:7440"));
    }

    #[test]
    fn a_name_is_not_looked_up() {
        assert!(!leads("localhost:7440", "0.0.0.0:7440"));
        assert!(!leads("no address", "0.0.0.0:7440"));
    }
}
