//! Missing pages into the guest's RAM, each at once and each once: the guest runs.

use dwcp_simd::{Fingerprint, FingerprintKey, Kernels, PAGE_BYTES, Page, RamRoot, kernels};
use nix::errno::Errno;

use super::fetch::Fetch;
use crate::path::PageSink;

/// Takes the pages of a frame, or of a read. A page that is not what its fingerprint says is not placed, and will be asked
/// for again.
pub(super) struct Place<'a> {
    fetch: &'a Fetch,
    key: &'a FingerprintKey,
    kernels: &'static Kernels,
    /// What the pages add to the root.
    pub(super) root: RamRoot,
    /// Pages that were not what was sent.
    pub(super) damaged: u64,
    /// A page could not be placed.
    pub(super) failure: Option<Errno>,
}

impl<'a> Place<'a> {
    pub(super) fn new(fetch: &'a Fetch) -> Self {
        Self {
            fetch,
            key: &fetch.session().key,
            kernels: kernels(),
            root: RamRoot::default(),
            damaged: 0,
            failure: None,
        }
    }

    fn address(&self, block: u32, page: u32) -> u64 {
        let block = &self.fetch.session().layout.blocks()[block as usize];
        block.vmm_address() + u64::from(page) * PAGE_BYTES as u64
    }

    /// Takes pages that an adapter has read. Which of them are zero, nobody said.
    pub(super) fn read(&mut self, block: u32, first: u32, data: &[Page], fingerprints_low: &[u64]) {
        let right = self.right(data, fingerprints_low);
        let mut done = 0;
        for run in right.chunk_by(|one, next| self.key.is_zero(*one) == self.key.is_zero(*next)) {
            let page = first + done as u32;
            if self.key.is_zero(run[0]) {
                self.zero(block, page, run.len() as u32);
            } else {
                self.data(block, page, &data[done..], run);
            }
            done += run.len();
        }
    }

    /// The fingerprints of pages up to the first that is not what was sent. Behind that nothing is looked at: it comes
    /// again with that one.
    fn right(&mut self, data: &[Page], fingerprints_low: &[u64]) -> Vec<Fingerprint> {
        let found = data.iter().zip(fingerprints_low).map_while(|(page, low)| {
            let found = self.kernels.fingerprint(self.key, page);
            (found.lo == *low).then_some(found)
        });
        let right: Vec<_> = found.collect();
        self.damaged += (data.len() - right.len()) as u64;
        right
    }

    /// Puts as many pages as have fingerprints, none of them zero.
    fn data(&mut self, block: u32, first: u32, data: &[Page], found: &[Fingerprint]) {
        let userfault = self.fetch.userfault();
        self.put(self.address(block, first), found.len(), |done, to| {
            userfault.copy(to, &data[done..found.len()])
        });
        if self.failure.is_none() {
            for (page, found) in (first..).zip(found) {
                self.fetch
                    .is_there(block, page, Some(*found), &mut self.root);
            }
        }
    }

    /// Puts a run by `put`, which says how many of the pages behind the first so many it has put. One that
    /// is there already came by another connection, or the guest was given it.
    fn put(&mut self, at: u64, count: usize, put: impl Fn(usize, u64) -> Result<usize, Errno>) {
        let mut done = 0;
        while done < count {
            let to = at + (done * PAGE_BYTES) as u64;
            match put(done, to) {
                Ok(pages) => done += pages,
                Err(Errno::EEXIST) => {
                    self.fetch.userfault().wake(to, PAGE_BYTES as u64);
                    done += 1;
                }
                Err(Errno::EAGAIN | Errno::EINTR) => {}
                Err(errno) => {
                    self.failure = Some(errno);
                    return;
                }
            }
        }
    }
}

impl PageSink for Place<'_> {
    /// Nothing is sent as what changed: what pages were is gone.
    fn held(&mut self, _block: u32, _page: u32, _out: &mut Page) {
        self.damaged += 1;
    }

    fn zero(&mut self, block: u32, first: u32, count: u32) {
        let at = self.address(block, first);
        let userfault = self.fetch.userfault();
        self.put(at, count as usize, |done, to| {
            userfault.zero(to, count - done as u32)
        });
        if self.failure.is_none() {
            for page in first..first + count {
                self.fetch.is_there(block, page, None, &mut self.root);
            }
        }
    }

    fn pages(&mut self, block: u32, first: u32, data: &[Page], fingerprints_low: &[u64]) {
        let right = self.right(data, fingerprints_low);
        self.data(block, first, data, &right);
    }

    /// Nothing is received straight into RAM.
    fn placed(&mut self, _block: u32, _page: u32, _fingerprint_low: u64) {
        self.damaged += 1;
    }

    fn damaged(&mut self, _block: u32, _page: u32, count: u32) {
        self.damaged += u64::from(count);
    }
}
