//! Page kernels: every instruction set of this processor, beside crc-fast and xxhash-rust.
//!
//! `hot` works through 64 pages (256 KiB, in L2), `cold` through 65,536 pages (256 MiB, larger than
//! any L3 here), one page per step. Rows are `operation/hot|cold/implementation`. A kernel that
//! answers wrongly fails before it is timed.
//!
//! xxhash-rust chooses its instruction set at compile time: for a fair rival build with
//! `RUSTFLAGS="-C target-cpu=native"`.

use std::hint::black_box;

use criterion::measurement::WallTime;
use criterion::{BenchmarkGroup, Criterion, Throughput, criterion_group, criterion_main};
use dwcp_simd::{FingerprintKey, Kernels, LivePage, PAGE_BYTES, Page};

const HOT_PAGES: usize = 64;
const COLD_PAGES: usize = 65_536;
const FRAME_BYTES: usize = 256 * 1024;
const SEED: u64 = 0x5EED_0042;

/// Pages of the same pseudo-random content for every run.
fn random_pages(count: usize) -> Vec<Page> {
    let mut state = SEED;
    let mut pages = vec![[0; PAGE_BYTES]; count];
    for word in pages.as_flattened_mut().as_chunks_mut::<8>().0 {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        *word = (state ^ state >> 33).to_le_bytes();
    }
    pages
}

/// Times `work` on one page after the other.
fn per_page(
    group: &mut BenchmarkGroup<'_, WallTime>,
    name: &str,
    pages: &[Page],
    mut work: impl FnMut(&Page) -> u64,
) {
    let mut next = pages.iter().cycle();
    group.bench_function(name, |bencher| {
        bencher.iter(|| work(black_box(next.next().expect("pages are not empty"))));
    });
}

/// Runs `bench` for hot and for cold pages made by `make`.
fn hot_and_cold(
    criterion: &mut Criterion,
    operation: &str,
    make: fn(usize) -> Vec<Page>,
    bench: impl Fn(&mut BenchmarkGroup<'_, WallTime>, &[Page]),
) {
    for (temperature, count) in [("hot", HOT_PAGES), ("cold", COLD_PAGES)] {
        let pages = make(count);
        let mut group = criterion.benchmark_group(format!("{operation}/{temperature}"));
        group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
        bench(&mut group, &pages);
        group.finish();
    }
}

fn zero(criterion: &mut Criterion) {
    let zero_pages = |count| vec![[0; PAGE_BYTES]; count];
    hot_and_cold(criterion, "is_zero", zero_pages, |group, pages| {
        for kernels in Kernels::all_available() {
            assert!(kernels.is_zero(&pages[0]));
            per_page(group, kernels.name(), pages, |page| {
                u64::from(kernels.is_zero(page))
            });
        }
    });
}

fn fingerprint(criterion: &mut Criterion) {
    hot_and_cold(criterion, "fingerprint", random_pages, |group, pages| {
        let key = FingerprintKey::new(SEED);
        let rival = |page: &Page| xxhash_rust::xxh3::xxh3_128_with_seed(page, SEED);
        for kernels in Kernels::all_available() {
            assert_eq!(
                kernels.fingerprint(&key, &pages[0]).as_u128(),
                rival(&pages[0])
            );
            per_page(group, kernels.name(), pages, |page| {
                kernels.fingerprint(&key, page).lo
            });
        }
        per_page(group, "xxhash-rust", pages, |page| rival(page) as u64);
    });
}

/// The page pass: identity, checksum and zero test in one read, beside a kernel for each, and
/// beside only reading.
fn page_pass(criterion: &mut Criterion) {
    hot_and_cold(criterion, "page_pass", random_pages, |group, pages| {
        let key = FingerprintKey::new(SEED);
        for kernels in Kernels::all_available() {
            per_page(group, kernels.name(), pages, |page| {
                let found = kernels.fingerprint_live(&key, LivePage::of(page));
                found.lo + u64::from(key.is_zero(found))
            });
            let name = format!("{}-three-passes", kernels.name());
            per_page(group, &name, pages, |page| {
                let zero = u64::from(kernels.is_zero(page));
                zero + kernels.fingerprint(&key, page).lo + u64::from(kernels.crc32c(0, page))
            });
        }
    });
    scattered(criterion);
    let zero_pages = |count| vec![[0; PAGE_BYTES]; count];
    hot_and_cold(criterion, "read", zero_pages, |group, pages| {
        let kernels = dwcp_simd::kernels();
        per_page(group, kernels.name(), pages, |page| {
            u64::from(kernels.is_zero(page))
        });
    });
}

/// Dirty pages lie anywhere: with and without asking for the next one ahead.
fn scattered(criterion: &mut Criterion) {
    const STRIDE: usize = 40_503;
    let pages = random_pages(COLD_PAGES);
    let key = FingerprintKey::new(SEED);
    let kernels = dwcp_simd::kernels();
    let mut group = criterion.benchmark_group("page_pass/scattered");
    group.throughput(Throughput::Bytes(PAGE_BYTES as u64));
    for (name, is_ahead) in [("plain", false), ("prefetch", true)] {
        let mut at = 0;
        group.bench_function(name, |bencher| {
            bencher.iter(|| {
                let page = &pages[at];
                at = (at + STRIDE) % COLD_PAGES;
                if is_ahead {
                    LivePage::of(&pages[at]).prefetch();
                }
                kernels.fingerprint_live(&key, LivePage::of(page)).lo
            });
        });
    }
    group.finish();
}

fn delta(criterion: &mut Criterion) {
    let base = random_pages(1)[0];
    hot_and_cold(criterion, "xor", random_pages, |group, pages| {
        let mut out = [0; PAGE_BYTES];
        for kernels in Kernels::all_available() {
            assert_eq!(kernels.xor(&base, &pages[0], &mut out), 0);
            per_page(group, kernels.name(), pages, |page| {
                u64::from(kernels.xor(&base, page, black_box(&mut out)))
            });
        }
    });
}

fn compare(criterion: &mut Criterion) {
    let base = [0; PAGE_BYTES];
    let zero_pages = |count| vec![[0; PAGE_BYTES]; count];
    hot_and_cold(
        criterion,
        "differing_bytes",
        random_pages,
        |group, pages| {
            for kernels in Kernels::all_available() {
                per_page(group, kernels.name(), pages, |page| {
                    u64::from(kernels.differing_bytes(&base, page))
                });
            }
        },
    );
    hot_and_cold(criterion, "equal", zero_pages, |group, pages| {
        for kernels in Kernels::all_available() {
            assert!(kernels.equal(&base, &pages[0]));
            per_page(group, kernels.name(), pages, |page| {
                u64::from(kernels.equal(&base, page))
            });
        }
        per_page(group, "slice-eq", pages, |page| u64::from(base == *page));
    });
}

/// CRC-32C by the rival: `iSCSI` is its name for it.
fn rival_crc32c(bytes: &[u8]) -> u32 {
    crc_fast::checksum(crc_fast::CrcAlgorithm::Crc32Iscsi, bytes) as u32
}

fn checksum(criterion: &mut Criterion) {
    hot_and_cold(criterion, "crc32c", random_pages, |group, pages| {
        for kernels in Kernels::all_available() {
            assert_eq!(kernels.crc32c(0, &pages[0]), rival_crc32c(&pages[0]));
            per_page(group, kernels.name(), pages, |page| {
                u64::from(kernels.crc32c(0, page))
            });
        }
        per_page(group, "crc-fast", pages, |page| {
            u64::from(rival_crc32c(page))
        });
    });
    for (size, bytes) in [
        ("frame-256k", FRAME_BYTES),
        ("header-60", 60),
        ("block-1000", 1000),
    ] {
        let pages = random_pages(FRAME_BYTES / PAGE_BYTES);
        let frame = &pages.as_flattened()[..bytes];
        let mut group = criterion.benchmark_group(format!("crc32c/{size}"));
        group.throughput(Throughput::Bytes(bytes as u64));
        for kernels in Kernels::all_available() {
            assert_eq!(kernels.crc32c(0, frame), rival_crc32c(frame));
            group.bench_function(kernels.name(), |bencher| {
                bencher.iter(|| kernels.crc32c(0, black_box(frame)));
            });
        }
        group.bench_function("crc-fast", |bencher| {
            bencher.iter(|| rival_crc32c(black_box(frame)));
        });
        group.finish();
    }
}

fn shuffle(criterion: &mut Criterion) {
    hot_and_cold(criterion, "shuffle", random_pages, |group, pages| {
        let (mut out, mut restored) = ([0; PAGE_BYTES], [0; PAGE_BYTES]);
        for kernels in Kernels::all_available() {
            kernels.shuffle(&pages[0], &mut out);
            kernels.unshuffle(&out, &mut restored);
            assert_eq!(restored, pages[0]);
            per_page(group, kernels.name(), pages, |page| {
                kernels.shuffle(page, black_box(&mut out));
                u64::from(out[0])
            });
        }
    });
    hot_and_cold(criterion, "unshuffle", random_pages, |group, pages| {
        let mut out = [0; PAGE_BYTES];
        for kernels in Kernels::all_available() {
            per_page(group, kernels.name(), pages, |page| {
                kernels.unshuffle(page, black_box(&mut out));
                u64::from(out[0])
            });
        }
    });
    hot_and_cold(criterion, "shuffle_gain", random_pages, |group, pages| {
        let expected = Kernels::all_available()[0].shuffle_gain(&pages[0]);
        for kernels in Kernels::all_available() {
            assert_eq!(kernels.shuffle_gain(&pages[0]), expected);
            per_page(group, kernels.name(), pages, |page| {
                u64::from(kernels.shuffle_gain(page).unsigned_abs())
            });
        }
    });
}

criterion_group!(
    benches,
    zero,
    fingerprint,
    page_pass,
    delta,
    shuffle,
    compare,
    checksum
);
criterion_main!(benches);
