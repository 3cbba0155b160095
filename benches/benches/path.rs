//! The line of a page, stage by stage, on a realistic mix of pages, without sockets.
//!
//! 64 MiB of guest RAM: a quarter zero, half text-like (shrinks about three times), a quarter random.
//! Throughput counts guest RAM, so its inverse is the CPU time that a stage takes per GiB on one
//! core. `frame` is stages 1 to 4 together, `apply` is stages 7 and 8: each worker runs them so. The
//! rest are single stages. Rows are `stage/variant`; what a stage makes is checked before it is timed.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{
    BatchSize, BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main,
};
use dwcp_api::Codec;
use dwcp_dataplane::path::{
    Applied, Decoder, Encoder, FRAME_BUFFER_BYTES, Incoming, Outgoing, PageSink, PageTable,
    RECEIVE_BUFFER_BYTES, Received, Receiver, RoundWork, classify,
};
use dwcp_dataplane::ram::{Digests, RamBlock, RamLayout};
use dwcp_simd::{Fingerprint, FingerprintKey, PAGE_BYTES, Page, kernels};
use dwcp_wire::{FrameHeader, HEADER_BYTES};
use nix::sys::memfd::{MFdFlags, memfd_create};

const PAGES: u32 = 16 * 1024;
const RAM_BYTES: u64 = PAGES as u64 * PAGE_BYTES as u64;
const RUN_PAGES: usize = 16;
const SEED: u64 = 0x5EED_0042;
const CODECS: [(&str, Codec); 3] = [
    ("raw", Codec::Raw),
    ("zstd-1", Codec::Zstd { level: 1 }),
    (
        "window-3",
        Codec::Window {
            level: 3,
            window_bytes: 64 << 20,
        },
    ),
];

fn next(state: &mut u64) -> u64 {
    *state = state
        .wrapping_mul(6_364_136_223_846_793_005)
        .wrapping_add(1_442_695_040_888_963_407);
    *state ^ *state >> 33
}

/// The page at `index`: kinds come in runs of 1 to 32 pages, as memory is handed out.
fn page_at(index: u32) -> Page {
    let mut state = SEED ^ u64::from(index / 8).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let kind = next(&mut state) % 4;
    state ^= u64::from(index) << 32;
    let mut page = [0; PAGE_BYTES];
    for word in page.as_chunks_mut::<8>().0 {
        *word = match kind {
            0 => [0; 8],
            1 | 2 => {
                let bits = next(&mut state).to_le_bytes();
                [bits[0], bits[1], b'g', b'u', b'e', b's', b't', b' ']
            }
            _ => next(&mut state).to_le_bytes(),
        };
    }
    page
}

fn ram() -> RamLayout {
    let file = memfd_create("dwcp-bench-ram", MFdFlags::MFD_CLOEXEC).expect("a memfd");
    nix::unistd::ftruncate(&file, RAM_BYTES as i64).expect("memory");
    let block = RamBlock::map("ram".into(), file, RAM_BYTES, 0).expect("a block");
    RamLayout::new(vec![block]).expect("a layout")
}

fn filled() -> RamLayout {
    let layout = ram();
    for page in 0..PAGES {
        layout.blocks()[0].write_page(page, &page_at(page));
    }
    layout
}

/// Everything, as in the first round.
fn everything(layout: &RamLayout) -> RoundWork {
    let mut dirty = layout.empty_bitmap();
    dirty.blocks[0].set_range(0, PAGES);
    RoundWork::new(0, dirty, layout.empty_bitmap())
}

/// Sends a first round and hands each frame's part in the buffer to `take`.
fn send(
    layout: &RamLayout,
    codec: Codec,
    by_reference: bool,
    buffer: &mut [u8],
    mut take: impl FnMut(&[u8]),
) {
    let (digests, key) = (Digests::new(layout), FingerprintKey::new(SEED));
    let work = everything(layout);
    let mut encoder = Encoder::new(codec, 1);
    let mut line = Outgoing::new(layout, &digests, &key, by_reference);
    line.begin(&work);
    let mut sequence = 1;
    while let Some(frame) = line.next_frame(&work, buffer, &mut encoder, 0, sequence) {
        take(&buffer[frame.head]);
        sequence += 1;
    }
}

/// The frames of a first round.
fn frames(codec: Codec) -> Vec<Vec<u8>> {
    let (layout, mut frames) = (filled(), vec![]);
    let buffer = &mut vec![0; FRAME_BUFFER_BYTES];
    send(&layout, codec, false, buffer, |frame| {
        frames.push(frame.to_vec());
    });
    frames
}

fn header_of(frame: &[u8]) -> FrameHeader {
    let header = frame.first_chunk().map(FrameHeader::from_bytes);
    header.expect("a header").expect("a good header")
}

fn stage<'c>(criterion: &'c mut Criterion, name: &str) -> BenchmarkGroup<'c, WallTime> {
    let mut group = criterion.benchmark_group(name);
    group
        .throughput(Throughput::Bytes(RAM_BYTES))
        .sample_size(10);
    group
}

fn bench_classify(criterion: &mut Criterion) {
    let key = FingerprintKey::new(SEED);
    let pages: Vec<Page> = (0..PAGES).map(page_at).collect();
    let held: Vec<Option<Fingerprint>> = pages
        .iter()
        .map(|page| (!kernels().is_zero(page)).then(|| kernels().fingerprint(&key, page)))
        .collect();
    let nothing = vec![None; pages.len()];
    let mut group = stage(criterion, "classify");
    for (name, held) in [("first-round", &nothing), ("unchanged", &held)] {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                for (page, held) in pages.iter().zip(held) {
                    let found = kernels().fingerprint(&key, black_box(page));
                    black_box(classify(&key, found, *held, false));
                }
            });
        });
    }
    group.finish();
}

fn bench_encode(criterion: &mut Criterion) {
    let text = (0..PAGES)
        .map(page_at)
        .filter(|page| page[2..8] == *b"guest ");
    let pages: Vec<Page> = text.take(RUN_PAGES).collect();
    let run = pages.as_flattened();
    let mut group = criterion.benchmark_group("encode");
    group.throughput(Throughput::Bytes(run.len() as u64));
    for level in [-5, 1, 3] {
        let mut encoder = Encoder::new(Codec::Zstd { level }, 1);
        group.bench_function(format!("zstd{level:+}"), |bencher| {
            let copy = || run.to_vec();
            bencher.iter_batched_ref(copy, |run| encoder.encode(run), BatchSize::SmallInput);
        });
    }
    group.finish();
}

fn bench_frame(criterion: &mut Criterion) {
    let layout = filled();
    let mut buffer = vec![0; FRAME_BUFFER_BYTES];
    let mut group = stage(criterion, "frame");
    let reference = ("by-reference", Codec::Raw, true);
    let copied = CODECS.map(|(name, codec)| (name, codec, false));
    for (name, codec, by_reference) in copied.into_iter().chain([reference]) {
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                send(&layout, codec, by_reference, &mut buffer, |frame| {
                    black_box(frame);
                });
            });
        });
    }
    group.finish();
}

/// Reads as a socket gives them: all that is wanted. The copy stands for the kernel's.
fn bench_receive(criterion: &mut Criterion) {
    let stream = frames(Codec::Raw).concat();
    let mut buffer = vec![0; RECEIVE_BUFFER_BYTES];
    let mut group = stage(criterion, "receive");
    group.bench_function("raw", |bencher| {
        bencher.iter(|| {
            let (mut receiver, mut rest) = (Receiver::new(0), &stream[..]);
            while !rest.is_empty() {
                let wanted = receiver.wanted().range;
                let bytes = wanted.len().min(rest.len());
                buffer[wanted.start..wanted.start + bytes].copy_from_slice(&rest[..bytes]);
                rest = &rest[bytes..];
                receiver.received(bytes);
                loop {
                    match receiver.next(&buffer).expect("a good stream") {
                        Received::Nothing => break,
                        Received::Table(..) => receiver.place(&[]),
                        Received::Frame(..) => receiver.consume(&mut buffer),
                    }
                }
            }
        });
    });
    group.finish();
}

/// Looks at nothing.
struct Nowhere(u64);

impl PageSink for Nowhere {
    fn held(&mut self, _: u32, _: u32, out: &mut Page) {
        out.fill(0);
    }

    fn zero(&mut self, _block: u32, _page: u32, count: u32) {
        self.0 += u64::from(count);
    }

    fn pages(&mut self, _block: u32, _first: u32, data: &[Page], _fingerprints_low: &[u64]) {
        black_box(data);
        self.0 += data.len() as u64;
    }

    fn placed(&mut self, _block: u32, _page: u32, _fingerprint_low: u64) {
        self.0 += 1;
    }

    fn damaged(&mut self, _block: u32, page: u32, _count: u32) {
        panic!("page {page} is damaged");
    }
}

/// The table of a frame, read, and the data behind it.
fn open<'f>(frame: &'f [u8], table: &mut PageTable) -> (FrameHeader, &'f [u8]) {
    let (header, payload) = (header_of(frame), &frame[HEADER_BYTES..]);
    let (bytes, data) = payload.split_at(header.table_bytes as usize);
    table.read(&header, bytes, &[PAGES]).expect("a good frame");
    (header, data)
}

fn bench_decode(criterion: &mut Criterion) {
    let mut group = stage(criterion, "decode");
    for (name, codec) in CODECS {
        let frames = frames(codec);
        let (mut decoder, mut table) = (Decoder::new(1), PageTable::new());
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let mut sink = Nowhere(0);
                for frame in &frames {
                    let (_, data) = open(frame, &mut table);
                    decoder.decode(&table, data, &mut sink);
                }
                assert!(sink.0 > u64::from(PAGES) / 2);
            });
        });
    }
    group.finish();
}

fn bench_apply(criterion: &mut Criterion) {
    let (source, layout) = (filled(), ram());
    let key = FingerprintKey::new(SEED);
    let mut group = stage(criterion, "apply");
    for (name, codec) in CODECS {
        let frames = frames(codec);
        let apply = || {
            let digests = Digests::new(&layout);
            let mut line = Incoming::new(&layout, &digests, &key);
            let (mut applied, mut table) = (Applied::default(), PageTable::new());
            let mut decoder = Decoder::new(1);
            for frame in &frames {
                let (header, data) = open(frame, &mut table);
                line.apply(&header, &table, Some(data), &mut decoder, &mut applied)
                    .expect("there is memory");
            }
            assert!(applied.suspects.is_empty());
        };
        apply();
        let (mut here, mut there) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        for page in 0..PAGES {
            source.blocks()[0].read_page(page, &mut there);
            layout.blocks()[0].read_page(page, &mut here);
            assert!(here == there, "page {page}");
        }
        group.bench_function(name, |bencher| bencher.iter(apply));
    }
    group.finish();
}

criterion_group!(
    benches,
    bench_classify,
    bench_encode,
    bench_frame,
    bench_receive,
    bench_decode,
    bench_apply
);
criterion_main!(benches);
