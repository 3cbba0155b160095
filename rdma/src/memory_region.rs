//! Memory that the adapter knows: `ibv_reg_mr`.

use std::ops::{BitOr, Range};
use std::sync::Arc;

use nix::sys::resource::{Resource, getrlimit};
use rdma_sys::{ibv_access_flags, ibv_dereg_mr, ibv_mr, ibv_reg_mr};

use crate::memory::check_range;
use crate::owned::Owned;
use crate::{ProtectionDomain, RdmaError, RegisteredMemory};

/// What may be done with a memory region beside reading it from this side, which always may.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Access(u32);

impl Access {
    /// Nothing more: the region is a source of what is sent or written.
    pub const SOURCE: Self = Self(0);
    /// The adapter may write it for this side: receives, and what is read from the peer.
    pub const LOCAL_WRITE: Self = Self(ibv_access_flags::IBV_ACCESS_LOCAL_WRITE.0);
    /// Whoever has the key may write it. Verbs demand [`LOCAL_WRITE`](Self::LOCAL_WRITE) for that, so it is in.
    pub const REMOTE_WRITE: Self =
        Self(ibv_access_flags::IBV_ACCESS_REMOTE_WRITE.0 | Self::LOCAL_WRITE.0);
    /// Whoever has the key may read it.
    pub const REMOTE_READ: Self = Self(ibv_access_flags::IBV_ACCESS_REMOTE_READ.0);

    /// Whether all of `other` is in this.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// As verbs have it.
    pub(crate) const fn bits(self) -> u32 {
        self.0
    }
}

impl BitOr for Access {
    type Output = Self;

    fn bitor(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// A registered piece of memory: pinned, and known to the adapter by two keys.
///
/// It keeps its memory and its protection domain alive, and every posted request keeps the region, until its completion has
/// been polled or its queue is destroyed: memory cannot go away under the adapter. A peer that has the key is not known here;
/// what it writes after the region is gone is refused by the adapter. See `ibv_reg_mr(3)`.
#[derive(Debug)]
pub struct MemoryRegion {
    /// Taken out in `Drop`.
    region: Option<Owned<ibv_mr>>,
    keys: Keys,
    access: Access,
    address: u64,
    length: usize,
    domain: Arc<ProtectionDomain>,
    memory: Arc<dyn RegisteredMemory>,
}

#[derive(Clone, Copy, Debug)]
struct Keys {
    local: u32,
    remote: u32,
}

/// A place in memory of the peer: an address there, and the key of the region that it lies in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RemoteAddress {
    /// Address, in the peer's process.
    pub address: u64,
    /// Key of the region.
    pub rkey: u32,
}

impl RemoteAddress {
    /// Bytes of [`to_bytes`](Self::to_bytes).
    pub const BYTES: usize = 12;

    /// The place so many bytes behind this one. Whether that is still in the region, the peer's adapter checks.
    #[must_use]
    pub const fn plus(self, bytes: u64) -> Self {
        Self {
            address: self.address.wrapping_add(bytes),
            rkey: self.rkey,
        }
    }

    /// Little-endian: 8 bytes of address, 4 of key.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..].copy_from_slice(&self.rkey.to_le_bytes());
        bytes
    }

    /// The inverse of [`to_bytes`](Self::to_bytes), of the first bytes; `None` when there are too few.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (address, rest) = bytes.split_first_chunk()?;
        let (rkey, _) = rest.split_first_chunk()?;
        Some(Self {
            address: u64::from_le_bytes(*address),
            rkey: u32::from_le_bytes(*rkey),
        })
    }
}

/// A piece of a region of this side, in a request.
#[derive(Clone, Debug)]
pub struct LocalSpan {
    region: Arc<MemoryRegion>,
    address: u64,
    length: u32,
}

impl MemoryRegion {
    /// Registers a range of `memory`: pins its pages and tells the adapter.
    ///
    /// Costs time and pinned memory by the page: see `docs/RDMA.md`. The range need not be on page borders.
    ///
    /// # Errors
    /// [`RdmaError::OutsideMemory`] when the range is empty or not in the memory, [`RdmaError::Register`] when the system
    /// refuses, mostly for the limit of locked memory ([`RdmaError::is_memlock`]).
    pub fn register(
        domain: &Arc<ProtectionDomain>,
        memory: Arc<dyn RegisteredMemory>,
        range: Range<usize>,
        access: Access,
    ) -> Result<Arc<Self>, RdmaError> {
        let (offset, bytes, length) = (range.start, range.len(), memory.length());
        check_range(offset, bytes, length)?;
        if bytes == 0 {
            return Err(RdmaError::OutsideMemory {
                offset,
                bytes,
                length,
            });
        }
        let at = memory.address().wrapping_add(offset);
        // `bits` are a few low ones.
        let flags = access.bits().cast_signed();
        // SAFETY: the domain is alive. By the contract of `RegisteredMemory`, which the region keeps, the range is mapped,
        // readable and writable until after the region is deregistered.
        let region = unsafe { ibv_reg_mr(domain.as_ptr(), at.cast(), bytes, flags) };
        // SAFETY: it was returned just now, and `ibv_dereg_mr` is its destructor.
        let region = unsafe { Owned::new(region, ibv_dereg_mr, "memory region") };
        let region = region.map_err(|error| refused(bytes, error))?;
        // SAFETY: the region is alive; the library sets its keys before it returns it and changes them no more.
        let raw = unsafe { &*region.as_ptr() };
        let keys = Keys {
            local: raw.lkey,
            remote: raw.rkey,
        };
        Ok(Arc::new(Self {
            region: Some(region),
            keys,
            access,
            address: at as u64,
            length: bytes,
            domain: domain.clone(),
            memory,
        }))
    }

    /// Deregisters it, and says that nobody can reach it any more. One that a posted request, or somebody
    /// else, holds as well stays registered.
    ///
    /// # Errors
    /// [`RdmaError::InUse`], or [`RdmaError::Deregister`]: its keys may still be good then, and its memory is never freed.
    pub fn deregister(region: Arc<Self>) -> Result<(), RdmaError> {
        let mut region = Arc::into_inner(region).ok_or(RdmaError::InUse)?;
        let Some(owned) = region.region.take() else {
            return Ok(());
        };
        owned.destroy().map_err(|source| {
            std::mem::forget(region.memory.clone());
            RdmaError::Deregister { source }
        })
    }

    /// How many bytes it has.
    #[must_use]
    pub const fn length(&self) -> usize {
        self.length
    }

    /// What may be done with it.
    #[must_use]
    pub const fn access(&self) -> Access {
        self.access
    }

    /// Returns the domain that it belongs to.
    #[must_use]
    pub const fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    /// Where the peer finds byte `offset` of it. Of use only to a peer, and if the region's access allows.
    ///
    /// # Errors
    /// [`RdmaError::OutsideMemory`] behind its end.
    pub fn remote_address(&self, offset: usize) -> Result<RemoteAddress, RdmaError> {
        check_range(offset, 0, self.length)?;
        Ok(RemoteAddress {
            address: self.address + offset as u64,
            rkey: self.keys.remote,
        })
    }

    /// A piece of it, for a request. The request keeps the region.
    ///
    /// # Errors
    /// [`RdmaError::OutsideMemory`] when the range is not in the region, or has 4 GiB or more.
    pub fn span(self: &Arc<Self>, range: Range<usize>) -> Result<LocalSpan, RdmaError> {
        let (offset, bytes) = (range.start, range.len());
        check_range(offset, bytes, self.length)?;
        let length = u32::try_from(bytes).map_err(|_| RdmaError::OutsideMemory {
            offset,
            bytes,
            length: self.length,
        })?;
        Ok(LocalSpan {
            region: self.clone(),
            address: self.address + offset as u64,
            length,
        })
    }
}

impl LocalSpan {
    /// How many bytes.
    #[must_use]
    pub const fn length(&self) -> u32 {
        self.length
    }

    pub(crate) const fn region(&self) -> &Arc<MemoryRegion> {
        &self.region
    }

    pub(crate) fn entry(&self) -> rdma_sys::ibv_sge {
        rdma_sys::ibv_sge {
            addr: self.address,
            length: self.length,
            lkey: self.region.keys.local,
        }
    }
}

fn refused(bytes: usize, error: RdmaError) -> RdmaError {
    let RdmaError::Create { source, .. } = error else {
        return error;
    };
    let memlock_bytes = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    RdmaError::Register {
        bytes,
        memlock_bytes,
        source,
    }
}

impl Drop for MemoryRegion {
    fn drop(&mut self) {
        let Some(region) = self.region.take() else {
            return;
        };
        // The adapter still uses the memory when it was not deregistered: then it is never freed.
        if region.destroy().is_err() {
            std::mem::forget(self.memory.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_remote_address_comes_back_from_its_bytes() {
        let place = RemoteAddress {
            address: 0x7f00_1234_5678_9000,
            rkey: 0xdead_beef,
        };
        let mut bytes = place.to_bytes().to_vec();
        bytes.push(9);
        assert_eq!(RemoteAddress::from_bytes(&bytes), Some(place));
        assert_eq!(RemoteAddress::from_bytes(&bytes[..11]), None);
        assert_eq!(place.plus(4096).address, 0x7f00_1234_5678_a000);
    }

    #[test]
    fn remote_writes_include_local_ones() {
        let both = Access::REMOTE_WRITE | Access::REMOTE_READ;
        assert!(both.contains(Access::LOCAL_WRITE) && both.contains(Access::REMOTE_READ));
        assert!(!Access::REMOTE_READ.contains(Access::LOCAL_WRITE));
        assert!(Access::SOURCE.contains(Access::SOURCE));
    }
}
