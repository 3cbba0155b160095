//! The first words on every connection. Their layout never changes, so that any two versions can
//! find out that they do not understand each other.

use zerocopy::byteorder::little_endian::{U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Newest wire version spoken.
///
/// | version | what changed |
/// |--:|---|
/// | 1 | first |
pub const VERSION_CURRENT: u16 = 1;

/// Oldest wire version still spoken.
pub const VERSION_OLDEST: u16 = 1;

/// Capability bits. A bit that both sides set may be used; a bit that one does not know is ignored
/// in [`Hello::offered`] and fatal in [`Hello::required`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities(pub u64);

impl Capabilities {
    /// Pages and device state may come as zstd frames.
    pub const ZSTD: Self = Self(1 << 0);
    /// Device state may be relayed.
    pub const DEVICE_STATE: Self = Self(1 << 1);
    /// Pages may come in the window of their stream.
    pub const WINDOW: Self = Self(1 << 2);
    /// It knows `RdmaListens`: pages may be placed by a network adapter.
    pub const RDMA: Self = Self(1 << 3);
    /// The guest may run at the destination before its pages are there.
    pub const POSTCOPY: Self = Self(1 << 4);
    /// It knows `SourceListens` and `TakenBack`: a guest may be taken back by an operator.
    pub const RECALL: Self = Self(1 << 5);
    /// It knows `HoldsBaseline` and `Unchanged`: a VM that comes back names what has not changed by bits.
    pub const BASELINE: Self = Self(1 << 6);
    /// Beside `RDMA` and `POSTCOPY`: pages that somebody waits for may be read out of the source's RAM by the
    /// destination's adapter, and it knows `PagesRead`.
    pub const POSTCOPY_READ: Self = Self(1 << 7);
    /// Beside `WINDOW`: pages in it may be shuffled ([`crate::FrameHeader::shuffles_window`]).
    pub const SHUFFLE: Self = Self(1 << 8);
    /// As a destination it says `Alive`, if it has said nothing else, three times a second and more from `SwitchoverStart` to
    /// `Handover`, but in post-copy while it takes out what was named.
    pub const SPEAKS_IN_PAUSE: Self = Self(1 << 9);

    /// Bits in both.
    #[must_use]
    pub const fn common(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// Whether all bits of `other` are here.
    #[must_use]
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }
}

/// Everything this program can do.
pub const CAPABILITIES: Capabilities = Capabilities(
    Capabilities::ZSTD.0
        | Capabilities::DEVICE_STATE.0
        | Capabilities::WINDOW.0
        | Capabilities::RDMA.0
        | Capabilities::POSTCOPY.0
        | Capabilities::RECALL.0
        | Capabilities::BASELINE.0
        | Capabilities::POSTCOPY_READ.0
        | Capabilities::SHUFFLE.0
        | Capabilities::SPEAKS_IN_PAUSE.0,
);

/// Payload of `Hello` and `HelloReply`; 64 bytes, frozen.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 2 | `version_oldest` spoken |
/// | 2 | 2 | `version_newest` spoken; in a reply the chosen one, 0 when there is none in common |
/// | 4 | 4 | zero |
/// | 8 | 8 | `offered` capability bits |
/// | 16 | 8 | `required` capability bits |
/// | 24 | 40 | zero; later versions may use them, readers ignore them |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hello {
    /// Oldest version spoken.
    pub version_oldest: u16,
    /// Newest version spoken, or the chosen one in a reply.
    pub version_newest: u16,
    /// What the sender can do.
    pub offered: Capabilities,
    /// What the sender insists on.
    pub required: Capabilities,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct RawHello {
    version_oldest: U16,
    version_newest: U16,
    zero: [u8; 4],
    offered: U64,
    required: U64,
    spare: [u8; 40],
}

/// Why two nodes cannot talk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HelloError {
    /// The version ranges do not meet.
    #[error(
        "no common wire version: peer speaks {peer_oldest} to {peer_newest}, this node {VERSION_OLDEST} to {VERSION_CURRENT}; upgrade the older node"
    )]
    NoCommonVersion {
        /// Peer's oldest.
        peer_oldest: u16,
        /// Peer's newest.
        peer_newest: u16,
    },
    /// The peer insists on something unknown here.
    #[error("peer requires capability bits {missing:#x} that this node lacks; upgrade this node")]
    MissingCapability {
        /// The bits.
        missing: u64,
    },
    /// Oldest is newer than newest, or a role is unknown.
    #[error("malformed hello")]
    Malformed,
}

impl Hello {
    /// Bytes of the payload.
    pub const BYTES: usize = 64;

    /// This program's own hello.
    #[must_use]
    pub const fn own() -> Self {
        Self {
            version_oldest: VERSION_OLDEST,
            version_newest: VERSION_CURRENT,
            offered: CAPABILITIES,
            required: Capabilities::DEVICE_STATE,
        }
    }

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        zerocopy::transmute!(RawHello {
            version_oldest: self.version_oldest.into(),
            version_newest: self.version_newest.into(),
            zero: [0; 4],
            offered: self.offered.0.into(),
            required: self.required.0.into(),
            spare: [0; 40],
        })
    }

    /// Reads one. Every bit pattern is a hello; [`negotiate`] judges it.
    #[must_use]
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Self {
        let raw: RawHello = zerocopy::transmute!(*bytes);
        Self {
            version_oldest: raw.version_oldest.get(),
            version_newest: raw.version_newest.get(),
            offered: Capabilities(raw.offered.get()),
            required: Capabilities(raw.required.get()),
        }
    }
}

/// The version and capabilities to use with a peer that said `peer`: the newest version and all
/// capabilities that both have.
///
/// # Errors
/// [`HelloError`] says which side must be upgraded.
pub const fn negotiate(own: Hello, peer: Hello) -> Result<(u16, Capabilities), HelloError> {
    if peer.version_oldest > peer.version_newest {
        return Err(HelloError::Malformed);
    }
    let newest = if peer.version_newest < own.version_newest {
        peer.version_newest
    } else {
        own.version_newest
    };
    if newest < own.version_oldest || newest < peer.version_oldest {
        return Err(HelloError::NoCommonVersion {
            peer_oldest: peer.version_oldest,
            peer_newest: peer.version_newest,
        });
    }
    let missing = peer.required.0 & !own.offered.0;
    if missing != 0 {
        return Err(HelloError::MissingCapability { missing });
    }
    Ok((newest, own.offered.common(peer.offered)))
}

/// What a further connection of a migration is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum StreamRole {
    /// Page frames.
    Data = 1,
    /// Device state, both ways.
    Device = 2,
    /// Pages that the destination asks for, while its guest runs without them.
    Missing = 3,
}

/// Payload of `StreamHello`; 24 bytes.
///
/// | offset | bytes | field |
/// |--:|--:|---|
/// | 0 | 16 | `token` that the destination gave for this migration |
/// | 16 | 2 | `index` of the stream |
/// | 18 | 1 | `role` |
/// | 19 | 2 | `generation` |
/// | 21 | 3 | zero |
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamHello {
    /// Names the migration; only the peer that was given it can join.
    pub token: u128,
    /// Stream index.
    pub index: u16,
    /// What the connection is for.
    pub role: StreamRole,
    /// 0 for the first connection of this stream. Each that takes the place of one that broke has the next.
    pub generation: u16,
}

impl StreamHello {
    /// Bytes of the payload.
    pub const BYTES: usize = 24;

    /// Its bytes.
    #[must_use]
    pub fn to_bytes(self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..16].copy_from_slice(&self.token.to_le_bytes());
        bytes[16..18].copy_from_slice(&self.index.to_le_bytes());
        bytes[18] = self.role as u8;
        bytes[19..21].copy_from_slice(&self.generation.to_le_bytes());
        bytes
    }

    /// Reads one.
    ///
    /// # Errors
    /// [`HelloError::Malformed`] for an unknown role or bytes that must be zero.
    pub fn from_bytes(bytes: &[u8; Self::BYTES]) -> Result<Self, HelloError> {
        let role = match bytes[18] {
            1 => StreamRole::Data,
            2 => StreamRole::Device,
            3 => StreamRole::Missing,
            _ => return Err(HelloError::Malformed),
        };
        if bytes[21..].iter().any(|&byte| byte != 0) {
            return Err(HelloError::Malformed);
        }
        let mut token = [0; 16];
        token.copy_from_slice(&bytes[..16]);
        Ok(Self {
            token: u128::from_le_bytes(token),
            index: u16::from_le_bytes([bytes[16], bytes[17]]),
            role,
            generation: u16::from_le_bytes([bytes[19], bytes[20]]),
        })
    }
}
