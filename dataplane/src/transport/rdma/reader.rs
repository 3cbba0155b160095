//! The destination's end where it reads: pages that somebody waits for, out of the source's RAM, which stands still.
//!
//! ```text
//! fault ─► reach ─┬─ no key yet: PieceWanted; the page comes by TCP
//!                 └─ read ─► READ pages, READ their fingerprints ─► run ─► copied out, to be checked and placed
//! ```
//! The buffer that is read into is this end's own. Guest RAM is not known to the adapter.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use dwcp_rdma::{Access, Buffer, LocalSpan, MemoryRegion, ProtectionDomain, SendRequest};
use dwcp_simd::{PAGE_BYTES, Page};
use dwcp_wire::PageRange;
use dwcp_wire::rdma::{FINGERPRINT_BYTES, PieceId, QueueMessage};
use nix::sys::epoll::Epoll;

use super::ending::{Ending, wait};
use super::memory::{invalid, read_message, words};
use super::queue::{Arrival, Queue, REASON_TIME, Takes, registered};
use super::readable::{Look, Readable};
use super::route::{RdmaRequest, refuse};

/// Pages of one read, from its first to its last.
pub const READ_PAGES_MAX: u32 = 16;

/// Reads at a time; what is waited for beyond them is asked for by TCP.
const READS_MAX: usize = 16;

/// Where the fingerprints of a read lie, behind its pages.
const FINGERPRINTS_AT: usize = READ_PAGES_MAX as usize * PAGE_BYTES;

/// Bytes of a read's part of the buffer.
const READ_BYTES: usize = FINGERPRINTS_AT + PAGE_BYTES;

const _: () = assert!(READ_PAGES_MAX as usize * FINGERPRINT_BYTES <= PAGE_BYTES);

/// Reads pages, for all who wait.
#[derive(Debug)]
pub struct PageReader {
    state: Mutex<State>,
    buffer: Arc<Buffer>,
    region: Arc<MemoryRegion>,
    watched: Epoll,
    ending: Ending,
    piece_pages: u32,
}

#[derive(Debug)]
struct State {
    /// `None` when it is over: nothing is read any more.
    queue: Option<Queue>,
    pieces: Readable,
    /// Under way, by the parts of the buffer.
    reads: HashMap<usize, Read>,
    /// A request could not be posted.
    broke: Option<io::Error>,
}

/// Runs of pages of one piece, in their order.
#[derive(Debug)]
struct Read {
    runs: Vec<PageRange>,
    since: Instant,
}

/// Pages that were read, out of the adapter's reach: what is fingerprinted is what is placed.
#[derive(Debug)]
pub struct PagesCame<'a> {
    runs: &'a [PageRange],
    pages: &'a [Page],
    fingerprints_low: &'a [u64],
    /// When they were asked for.
    pub since: Instant,
}

impl PagesCame<'_> {
    /// Each run with its pages, and the lower halves of the fingerprints that the source says they have.
    pub fn runs(&self) -> impl Iterator<Item = (&PageRange, &[Page], &[u64])> {
        let first = self.runs.first().map_or(0, |run| run.page);
        self.runs.iter().map(move |run| {
            let at = (run.page - first) as usize;
            let pages = at..at + run.count as usize;
            (
                run,
                &self.pages[pages.clone()],
                &self.fingerprints_low[pages],
            )
        })
    }
}

impl PageReader {
    /// Accepts a source's request.
    ///
    /// # Errors
    /// When there are no means. The source has been told.
    pub fn answer(request: RdmaRequest) -> io::Result<Self> {
        let RdmaRequest { id, hello } = request;
        let prepared = || {
            let domain = ProtectionDomain::new(&id.open_device()?)?;
            let bytes = READS_MAX * READ_BYTES;
            let (buffer, region) = registered(&domain, bytes, Access::LOCAL_WRITE)?;
            Ok((domain, buffer, region))
        };
        let (domain, buffer, region) = prepared().map_err(|error| {
            let error = words(&error);
            refuse(&id, &error.to_string());
            error
        })?;
        let queue = Queue::answer(id, &domain, &[], Takes::READER)?;
        let ending = Ending::new()?;
        Ok(Self {
            watched: ending.watch(&queue)?,
            state: Mutex::new(State {
                queue: Some(queue),
                pieces: Readable::default(),
                reads: HashMap::new(),
                broke: None,
            }),
            buffer,
            region,
            ending,
            piece_pages: hello.piece_bytes_max / PAGE_BYTES as u32,
        })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The piece of a page, and the page's number in it.
    const fn piece_of(&self, ram_block: u32, page: u32) -> (PieceId, u32) {
        let piece = page / self.piece_pages;
        (PieceId { ram_block, piece }, page % self.piece_pages)
    }

    /// Pages from this one on that one read may have. `None` when it must come otherwise; its piece is asked for then,
    /// where that may help the next.
    pub fn reach(&self, ram_block: u32, page: u32) -> Option<u32> {
        let (piece, number) = self.piece_of(ram_block, page);
        let mut state = self.lock();
        let State {
            queue: Some(queue),
            pieces,
            ..
        } = &mut *state
        else {
            return None;
        };
        match pieces.look(piece) {
            Look::At(_) => return Some((self.piece_pages - number).min(READ_PAGES_MAX)),
            Look::Ask if queue.room() > 0 => {
                pieces.asked(piece);
                let sent = queue.send(&QueueMessage::PieceWanted(piece).to_bytes());
                if let Err(error) = sent {
                    self.break_off(&mut state, error);
                }
            }
            Look::Ask | Look::No => {}
        }
        None
    }

    /// Reads runs of pages, which begin where [`Self::reach`] was asked for and end within it. False when that cannot be:
    /// nothing will come.
    pub fn read(&self, runs: &[PageRange]) -> bool {
        let mut state = self.lock();
        match self.post(&mut state, runs) {
            Ok(is_posted) => is_posted,
            Err(error) => {
                self.break_off(&mut state, error);
                false
            }
        }
    }

    fn post(&self, state: &mut State, runs: &[PageRange]) -> io::Result<bool> {
        let (Some(first), Some(last)) = (runs.first(), runs.last()) else {
            return Ok(false);
        };
        let (piece, number) = self.piece_of(first.ram_block, first.page);
        let pages = last.page + last.count - first.page;
        let (Some(queue), Look::At(places)) = (&mut state.queue, state.pieces.look(piece)) else {
            return Ok(false);
        };
        let part = (0..READS_MAX).find(|part| !state.reads.contains_key(part));
        let fits = pages <= READ_PAGES_MAX.min(self.piece_pages - number);
        let Some(part) = part.filter(|_| fits && queue.room() > runs.len()) else {
            return Ok(false);
        };
        let begin = part * READ_BYTES;
        let span = |at: usize, bytes| {
            let span = self.region.span(begin + at..begin + at + bytes);
            span.map_err(|error| words(&error))
        };
        let behind = |run: &PageRange| (run.page - first.page) as usize * PAGE_BYTES;
        let into = runs.iter().map(|run| span(behind(run), run.bytes()));
        let into = into.collect::<io::Result<Vec<LocalSpan>>>()?;
        let fingerprints = span(FINGERPRINTS_AT, pages as usize * FINGERPRINT_BYTES)?;
        let from = places.pages.plus(u64::from(number) * PAGE_BYTES as u64);
        let mut requests: Vec<_> = (runs.iter().zip(&into))
            .map(|(run, span)| {
                SendRequest::read(std::slice::from_ref(span), from.plus(behind(run) as u64))
            })
            .collect();
        let table = places.fingerprints;
        let from = table.plus(u64::from(number) * FINGERPRINT_BYTES as u64);
        let last = SendRequest::read(std::slice::from_ref(&fingerprints), from);
        // It is complete when those before it are.
        requests.push(last.id(part as u64 + 1));
        queue.post(&requests, true)?;
        let read = Read {
            runs: runs.to_vec(),
            since: Instant::now(),
        };
        state.reads.insert(part, read);
        Ok(true)
    }

    /// The thread that waits for what comes is to say why it is over.
    fn break_off(&self, state: &mut State, error: io::Error) {
        state.broke.get_or_insert(error);
        self.ending.ring();
    }

    /// Hands over what comes, until [`Self::end`], or until the queue pair breaks. Either way nothing is read when it
    /// returns, nor will be.
    ///
    /// # Errors
    /// Why it broke. What was being read does not come.
    pub fn run(&self, take: &mut dyn FnMut(&PagesCame<'_>)) -> io::Result<()> {
        let outcome = self.hand_over(take);
        let mut state = self.lock();
        state.queue = None;
        state.reads.clear();
        outcome
    }

    fn hand_over(&self, take: &mut dyn FnMut(&PagesCame<'_>)) -> io::Result<()> {
        let mut pages: Vec<Page> = vec![[0; PAGE_BYTES]; READ_PAGES_MAX as usize];
        let mut table = [[0; FINGERPRINT_BYTES]; READ_PAGES_MAX as usize];
        let mut complete = vec![];
        while !self.ending.is_over() {
            let most = self.look(&mut complete)?;
            if complete.is_empty() {
                wait(&self.watched, most)?;
            }
            for part in complete.drain(..) {
                let begin = part * READ_BYTES;
                let copied = self.buffer.read(begin, pages.as_flattened_mut());
                copied.map_err(|error| words(&error))?;
                let copied = self
                    .buffer
                    .read(begin + FINGERPRINTS_AT, table.as_flattened_mut());
                copied.map_err(|error| words(&error))?;
                let Some(read) = self.lock().reads.remove(&part) else {
                    return Err(invalid("a read that nobody posted is complete"));
                };
                take(&PagesCame {
                    runs: &read.runs,
                    pages: &pages,
                    fingerprints_low: &table.map(u64::from_le_bytes),
                    since: read.since,
                });
            }
        }
        Ok(())
    }

    /// Looks for reads that are complete, and for what the source says. Says how long may be waited where there is nothing.
    fn look(&self, complete: &mut Vec<usize>) -> io::Result<Option<Duration>> {
        let mut state = self.lock();
        if let Some(error) = state.broke.take() {
            return Err(error);
        }
        let State { queue, pieces, .. } = &mut *state;
        let Some(queue) = queue else {
            return Err(io::ErrorKind::NotConnected.into());
        };
        queue.poll(&mut |arrival| came(&arrival, pieces, complete))?;
        if complete.is_empty() {
            queue.take_rings()?;
            queue.arm()?;
            queue.poll(&mut |arrival| came(&arrival, pieces, complete))?;
        }
        // What has come before the end is taken first.
        if complete.is_empty() {
            queue.next_event()?;
        }
        Ok(queue.is_failing().then_some(REASON_TIME))
    }

    /// Ends it.
    pub fn end(&self) {
        self.ending.end();
    }
}

/// Takes what has come: answers of the source, and reads that are complete.
fn came(arrival: &Arrival, pieces: &mut Readable, complete: &mut Vec<usize>) -> io::Result<()> {
    match arrival {
        Arrival::Read(id) => complete.push(*id as usize - 1),
        Arrival::Message(bytes, length) => {
            let message = read_message(&bytes[..*length])?;
            if !pieces.told(message) {
                return Err(invalid(format!("{message:?} does not fit what was asked")));
            }
        }
        Arrival::Record(_) => return Err(invalid("a record where pages are read")),
    }
    Ok(())
}
