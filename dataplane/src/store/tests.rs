use super::*;
use crate::engine::{AsItCame, PageLibrary, Session};
use crate::ram::testing::ram;
use std::sync::Arc;

use dwcp_api::Codec;
use dwcp_simd::{PAGE_BYTES, Page, RamRoot, kernels};

const PAGES: [u32; 2] = [300, 40];

fn go() -> AtomicBool {
    AtomicBool::new(false)
}

fn page_of(n: u32) -> Page {
    [n as u8 | 1; PAGE_BYTES]
}

/// RAM with something on every third page, and an allocated zero page.
fn some_ram() -> RamLayout {
    let layout = ram(&PAGES);
    for (index, block) in layout.blocks().iter().enumerate() {
        for page in (0..block.pages()).step_by(3) {
            block.write_page(page, &page_of(page + index as u32));
        }
        block.write_page(1, &[0; PAGE_BYTES]);
    }
    layout
}

fn content(layout: &RamLayout) -> Vec<Page> {
    let pages = layout.blocks().iter().flat_map(|block| {
        (0..block.pages()).map(|page| {
            let mut copy = [0; PAGE_BYTES];
            block.read_page(page, &mut copy);
            copy
        })
    });
    pages.collect()
}

fn store(folder: &tempfile::TempDir, bytes_max: u64) -> Store {
    Store::open(folder.path().join("store"), bytes_max).unwrap()
}

/// The pages of `layout` that a library of `store` finds.
fn found(store: &Store, layout: &RamLayout) -> usize {
    let library = store.library();
    let key = FingerprintKey::new(store.seed);
    let is_found = |page: &Page| {
        let mut found = [0; PAGE_BYTES];
        library.find(kernels().fingerprint(&key, page).lo, &mut found) && found == *page
    };
    let pages = content(layout);
    let pages = pages.iter().filter(|page| !kernels().is_zero(page));
    pages.copied().filter(is_found).count()
}

fn vms(store: &Store) -> Vec<String> {
    let vm = |entry: Entry| match entry.kind {
        StoreKind::Baseline { vm } => Some(vm),
        StoreKind::Image { .. } | StoreKind::Arrival { .. } => None,
    };
    store.entries().into_iter().filter_map(vm).collect()
}

#[test]
fn ram_that_left_is_found_page_by_page() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let before = some_ram();
    assert_eq!(found(&store, &before), 0);
    let written = store.keep(("vm", 1), &before, &go()).unwrap();
    assert_eq!(written, (100 + 14) * PAGE_BYTES as u64);
    assert_eq!(found(&store, &before), 114);
    let [entry] = &store.entries()[..] else {
        panic!("one entry")
    };
    // `page_of` has 128 different ones, every third page of 300 and 41 takes 101 of them or fewer.
    assert!(entry.pages > 60 && entry.pages <= 114, "{entry:?}");
    assert!(entry.disk_bytes >= written);
    let other = ram(&[4]);
    (0..4).for_each(|page| other.blocks()[0].write_page(page, &[2 * page as u8; PAGE_BYTES]));
    assert_eq!(found(&store, &other), 0);
    // It is found by one that was open when it was removed, and by no other.
    let library = store.library();
    store.remove(entry.number).unwrap();
    assert_eq!(found(&store, &before), 0);
    let hash = kernels()
        .fingerprint(&FingerprintKey::new(store.seed), &page_of(3))
        .lo;
    assert!(library.find(hash, &mut [0; PAGE_BYTES]));
    store.remove(entry.number).unwrap_err();
}

#[test]
fn blocks_of_a_disk_image_are_found_as_long_as_they_are_what_they_were() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let path = folder.path().join("disk.raw");
    let ram = some_ram();
    // Holes, and half a block at the end.
    let image = File::create(&path).unwrap();
    for (at, page) in content(&ram)
        .iter()
        .enumerate()
        .filter(|(at, _)| at % 3 == 0)
    {
        let offset = (1000 + at as u64) * PAGE_BYTES as u64;
        std::os::unix::fs::FileExt::write_all_at(&image, page, offset).unwrap();
    }
    image.set_len(1400 * PAGE_BYTES as u64 + 7).unwrap();
    let reading = Reading::default();
    let pages = store.add_image(&path, &reading, &go()).unwrap();
    assert!(pages > 60, "{pages}");
    assert!(reading.done_bytes.into_inner() >= 1300 * PAGE_BYTES as u64);
    assert_eq!(
        reading.total_bytes.into_inner(),
        1400 * PAGE_BYTES as u64 + 7
    );
    let all = found(&store, &ram);
    assert!(all >= 100, "{all}");
    // Added again, it is there once.
    store.add_image(&path, &Reading::default(), &go()).unwrap();
    assert_eq!(store.entries().len(), 1);
    std::os::unix::fs::FileExt::write_all_at(&image, &[9; 1], 1000 * PAGE_BYTES as u64).unwrap();
    let library = store.library();
    let hash = kernels()
        .fingerprint(&FingerprintKey::new(store.seed), &page_of(0))
        .lo;
    assert!(!library.find(hash, &mut [0; PAGE_BYTES]));
    assert_eq!(library.stale().count(), 1);
    fs::remove_file(&path).unwrap();
    assert_eq!(found(&store, &ram), 0, "the image is gone");
    store
        .add_image(&path, &Reading::default(), &go())
        .unwrap_err();
}

#[test]
fn the_newest_counts_and_the_oldest_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    // Each has 480 KiB, and is expected to have 1.4 MiB once all of its RAM has been read.
    let store = store(&folder, 2050 << 10);
    let layout = some_ram();
    content(&layout);
    store.keep(("a", 1), &layout, &go()).unwrap();
    store.keep(("b", 1), &layout, &go()).unwrap();
    layout.blocks()[1].write_page(0, &page_of(77));
    store.keep(("a", 1), &layout, &go()).unwrap();
    assert_eq!(vms(&store), ["b", "a"]);
    store.keep(("c", 1), &layout, &go()).unwrap();
    assert_eq!(vms(&store), ["a", "c"]);
    let large = ram(&[800]);
    (0..800).for_each(|page| large.blocks()[0].write_page(page, &page_of(page)));
    let error = store.keep(("d", 1), &large, &go()).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert_eq!(vms(&store), ["a", "c"]);
}

#[test]
fn what_was_not_finished_is_gone_and_what_is_broken_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let layout = some_ram();
    let stopped = store
        .keep(("vm", 1), &layout, &AtomicBool::new(true))
        .unwrap_err();
    assert!(matches!(stopped, StoreError::Stopped));
    // The seed stays.
    assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 1);
    store.keep(("vm", 1), &layout, &go()).unwrap();
    fs::write(store.folder.join("000009.part"), "half").unwrap();
    fs::write(store.folder.join("000008.index"), "of nothing").unwrap();
    fs::write(store.folder.join("000007.baseline"), "not one").unwrap();
    let seed = store.seed;
    let store = Store::open(store.folder.clone(), 64 << 20).unwrap();
    assert_eq!(store.seed, seed);
    assert!(!store.folder.join("000009.part").exists());
    assert!(!store.folder.join("000008.index").exists());
    let number = store.entries()[0].number;
    let all = found(&store, &layout);
    // Cut short in its middle: what is behind is not found.
    let path = store.path(number, "baseline");
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(HEADER_BYTES + 30 * PAGE_BYTES as u64).unwrap();
    let some = found(&store, &layout);
    assert!(some > 0 && some < all, "{some} of {all}");
    fs::write(store.path(number, "index"), "damage").unwrap();
    assert_eq!(found(&store, &layout), 0);
    file.set_len(100).unwrap();
    assert_eq!(store.entries(), []);
}

/// RAM as it came by a migration, whose pages are `some_ram`.
fn came() -> AsItCame {
    let session = Session::new(some_ram(), 77, Codec::Raw);
    let mut root = RamRoot::default();
    for (page, content) in (0..).zip(content(&session.layout)) {
        let fingerprint = kernels().fingerprint(&session.key, &content);
        let held = (!session.key.is_zero(fingerprint)).then_some(fingerprint);
        session.digests.set(page, held, &mut root);
    }
    AsItCame::of(&session)
}

fn arrival(migration: u128, layout: &RamLayout) -> Arrival {
    Arrival::of(("vm", migration), layout, came())
}

#[test]
fn nothing_makes_room_for_an_arrival() {
    let folder = tempfile::tempdir().unwrap();
    let layout = some_ram();
    let before = store(&folder, 64 << 20);
    before.keep(("other", 1), &layout, &go()).unwrap();
    let used = before.entries()[0].disk_bytes;
    let store = store(&folder, used + HEADER_BYTES);
    let error = store.keep_arrival(&arrival(5, &layout)).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert_eq!(vms(&store), ["other"]);
}

#[test]
fn what_ram_was_when_it_came_is_known_for_that_migration_and_shape() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let (layout, came) = (some_ram(), came());
    store.keep_arrival(&arrival(5, &layout)).unwrap();
    let read = store.arrival("vm", 5, &layout).unwrap();
    assert_eq!((read.seed(), read.words()), (77, came.words()));
    assert!(came.words().iter().filter(|word| **word != 0).count() >= 113);
    assert!(store.arrival("vm", 6, &layout).is_none());
    assert!(store.arrival("other", 5, &layout).is_none());
    assert!(store.arrival("vm", 5, &ram(&[300, 41])).is_none());
    // The newest time counts, and when it leaves it has gone.
    store.keep_arrival(&arrival(6, &layout)).unwrap();
    assert!(store.arrival("vm", 5, &layout).is_none());
    assert_eq!(store.entries().len(), 1);
    assert_eq!(store.library().pages(), 0, "it has no pages");
    store.keep(("vm", 7), &layout, &go()).unwrap();
    assert!(store.arrival("vm", 6, &layout).is_none());
    assert_eq!(vms(&store), ["vm"]);
}

#[test]
fn an_arrival_that_was_cut_short_is_of_no_use() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let layout = some_ram();
    store.keep_arrival(&arrival(5, &layout)).unwrap();
    let path = store.path(1, "arrival");
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(HEADER_BYTES + 100).unwrap();
    assert!(store.arrival("vm", 5, &layout).is_none());
}

/// A store with the RAM of a VM that left by migration 9.
fn left_by_9() -> (tempfile::TempDir, Store, RamLayout) {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let left = some_ram();
    store.keep(("vm", 9), &left, &go()).unwrap();
    (folder, store, left)
}

#[test]
fn a_baseline_is_read_by_place_where_ram_has_its_shape() {
    let (_folder, store, left) = left_by_9();
    let library = store.library_for("vm", &left);
    assert_eq!(library.baseline(), Some((9, false)));
    let mut pages = [[7; PAGE_BYTES]; 4];
    assert!(library.read_as_it_left(1, 36, &mut pages));
    assert_eq!(pages[0], page_of(37));
    assert_eq!(pages[1], [0; PAGE_BYTES]);
    assert!(
        !library.read_as_it_left(1, 37, &mut pages),
        "behind the end"
    );
    assert!(!library.read_as_it_left(2, 0, &mut pages));
    store.keep(("other", 10), &left, &go()).unwrap();
    assert_eq!(store.library_for("vm", &left).baseline(), Some((9, true)));
    assert_eq!(store.library_for("vm", &ram(&[300])).baseline(), None);
    assert_eq!(store.library_for("new", &left).baseline(), None);
}

/// One that an earlier release has written does not say by which migration the VM left.
#[test]
fn a_baseline_of_before_is_found_by_hashes_alone() {
    let (_folder, store, left) = left_by_9();
    let file = File::options()
        .read(true)
        .write(true)
        .open(store.path(1, "baseline"))
        .unwrap();
    let mut head = vec![0; HEADER_BYTES as usize];
    std::os::unix::fs::FileExt::read_exact_at(&file, &mut head, 0).unwrap();
    let text = String::from_utf8(head).unwrap();
    let before = text.replace(&format!(",\"migration\":\"{:032x}\"", 9), "");
    let left_out = text.len() - before.len();
    assert!(left_out > 0);
    let padded = before + &"\0".repeat(left_out);
    std::os::unix::fs::FileExt::write_all_at(&file, padded.as_bytes(), 0).unwrap();
    assert_eq!(store.library_for("vm", &left).baseline(), None);
    assert_eq!(found(&store, &left), 114);
}

/// An image of so many pages that do not repeat.
fn image(folder: &tempfile::TempDir, pages: u32) -> PathBuf {
    let path = folder.path().join("disk.raw");
    let content: Vec<u8> = (0..pages).flat_map(page_of).collect();
    fs::write(&path, content).unwrap();
    path.canonicalize().unwrap()
}

#[test]
fn what_there_is_stays_when_there_is_no_room_for_what_would_replace_it() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 20 << 10);
    let path = image(&folder, 20);
    store.add_image(&path, &Reading::default(), &go()).unwrap();
    let before = store.entries();
    let path = image(&folder, 2000);
    let error = store.add_image(&path, &Reading::default(), &go());
    let error = error.unwrap_err().to_string();
    assert!(error.contains("--store-mib"), "{error}");
    assert_eq!(store.entries(), before);
}

/// To open a FIFO is to wait for who writes to it.
#[test]
fn what_is_no_file_is_never_opened() {
    let folder = tempfile::tempdir().unwrap();
    let store = Arc::new(store(&folder, 2 << 20));
    let path = folder.path().join("fifo");
    nix::unistd::mkfifo(&path, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let indexing = Indexing::default();
    indexing.begin(&store, &path).unwrap();
    let failure = || indexing.jobs().first().and_then(|job| job.failure.clone());
    let began = std::time::Instant::now();
    while failure().is_none() {
        assert!(began.elapsed().as_secs() < 30, "it waits");
        std::thread::yield_now();
    }
    assert!(failure().is_some_and(|why| why.contains("not a file")));
    assert!(indexing.forget(&path) && !indexing.forget(&path));
    assert!(indexing.jobs().is_empty());
}

#[test]
fn an_index_that_is_damaged_is_told_and_an_image_goes_by_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 2 << 20);
    let path = image(&folder, 20);
    store.add_image(&path, &Reading::default(), &go()).unwrap();
    let index = store.path(store.entries()[0].number, "index");
    let length = fs::metadata(&index).unwrap().len();
    File::options()
        .write(true)
        .open(&index)
        .unwrap()
        .set_len(length - 1)
        .unwrap();
    let entries = store.entries();
    assert!(entries[0].is_damaged && entries[0].pages == 0);
    assert!(store.remove_image(&path).unwrap());
    assert!(!store.remove_image(&path).unwrap());
    assert!(path.exists() && store.entries().is_empty());
}
