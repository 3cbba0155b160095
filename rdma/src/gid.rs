//! Addresses of a port: `ibv_query_gid`, and what the kernel says of each in sysfs.

use std::fs;
use std::net::Ipv6Addr;

use rdma_sys::{ibv_gid, ibv_query_gid};

use crate::{Context, RdmaError};

/// Entries of a port's table that are looked at.
const GIDS_MAX: u16 = 256;

/// What packets to and from a GID look like.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum GidKind {
    /// InfiniBand, or RoCE version 1: Ethernet frames that no router passes on.
    IbOrRoceV1,
    /// RoCE version 2: UDP to port 4791.
    RoceV2,
    /// The kernel does not say.
    Unknown,
}

/// An address of a port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Gid {
    /// Its place in the port's table, which queue pairs are given.
    pub index: u8,
    /// The address. An IPv4 address of the interface appears as `::ffff:a.b.c.d`.
    pub address: Ipv6Addr,
    /// What packets look like.
    pub kind: GidKind,
}

impl Context {
    /// Returns the addresses of a port that are set, in the order of their indexes.
    ///
    /// # Errors
    /// [`RdmaError::Query`] when the port has no table at all.
    pub fn gids(&self, port: u8) -> Result<Vec<Gid>, RdmaError> {
        let mut gids = vec![];
        for index in 0..GIDS_MAX {
            let mut raw = ibv_gid { raw: [0; 16] };
            // SAFETY: the context is open, and `raw` is writable.
            let code =
                unsafe { ibv_query_gid(self.as_ptr(), port, i32::from(index), &raw mut raw) };
            match self.check(code, || format!("address {index} of port {port}")) {
                Ok(()) => {}
                Err(error) if index == 0 => return Err(error),
                // Behind the end of the table.
                Err(_) => break,
            }
            // SAFETY: every value is valid for bytes.
            let address = Ipv6Addr::from(unsafe { raw.raw });
            if let (false, Ok(index)) = (address.is_unspecified(), u8::try_from(index)) {
                let kind = kind_of(self.name(), port, index);
                gids.push(Gid {
                    index,
                    address,
                    kind,
                });
            }
        }
        Ok(gids)
    }

    /// Returns the address to use by default: RoCE version 2 with an IPv4 address, else RoCE version 2, else the first.
    ///
    /// # Errors
    /// [`RdmaError::Query`].
    pub fn default_gid(&self, port: u8) -> Result<Option<Gid>, RdmaError> {
        Ok(preferred(self.gids(port)?))
    }
}

fn preferred(gids: Vec<Gid>) -> Option<Gid> {
    gids.into_iter().min_by_key(|gid| {
        let routed = gid.kind == GidKind::RoceV2;
        let is_ipv4 = gid.address.to_ipv4_mapped().is_some();
        (!routed, !(routed && is_ipv4), gid.index)
    })
}

fn kind_of(device: &str, port: u8, index: u8) -> GidKind {
    let file = format!("/sys/class/infiniband/{device}/ports/{port}/gid_attrs/types/{index}");
    match fs::read_to_string(file).as_deref().map(str::trim) {
        Ok("RoCE v2") => GidKind::RoceV2,
        Ok("IB/RoCE v1") => GidKind::IbOrRoceV1,
        _ => GidKind::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gid(index: u8, address: &str, kind: GidKind) -> Gid {
        Gid {
            index,
            address: address.parse().unwrap(),
            kind,
        }
    }

    #[test]
    fn a_routable_ipv4_address_is_preferred() {
        let table = vec![
            gid(0, "fe80::1", GidKind::IbOrRoceV1),
            gid(1, "fe80::1", GidKind::RoceV2),
            gid(2, "::ffff:10.9.0.1", GidKind::IbOrRoceV1),
            gid(3, "::ffff:10.9.0.1", GidKind::RoceV2),
        ];
        assert_eq!(preferred(table.clone()).unwrap().index, 3);
        assert_eq!(preferred(table[..3].to_vec()).unwrap().index, 1);
        let infiniband = vec![gid(0, "fe80::2:c903:1:2", GidKind::IbOrRoceV1)];
        assert_eq!(preferred(infiniband).unwrap().index, 0);
        assert_eq!(preferred(vec![]), None);
    }
}
