//! Stages 1 to 8 in one process, without a socket. After every round the destination's RAM is the
//! source's, byte for byte, and both ends have counted the same.

mod common;

use common::Random;
use common::line::{End, Leave, Pipe, Sender, Sent, bitmap, lanes, receive_round, send_round};
use dwcp_api::{Codec, Prefer};
use dwcp_dataplane::path::RoundWork;
use dwcp_dataplane::ram::RamBitmap;
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page};
use dwcp_wire::{FrameKind, HEADER_BYTES, PageRange};

const SEED: u64 = 0x5EED_0042;
const ZERO: Page = [0; PAGE_BYTES];
const WINDOW: Codec = Codec::Window {
    level: 3,
    window_bytes: 1 << 20,
};
const CODECS: [Codec; 9] = [
    Codec::Raw,
    Codec::Raw,
    Codec::Zstd { level: -5 },
    Codec::Zstd { level: 1 },
    Codec::Zstd { level: 3 },
    Codec::Zstd { level: 9 },
    WINDOW,
    Codec::Auto {
        window_bytes: 4 << 20,
        prefer: Prefer::Time,
    },
    Codec::Window {
        level: -5,
        window_bytes: 64 << 20,
    },
];

/// Block sizes around the words of the bitmap and the chunks of a worker.
fn block_sizes(random: &mut Random) -> Vec<u32> {
    let count = 1 + random.below(5);
    let size = |random: &mut Random| match random.below(3) {
        0 => random.pick(&[1, 2, 63, 64, 65, 128]),
        _ => 1 + random.below(600) as u32,
    };
    (0..count).map(|_| size(random)).collect()
}

fn page_of(random: &mut Random) -> Page {
    let mut page = ZERO;
    match random.below(5) {
        0 => {}
        1 => page[random.below(PAGE_BYTES as u64) as usize] = 1,
        2 => page.fill(random.below(3) as u8 + 1),
        3 => {
            let words: [&[u8]; 4] = [b"page ", b"guest ", b"node ", b"\n"];
            let mut text = vec![];
            while text.len() < PAGE_BYTES {
                text.extend_from_slice(words[random.below(4) as usize]);
            }
            page.copy_from_slice(&text[..PAGE_BYTES]);
        }
        _ => {
            let (words, _) = page.as_chunks_mut::<8>();
            words
                .iter_mut()
                .for_each(|word| *word = random.next().to_le_bytes());
        }
    }
    page
}

/// Rewrites some pages of the source. Returns the ranges that a tracker would name: those, and some
/// that nobody wrote.
fn rewrite(source: &End, random: &mut Random) -> Vec<PageRange> {
    let mut dirty = vec![];
    for (ram_block, block) in (0..).zip(source.layout.blocks()) {
        for _ in 0..random.below(4) {
            let page = random.below(u64::from(block.pages())) as u32;
            let count = (1 + random.below(200) as u32).min(block.pages() - page);
            let step = random.pick(&[1, 1, 2, 3, 17]);
            dirty.push(PageRange {
                ram_block,
                page,
                count,
            });
            let written = random.pick(&["each", "same", "zero", "none"]);
            let same = page_of(random);
            for page in (page..page + count).step_by(step) {
                match written {
                    "each" => block.write_page(page, &page_of(random)),
                    "same" => block.write_page(page, &same),
                    "zero" => block.write_page(page, &ZERO),
                    _ => {}
                }
            }
        }
    }
    dirty
}

/// Pages that must be named in frames: forced, or not what the destination holds.
fn must_send(source: &End, destination: &End, work: &RamBitmap, forced: &RamBitmap) -> u64 {
    let mut count = 0;
    for (block, (work, forced)) in work.blocks.iter().zip(&forced.blocks).enumerate() {
        let differs = |page| source.page(block, page) != destination.page(block, page);
        let sent = |&page: &u32| work.contains(page) && (forced.contains(page) || differs(page));
        count += (0..work.pages()).filter(sent).count() as u64;
    }
    count
}

#[test]
fn after_every_round_both_ends_hold_the_same() {
    let mut deltas = 0;
    for seed in 0..30 {
        let random = &mut Random::new(seed);
        let sizes = block_sizes(random);
        let (mut source, mut destination) = (End::new(&sizes), End::new(&sizes));
        let key = FingerprintKey::new(seed ^ SEED);
        let codec = random.pick(&CODECS);
        let streams = 1 + random.below(4) as usize;
        let mut senders = Sender::of(streams, codec);
        let pipe = |stream| Pipe::new(stream, streams);
        let mut pipes: Vec<_> = (0..streams as u16).map(pipe).collect();
        for round in 0..5 {
            let place = format!("seed {seed}, round {round}, {codec:?}, blocks {sizes:?}");
            let dirty = bitmap(&source.layout, &rewrite(&source, random));
            let forced = match random.chance(40) {
                true => bitmap(&source.layout, &rewrite(&source, random)),
                false => source.layout.empty_bitmap(),
            };
            let mut all = dirty.clone();
            all.union(&forced);
            let expected = must_send(&source, &destination, &all, &forced);
            let lanes = lanes(&source.layout, random);
            let work = RoundWork::by_lanes(round, dirty, forced, lanes);
            let leave = Leave {
                by_reference: random.chance(50),
                ..Leave::copied(codec)
            };
            let (frames, counts) = send_round(&mut source, &key, &work, leave, &mut senders);
            let applied =
                receive_round(&mut destination, &key, &frames, &mut pipes, random).expect(&place);

            assert!(source.content() == destination.content(), "{place}");
            assert_eq!(applied.suspects, [], "{place}");
            assert_eq!(source.root, destination.root, "{place}");
            assert_eq!(source.root, source.digests.root(), "{place}");
            assert_eq!(destination.root, destination.digests.root(), "{place}");
            destination.check_digests(&key, &place);
            assert_eq!(counts.visited, all.count(), "{place}");
            let sent = counts.delta + counts.compressed + counts.raw;
            assert_eq!(
                counts.visited,
                counts.zero + counts.unchanged + sent,
                "{place}"
            );
            deltas += counts.delta;
            assert_eq!(counts.named, expected, "{place}");
            assert_eq!(applied.summary.pages, counts.named, "{place}");
            assert_eq!(applied.summary.frames, counts.frames, "{place}");
            assert_eq!(applied.summary.wire_bytes, counts.wire_bytes, "{place}");
            let marks = streams * HEADER_BYTES;
            let bytes: usize = frames.iter().map(|frame| frame.bytes.len()).sum();
            assert_eq!(bytes, counts.wire_bytes as usize + marks, "{place}");
        }
    }
    assert!(deltas > 100, "{deltas}");
}

/// The guest writes pages between the look at them and their leaving: each is found out, and the
/// round after mends it.
#[test]
fn a_page_that_changes_on_its_way_is_suspect_and_sent_again() {
    let mut changed_pages = 0;
    for seed in 0..40 {
        let random = &mut Random::new(seed);
        let trial = &mut Trial::new(&block_sizes(random), Codec::Raw, random);
        let dirty = rewrite(&trial.source, random);
        let state = std::cell::RefCell::new((Random::new(seed ^ SEED), vec![]));
        let meanwhile = |source: &End, pages: &[PageRange]| {
            let (random, changed) = &mut *state.borrow_mut();
            for range in pages {
                if !random.chance(30) {
                    continue;
                }
                let page = range.page + random.below(u64::from(range.count)) as u32;
                let block = &source.layout.blocks()[range.ram_block as usize];
                let mut content = source.page(range.ram_block as usize, page);
                content[random.below(PAGE_BYTES as u64) as usize] ^= 0x10;
                block.write_page(page, &content);
                changed.push((range.ram_block, page));
            }
        };
        let leave = Leave {
            codec: Codec::Raw,
            by_reference: true,
            meanwhile: &meanwhile,
        };
        let frames = trial.send(1, &dirty, &[], leave);
        let suspects = trial.receive(&frames, random).unwrap();
        let place = format!("seed {seed}");
        let changed = state.into_inner().1;
        let named: u32 = suspects.iter().map(|range| range.count).sum();
        assert_eq!(named as usize, changed.len(), "{place}");
        for &(block, page) in &changed {
            assert!(contains(&suspects, block, page), "{place}");
        }
        trial.destination.check_digests(&trial.key, &place);
        let again = trial.send(2, &[], &suspects, Leave::copied(Codec::Raw));
        assert_eq!(trial.receive(&again, random), Some(vec![]), "{place}");
        trial.check(&place, |_, _| false);
        assert_eq!(trial.source.root, trial.destination.root, "{place}");
        changed_pages += changed.len();
    }
    assert!(changed_pages > 100, "{changed_pages}");
}

/// A destination that holds `before`, about to get one round of `source` on one stream.
struct Trial {
    key: FingerprintKey,
    source: End,
    destination: End,
    codec: Codec,
    senders: Vec<Sender>,
    pipes: Vec<Pipe>,
    before: Vec<Vec<Page>>,
}

impl Trial {
    fn new(sizes: &[u32], codec: Codec, random: &mut Random) -> Self {
        let mut trial = Self {
            key: FingerprintKey::new(SEED),
            source: End::new(sizes),
            destination: End::new(sizes),
            codec,
            senders: Sender::of(1, codec),
            pipes: vec![Pipe::new(0, 1)],
            before: vec![],
        };
        let dirty = rewrite(&trial.source, random);
        let frames = trial.send(0, &dirty, &[], Leave::copied(codec));
        assert_eq!(trial.receive(&frames, random), Some(vec![]));
        trial.before = trial.destination.content();
        trial
    }

    fn send(
        &mut self,
        round: u32,
        dirty: &[PageRange],
        forced: &[PageRange],
        leave: Leave<'_>,
    ) -> Vec<Sent> {
        let layout = &self.source.layout;
        let work = RoundWork::new(round, bitmap(layout, dirty), bitmap(layout, forced));
        send_round(&mut self.source, &self.key, &work, leave, &mut self.senders).0
    }

    /// The suspects, or `None` when a frame was refused.
    fn receive(&mut self, frames: &[Sent], random: &mut Random) -> Option<Vec<PageRange>> {
        let end = &mut self.destination;
        let applied = receive_round(end, &self.key, frames, &mut self.pipes, random)?;
        Some(applied.suspects)
    }

    /// Every page holds what the source has, or, where its frame was refused, what it held before:
    /// `kept` says which. The digests say of every page what it holds.
    fn check(&self, place: &str, kept: impl Fn(u32, u32) -> bool) {
        let (now, wanted) = (self.destination.content(), self.source.content());
        for (block, pages) in (0..).zip(&now) {
            for (page, held) in (0..).zip(pages) {
                let (index, at) = (block as usize, page as usize);
                let right = match kept(block, page) {
                    true => held == &self.before[index][at],
                    false => held == &wanted[index][at],
                };
                assert!(right, "{place}: page {page} of block {block}");
            }
        }
        self.check_proof(place);
    }

    fn check_proof(&self, place: &str) {
        self.destination.check_digests(&self.key, place);
        assert_eq!(
            self.destination.root,
            self.destination.digests.root(),
            "{place}"
        );
    }
}

fn contains(ranges: &[PageRange], block: u32, page: u32) -> bool {
    let inside = |range: &PageRange| range.page <= page && page < range.page + range.count;
    ranges
        .iter()
        .any(|range| range.ram_block == block && inside(range))
}

/// Pages that a frame names.
fn named(frame: &Sent) -> Vec<PageRange> {
    let header = frame.header();
    let entries = &frame.bytes[HEADER_BYTES..][..header.entries as usize * 16];
    let range = |entry: &[u8]| PageRange {
        ram_block: header.ram_block,
        page: u32::from_le_bytes(entry[..4].try_into().unwrap()),
        count: u32::from(u16::from_le_bytes(entry[4..6].try_into().unwrap())),
    };
    entries.chunks(16).map(range).collect()
}

fn is_pages(frame: &&Sent) -> bool {
    frame.header().kind == FrameKind::Pages
}

/// Flips one bit of a frame in a round and checks what comes of it. Returns whether it was refused.
fn flip(
    trial: &mut Trial,
    frames: &mut [Sent],
    at: usize,
    bit: usize,
    random: &mut Random,
) -> bool {
    let header = frames[at].header();
    let place = format!("frame {at} of {}, bit {bit}, {header:?}", frames.len());
    frames[at].bytes[bit / 8] ^= 1 << (bit % 8);
    let suspects = trial.receive(frames, random);
    frames[at].bytes[bit / 8] ^= 1 << (bit % 8);
    let in_data = bit / 8 >= HEADER_BYTES + header.table_bytes as usize;
    let Some(suspects) = suspects else {
        assert!(!in_data, "{place}: data is never a reason to refuse");
        let lost: Vec<_> = frames[at..]
            .iter()
            .filter(is_pages)
            .flat_map(named)
            .collect();
        trial.check(&place, |block, page| contains(&lost, block, page));
        return true;
    };
    assert!(in_data, "{place}: a damaged header or table was taken");
    let is_window = trial.codec.looks_back();
    // What a window carries later may rest on it.
    let touched: Vec<_> = match is_window {
        true => frames[at..]
            .iter()
            .filter(is_pages)
            .flat_map(named)
            .collect(),
        false => named(&frames[at]),
    };
    for suspect in &suspects {
        assert!(
            contains(&touched, suspect.ram_block, suspect.page),
            "{place}"
        );
    }
    let count: u32 = suspects.iter().map(|range| range.count).sum();
    // A run is up to 16 pages under one zstd frame; a bit that its format ignores harms nothing.
    assert!(is_window || count <= 16, "{place}: {suspects:?}");
    trial.check_proof(&place);
    let again = trial.send(header.round + 1, &[], &suspects, Leave::copied(Codec::Raw));
    assert_eq!(trial.receive(&again, random), Some(vec![]), "{place}");
    trial.check(&place, |_, _| false);
    assert_eq!(trial.source.root, trial.destination.root, "{place}");
    false
}

#[test]
fn a_flipped_bit_is_refused_or_makes_its_pages_suspect() {
    let (mut refused, mut mended) = (0, 0);
    for seed in 0..150 {
        let random = &mut Random::new(seed);
        let codec = random.pick(&CODECS);
        let trial = &mut Trial::new(&block_sizes(random), codec, random);
        let (dirty, forced) = (
            rewrite(&trial.source, random),
            rewrite(&trial.source, random),
        );
        let mut frames = trial.send(1, &dirty, &forced, Leave::copied(codec));
        let at = random.below(frames.len() as u64) as usize;
        let header = frames[at].header();
        let (table, all) = (header.table_bytes as usize, frames[at].bytes.len());
        let bytes = match random.below(4) {
            0 => 0..HEADER_BYTES,
            1 if table > 0 => HEADER_BYTES..HEADER_BYTES + table,
            _ => 0..all,
        };
        let bit = bytes.start * 8 + random.below(bytes.len() as u64 * 8) as usize;
        match flip(trial, &mut frames, at, bit, random) {
            true => refused += 1,
            false => mended += 1,
        }
    }
    assert!(
        refused > 20 && mended > 20,
        "{refused} refused, {mended} mended"
    );
}

/// One small frame of each codec, every bit of it.
#[test]
fn no_single_bit_of_a_frame_lets_a_wrong_page_in() {
    for codec in [Codec::Raw, Codec::Zstd { level: 3 }, WINDOW] {
        let random = &mut Random::new(SEED);
        let mut bits = 0..1;
        while let Some(bit) = bits.next() {
            let trial = &mut Trial::new(&[8], codec, random);
            let block = &trial.source.layout.blocks()[0];
            block.write_page(1, &[b'x'; PAGE_BYTES]);
            block.write_page(2, &[b'y'; PAGE_BYTES]);
            block.write_page(5, &ZERO);
            let all = PageRange {
                ram_block: 0,
                page: 1,
                count: 5,
            };
            let mut frames = trial.send(1, &[], &[all], Leave::copied(codec));
            // Raw pages are all alike: the first bits of their data stand for the rest.
            let header = frames[0].header();
            let table_end = HEADER_BYTES + header.table_bytes as usize;
            bits.end = frames[0].bytes.len().min(table_end + 64) * 8;
            flip(trial, &mut frames, 0, bit, random);
        }
        assert!(bits.end > 1000, "{bits:?}");
    }
}
