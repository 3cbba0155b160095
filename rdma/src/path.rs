//! What a queue pair is told on its way to a connection: attributes of `ibv_modify_qp`.

use rdma_sys::{ibv_gid, ibv_mtu, ibv_qp_attr, ibv_qp_attr_mask, ibv_qp_state};

use crate::queue_pair::zeroed_attributes;
use crate::{Access, Gid, PortInfo};

/// READs of the peer that are worked on at a time, and our own. Every adapter has this many.
const READS_MAX: u8 = 4;

/// What the peer of a queue pair has to know of it. Exchanged by any other connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Number of the queue pair.
    pub queue_pair: u32,
    /// Sequence number of its first packet; 24 bits.
    pub first_packet: u32,
    /// Address of its port.
    pub gid: std::net::Ipv6Addr,
    /// Local identifier of its port; 0 on Ethernet.
    pub lid: u16,
}

/// The way from a port of this side to a peer.
#[derive(Clone, Debug)]
pub struct Path {
    /// The port.
    pub port: PortInfo,
    /// Address of this side.
    pub gid: Gid,
    /// The peer.
    pub peer: Endpoint,
    /// Largest payload of a packet in bytes: 256, 512, 1024, 2048 or 4096, and no more than either port has.
    pub mtu_bytes: u32,
}

/// When to give up on packets that are not acknowledged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Patience {
    /// 4.096 µs times two to this power is waited for an acknowledgement; 1..=31. An adapter may wait four times as long.
    pub timeout_exponent: u8,
    /// How often packets are sent again; 0..=7. To soft-RoCE 7 means without end: a peer that is gone is never noticed.
    pub retries: u8,
    /// How often a message is sent again for which the peer has no receive posted; 7 is without end.
    pub receiver_not_ready_retries: u8,
}

impl Default for Patience {
    /// 67 ms, six times; without end when the peer has no receive.
    fn default() -> Self {
        Self {
            timeout_exponent: 14,
            retries: 6,
            receiver_not_ready_retries: 7,
        }
    }
}

/// The step to INIT.
pub struct ToInit {
    pub(crate) attributes: ibv_qp_attr,
    pub(crate) mask: i32,
}

/// The step to RTR.
pub struct ToReadyToReceive {
    pub(crate) attributes: ibv_qp_attr,
    pub(crate) mask: i32,
}

/// The step to RTS.
pub struct ToReadyToSend {
    pub(crate) attributes: ibv_qp_attr,
    pub(crate) mask: i32,
}

macro_rules! debug_by_mask {
    ($($name:ident)*) => {$(
        impl std::fmt::Debug for $name {
            fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(formatter, concat!(stringify!($name), " {{ mask: {:#x} }}"), self.mask)
            }
        }
    )*};
}
debug_by_mask! { ToInit ToReadyToReceive ToReadyToSend }

/// Bits of a mask as the call takes them.
fn mask(bits: &[ibv_qp_attr_mask]) -> i32 {
    bits.iter().fold(0, |all, bit| all | bit.0).cast_signed()
}

impl ToInit {
    /// For a port, by number from 1. `access` is what the peer may do with regions that allow it.
    #[must_use]
    pub fn new(port: u8, access: Access) -> Self {
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_INIT;
        attributes.port_num = port;
        let step = Self {
            attributes,
            mask: mask(&[
                ibv_qp_attr_mask::IBV_QP_STATE,
                ibv_qp_attr_mask::IBV_QP_PKEY_INDEX,
                ibv_qp_attr_mask::IBV_QP_PORT,
            ]),
        };
        step.with_access(access)
    }

    pub(crate) fn with_access(mut self, access: Access) -> Self {
        self.attributes.qp_access_flags = access.bits();
        self.mask |= mask(&[ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS]);
        self
    }
}

impl ToReadyToReceive {
    /// For what comes along a path.
    #[must_use]
    pub fn new(path: &Path) -> Self {
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_RTR;
        attributes.path_mtu = mtu_code(path.mtu_bytes);
        attributes.dest_qp_num = path.peer.queue_pair;
        attributes.rq_psn = path.peer.first_packet;
        attributes.max_dest_rd_atomic = READS_MAX;
        // 0.64 ms until the peer tries again when no receive is posted.
        attributes.min_rnr_timer = 12;
        let route = &mut attributes.ah_attr;
        route.dlid = path.peer.lid;
        route.port_num = path.port.number;
        route.is_global = 1;
        route.grh.dgid = ibv_gid {
            raw: path.peer.gid.octets(),
        };
        route.grh.sgid_index = path.gid.index;
        route.grh.hop_limit = 64;
        Self {
            attributes,
            mask: mask(&[
                ibv_qp_attr_mask::IBV_QP_STATE,
                ibv_qp_attr_mask::IBV_QP_AV,
                ibv_qp_attr_mask::IBV_QP_PATH_MTU,
                ibv_qp_attr_mask::IBV_QP_DEST_QPN,
                ibv_qp_attr_mask::IBV_QP_RQ_PSN,
                ibv_qp_attr_mask::IBV_QP_MAX_DEST_RD_ATOMIC,
                ibv_qp_attr_mask::IBV_QP_MIN_RNR_TIMER,
            ]),
        }
    }
}

impl ToReadyToSend {
    /// For a pair whose first packet has that sequence number.
    #[must_use]
    pub fn new(first_packet: u32, patience: Patience) -> Self {
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_RTS;
        attributes.sq_psn = first_packet;
        attributes.max_rd_atomic = READS_MAX;
        let step = Self {
            attributes,
            mask: mask(&[
                ibv_qp_attr_mask::IBV_QP_STATE,
                ibv_qp_attr_mask::IBV_QP_SQ_PSN,
                ibv_qp_attr_mask::IBV_QP_MAX_QP_RD_ATOMIC,
            ]),
        };
        step.with_patience(patience)
    }

    /// With another patience than the connection manager's, which waits for half a second and more.
    #[must_use]
    pub fn with_patience(mut self, patience: Patience) -> Self {
        self.attributes.timeout = patience.timeout_exponent;
        self.attributes.retry_cnt = patience.retries;
        self.attributes.rnr_retry = patience.receiver_not_ready_retries;
        self.mask |= mask(&[
            ibv_qp_attr_mask::IBV_QP_TIMEOUT,
            ibv_qp_attr_mask::IBV_QP_RETRY_CNT,
            ibv_qp_attr_mask::IBV_QP_RNR_RETRY,
        ]);
        self
    }
}

/// The largest that is no more than `bytes`.
const fn mtu_code(bytes: u32) -> u32 {
    match bytes {
        4096.. => ibv_mtu::IBV_MTU_4096,
        2048.. => ibv_mtu::IBV_MTU_2048,
        1024.. => ibv_mtu::IBV_MTU_1024,
        512.. => ibv_mtu::IBV_MTU_512,
        _ => ibv_mtu::IBV_MTU_256,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packets_are_no_larger_than_asked() {
        for (bytes, code) in [
            (0, ibv_mtu::IBV_MTU_256),
            (1023, ibv_mtu::IBV_MTU_512),
            (1024, ibv_mtu::IBV_MTU_1024),
            (9000, ibv_mtu::IBV_MTU_4096),
        ] {
            assert_eq!(mtu_code(bytes), code, "{bytes}");
        }
    }

    #[test]
    fn access_of_a_queue_pair_is_what_was_asked() {
        let step = ToInit::new(1, Access::SOURCE).with_access(Access::REMOTE_READ);
        assert_eq!(step.attributes.qp_access_flags, Access::REMOTE_READ.bits());
        assert_ne!(
            step.mask & mask(&[ibv_qp_attr_mask::IBV_QP_ACCESS_FLAGS]),
            0
        );
    }
}
