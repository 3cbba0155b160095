//! Stages 1 to 4 of one worker: dirty pages in, frames out.

use std::time::{Duration, Instant};

use dwcp_simd::{Fingerprint, FingerprintKey, Kernels, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::{PageClass, PageEntry, PageRange};

use super::again::PagesAgain;
use super::classify::{PageKind, classify};
use super::encode::Encoder;
use super::frame::{FrameBuilder, ReadyFrame};
use super::in_flight::Lost;
use super::places::Places;
use super::remembered::{Leaving, RememberedPages};
use super::source::RoundWork;
use crate::ram::{Digests, RamLayout};

/// What a worker has done in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OutgoingCounts {
    /// Pages looked at.
    pub visited: u64,
    /// Those of them that lie on another NUMA node than the worker.
    pub away: u64,
    /// Pages named in frames.
    pub named: u64,
    /// Zero pages, marks and those the destination holds anyway.
    pub zero: u64,
    /// Pages that had not changed.
    pub unchanged: u64,
    /// Pages sent as what changed.
    pub delta: u64,
    /// Pages sent compressed.
    pub compressed: u64,
    /// Pages sent raw.
    pub raw: u64,
    /// Frames.
    pub frames: u64,
    /// Bytes of frames.
    pub wire_bytes: u64,
}

impl OutgoingCounts {
    /// Adds the pages that a frame names, by how they are carried.
    fn add(&mut self, entries: &[PageEntry]) {
        for entry in entries {
            self.add_run(entry.class, entry.count.into());
        }
    }

    pub(super) const fn add_run(&mut self, class: PageClass, pages: u64) {
        self.named += pages;
        match class {
            PageClass::Zero => self.zero += pages,
            PageClass::Raw => self.raw += pages,
            PageClass::Zstd | PageClass::Window => self.compressed += pages,
            PageClass::Delta => self.delta += pages,
            _ => {}
        }
    }

    /// Takes back what was counted for frames that were lost.
    const fn take_back(&mut self, lost: &Self) {
        self.named -= lost.named;
        self.zero -= lost.zero;
        self.delta -= lost.delta;
        self.compressed -= lost.compressed;
        self.raw -= lost.raw;
        self.frames -= lost.frames;
        self.wire_bytes -= lost.wire_bytes;
    }
}

/// Stages 1 to 4 of one worker.
#[derive(Debug)]
pub struct Outgoing<'a> {
    layout: &'a RamLayout,
    digests: &'a Digests,
    key: &'a FingerprintKey,
    kernels: &'static Kernels,
    by_reference: bool,
    remembered: Option<&'a RememberedPages>,
    /// What the page that is looked at was.
    old: Box<Page>,
    builder: FrameBuilder,
    places: Places,
    encoding: Duration,
    again: PagesAgain,
    /// Counts of the round so far.
    pub counts: OutgoingCounts,
    /// Change of the root by what this worker has sent in the round.
    pub root: RamRoot,
}

impl<'a> Outgoing<'a> {
    /// A line over `layout`; `digests` is what the destination holds. With `by_reference`, pages are
    /// neither copied nor encoded.
    #[must_use]
    pub fn new(
        layout: &'a RamLayout,
        digests: &'a Digests,
        key: &'a FingerprintKey,
        by_reference: bool,
    ) -> Self {
        Self {
            layout,
            digests,
            key,
            kernels: kernels(),
            by_reference,
            remembered: None,
            old: Box::new([0; PAGE_BYTES]),
            builder: FrameBuilder::new(),
            places: Places::default(),
            encoding: Duration::ZERO,
            again: PagesAgain::default(),
            counts: OutgoingCounts::default(),
            root: RamRoot::default(),
        }
    }

    /// Takes pages on this NUMA node first.
    #[must_use]
    pub const fn near(mut self, node: Option<usize>) -> Self {
        self.places.near(node);
        self
    }

    /// Sends pages that are remembered as what changed.
    #[must_use]
    pub const fn remembering(mut self, pages: Option<&'a RememberedPages>) -> Self {
        self.remembered = pages;
        self
    }

    /// Begins a round.
    pub fn begin(&mut self, work: &RoundWork) {
        self.places.begin(work);
        self.counts = OutgoingCounts::default();
        self.root = RamRoot::default();
    }

    /// What the round has lost with a stream goes once more. The stream that brought it must be over at the
    /// destination: otherwise an older copy of a page might come after a newer one.
    pub fn lost(&mut self, lost: &Lost) {
        self.counts.take_back(&lost.counts);
        self.again.add(&lost.pages);
    }

    /// Whether pages leave without a copy.
    #[must_use]
    pub const fn is_by_reference(&self) -> bool {
        self.by_reference
    }

    /// Has pages of the next frames leave without a copy, or not.
    pub const fn set_by_reference(&mut self, by_reference: bool) {
        self.by_reference = by_reference;
    }

    /// Time that encoding the frame built last took, of a codec that encodes whole frames.
    #[must_use]
    pub const fn encoding(&self) -> Duration {
        self.encoding
    }

    /// Pages that the frame built last refers to.
    #[must_use]
    pub fn pages(&self) -> &[PageRange] {
        self.builder.referred()
    }

    /// RAM block and entries of the frame built last.
    #[must_use]
    pub fn named(&self) -> (u32, &[PageEntry]) {
        (self.builder.block(), self.builder.entries())
    }

    /// Pages of the frame built last that are not zero.
    #[must_use]
    pub const fn pages_with_data(&self) -> u64 {
        self.builder.pages_with_data()
    }

    /// Builds the next frame of the round in `buffer`, by the encoder of the stream that it will leave
    /// on, or says `None` when the round has no more pages that must be sent.
    pub fn next_frame(
        &mut self,
        work: &RoundWork,
        buffer: &mut [u8],
        encoder: &mut Encoder,
        stream: u16,
        sequence: u64,
    ) -> Option<ReadyFrame> {
        self.places.go_to(stream, work);
        self.builder.start(self.places.batch().block);
        while !self.builder.is_full() {
            if self.places.batch().dirty == 0 {
                if !self.next_batch(work) {
                    break;
                }
                let batch = self.places.batch();
                if self.builder.is_empty() {
                    self.builder.start(batch.block);
                } else if !self.builder.may_go_on(batch) {
                    break;
                }
            }
            self.take_page(work.round == 0, buffer, encoder);
        }
        if self.builder.is_empty() {
            return None;
        }
        let began = Instant::now();
        let frame = self
            .builder
            .finish(encoder, buffer, stream, sequence, work.round);
        self.encoding = began.elapsed();
        self.counts.add(self.builder.entries());
        self.counts.frames += 1;
        self.counts.wire_bytes += frame.bytes();
        Some(frame)
    }

    /// Goes on to pages that were lost, or to the next of the round; `false` when there are none.
    fn next_batch(&mut self, work: &RoundWork) -> bool {
        match self.again.next_batch() {
            Some(batch) => self.places.put(batch),
            None if self.places.next_batch(work) => {}
            None => return false,
        }
        let batch = self.places.batch();
        if work.round == 0 {
            let block = &self.layout.blocks()[batch.block as usize];
            block.map_ahead(batch.first_page, batch.dirty);
        }
        if self.places.is_away(work) {
            self.counts.away += u64::from(batch.dirty.count_ones());
        }
        true
    }

    /// Reads the batch's next page, once, and decides on what was read.
    fn take_page(&mut self, is_first: bool, buffer: &mut [u8], encoder: &mut Encoder) {
        let bit = self.places.take_page();
        let batch = self.places.batch();
        let page = batch.first_page + bit;
        let forced = batch.forced >> bit & 1 == 1;
        let block = batch.block as usize;
        let global = self.layout.global_page(block, page);
        let fingerprint = self.read_page(block, page, buffer);
        self.counts.visited += 1;
        let held = self.digests.get(global);
        match classify(self.key, fingerprint, held, forced) {
            PageKind::ZeroHeld => self.counts.zero += 1,
            PageKind::Unchanged => self.counts.unchanged += 1,
            PageKind::Zero => {
                self.builder.push_zero(page, encoder, buffer);
                self.digests.set(global, None, &mut self.root);
            }
            PageKind::Data(fingerprint) if self.by_reference => {
                self.builder.push_reference(page, fingerprint);
                self.digests.set(global, Some(fingerprint), &mut self.root);
            }
            PageKind::Data(fingerprint) => {
                let leaving = Leaving {
                    number: global,
                    content: self.builder.slot(buffer),
                    fingerprint,
                    is_first,
                };
                let remembered = self.remembered.filter(|_| encoder.takes_changes());
                // What it was is of no use where the destination may not hold it.
                let held = held.filter(|_| !forced);
                let is_known =
                    remembered.is_some_and(|all| all.exchange(&leaving, held, &mut self.old));
                let (builder, old) = (&mut self.builder, &*self.old);
                if is_known {
                    builder.push_changed(page, fingerprint, old, encoder, buffer);
                } else {
                    builder.push_data(page, fingerprint, encoder, buffer);
                }
                self.digests.set(global, Some(fingerprint), &mut self.root);
            }
        }
    }

    /// One read of the page: where it is, or of a copy that will be encoded.
    fn read_page(&self, block: usize, page: u32, buffer: &mut [u8]) -> Fingerprint {
        let ram = &self.layout.blocks()[block];
        if !self.by_reference {
            let copy = self.builder.slot(buffer);
            ram.read_page(page, copy);
            return self.kernels.fingerprint(self.key, copy);
        }
        let batch = self.places.batch();
        if batch.dirty != 0 {
            let next = batch.first_page + batch.dirty.trailing_zeros();
            ram.live_page(next).prefetch();
        }
        self.kernels.fingerprint_live(self.key, ram.live_page(page))
    }
}
