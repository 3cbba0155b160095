use super::*;
use crate::ram::testing::ram;
use dwcp_simd::{PAGE_BYTES, Page};

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

#[test]
fn ram_comes_back_as_it_left() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let before = some_ram();
    let written = store.keep("vm", &before, &go()).unwrap();
    assert_eq!(written, (100 + 14) * PAGE_BYTES as u64);
    let after = ram(&PAGES);
    // Another VM's, or RAM of another shape, is left alone.
    assert_eq!(store.fill("other", &after, &go()).unwrap(), 0);
    assert_eq!(store.fill("vm", &ram(&[340]), &go()).unwrap(), 0);
    assert_eq!(store.fill("vm", &after, &go()).unwrap(), 114);
    assert!(content(&after) == content(&before));
    store.forget("vm");
    assert_eq!(store.fill("vm", &ram(&PAGES), &go()).unwrap(), 0);
}

#[test]
fn what_ram_holds_already_stays() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    store.keep("vm", &some_ram(), &go()).unwrap();
    let after = ram(&PAGES);
    after.blocks()[0].write_page(3, &page_of(200));
    after.blocks()[0].write_page(6, &[0; PAGE_BYTES]);
    assert_eq!(store.fill("vm", &after, &go()).unwrap(), 113);
    assert!(content(&after)[3] == page_of(200));
    assert!(content(&after)[6] == page_of(6));
}

#[test]
fn the_newest_counts_and_the_oldest_makes_room() {
    let folder = tempfile::tempdir().unwrap();
    // Each has 470 KiB, and is expected to have 1.4 MiB once all of its RAM has been read.
    let store = store(&folder, 2000 << 10);
    let names = |store: &Store| -> Vec<String> {
        let header = |one: &Baseline| Header::read(&File::open(&one.path).unwrap()).unwrap();
        store.baselines().iter().map(|one| header(one).vm).collect()
    };
    let layout = some_ram();
    store.keep("a", &layout, &go()).unwrap();
    store.keep("b", &layout, &go()).unwrap();
    layout.blocks()[1].write_page(0, &page_of(77));
    store.keep("a", &layout, &go()).unwrap();
    assert_eq!(names(&store), ["b", "a"]);
    let again = ram(&PAGES);
    store.fill("a", &again, &go()).unwrap();
    assert!(content(&again) == content(&layout));
    store.keep("c", &layout, &go()).unwrap();
    assert_eq!(names(&store), ["a", "c"]);
    let large = ram(&[800]);
    (0..800).for_each(|page| large.blocks()[0].write_page(page, &page_of(page)));
    let error = store.keep("d", &large, &go()).unwrap_err();
    assert!(matches!(error, StoreError::TooLarge { .. }), "{error}");
    assert_eq!(names(&store), ["a", "c"]);
}

#[test]
fn what_was_not_finished_is_gone_and_what_is_broken_is_not_used() {
    let folder = tempfile::tempdir().unwrap();
    let store = store(&folder, 64 << 20);
    let layout = some_ram();
    let stopped = store
        .keep("vm", &layout, &AtomicBool::new(true))
        .unwrap_err();
    assert!(matches!(stopped, StoreError::Stopped));
    assert_eq!(fs::read_dir(&store.folder).unwrap().count(), 0);
    store.keep("vm", &layout, &go()).unwrap();
    fs::write(store.folder.join("000009.part"), "half").unwrap();
    fs::write(store.folder.join("000007.baseline"), "not one").unwrap();
    let path = store.baselines()[0].path.clone();
    let store = Store::open(store.folder.clone(), 64 << 20).unwrap();
    assert!(!store.folder.join("000009.part").exists());
    // Cut short in its middle: an error, and what had come by then is only pages that differ.
    let file = fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(image::HEADER_BYTES + 200 * PAGE_BYTES as u64)
        .unwrap();
    store.fill("vm", &ram(&PAGES), &go()).unwrap_err();
    file.set_len(100).unwrap();
    assert_eq!(store.fill("vm", &ram(&PAGES), &go()).unwrap(), 0);
}
