//! A page frame through stages 7 and 8, its data decoded from a buffer or found in RAM. Whatever it
//! says: pages stay inside their block, a refused frame changes nothing, and RAM, digests and root
//! agree afterwards.

#![no_main]

use std::cell::RefCell;

use dwcp_dataplane::path::{Applied, Decoder, Incoming, PageSink, PageTable};
use dwcp_dataplane::ram::{Digests, RamLayout};
use dwcp_fuzz::{BLOCK_PAGES, SEED, page_frame, ram};
use dwcp_simd::{FingerprintKey, PAGE_BYTES, Page, RamRoot, kernels};
use dwcp_wire::FrameHeader;
use libfuzzer_sys::fuzz_target;

/// Streams that share the windows.
const STREAMS: usize = 32;

/// A destination, made once and left empty by every input: making it takes longer than a frame.
struct Destination {
    layout: &'static RamLayout,
    digests: &'static Digests,
    key: &'static FingerprintKey,
    line: Incoming<'static>,
    table: PageTable,
}

impl Destination {
    fn new() -> Self {
        let layout: &RamLayout = Box::leak(Box::new(ram(&BLOCK_PAGES)));
        let digests: &Digests = Box::leak(Box::new(Digests::new(layout)));
        let key: &FingerprintKey = Box::leak(Box::new(FingerprintKey::new(SEED)));
        Self {
            layout,
            digests,
            key,
            line: Incoming::new(layout, digests, key),
            table: PageTable::new(),
        }
    }
}

thread_local! {
    static DESTINATION: RefCell<Destination> = RefCell::new(Destination::new());
}

/// Checks that pages come in order and inside their block.
struct Bounds {
    block: u32,
    next: u32,
    named: u64,
}

impl Bounds {
    fn take(&mut self, block: u32, page: u32, count: u32) {
        assert_eq!(block, self.block);
        assert!(page >= self.next, "pages of a frame ascend");
        self.next = page + count;
        assert!(self.next <= BLOCK_PAGES[block as usize]);
        self.named += u64::from(count);
    }
}

impl PageSink for Bounds {
    fn held(&mut self, block: u32, page: u32, out: &mut Page) {
        assert_eq!(block, self.block);
        assert!(page < BLOCK_PAGES[block as usize]);
        out.fill(page as u8);
    }

    fn zero(&mut self, block: u32, page: u32, count: u32) {
        self.take(block, page, count);
    }

    fn pages(&mut self, block: u32, first: u32, data: &[Page], fingerprints_low: &[u64]) {
        assert_eq!(data.len(), fingerprints_low.len());
        self.take(block, first, data.len() as u32);
    }

    fn placed(&mut self, block: u32, page: u32, _fingerprint_low: u64) {
        self.take(block, page, 1);
    }

    fn damaged(&mut self, block: u32, page: u32, count: u32) {
        self.take(block, page, count);
    }
}

fuzz_target!(|input: &[u8]| {
    if let Some((header, payload)) = page_frame(input, 0, 1) {
        DESTINATION.with_borrow_mut(|destination| {
            let Some(data) = destination.read(&header, &payload) else {
                return;
            };
            destination.apply(&header, Some(data));
            if !destination.table.in_place().is_empty() {
                destination.place(data);
                destination.apply(&header, None);
            }
        });
    }
});

impl Destination {
    /// The data behind a good table.
    fn read<'p>(&mut self, header: &FrameHeader, payload: &'p [u8]) -> Option<&'p [u8]> {
        let (bytes, data) = payload.split_at_checked(header.table_bytes as usize)?;
        let read = self.line.read_table(header, bytes, &mut self.table);
        read.ok().map(|()| data)
    }

    fn apply(&mut self, header: &FrameHeader, data: Option<&[u8]>) {
        if let Some(data) = data {
            let mut bounds = Bounds {
                block: header.ram_block,
                next: 0,
                named: 0,
            };
            Decoder::new(STREAMS).decode(&self.table, data, &mut bounds);
            assert_eq!(bounds.named, self.table.named());
        }
        let mut applied = Applied::default();
        self.line
            .apply(
                header,
                &self.table,
                data,
                &mut Decoder::new(STREAMS),
                &mut applied,
            )
            .expect("there is memory");
        assert_eq!(applied.summary.pages, self.table.named());
        assert_eq!(applied.root, self.digests.root());
        self.check_and_empty(header.ram_block as usize);
    }

    /// What the kernel does with data that goes straight to RAM.
    fn place(&self, data: &[u8]) {
        let mut pages = data.as_chunks::<PAGE_BYTES>().0.iter();
        for run in self.table.in_place() {
            let block = &self.layout.blocks()[run.ram_block as usize];
            for page in run.page..run.page + run.count {
                block.write_page(page, pages.next().expect("the table covers the data"));
            }
        }
        assert!(pages.next().is_none());
    }

    fn check_and_empty(&self, index: usize) {
        let block = &self.layout.blocks()[index];
        let mut copy = [0; PAGE_BYTES];
        for page in 0..BLOCK_PAGES[index] {
            block.read_page(page, &mut copy);
            let global = self.layout.global_page(index, page);
            let held = self.digests.get(global);
            let is_zero = kernels().is_zero(&copy);
            if let Some(held) = held {
                // A page of zeros that came as data is held as data.
                assert_eq!(held, kernels().fingerprint(self.key, &copy));
                block.write_page(page, &[0; PAGE_BYTES]);
                self.digests.set(global, None, &mut RamRoot::default());
            } else {
                assert!(is_zero, "page {page} holds what nobody sent");
            }
        }
    }
}
