//! The header that starts every frame.

use zerocopy::byteorder::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::limits::{
    CONTROL_BYTES_MAX, DEVICE_BYTES_MAX, FRAME_ENTRIES_MAX, PAYLOAD_BYTES_MAX, RAM_BLOCKS_MAX,
    STREAMS_MAX, TABLE_BYTES_MAX,
};
use crate::{Hello, PageRequest, StreamHello, VERSION_CURRENT, VERSION_OLDEST};

/// First four bytes of every frame.
pub const MAGIC: [u8; 4] = *b"DWCP";

/// Bytes of a header.
pub const HEADER_BYTES: usize = 64;

/// What a frame carries. Zero is reserved and refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u16)]
#[non_exhaustive]
pub enum FrameKind {
    /// First frame of a control connection, from the source.
    Hello = 1,
    /// Its answer.
    HelloReply = 2,
    /// A [`crate::Control`] message.
    Control = 3,
    /// First frame of every other connection, from the source.
    StreamHello = 4,
    /// Pages of one RAM block.
    Pages = 5,
    /// Every page frame of `round` on this stream has been sent.
    RoundMark = 6,
    /// From the destination: frames up to `sequence` are applied, `position` bytes altogether.
    Ack = 7,
    /// Device state, both ways. An empty payload ends that direction.
    Device = 8,
    /// The same as one zstd frame, of no more content than [`FrameKind::Device`] may have.
    DeviceZstd = 9,
    /// Nothing, on a device connection: it makes TCP's window grow before it is needed.
    Padding = 10,
    /// From the destination, on a connection for missing pages: [`crate::PageRequest`].
    PageRequest = 16,
}

impl FrameKind {
    const fn from_wire(value: u16) -> Option<Self> {
        Some(match value {
            1 => Self::Hello,
            2 => Self::HelloReply,
            3 => Self::Control,
            4 => Self::StreamHello,
            5 => Self::Pages,
            6 => Self::RoundMark,
            7 => Self::Ack,
            8 => Self::Device,
            9 => Self::DeviceZstd,
            10 => Self::Padding,
            16 => Self::PageRequest,
            _ => return None,
        })
    }

    /// Smallest and largest payload of this kind.
    const fn payload_range(self) -> (usize, usize) {
        match self {
            Self::Hello | Self::HelloReply => (Hello::BYTES, Hello::BYTES),
            Self::Control => (1, CONTROL_BYTES_MAX),
            Self::StreamHello => (StreamHello::BYTES, StreamHello::BYTES),
            Self::Pages => (crate::ENTRY_BYTES, PAYLOAD_BYTES_MAX),
            Self::RoundMark | Self::Ack => (0, 0),
            Self::Device => (0, DEVICE_BYTES_MAX),
            Self::DeviceZstd | Self::Padding => (1, DEVICE_BYTES_MAX),
            Self::PageRequest => (PageRequest::RANGE_BYTES, PageRequest::BYTES_MAX),
        }
    }
}

/// A header in the machine's own types; 64 bytes, little-endian, no padding on the wire.
///
/// | offset | bytes | field | unit, range |
/// |-------:|------:|---|---|
/// | 0 | 4 | magic | `DWCP` |
/// | 4 | 2 | `version` | the agreed version; 1 in a hello |
/// | 6 | 2 | `kind` | [`FrameKind`] |
/// | 8 | 2 | `stream` | 0..32; 0 on control connections |
/// | 10 | 2 | flags | bit 0 in a page frame: a window begins ([`Self::starts_window`]), bit 1: [`Self::shuffles_window`]; the others are 0 |
/// | 12 | 4 | `round` | 0 is the first pass |
/// | 16 | 8 | `sequence` | frames of this stream and direction, from 1 |
/// | 24 | 4 | `ram_block` | index into the agreed RAM blocks |
/// | 28 | 4 | `entries` | runs in the table, 0..=256 |
/// | 32 | 8 | `position` | acknowledged bytes in an `Ack`; in a mark, how often it was lost before; otherwise 0 |
/// | 40 | 4 | `payload_bytes` | bytes after this header |
/// | 44 | 4 | `table_bytes` | leading payload bytes under `table_crc32c` |
/// | 48 | 4 | `table_crc32c` | CRC-32C of those bytes |
/// | 52 | 4 | `delta_bytes` | bytes at the end of a page frame's payload that are its delta |
/// | 56 | 4 | reserved | 0 |
/// | 60 | 4 | header checksum | CRC-32C of bytes 0..60 |
///
/// The header has its own checksum so that `payload_bytes` can be trusted before a read is sized.
/// Page data lies outside `table_crc32c`: each page's fingerprint covers it, page by page, so that
/// one damaged byte costs one page (`docs/adr/0003-page-fingerprints-instead-of-payload-crc.md`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FrameHeader {
    /// Agreed wire version.
    pub version: u16,
    /// What follows.
    pub kind: FrameKind,
    /// Stream index.
    pub stream: u16,
    /// Pre-copy round.
    pub round: u32,
    /// Counts frames per stream and direction, from 1.
    pub sequence: u64,
    /// RAM block index.
    pub ram_block: u32,
    /// Runs in the table.
    pub entries: u32,
    /// Acknowledged bytes in an acknowledgement; in a mark, how often it was lost before.
    pub position: u64,
    /// Bytes after the header.
    pub payload_bytes: u32,
    /// Leading payload bytes under the checksum.
    pub table_bytes: u32,
    /// CRC-32C of the first `table_bytes` of payload.
    pub table_crc32c: u32,
    /// A page frame whose window data depends on no frame before it.
    pub starts_window: bool,
    /// A page frame whose window data begins with a bit for each of the window's pages: whether it is shuffled.
    pub shuffles_window: bool,
    /// Bytes of a page frame's delta, at the end of its payload.
    pub delta_bytes: u32,
}

/// [`FrameHeader::starts_window`] among the flags.
const STARTS_WINDOW: u16 = 1 << 0;

/// [`FrameHeader::shuffles_window`] among the flags.
const SHUFFLES_WINDOW: u16 = 1 << 1;

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Raw {
    magic: [u8; 4],
    version: U16,
    kind: U16,
    stream: U16,
    flags: U16,
    round: U32,
    sequence: U64,
    ram_block: U32,
    entries: U32,
    position: U64,
    payload_bytes: U32,
    table_bytes: U32,
    table_crc32c: U32,
    delta_bytes: U32,
    reserved: U32,
    header_crc32c: U32,
}

const CHECKED_BYTES: usize = HEADER_BYTES - 4;
const _: () = assert!(size_of::<Raw>() == HEADER_BYTES);

/// Why 64 bytes are not a header. All of these are the peer's fault, or the link's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The peer speaks something else.
    #[error("peer does not speak DWCP: frame starts with {0:02x?}")]
    Magic([u8; 4]),
    /// Damaged on the way.
    #[error("header checksum is {found:08x}, its bytes give {computed:08x}")]
    Checksum {
        /// In the header.
        found: u32,
        /// Computed here.
        computed: u32,
    },
    /// A version that this program does not speak.
    #[error(
        "frame of wire version {found}, this program speaks {VERSION_OLDEST} to {VERSION_CURRENT}"
    )]
    Version {
        /// Version found.
        found: u16,
    },
    /// An unknown kind, or one whose payload does not fit it.
    #[error("frame of unknown kind {0}")]
    Kind(u16),
    /// A payload larger or smaller than this kind may have; nothing was allocated.
    #[error("{kind:?} frame announces {announced} payload bytes, allowed are {least} to {most}")]
    PayloadBytes {
        /// Kind.
        kind: FrameKind,
        /// Announced.
        announced: u32,
        /// Least.
        least: usize,
        /// Most.
        most: usize,
    },
    /// A field is outside its range.
    #[error("header field {field} has value {value}, out of range")]
    Field {
        /// Which.
        field: &'static str,
        /// Its value.
        value: u64,
    },
}

impl FrameHeader {
    /// A header without payload.
    #[must_use]
    pub const fn empty(kind: FrameKind, stream: u16, sequence: u64) -> Self {
        Self {
            version: VERSION_CURRENT,
            kind,
            stream,
            round: 0,
            sequence,
            ram_block: 0,
            entries: 0,
            position: 0,
            payload_bytes: 0,
            table_bytes: 0,
            table_crc32c: 0,
            starts_window: false,
            shuffles_window: false,
            delta_bytes: 0,
        }
    }

    /// A header for a payload that is covered by the checksum as a whole.
    ///
    /// The payload must be within the limit of its kind; the limits are this crate's own.
    #[must_use]
    pub fn covering(kind: FrameKind, stream: u16, sequence: u64, payload: &[u8]) -> Self {
        debug_assert!(payload.len() <= PAYLOAD_BYTES_MAX);
        let bytes = payload.len() as u32;
        Self {
            payload_bytes: bytes,
            table_bytes: bytes,
            table_crc32c: dwcp_simd::kernels().crc32c(0, payload),
            ..Self::empty(kind, stream, sequence)
        }
    }

    const fn flags(&self) -> u16 {
        let starts = if self.starts_window { STARTS_WINDOW } else { 0 };
        let shuffles = if self.shuffles_window {
            SHUFFLES_WINDOW
        } else {
            0
        };
        starts | shuffles
    }

    /// The header's bytes.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let mut raw = Raw {
            magic: MAGIC,
            version: self.version.into(),
            kind: (self.kind as u16).into(),
            stream: self.stream.into(),
            flags: self.flags().into(),
            round: self.round.into(),
            sequence: self.sequence.into(),
            ram_block: self.ram_block.into(),
            entries: self.entries.into(),
            position: self.position.into(),
            payload_bytes: self.payload_bytes.into(),
            table_bytes: self.table_bytes.into(),
            table_crc32c: self.table_crc32c.into(),
            delta_bytes: self.delta_bytes.into(),
            reserved: 0.into(),
            header_crc32c: 0.into(),
        };
        let checksum = dwcp_simd::kernels().crc32c(0, &raw.as_bytes()[..CHECKED_BYTES]);
        raw.header_crc32c = checksum.into();
        zerocopy::transmute!(raw)
    }

    /// Reads and checks a header.
    ///
    /// # Errors
    /// [`HeaderError`]: whatever is wrong first, in the order magic, checksum, version, kind,
    /// payload size, fields.
    pub fn from_bytes(bytes: &[u8; HEADER_BYTES]) -> Result<Self, HeaderError> {
        let raw: Raw = zerocopy::transmute!(*bytes);
        if raw.magic != MAGIC {
            return Err(HeaderError::Magic(raw.magic));
        }
        let computed = dwcp_simd::kernels().crc32c(0, &bytes[..CHECKED_BYTES]);
        if raw.header_crc32c != computed {
            return Err(HeaderError::Checksum {
                found: raw.header_crc32c.get(),
                computed,
            });
        }
        let version = raw.version.get();
        if !(VERSION_OLDEST..=VERSION_CURRENT).contains(&version) {
            return Err(HeaderError::Version { found: version });
        }
        let kind = FrameKind::from_wire(raw.kind.get())
            .ok_or_else(|| HeaderError::Kind(raw.kind.get()))?;
        let header = Self {
            version,
            kind,
            stream: raw.stream.get(),
            round: raw.round.get(),
            sequence: raw.sequence.get(),
            ram_block: raw.ram_block.get(),
            entries: raw.entries.get(),
            position: raw.position.get(),
            payload_bytes: raw.payload_bytes.get(),
            table_bytes: raw.table_bytes.get(),
            table_crc32c: raw.table_crc32c.get(),
            starts_window: raw.flags.get() & STARTS_WINDOW != 0,
            shuffles_window: raw.flags.get() & SHUFFLES_WINDOW != 0,
            delta_bytes: raw.delta_bytes.get(),
        };
        header.check_payload()?;
        header.check_fields(raw.flags.get(), raw.reserved.get())?;
        Ok(header)
    }

    /// Payload bytes as a size.
    #[must_use]
    pub const fn payload_len(&self) -> usize {
        self.payload_bytes as usize
    }

    /// Whether the first `table_bytes` of `payload` are as they were sent.
    #[must_use]
    pub fn covers(&self, payload: &[u8]) -> bool {
        payload
            .get(..self.table_bytes as usize)
            .is_some_and(|table| dwcp_simd::kernels().crc32c(0, table) == self.table_crc32c)
    }

    fn check_payload(&self) -> Result<(), HeaderError> {
        let (least, most) = self.kind.payload_range();
        let announced = self.payload_bytes;
        if !(least..=most).contains(&(announced as usize)) {
            return Err(HeaderError::PayloadBytes {
                kind: self.kind,
                announced,
                least,
                most,
            });
        }
        let whole = self.kind != FrameKind::Pages;
        let table_fits = if whole {
            self.table_bytes == announced
        } else {
            self.table_bytes <= announced && self.table_bytes as usize <= TABLE_BYTES_MAX
        };
        in_range("table_bytes", u64::from(self.table_bytes), table_fits)
    }

    fn check_fields(&self, flags: u16, reserved: u32) -> Result<(), HeaderError> {
        let pages = self.kind == FrameKind::Pages;
        let entries = if pages {
            (1..=FRAME_ENTRIES_MAX).contains(&(self.entries as usize))
        } else {
            self.entries == 0
        };
        let ram_block = if pages {
            (self.ram_block as usize) < RAM_BLOCKS_MAX
        } else {
            self.ram_block == 0
        };
        let known = if pages {
            STARTS_WINDOW | SHUFFLES_WINDOW
        } else {
            0
        };
        in_range("flags", u64::from(flags), flags & !known == 0)?;
        in_range("reserved", u64::from(reserved), reserved == 0)?;
        let delta = match self.payload_bytes.checked_sub(self.table_bytes) {
            Some(data_bytes) if pages => self.delta_bytes <= data_bytes,
            _ => self.delta_bytes == 0,
        };
        in_range("delta_bytes", u64::from(self.delta_bytes), delta)?;
        in_range(
            "stream",
            u64::from(self.stream),
            (self.stream as usize) < STREAMS_MAX,
        )?;
        in_range("entries", u64::from(self.entries), entries)?;
        in_range("ram_block", u64::from(self.ram_block), ram_block)?;
        let has_position = matches!(self.kind, FrameKind::Ack | FrameKind::RoundMark);
        let position = self.position == 0 || has_position;
        in_range("position", self.position, position)
    }
}

const fn in_range(field: &'static str, value: u64, ok: bool) -> Result<(), HeaderError> {
    if ok {
        Ok(())
    } else {
        Err(HeaderError::Field { field, value })
    }
}
