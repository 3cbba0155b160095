//! The guest and the tracker of its writes.

use crate::pages::Content;
use crate::plan::{Plan, TrackerKind};
use crate::rng::Rng;

/// The guest's memory at the source, what it ought to be, and which pages are dirty.
#[derive(Debug)]
pub(crate) struct Guest {
    /// The source VMM's RAM.
    pub(crate) memory: Vec<Content>,
    /// Every write of the guest, kept apart from everything that could disturb `memory`.
    truth: Vec<Content>,
    before: Vec<Content>,
    dirty: Vec<bool>,
    armed: bool,
    version: Content,
}

impl Guest {
    pub(crate) fn new(plan: &Plan, rng: &mut Rng) -> Self {
        let mut version = 0;
        let memory: Vec<Content> = (0..plan.pages)
            .map(|_| {
                version += 1;
                if rng.chance(30) { 0 } else { version }
            })
            .collect();
        Self {
            truth: memory.clone(),
            before: memory.clone(),
            dirty: vec![false; plan.pages],
            memory,
            armed: false,
            version,
        }
    }

    /// One write: mostly something new, now and then zeroes, or what was there before.
    pub(crate) fn write(&mut self, plan: &Plan, rng: &mut Rng) -> usize {
        let page = rng.index(plan.hot_pages);
        self.version += 1;
        let content = match rng.index(10) {
            0 => 0,
            1 => self.before[page],
            _ => self.version,
        };
        self.before[page] = self.memory[page];
        self.memory[page] = content;
        self.truth[page] = content;
        let seen = match plan.tracker {
            TrackerKind::Exact => true,
            TrackerKind::Lossy { percent } => !rng.chance(percent),
        };
        if self.armed && seen {
            self.dirty[page] = true;
        }
        page
    }

    pub(crate) fn arm(&mut self) {
        self.armed = true;
        self.dirty.fill(false);
    }

    pub(crate) const fn disarm(&mut self) {
        self.armed = false;
    }

    pub(crate) fn clear_dirty(&mut self, page: usize) {
        self.dirty[page] = false;
    }

    pub(crate) fn dirty_pages(&self) -> impl Iterator<Item = usize> + '_ {
        (0..self.dirty.len()).filter(|&page| self.dirty[page])
    }

    /// Whether RAM is what the guest made it.
    pub(crate) fn is_intact(&self) -> bool {
        self.memory == self.truth
    }
}
