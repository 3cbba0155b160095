//! A connection for missing pages at the destination: requests out, frames in.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_simd::PAGE_BYTES;
use dwcp_wire::{FrameHeader, FrameKind, PageRange, PageRequest};

use super::DEMAND;
use super::fetch::Fetch;
use super::flow::Flow;
use super::place::Place;
use crate::migration::meter::Meter;
use crate::migration::peer::{PeerError, read_frame, write_frame};
use crate::path::{Decoder, PageTable};
use crate::tls::Connection;

/// Pages of a request that nobody waits for: 128 KiB, which a page that somebody waits for is behind of at
/// most on another connection.
const REQUEST_PAGES: u32 = 32;

/// How often a connection with nothing to ask for looks again.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Why a connection for missing pages ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("connection lost: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Frame(#[from] crate::path::DecodeError),
    #[error("{0} pages that were not asked for")]
    Unasked(u64),
    #[error("{0:?} frame among missing pages")]
    Kind(FrameKind),
}

/// Asks for pages.
#[derive(Debug)]
pub(super) struct Requests {
    /// Of the link's connection, among all.
    pub(super) number: u32,
    connection: Connection,
    index: u16,
    sequence: u64,
    meter: Arc<Meter>,
}

impl Requests {
    fn new(
        number: u32,
        connection: &Connection,
        index: u16,
        meter: &Arc<Meter>,
    ) -> io::Result<Self> {
        Ok(Self {
            number,
            connection: connection.try_clone()?,
            index,
            sequence: 0,
            meter: Arc::clone(meter),
        })
    }

    pub(super) fn ask(&mut self, ranges: Vec<PageRange>) -> io::Result<()> {
        self.sequence += 1;
        let payload = PageRequest { ranges }.to_bytes();
        write_frame(
            &mut self.connection,
            FrameKind::PageRequest,
            self.index,
            self.sequence,
            &payload,
            &self.meter,
        )
    }

    pub(super) fn shut(&self) {
        self.connection.shut();
    }
}

/// What reads frames off a connection.
struct Answers<'a> {
    fetch: &'a Fetch,
    connection: Connection,
    block_pages: Vec<u32>,
    table: PageTable,
    decoder: Decoder,
    meter: Arc<Meter>,
}

impl<'a> Answers<'a> {
    fn new(fetch: &'a Fetch, connection: Connection, meter: &Arc<Meter>) -> Self {
        let blocks = fetch.session().layout.blocks();
        Self {
            fetch,
            connection,
            block_pages: blocks.iter().map(crate::ram::RamBlock::pages).collect(),
            table: PageTable::new(),
            decoder: Decoder::new(1),
            meter: Arc::clone(meter),
        }
    }

    /// Takes one frame and places its pages. Returns how many it named.
    fn take(&mut self) -> Result<u64, LinkError> {
        let (header, payload) = read_frame(&mut self.connection, &self.meter)?;
        // Nothing rests on what came before.
        let looks_back = header.starts_window || header.shuffles_window || header.delta_bytes > 0;
        if header.kind != FrameKind::Pages || looks_back {
            return Err(LinkError::Kind(header.kind));
        }
        self.place(&header, &payload)
    }

    fn place(&mut self, header: &FrameHeader, payload: &[u8]) -> Result<u64, LinkError> {
        let (table, data) = payload.split_at(header.table_bytes as usize);
        self.table.read(header, table, &self.block_pages)?;
        let mut place = Place::new(self.fetch);
        self.decoder.decode(&self.table, data, &mut place);
        self.fetch.placed(&place);
        Ok(self.table.named())
    }
}

/// Serves a connection until it ends, or nothing is missing any more.
pub(super) fn run(
    fetch: &Fetch,
    (number, index): (u32, u16),
    connection: Connection,
    meter: &Arc<Meter>,
) {
    // Others have it too: an end of ours must be one for the source.
    let ended = connection.try_clone();
    let outcome = match index {
        DEMAND => demand(fetch, number, connection, meter),
        _ => background(fetch, index, connection, meter),
    };
    if let Err(error) = outcome {
        if let Ok(ended) = ended {
            ended.shut();
        }
        fetch.link_lost(number, format!("missing pages {index}: {error}"));
    }
}

/// What somebody waits for is asked for by the thread that hears of it.
fn demand(
    fetch: &Fetch,
    number: u32,
    connection: Connection,
    meter: &Arc<Meter>,
) -> Result<(), LinkError> {
    let requests = Requests::new(number, &connection, DEMAND, meter)?;
    let mut answers = Answers::new(fetch, connection, meter);
    fetch.ask_by(requests);
    loop {
        answers.take()?;
    }
}

fn background(
    fetch: &Fetch,
    index: u16,
    connection: Connection,
    meter: &Arc<Meter>,
) -> Result<(), LinkError> {
    let mut requests = Requests::new(0, &connection, index, meter)?;
    let mut answers = Answers::new(fetch, connection, meter);
    let mut flow = Flow::new(Instant::now());
    while fetch.is_under_way() {
        let mut nothing = false;
        while flow.has_room() && !fetch.waiting().any() && !nothing {
            let ranges = fetch.next(REQUEST_PAGES);
            nothing = ranges.is_empty();
            if !nothing {
                let pages = ranges.iter().map(|range| u64::from(range.count)).sum();
                flow.asked(pages, pages * PAGE_BYTES as u64, Instant::now());
                requests.ask(ranges)?;
            }
        }
        if !flow.is_empty() {
            let named = answers.take()?;
            if !flow.answered(named, Instant::now()) {
                return Err(LinkError::Unasked(named));
            }
        } else if nothing {
            // The last pages are under way on other connections.
            std::thread::sleep(LOOK_AGAIN);
        } else {
            fetch.waiting().until_nobody(LOOK_AGAIN);
        }
    }
    Ok(())
}
