//! Both ends of the line of a page in one process, with byte pipes between them.

use std::sync::Arc;

use dwcp_api::Codec;
use dwcp_dataplane::path::{
    Applied, Decoder, Encoder, FRAME_BUFFER_BYTES, Incoming, Lanes, Outgoing, OutgoingCounts,
    PageTable, RECEIVE_BUFFER_BYTES, Received, Receiver, RememberedPages, RoundWork,
};
use dwcp_dataplane::ram::{Digests, RamBitmap, RamBlock, RamLayout, RamNodes};
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, RamRoot};
use dwcp_wire::{FrameHeader, FrameKind, PageRange};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Random;

/// RAM of one end, what it holds by its digests, and its root so far.
pub(crate) struct End {
    pub(crate) layout: RamLayout,
    pub(crate) digests: Digests,
    pub(crate) root: RamRoot,
    pub(crate) remembered: Option<RememberedPages>,
}

/// RAM of zeros.
pub(crate) fn ram(block_pages: &[u32]) -> RamLayout {
    let block = |(index, &pages): (usize, &u32)| {
        let bytes = u64::from(pages) * PAGE_BYTES as u64;
        let file = memfd_create("dwcp-test-ram", MFdFlags::MFD_CLOEXEC).unwrap();
        nix::unistd::ftruncate(&file, bytes as i64).unwrap();
        RamBlock::map(format!("block{index}"), file, bytes, 0).unwrap()
    };
    RamLayout::new(block_pages.iter().enumerate().map(block).collect()).unwrap()
}

/// RAM that lies on several NUMA nodes, in stretches of any length: the worker goes from one lane to
/// another, forth and back.
pub(crate) fn lanes(layout: &RamLayout, random: &mut Random) -> Arc<Lanes> {
    let mut stretches = vec![];
    for (index, block) in layout.blocks().iter().enumerate() {
        let mut page = 0;
        while page < block.pages() {
            let end = (page + 64 * (1 + random.below(4) as u32)).min(block.pages());
            let node = random.chance(80).then(|| random.below(3) as usize);
            stretches.push((index, page..end, node));
            page = end;
        }
    }
    Arc::new(Lanes::by_node(layout, &RamNodes::of(stretches)))
}

impl End {
    pub(crate) fn new(block_pages: &[u32]) -> Self {
        let layout = ram(block_pages);
        Self {
            digests: Digests::new(&layout),
            layout,
            root: RamRoot::default(),
            remembered: RememberedPages::new(4 << 20),
        }
    }

    pub(crate) fn page(&self, block: usize, page: u32) -> Page {
        let mut copy = [0; PAGE_BYTES];
        self.layout.blocks()[block].read_page(page, &mut copy);
        copy
    }

    /// The digests say what RAM holds, page by page.
    pub(crate) fn check_digests(&self, key: &FingerprintKey, place: &str) {
        for (index, block) in self.layout.blocks().iter().enumerate() {
            for page in 0..block.pages() {
                let held = self.digests.get(self.layout.global_page(index, page));
                let found = dwcp_simd::kernels().fingerprint(key, &self.page(index, page));
                let expected = (!key.is_zero(found)).then_some(found);
                assert_eq!(held, expected, "{place}: page {page} of block {index}");
            }
        }
    }

    /// The pages of `ranges`, one after the other, as they are now.
    fn bytes_of(&self, ranges: &[PageRange]) -> Vec<u8> {
        let pages = ranges.iter().flat_map(|range| {
            (range.page..range.page + range.count)
                .map(|page| self.page(range.ram_block as usize, page))
        });
        pages.collect::<Vec<_>>().into_flattened()
    }

    /// All pages, block by block.
    pub(crate) fn content(&self) -> Vec<Vec<Page>> {
        let pages = |(index, block): (usize, &RamBlock)| {
            (0..block.pages())
                .map(|page| self.page(index, page))
                .collect()
        };
        self.layout.blocks().iter().enumerate().map(pages).collect()
    }
}

/// A frame as it left the source.
#[derive(Clone)]
pub(crate) struct Sent {
    pub(crate) stream: u16,
    pub(crate) bytes: Vec<u8>,
}

impl Sent {
    pub(crate) fn header(&self) -> FrameHeader {
        FrameHeader::from_bytes(self.bytes.first_chunk().unwrap()).unwrap()
    }
}

/// How a round leaves the source.
#[derive(Clone, Copy)]
pub(crate) struct Leave<'a> {
    pub(crate) codec: Codec,
    pub(crate) by_reference: bool,
    /// What the guest does between the look at the pages of a frame and their leaving.
    pub(crate) meanwhile: &'a dyn Fn(&End, &[PageRange]),
}

impl Leave<'_> {
    pub(crate) const fn copied(codec: Codec) -> Self {
        Self {
            codec,
            by_reference: false,
            meanwhile: &|_, _| {},
        }
    }
}

/// The sending half of a stream.
pub(crate) struct Sender {
    sequence: u64,
    encoder: Encoder,
}

impl Sender {
    pub(crate) fn of(streams: usize, codec: Codec) -> Vec<Self> {
        let sender = |_| Self {
            sequence: 0,
            encoder: Encoder::new(codec, streams).shuffling(true),
        };
        (0..streams).map(sender).collect()
    }
}

/// Runs a round at the source: as many workers as streams, in turns. Returns the frames of all
/// streams in the order they were made, marks included, and the sums of what the workers counted.
pub(crate) fn send_round(
    source: &mut End,
    key: &FingerprintKey,
    work: &RoundWork,
    leave: Leave<'_>,
    senders: &mut [Sender],
) -> (Vec<Sent>, OutgoingCounts) {
    let line = |_: &Sender| {
        let (layout, digests) = (&source.layout, &source.digests);
        let by_reference = leave.by_reference && leave.codec == Codec::Raw;
        Outgoing::new(layout, digests, key, by_reference).remembering(source.remembered.as_ref())
    };
    let mut lines: Vec<_> = senders.iter().map(line).collect();
    let mut buffer = vec![0; FRAME_BUFFER_BYTES];
    let (mut frames, mut counts) = (vec![], OutgoingCounts::default());
    lines.iter_mut().for_each(|line| line.begin(work));
    if work.resends() {
        senders
            .iter_mut()
            .for_each(|sender| sender.encoder.restart());
    }
    let mut busy: Vec<usize> = (0..lines.len()).collect();
    while !busy.is_empty() {
        busy.retain(|&stream| {
            let Sender { sequence, encoder } = &mut senders[stream];
            *sequence += 1;
            let sequence = *sequence;
            let frame =
                lines[stream].next_frame(work, &mut buffer, encoder, stream as u16, sequence);
            let bytes = frame.map(|frame| {
                let pages = lines[stream].pages();
                (leave.meanwhile)(source, pages);
                let mut bytes = buffer[frame.head.clone()].to_vec();
                bytes.extend(source.bytes_of(pages));
                assert_eq!(bytes.len() as u64, frame.bytes());
                bytes
            });
            let more = bytes.is_some();
            let mark = || {
                let mut mark = FrameHeader::empty(FrameKind::RoundMark, stream as u16, sequence);
                mark.round = work.round;
                mark.to_bytes().to_vec()
            };
            frames.push(Sent {
                stream: stream as u16,
                bytes: bytes.unwrap_or_else(mark),
            });
            more
        });
    }
    let mut root = source.root;
    for line in &lines {
        counts.visited += line.counts.visited;
        counts.named += line.counts.named;
        counts.zero += line.counts.zero;
        counts.unchanged += line.counts.unchanged;
        counts.delta += line.counts.delta;
        counts.compressed += line.counts.compressed;
        counts.raw += line.counts.raw;
        counts.frames += line.counts.frames;
        counts.wire_bytes += line.counts.wire_bytes;
        root.merge(line.root);
    }
    source.root = root;
    (frames, counts)
}

/// The receiving half of a stream: a pipe that is cut anywhere, and what is behind it.
pub(crate) struct Pipe {
    receiver: Receiver,
    buffer: Vec<u8>,
    table: PageTable,
    decoder: Decoder,
    /// Data that goes straight to RAM.
    placed: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(stream: u16, streams: usize) -> Self {
        Self {
            receiver: Receiver::new(stream),
            buffer: vec![0; RECEIVE_BUFFER_BYTES],
            table: PageTable::new(),
            decoder: Decoder::new(streams),
            placed: vec![],
        }
    }

    /// Lets `bytes` through in pieces and applies each frame; false when the stream is refused.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        random: &mut Random,
        line: &mut Incoming<'_>,
        layout: &RamLayout,
        all: &mut Applied,
    ) -> bool {
        while !bytes.is_empty() {
            let wanted = self.receiver.wanted();
            let to_ram = wanted.placed_bytes - wanted.placed;
            let most = random.pick(&[1, 63, 64, 65, 5000, usize::MAX]);
            let room = to_ram + wanted.range.len();
            let (piece, rest) = bytes.split_at(room.min(most).min(bytes.len()));
            bytes = rest;
            let (in_place, buffered) = piece.split_at(to_ram.min(piece.len()));
            self.placed.extend_from_slice(in_place);
            self.buffer[wanted.range.start..][..buffered.len()].copy_from_slice(buffered);
            self.receiver.received(piece.len());
            if !self.take(line, layout, all) {
                return false;
            }
        }
        true
    }

    fn take(&mut self, line: &mut Incoming<'_>, layout: &RamLayout, all: &mut Applied) -> bool {
        loop {
            match self.receiver.next(&self.buffer) {
                Ok(Received::Nothing) => return true,
                Ok(Received::Table(header, range)) => {
                    let table = &self.buffer[range];
                    if line.read_table(&header, table, &mut self.table).is_err() {
                        return false;
                    }
                    // As of one block with all of its memory, and one without.
                    if header.sequence % 2 == 1 {
                        self.table.receive_apart();
                    }
                    self.receiver.place(self.table.in_place());
                }
                Ok(Received::Frame(header, data)) => {
                    if header.kind == FrameKind::Pages {
                        let in_place = !self.table.in_place().is_empty();
                        self.write_placed(layout);
                        let data = (!in_place).then_some(&self.buffer[data]);
                        line.apply(&header, &self.table, data, &mut self.decoder, all)
                            .unwrap();
                    }
                    self.receiver.consume(&mut self.buffer);
                }
                Err(_) => return false,
            }
        }
    }

    /// What the kernel does for a transport.
    fn write_placed(&mut self, layout: &RamLayout) {
        let placed = std::mem::take(&mut self.placed);
        let mut pages = placed.as_chunks::<PAGE_BYTES>().0.iter();
        for run in self.table.in_place() {
            for page in run.page..run.page + run.count {
                layout.blocks()[run.ram_block as usize].write_page(page, pages.next().unwrap());
            }
        }
        assert!(pages.next().is_none());
    }
}

/// Applies frames at the destination. `None` when a stream was refused; what was applied before it
/// stays applied.
pub(crate) fn receive_round(
    destination: &mut End,
    key: &FingerprintKey,
    frames: &[Sent],
    pipes: &mut [Pipe],
    random: &mut Random,
) -> Option<Applied> {
    let mut all = Applied::default();
    let mut line = Incoming::new(&destination.layout, &destination.digests, key);
    for frame in frames {
        let pipe = &mut pipes[usize::from(frame.stream)];
        let layout = &destination.layout;
        if !pipe.feed(&frame.bytes, random, &mut line, layout, &mut all) {
            destination.root.merge(all.root);
            return None;
        }
    }
    destination.root.merge(all.root);
    Some(all)
}

/// A bitmap of these pages.
pub(crate) fn bitmap(layout: &RamLayout, ranges: &[PageRange]) -> RamBitmap {
    let mut bitmap = layout.empty_bitmap();
    for range in ranges {
        bitmap.blocks[range.ram_block as usize].set_range(range.page, range.count);
    }
    bitmap
}
