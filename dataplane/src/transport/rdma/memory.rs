//! What of a migration's RAM an adapter knows, at one end: pieces, registered when the first page goes there.

use std::collections::HashMap;
use std::io;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use dwcp_rdma::{
    Access, ConnectionId, MemoryRegion, ProtectionDomain, RdmaError, RegisteredMemory,
    RemoteAddress,
};
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PageRange;
use dwcp_wire::rdma::{PIECE_BYTES_MAX, PIECE_BYTES_MIN, PieceId, QueueMessage};
use nix::sys::resource::{Resource, getrlimit};

use super::guest_memory::GuestBlock;
use crate::ram::RamLayout;

/// Bytes of a piece where memory may be locked at will.
const PIECE_BYTES: u32 = 16 << 20;

/// Otherwise it is so much of what may be locked.
const PIECES_LOCKABLE: u64 = 32;

/// Pages of a piece without memory, of all of its pages, that are made by registering it: one in so many at most.
const SPARSE_SHARE: usize = 8;

/// The bit of `CAP_IPC_LOCK` among a process's capabilities: no limit counts for it.
const CAP_IPC_LOCK: u32 = 14;

const _: () = assert!(PIECE_BYTES <= PIECE_BYTES_MAX && PIECE_BYTES.is_power_of_two());

/// RAM of one end of a migration. All workers of it share one domain: a queue pair of another migration reaches none of it.
#[derive(Debug)]
pub struct RdmaMemory {
    blocks: Vec<Arc<GuestBlock>>,
    access: Access,
    state: Mutex<State>,
    grants_from: AtomicU64,
    written_bytes: AtomicU64,
    ring_bytes: AtomicU64,
}

#[derive(Debug)]
struct State {
    pieces: HashMap<PieceId, Piece>,
    domain: Option<Arc<ProtectionDomain>>,
    piece_bytes: Option<u32>,
    /// Counts uses of pieces.
    clock: u64,
    /// No key is given out any more.
    is_revoked: bool,
    /// Whether pieces are too sparse to be registered, as far as it was looked at in this round.
    sparse: HashMap<PieceId, bool>,
    /// Pages that had no memory before they were registered for the first time, by their pieces.
    had_none: HashMap<PieceId, Vec<PageRange>>,
}

#[derive(Debug)]
struct Piece {
    region: Arc<MemoryRegion>,
    /// Streams that have its key, a bit each.
    holders: u32,
    used: u64,
}

const _: () = assert!(dwcp_wire::limits::STREAMS_MAX <= u32::BITS as usize);

impl RdmaMemory {
    /// Of a source: its adapter reads RAM.
    #[must_use]
    pub fn of_source(ram: &Arc<RamLayout>) -> Arc<Self> {
        Self::new(ram, Access::SOURCE)
    }

    /// Of a destination: the source's adapter writes RAM.
    #[must_use]
    pub fn of_destination(ram: &Arc<RamLayout>) -> Arc<Self> {
        Self::new(ram, Access::REMOTE_WRITE)
    }

    /// Of a source in post-copy: the destination's adapter reads RAM.
    #[must_use]
    pub(super) fn of_read_source(ram: &Arc<RamLayout>) -> Arc<Self> {
        Self::new(ram, Access::REMOTE_READ)
    }

    fn new(ram: &Arc<RamLayout>, access: Access) -> Arc<Self> {
        Arc::new(Self {
            blocks: GuestBlock::all(ram),
            access,
            state: Mutex::new(State {
                pieces: HashMap::new(),
                domain: None,
                piece_bytes: None,
                clock: 0,
                is_revoked: false,
                sparse: HashMap::new(),
                had_none: HashMap::new(),
            }),
            grants_from: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            ring_bytes: AtomicU64::new(0),
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The domain of a connection's device. The first connection decides which device that is.
    pub(super) fn domain(&self, id: &ConnectionId) -> io::Result<Arc<ProtectionDomain>> {
        let name = id.device_name().ok_or_else(|| words(&RdmaError::NoRdma))?;
        let mut state = self.lock();
        if let Some(domain) = &state.domain {
            if domain.context().name() == name {
                return Ok(Arc::clone(domain));
            }
            return Err(io::Error::other(format!(
                "{name} leads to the other node, and other streams use {}",
                domain.context().name()
            )));
        }
        let context = id.open_device().map_err(|error| words(&error))?;
        let domain = ProtectionDomain::new(&context).map_err(|error| words(&error))?;
        state.domain = Some(Arc::clone(&domain));
        Ok(domain)
    }

    /// Agrees on the bytes of a piece: what this end would have, and the other end's `most`. The first stream decides.
    pub(super) fn agree_on_pieces(&self, most: u32) -> io::Result<u32> {
        let mut state = self.lock();
        let agreed = *state
            .piece_bytes
            .get_or_insert_with(|| most.min(piece_bytes_max()));
        if agreed <= most {
            return Ok(agreed);
        }
        Err(invalid(format!(
            "pieces of {agreed} bytes on other streams, of {most} on this one"
        )))
    }

    /// Where a run of pages lies: pieces, and byte ranges in them.
    pub(super) fn pieces_of(
        run: &PageRange,
        piece_bytes: u32,
    ) -> impl Iterator<Item = (PieceId, Range<usize>)> + use<> {
        let (ram_block, piece_bytes) = (run.ram_block, piece_bytes as usize);
        let start = run.page as usize * PAGE_BYTES;
        let end = start + run.bytes();
        (start / piece_bytes..end.div_ceil(piece_bytes)).map(move |piece| {
            let base = piece * piece_bytes;
            let range = start.max(base) - base..end.min(base + piece_bytes) - base;
            let piece = piece as u32;
            (PieceId { ram_block, piece }, range)
        })
    }

    /// Source: whether so much of a piece has no memory that it is not to be registered, which would make it. Looked at once a
    /// round.
    pub(super) fn is_sparse(&self, piece: PieceId) -> bool {
        let mut state = self.lock();
        if let Some(sparse) = state.sparse.get(&piece) {
            return *sparse;
        }
        let range = state.piece_bytes.and_then(|bytes| self.range(piece, bytes));
        let Some((block, range)) = range else {
            return false;
        };
        let holes = block
            .holes(&range)
            .iter()
            .map(PageRange::bytes)
            .sum::<usize>();
        let sparse = holes * SPARSE_SHARE > range.len();
        state.sparse.insert(piece, sparse);
        sparse
    }

    /// Source: a piece's region.
    pub(super) fn local(&self, piece: PieceId) -> io::Result<Arc<MemoryRegion>> {
        let region = self.register_somehow(&mut self.lock(), piece);
        region.map_err(|error| words(&error))
    }

    /// Where no more can be locked, pieces that nobody uses make room, those that were used longest ago first.
    fn register_somehow(
        &self,
        state: &mut State,
        piece: PieceId,
    ) -> Result<Arc<MemoryRegion>, RdmaError> {
        loop {
            match self.register(state, piece) {
                Err(error) if error.is_memlock() && state.let_one_go() => {}
                outcome => return outcome,
            }
        }
    }

    /// Source: a round begins, and these pages did not arrive as they were. Mostly the guest wrote them meanwhile. But what a VMM has
    /// taken away from its guest (a balloon) and given back later is other memory, and a region has the old one for ever: their
    /// pieces are registered anew.
    pub fn renew(&self, suspects: &[PageRange]) {
        let mut state = self.lock();
        state.sparse.clear();
        let Some(bytes) = state.piece_bytes else {
            return;
        };
        for (piece, _) in suspects.iter().flat_map(|run| Self::pieces_of(run, bytes)) {
            state.pieces.remove(&piece);
        }
    }

    /// The pages of a piece; `None` outside of RAM.
    pub(super) fn pages(&self, piece: PieceId) -> Option<PageRange> {
        let bytes = self.lock().piece_bytes?;
        let (_, range) = self.range(piece, bytes)?;
        Some(PageRange {
            ram_block: piece.ram_block,
            page: (range.start / PAGE_BYTES) as u32,
            count: (range.len() / PAGE_BYTES) as u32,
        })
    }

    /// Destination, or a source that is read: the key to a piece for a stream, if it can be had.
    pub(super) fn grant(&self, piece: PieceId, stream: u16) -> Option<RemoteAddress> {
        let mut state = self.lock();
        if state.is_revoked {
            return None;
        }
        self.note_holes(&mut state, piece);
        let region = self.register_somehow(&mut state, piece);
        let region = region
            .inspect_err(|error| tracing::debug!(?piece, %error, "not registered"))
            .ok()?;
        if let Some(piece) = state.pieces.get_mut(&piece) {
            piece.holders |= 1 << stream;
        }
        region.remote_address(0).ok()
    }

    /// Destination: a stream writes there no more.
    pub(super) fn returned(&self, piece: PieceId, stream: u16) {
        let mut state = self.lock();
        let Some(held) = state.pieces.get_mut(&piece) else {
            return;
        };
        held.holders &= !(1 << stream);
        if held.holders == 0 {
            state.pieces.remove(&piece);
        }
    }

    /// Destination: a stream's queue pair is gone, and with it its right to write.
    pub(super) fn left(&self, stream: u16) {
        for piece in self.lock().pieces.values_mut() {
            piece.holders &= !(1 << stream);
        }
    }

    /// Source: nothing more is written. What no request holds is not pinned when this returns.
    pub fn let_go(&self) {
        self.lock().pieces.clear();
    }

    /// Destination, or a source that is read: no key leads to RAM when this returns, nor will again.
    ///
    /// # Errors
    /// When a region cannot be deregistered: what a destination reads then proves nothing.
    pub fn revoke(&self) -> io::Result<()> {
        let mut state = self.lock();
        state.is_revoked = true;
        for (_, piece) in state.pieces.drain() {
            MemoryRegion::deregister(piece.region).map_err(|error| words(&error))?;
        }
        Ok(())
    }

    /// Destination: pieces, and the pages of each that have memory since it was registered.
    #[must_use]
    pub fn made(&self) -> Vec<(PieceId, Vec<PageRange>)> {
        let made = self.lock();
        let made = made.had_none.iter().filter(|(_, runs)| !runs.is_empty());
        made.map(|(piece, runs)| (*piece, runs.clone())).collect()
    }

    /// Destination: nobody writes a piece when this returns. The source has to be told that its keys are gone.
    ///
    /// # Errors
    /// When it cannot be deregistered.
    pub fn take_back(&self, piece: PieceId) -> io::Result<()> {
        let mut state = self.lock();
        state.had_none.remove(&piece);
        match state.pieces.remove(&piece) {
            Some(piece) => MemoryRegion::deregister(piece.region).map_err(|error| words(&error)),
            None => Ok(()),
        }
    }

    /// Source: keys that were granted before are gone.
    pub fn forget_grants(&self) {
        self.grants_from.fetch_add(1, Ordering::AcqRel);
    }

    /// Source: a frame has left.
    pub(super) fn count(&self, written_bytes: usize, ring_bytes: usize) {
        let add = |to: &AtomicU64, bytes: usize| to.fetch_add(bytes as u64, Ordering::Relaxed);
        add(&self.written_bytes, written_bytes);
        add(&self.ring_bytes, ring_bytes);
    }

    /// Source: bytes of pages that were written to where they belong, and bytes that went through rings.
    #[must_use]
    pub fn counted(&self) -> (u64, u64) {
        let read = |of: &AtomicU64| of.load(Ordering::Relaxed);
        (read(&self.written_bytes), read(&self.ring_bytes))
    }

    /// Source: counts how often.
    pub(super) fn grants_from(&self) -> u64 {
        self.grants_from.load(Ordering::Acquire)
    }

    /// To register memory makes it.
    fn note_holes(&self, state: &mut State, piece: PieceId) {
        let range = state.piece_bytes.and_then(|bytes| self.range(piece, bytes));
        let (Some((block, range)), false) = (range, state.had_none.contains_key(&piece)) else {
            return;
        };
        state.had_none.insert(piece, block.holes(&range));
    }

    /// A piece's block, and its bytes there; `None` outside of RAM.
    fn range(&self, piece: PieceId, bytes: u32) -> Option<(&Arc<GuestBlock>, Range<usize>)> {
        let block = self.blocks.get(piece.ram_block as usize)?;
        let start = piece.piece as usize * bytes as usize;
        let end = block.length().min(start.saturating_add(bytes as usize));
        (start < end).then_some((block, start..end))
    }

    fn register(&self, state: &mut State, piece: PieceId) -> Result<Arc<MemoryRegion>, RdmaError> {
        state.clock += 1;
        let used = state.clock;
        if let Some(piece) = state.pieces.get_mut(&piece) {
            piece.used = used;
            return Ok(Arc::clone(&piece.region));
        }
        let (Some(domain), Some(bytes)) = (&state.domain, state.piece_bytes) else {
            return Err(RdmaError::NoRdma);
        };
        let Some((block, range)) = self.range(piece, bytes) else {
            return Err(RdmaError::OutsideMemory {
                offset: piece.piece as usize,
                bytes: bytes as usize,
                length: 0,
            });
        };
        let memory = Arc::clone(block) as Arc<dyn RegisteredMemory>;
        let region = MemoryRegion::register(domain, memory, range, self.access)?;
        let holders = 0;
        let kept = Piece {
            region: Arc::clone(&region),
            holders,
            used,
        };
        state.pieces.insert(piece, kept);
        Ok(region)
    }
}

impl State {
    /// Lets go of the piece that was used longest ago, of those that no request holds, and no stream has the key of.
    fn let_one_go(&mut self) -> bool {
        let pieces = self.pieces.iter();
        let free =
            pieces.filter(|(_, piece)| piece.holders == 0 && Arc::strong_count(&piece.region) == 1);
        let Some(oldest) = free.min_by_key(|(_, piece)| piece.used).map(|(id, _)| *id) else {
            return false;
        };
        self.pieces.remove(&oldest).is_some()
    }
}

/// The largest piece that this process registers at once.
pub(super) fn piece_bytes_max() -> u32 {
    piece_bytes_for(lockable_bytes())
}

fn piece_bytes_for(lockable_bytes: Option<u64>) -> u32 {
    let Some(lockable) = lockable_bytes else {
        return PIECE_BYTES;
    };
    let share = (lockable / PIECES_LOCKABLE).clamp(PIECE_BYTES_MIN.into(), PIECE_BYTES.into());
    // Rounded down to a power of two.
    1 << share.ilog2()
}

/// What this process may lock; `None` is no limit.
fn lockable_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let capabilities = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    if capabilities.is_some_and(|bits| bits >> CAP_IPC_LOCK & 1 == 1) {
        return None;
    }
    let limit = getrlimit(Resource::RLIMIT_MEMLOCK).map_or(0, |(soft, _)| soft);
    (limit != libc::RLIM_INFINITY).then_some(limit)
}

/// An error of verbs with its reasons.
pub(super) fn words(error: &RdmaError) -> io::Error {
    io::Error::other(dwcp_api::in_words(error))
}

/// A message of the other end.
pub(super) fn read_message(bytes: &[u8]) -> io::Result<QueueMessage> {
    let bytes = bytes
        .try_into()
        .map_err(|_| invalid("a message of no length"))?;
    QueueMessage::from_bytes(bytes).map_err(|error| invalid(error.to_string()))
}

/// What the other end should not have said.
pub(super) fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_is_split_where_pieces_meet() {
        let run = |page, count| PageRange {
            ram_block: 2,
            page,
            count,
        };
        let split = |run| -> Vec<_> {
            RdmaMemory::pieces_of(&run, 128 * 1024)
                .map(|(id, range)| (id.piece, range))
                .collect()
        };
        assert_eq!(split(run(0, 1)), [(0, 0..4096)]);
        assert_eq!(split(run(31, 1)), [(0, 31 * 4096..32 * 4096)]);
        let across = [(0, 31 * 4096..32 * 4096), (1, 0..4096)];
        assert_eq!(split(run(31, 2)), across);
        let three = [(1, 4096..131_072), (2, 0..131_072), (3, 0..4096)];
        assert_eq!(split(run(33, 64)), three);
    }

    #[test]
    fn pieces_are_small_where_little_may_be_locked() {
        assert_eq!(piece_bytes_for(None), 16 << 20);
        assert_eq!(piece_bytes_for(Some(1 << 30)), 16 << 20);
        assert_eq!(piece_bytes_for(Some(8 << 20)), 256 << 10);
        assert_eq!(piece_bytes_for(Some(100 << 20)), 2 << 20);
        assert_eq!(piece_bytes_for(Some(0)), PIECE_BYTES_MIN);
    }
}
