//! Both ends of the line of a page in one process, with byte pipes between them.

use std::ops::Range;

use dwcp_api::Codec;
use dwcp_dataplane::path::{
    Applied, Encoder, FRAME_BUFFER_BYTES, Incoming, Outgoing, OutgoingCounts, RECEIVE_BUFFER_BYTES,
    Receiver, RoundWork,
};
use dwcp_dataplane::ram::{Digests, RamBitmap, RamBlock, RamLayout};
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, RamRoot};
use dwcp_wire::{FrameHeader, FrameKind, PageRange};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::Random;

/// RAM of one end, what it holds by its digests, and its root so far.
pub(crate) struct End {
    pub(crate) layout: RamLayout,
    pub(crate) digests: Digests,
    pub(crate) root: RamRoot,
}

impl End {
    pub(crate) fn new(block_pages: &[u32]) -> Self {
        let block = |(index, &pages): (usize, &u32)| {
            let bytes = u64::from(pages) * PAGE_BYTES as u64;
            let file = memfd_create("dwcp-test-ram", MFdFlags::MFD_CLOEXEC).unwrap();
            nix::unistd::ftruncate(&file, bytes as i64).unwrap();
            RamBlock::map(format!("block{index}"), file, bytes, 0).unwrap()
        };
        let layout = RamLayout::new(block_pages.iter().enumerate().map(block).collect()).unwrap();
        Self {
            digests: Digests::new(&layout),
            layout,
            root: RamRoot::default(),
        }
    }

    pub(crate) fn page(&self, block: usize, page: u32) -> Page {
        let mut copy = [0; PAGE_BYTES];
        self.layout.blocks()[block].read_page(page, &mut copy);
        copy
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

/// Runs a round at the source: as many workers as streams, in turns. Returns the frames of all
/// streams in the order they were made, marks included, and the sums of what the workers counted.
pub(crate) fn send_round(
    source: &mut End,
    key: &FingerprintKey,
    work: &RoundWork,
    codec: Codec,
    sequences: &mut [u64],
) -> (Vec<Sent>, OutgoingCounts) {
    let mut lines: Vec<_> = sequences
        .iter()
        .map(|_| Outgoing::new(&source.layout, &source.digests, key, Encoder::new(codec)))
        .collect();
    let mut buffer = vec![0; FRAME_BUFFER_BYTES];
    let (mut frames, mut counts) = (vec![], OutgoingCounts::default());
    lines.iter_mut().for_each(|line| line.begin(work));
    let mut busy: Vec<usize> = (0..lines.len()).collect();
    while !busy.is_empty() {
        busy.retain(|&stream| {
            let sequence = sequences[stream] + 1;
            let frame = lines[stream].next_frame(work, &mut buffer, stream as u16, sequence);
            let bytes = frame.map(|range| buffer[range].to_vec());
            let more = bytes.is_some();
            let mark = || {
                let mut mark = FrameHeader::empty(FrameKind::RoundMark, stream as u16, sequence);
                mark.round = work.round;
                mark.to_bytes().to_vec()
            };
            sequences[stream] = sequence;
            frames.push(Sent {
                stream: stream as u16,
                bytes: bytes.unwrap_or_else(mark),
            });
            more
        });
    }
    for line in &lines {
        counts.visited += line.counts.visited;
        counts.named += line.counts.named;
        counts.zero += line.counts.zero;
        counts.unchanged += line.counts.unchanged;
        counts.compressed += line.counts.compressed;
        counts.raw += line.counts.raw;
        counts.frames += line.counts.frames;
        counts.wire_bytes += line.counts.wire_bytes;
        source.root.merge(line.root);
    }
    (frames, counts)
}

/// The receiving half of a stream: a pipe that is cut anywhere, and the buffer behind it.
pub(crate) struct Pipe {
    receiver: Receiver,
    buffer: Vec<u8>,
}

impl Pipe {
    pub(crate) fn new(stream: u16) -> Self {
        Self {
            receiver: Receiver::new(stream),
            buffer: vec![0; RECEIVE_BUFFER_BYTES],
        }
    }

    /// Lets `bytes` through in pieces and hands each frame to `take`; false when the stream is
    /// refused, by the receiver or by `take`.
    pub(crate) fn feed(
        &mut self,
        mut bytes: &[u8],
        random: &mut Random,
        mut take: impl FnMut(&FrameHeader, &[u8]) -> bool,
    ) -> bool {
        while !bytes.is_empty() {
            let Range { start, end } = self.receiver.wanted();
            let most = random.pick(&[1, 63, 64, 65, 5000, usize::MAX]);
            let piece = (end - start).min(most).min(bytes.len());
            self.buffer[start..start + piece].copy_from_slice(&bytes[..piece]);
            bytes = &bytes[piece..];
            self.receiver.received(piece);
            loop {
                match self.receiver.frame(&self.buffer) {
                    Ok(Some((header, payload))) if take(&header, &self.buffer[payload.clone()]) => {
                        self.receiver.consume(&mut self.buffer);
                    }
                    Ok(None) => break,
                    _ => return false,
                }
            }
        }
        true
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
        let whole = pipe.feed(&frame.bytes, random, |header, payload| {
            header.kind != FrameKind::Pages || line.apply(header, payload, &mut all).is_ok()
        });
        if !whole {
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
