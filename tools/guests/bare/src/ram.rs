//! The pages and what the guest knows of them.

use dwcp_guest_page::{GuestOptions, PAGE_BYTES, UNWRITTEN, check_page, next_random, write_page};

use crate::boot::{REGIONS_MAX, Region};

/// End of what `boot.s` mapped.
const MAPPED_END: u64 = 64 << 30;

unsafe extern "C" {
    /// End of our own image, made by the linker.
    static kernel_end: u8;
}

/// All of RAM behind our own image: first the table of generations, then the pages.
pub struct Ram {
    options: GuestOptions,
    regions: [Region; REGIONS_MAX],
    generations: *mut u32,
    pages: u64,
    hot_pages: u64,
    random: u64,
    cursor: u64,
    writes: u64,
    verified: u64,
    bad: u64,
}

fn pages_in(region: &Region) -> u64 {
    (region.end - region.start) / PAGE_BYTES as u64
}

impl Ram {
    /// Takes possession of RAM; `None` when there is none.
    pub fn new(map: &[Region; REGIONS_MAX], options: GuestOptions) -> Option<Self> {
        let image_end = &raw const kernel_end as u64;
        let page = PAGE_BYTES as u64;
        let mut regions = [Region::default(); REGIONS_MAX];
        for (ours, given) in regions.iter_mut().zip(map) {
            let start = given.start.max(image_end).next_multiple_of(page);
            let end = given.end.min(MAPPED_END) / page * page;
            *ours = if start < end {
                Region { start, end }
            } else {
                Region::default()
            };
        }
        let all: u64 = regions.iter().map(pages_in).sum();
        // The table takes its place from the first region that has one.
        let table_bytes = (all * 4).next_multiple_of(page);
        let home = regions
            .iter_mut()
            .find(|region| region.end - region.start > table_bytes)?;
        let generations = home.start as *mut u32;
        home.start += table_bytes;
        let room: u64 = regions.iter().map(pages_in).sum();
        let wanted = if options.fill_mib == 0 {
            room
        } else {
            options.fill_mib << 8
        };
        let pages = wanted.min(room);
        let hot_pages = (options.hot_mib << 8).min(pages);
        let (random, cursor, writes, verified, bad) = (1, 0, 0, 0, 0);
        (pages > 0).then_some(Self {
            options,
            regions,
            generations,
            pages,
            hot_pages,
            random,
            cursor,
            writes,
            verified,
            bad,
        })
    }

    pub fn options(&self) -> &GuestOptions {
        &self.options
    }

    pub fn mib(&self) -> u64 {
        self.pages >> 8
    }

    /// (pages rewritten, pages checked, pages found wrong)
    pub fn counters(&self) -> (u64, u64, u64) {
        (self.writes, self.verified, self.bad)
    }

    /// Writes every page for the first time.
    pub fn fill(&mut self) {
        for page in 0..self.pages {
            self.set_generation(page, UNWRITTEN);
            self.write(page, UNWRITTEN, UNWRITTEN + 1);
        }
    }

    /// Rewrites one page of the hot window, after checking it.
    pub fn rewrite_one(&mut self) {
        if self.hot_pages == 0 {
            return;
        }
        self.random = next_random(self.random);
        let page = self.random % self.hot_pages;
        let before = self.check(page);
        self.write(page, before, before.checked_add(1).unwrap_or(UNWRITTEN + 1));
        self.writes += 1;
    }

    /// Checks the next page of the pass over all of them.
    pub fn check_one(&mut self) {
        self.check(self.cursor);
        self.verified += 1;
        self.cursor += 1;
        if self.cursor == self.pages {
            self.cursor = 0;
        }
    }

    fn write(&mut self, page: u64, before: u32, generation: u32) {
        let at = self.address(page);
        // SAFETY: `address` gives pages of RAM that are ours alone.
        unsafe { write_page(at, self.options.kind, page, before, generation) };
        self.set_generation(page, generation);
    }

    /// Counts a page that is not as it should be; returns its generation.
    fn check(&mut self, page: u64) -> u32 {
        // SAFETY: the table has an entry for each page; `page` is below `pages`.
        let generation = unsafe { self.generations.add(page as usize).read() };
        let at = self.address(page);
        // SAFETY: as in `write`.
        if !unsafe { check_page(at, self.options.kind, page, generation) } {
            self.bad += 1;
        }
        generation
    }

    fn set_generation(&mut self, page: u64, generation: u32) {
        // SAFETY: as in `check`.
        unsafe { self.generations.add(page as usize).write(generation) };
    }

    fn address(&self, page: u64) -> *mut u64 {
        let mut left = page;
        for region in &self.regions {
            let here = pages_in(region);
            if left < here {
                return (region.start + left * PAGE_BYTES as u64) as *mut u64;
            }
            left -= here;
        }
        panic!("page {page} of {}", self.pages)
    }
}
