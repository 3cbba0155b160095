//! The source's end where the destination reads: pieces of RAM that stands still, registered when a page of them is waited for.
//!
//! With a piece goes a table of fingerprints, of what the piece's missing pages are: read like the pages themselves. So what
//! an adapter has read is checked as what came in a frame is, before the guest sees it.

use std::collections::{HashMap, VecDeque};
use std::io;
use std::sync::Arc;
use std::time::Duration;

use dwcp_rdma::{Access, ConnectionId, MemoryRegion, ProtectionDomain, RemoteAddress};
use dwcp_wire::rdma::{PieceId, QueueHello, QueueMessage, READS_WANTED_MAX};
use dwcp_wire::{PageRange, StreamHello};
use nix::sys::epoll::Epoll;

use super::ending::{Ending, wait};
use super::memory::{RdmaMemory, invalid, piece_bytes_max, read_message, words};
use super::queue::{Arrival, Queue, Takes, registered};
use crate::ram::RamLayout;

/// Between looks at whether the other end has answered.
const TURN: Duration = Duration::from_secs(1);

/// Lower halves of the fingerprints of a run of pages, 0 where the destination has nothing to read; `None` when it has no page
/// to read there.
pub(super) type Fingerprints<'a> = dyn Fn(&PageRange) -> Option<Vec<u64>> + 'a;

/// Grants pieces for the other end to read.
#[derive(Debug)]
pub struct PieceGranter {
    queue: Queue,
    pub(super) memory: Arc<RdmaMemory>,
    domain: Arc<ProtectionDomain>,
    tables: HashMap<PieceId, Arc<MemoryRegion>>,
    wanted: VecDeque<PieceId>,
    ending: Ending,
    watched: Epoll,
}

impl PieceGranter {
    /// Asks for a connection, by an id that knows its route, until `ending`. Its regions are of a domain of their own: no
    /// other queue pair reaches them.
    ///
    /// # Errors
    /// When there are no means.
    pub fn ask(
        id: ConnectionId,
        stream: StreamHello,
        ram: &Arc<RamLayout>,
        ending: Ending,
    ) -> io::Result<Self> {
        let memory = RdmaMemory::of_read_source(ram);
        let domain = memory.domain(&id)?;
        let hello = QueueHello {
            stream,
            piece_bytes_max: memory.agree_on_pieces(piece_bytes_max())?,
        };
        let queue = Queue::ask(id, &domain, hello, Takes::GRANTER)?;
        Ok(Self {
            watched: ending.watch(&queue)?,
            queue,
            ending,
            memory,
            domain,
            tables: HashMap::new(),
            wanted: VecDeque::new(),
        })
    }

    /// Waits until the other end has accepted.
    ///
    /// # Errors
    /// Why it has not.
    pub fn connect(&mut self) -> io::Result<()> {
        while !self.queue.is_ready() {
            if self.ending.is_over() {
                return Err(io::Error::new(io::ErrorKind::TimedOut, "no answer in time"));
            }
            if self.queue.next_event()?.is_none() {
                wait(&self.watched, Some(TURN))?;
            }
        }
        Ok(())
    }

    /// Grants what is asked for, until its end is asked for or the queue pair's has come. Either way all keys are dead when it
    /// returns.
    ///
    /// # Errors
    /// Why the queue pair is over; or a region cannot be deregistered.
    pub fn run(mut self, fingerprints: &Fingerprints<'_>) -> io::Result<()> {
        let outcome = self.grant_all(fingerprints);
        let Self { queue, memory, .. } = self;
        // Without it no key leads anywhere; what is pinned is let go behind it.
        drop(queue);
        memory.revoke().and(outcome)
    }

    fn grant_all(&mut self, fingerprints: &Fingerprints<'_>) -> io::Result<()> {
        while !self.ending.is_over() {
            self.look()?;
            match self.wanted.pop_front() {
                Some(piece) => self.answer(piece, fingerprints)?,
                None => wait(&self.watched, None)?,
            }
        }
        Ok(())
    }

    /// Looks for what is asked.
    fn look(&mut self) -> io::Result<()> {
        let Self { queue, wanted, .. } = self;
        queue.next_event()?;
        let mut take = |arrival| {
            let Arrival::Message(bytes, length) = arrival else {
                return Err(invalid("no message where pieces are granted"));
            };
            match read_message(&bytes[..length])? {
                QueueMessage::PieceWanted(piece) if wanted.len() < READS_WANTED_MAX as usize => {
                    wanted.push_back(piece);
                    Ok(())
                }
                other => Err(invalid(format!("{other:?} from who reads"))),
            }
        };
        queue.take_rings()?;
        queue.poll(&mut take)?;
        queue.arm()?;
        queue.poll(&mut take)
    }

    fn answer(&mut self, piece: PieceId, fingerprints: &Fingerprints<'_>) -> io::Result<()> {
        let Some((pages, table)) = self.grant(piece, fingerprints) else {
            return self
                .queue
                .send(&QueueMessage::PieceRefused(piece).to_bytes());
        };
        let table = QueueMessage::PieceFingerprints {
            piece,
            address: table.address,
            key: table.rkey,
        };
        let pages = QueueMessage::PieceGranted {
            piece,
            address: pages.address,
            key: pages.rkey,
        };
        self.queue.send(&table.to_bytes())?;
        self.queue.send(&pages.to_bytes())
    }

    /// Registers a piece and its table, and says where they are. `None` where there is nothing to read, where to register it
    /// would make much memory, or no more can be locked.
    fn grant(
        &mut self,
        piece: PieceId,
        fingerprints: &Fingerprints<'_>,
    ) -> Option<(RemoteAddress, RemoteAddress)> {
        let pages = self.memory.pages(piece)?;
        if self.memory.is_sparse(piece) {
            return None;
        }
        let table = match self.tables.get(&piece) {
            Some(table) => Arc::clone(table),
            None => self.table(&fingerprints(&pages)?)?,
        };
        let at = (self.memory.grant(piece, 0)?, table.remote_address(0).ok()?);
        self.tables.insert(piece, table);
        Some(at)
    }

    fn table(&self, fingerprints: &[u64]) -> Option<Arc<MemoryRegion>> {
        let bytes = size_of_val(fingerprints);
        let made = registered(&self.domain, bytes, Access::REMOTE_READ);
        let made = made.and_then(|(buffer, region)| {
            let table: Vec<_> = fingerprints
                .iter()
                .flat_map(|low| low.to_le_bytes())
                .collect();
            buffer.write(0, &table)?;
            Ok(region)
        });
        let refused = |error: &_| tracing::debug!(error = %words(error), "no fingerprints to read");
        made.inspect_err(refused).ok()
    }
}
