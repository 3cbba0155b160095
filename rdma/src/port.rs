//! A port of a device: `ibv_query_port`.

use rdma_sys::{ibv_port_attr, ibv_port_state};

/// What a port runs over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum LinkLayer {
    /// InfiniBand.
    InfiniBand,
    /// Ethernet: RoCE or iWARP.
    Ethernet,
    /// The driver does not say.
    Unspecified,
}

/// Whether a port can carry traffic.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PortState {
    /// No link.
    Down,
    /// Link, being configured.
    Initializing,
    /// Configured, not yet in use.
    Armed,
    /// Ready.
    Active,
    /// Something else.
    Unknown,
}

/// What a port says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct PortInfo {
    /// Its number, from 1.
    pub number: u8,
    /// Whether it can carry traffic.
    pub state: PortState,
    /// What it runs over.
    pub link_layer: LinkLayer,
    /// The largest payload of a packet in bytes; 0 when the driver does not say.
    pub active_mtu_bytes: u32,
}

impl PortInfo {
    pub(crate) fn of(number: u8, attributes: &ibv_port_attr) -> Self {
        let state = match attributes.state {
            ibv_port_state::IBV_PORT_DOWN => PortState::Down,
            ibv_port_state::IBV_PORT_INIT => PortState::Initializing,
            ibv_port_state::IBV_PORT_ARMED => PortState::Armed,
            ibv_port_state::IBV_PORT_ACTIVE => PortState::Active,
            _ => PortState::Unknown,
        };
        // `IBV_LINK_LAYER_*` in `infiniband/verbs.h`, an unnamed enum that the bindings leave out.
        let link_layer = match attributes.link_layer {
            1 => LinkLayer::InfiniBand,
            2 => LinkLayer::Ethernet,
            _ => LinkLayer::Unspecified,
        };
        // `IBV_MTU_256` is 1, and each step doubles.
        let active_mtu_bytes = match attributes.active_mtu {
            step @ 1..=5 => 128 << step,
            _ => 0,
        };
        Self {
            number,
            state,
            link_layer,
            active_mtu_bytes,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_of_the_header_are_translated() {
        // SAFETY: plain integers, for which zero is a value.
        let mut attributes: ibv_port_attr = unsafe { std::mem::zeroed() };
        assert_eq!(PortInfo::of(1, &attributes).state, PortState::Unknown);
        assert_eq!(PortInfo::of(1, &attributes).active_mtu_bytes, 0);
        attributes.state = ibv_port_state::IBV_PORT_ACTIVE;
        attributes.link_layer = 2;
        attributes.active_mtu = rdma_sys::ibv_mtu::IBV_MTU_4096;
        let port = PortInfo::of(2, &attributes);
        assert_eq!((port.number, port.state), (2, PortState::Active));
        assert_eq!(
            (port.link_layer, port.active_mtu_bytes),
            (LinkLayer::Ethernet, 4096)
        );
    }
}
