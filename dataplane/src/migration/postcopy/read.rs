//! Pages that somebody waits for, read out of the source's RAM by this node's adapter: nobody at the source is asked.
//!
//! Beside the pages the adapter reads what their fingerprints are, which the source's processor has computed from its RAM: a
//! page that is not what that says is not placed, as with frames. Nobody says which pages are zero; their fingerprint does.
//! The root at the end proves both, and that none was left out.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use dwcp_proto::floor_char;
use dwcp_simd::PAGE_BYTES;
use dwcp_wire::PagesRead;
use dwcp_wire::limits::REASON_BYTES_MAX;
use dwcp_wire::rdma::FINGERPRINT_BYTES;
use hdrhistogram::Histogram;

use super::fetch::{Fetch, FetchEvent};
use super::place::Place;
use super::waiting::new_histogram;
use crate::migration::node::lock;
use crate::transport::{PageReader, PagesCame};

/// What reads pages, and what it has read.
#[derive(Debug)]
pub(super) struct Reading {
    reader: Mutex<Option<Arc<PageReader>>>,
    count: Mutex<Count>,
}

#[derive(Debug)]
struct Count {
    has_begun: bool,
    pages: u64,
    took_us: Histogram<u64>,
    broke: Option<String>,
}

impl Reading {
    pub(super) fn new() -> Self {
        Self {
            reader: Mutex::default(),
            count: Mutex::new(Count {
                has_begun: false,
                pages: 0,
                took_us: new_histogram(),
                broke: None,
            }),
        }
    }

    /// Who reads, unless nobody does, or does any more.
    pub(super) fn reader(&self) -> Option<Arc<PageReader>> {
        lock(&self.reader).clone()
    }

    fn begin(&self, reader: Arc<PageReader>) {
        lock(&self.count).has_begun = true;
        *lock(&self.reader) = Some(reader);
    }

    /// Nothing more is read. Its thread ends soon.
    pub(super) fn end(&self) {
        if let Some(reader) = lock(&self.reader).take() {
            reader.end();
        }
    }

    fn note_broken(&self, reason: &str) {
        let most = floor_char(reason, REASON_BYTES_MAX);
        let mut count = lock(&self.count);
        count.broke.get_or_insert_with(|| reason[..most].to_owned());
    }

    fn count(&self, pages: u64, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        let mut count = lock(&self.count);
        count.pages += pages;
        count.took_us.saturating_record(us);
    }

    /// Pages so far.
    pub(super) fn pages(&self) -> u64 {
        lock(&self.count).pages
    }

    /// What was read; `None` where nothing was to be.
    pub(super) fn summary(&self) -> Option<PagesRead> {
        let count = lock(&self.count);
        count.has_begun.then(|| PagesRead {
            pages: count.pages,
            reads: count.took_us.len(),
            p50_us: count.took_us.value_at_quantile(0.5),
            p99_us: count.took_us.value_at_quantile(0.99),
            broke: count.broke.clone(),
        })
    }
}

impl Fetch {
    /// What somebody waits for is read from now on, where that can be.
    pub(in crate::migration) fn read_by(self: &Arc<Self>, reader: PageReader) {
        let reader = Arc::new(reader);
        let (fetch, reads) = (Arc::clone(self), Arc::clone(&reader));
        self.reading().begin(reader);
        let spawned = self.spawn("dwcp-read".into(), move || {
            let ended = reads.run(&mut |came| fetch.take_read(came));
            if let Err(error) = ended {
                fetch.give_reading_up(&error.to_string());
            }
            // What was being read, or was to be while it ended, is asked for by TCP.
            if fetch.is_under_way() {
                fetch.ask_again();
            }
        });
        if let Err(error) = spawned {
            self.give_reading_up(&error.to_string());
        }
    }

    fn take_read(&self, came: &PagesCame<'_>) {
        let mut place = Place::new(self);
        let mut pages = 0;
        for (run, data, fingerprints_low) in came.runs() {
            place.read(run.ram_block, run.page, data, fingerprints_low);
            pages += data.len();
        }
        self.meter()
            .count_bytes(pages * (PAGE_BYTES + FINGERPRINT_BYTES));
        self.reading()
            .count(pages as u64 - place.damaged, came.since.elapsed());
        if place.damaged > 0 {
            // The adapter would read the same again.
            self.give_reading_up("pages that were read are not what their fingerprints say");
        }
        self.placed(&place);
    }

    /// All that somebody waits for is asked for by TCP from now on.
    fn give_reading_up(&self, reason: &str) {
        let is_news = self.reading().reader().is_some() && self.is_under_way();
        self.reading().end();
        if is_news {
            self.reading().note_broken(reason);
            self.tell(FetchEvent::ReadingBroke(reason.to_owned()));
        }
    }
}
