//! Post-copy: what is named as missing, how it is fetched, and how two nodes find each other again.
//!
//! A page that is missing is a mark at the destination's VMM, which outlives its data plane as the memory
//! itself does. Pages are fetched one by one, from a source VMM that stands, while both data planes are up and
//! connected.

use std::collections::BTreeSet;

use dwcp_proto::{
    Destination, DestinationConfig, DestinationEvent, Phase, Source, SourceConfig, SourceEvent,
};
use dwcp_wire::{Control, FetchSummary, MissingPages, PageRange};

use crate::faults::Side;
use crate::link::Link;
use crate::mutation::Mutation;
use crate::pages;
use crate::plan::{MS, TrackerKind};
use crate::source_node::SourceRun;
use crate::world::{Happening, World};

/// Of a hundred destinations so many cannot do without pages.
const IMPOSSIBLE_PERCENT: u64 = 10;

impl World {
    /// Names what is dirty to the destination, and forgets it; it leaves the root at both ends.
    pub(crate) fn name_missing(&mut self, attempt: usize, again: &[PageRange]) {
        let first_block = self.plan.first_block;
        let exact = self.plan.tracker == TrackerKind::Exact;
        let mut named: BTreeSet<usize> = if exact {
            self.guest.dirty_pages().collect()
        } else {
            (0..self.plan.pages).collect()
        };
        named.extend(pages::from_ranges(again, first_block));
        for &page in &named {
            self.guest.clear_dirty(page);
        }
        if self.mutation == Mutation::ForgetMissing {
            named.pop_first();
        }
        let Some(run) = self.source.run.as_mut() else {
            return;
        };
        for &page in &named {
            run.sent[page] = 0;
        }
        run.has_forgotten = true;
        for block in 0..2 {
            let of_block = |page: &&usize| (**page >= first_block) == (block == 1);
            let pages = named.iter().filter(of_block);
            let message = Control::Missing(MissingPages {
                ram_block: block,
                page: 0,
                // Not compressed: a byte for the place of each page among all of them.
                zstd: pages.map(|&page| page as u8).collect(),
            });
            self.send(attempt, Side::Destination, &message);
        }
    }

    pub(crate) fn prepare_postcopy(&mut self, attempt: usize) {
        let wait = self.action_time();
        let event = if self.rng.chance(IMPOSSIBLE_PERCENT) {
            DestinationEvent::PostcopyImpossible("no userfaultfd".to_owned())
        } else {
            DestinationEvent::PostcopyPrepared
        };
        self.destination_to(attempt, wait, event);
    }

    pub(crate) fn note_missing(&mut self, attempt: usize, message: &MissingPages) {
        if let Some(run) = self.destination_run(attempt) {
            let pages = message.zstd.iter().copied();
            run.missing.extend(pages.map(usize::from));
        }
    }

    /// Takes what was named out of RAM and of the root.
    pub(crate) fn take_missing(&mut self, attempt: usize, is_all: bool) {
        let wait = self.action_time();
        let holds = self.holds_vmm(attempt);
        let Some(run) = self.destination.runs[attempt].as_mut() else {
            return;
        };
        for &page in &run.missing {
            run.receiver.credited[page] = 0;
        }
        let root = pages::root(&run.receiver.credited);
        let missing = run.missing.clone();
        if holds {
            for &page in &missing {
                self.destination.vmm.ram[page] = 0;
            }
            self.destination.vmm.missing = missing;
        }
        let event = if is_all {
            DestinationEvent::MissingTaken { root }
        } else {
            DestinationEvent::MissingTakenAhead
        };
        self.destination_to(attempt, wait, event);
    }

    /// The guest runs, or its data plane is back: pages come from now on.
    pub(crate) fn fetch_later(&mut self, attempt: usize) {
        let boot = self.destination.boot;
        let wait = self.network_time() + self.rng.skewed(10_000, 5 * MS);
        self.after(wait, Happening::PageFetched { boot, attempt });
    }

    pub(crate) fn page_fetched(&mut self, attempt: usize) {
        let fetches = self
            .destination_run(attempt)
            .is_some_and(|run| run.machine.phase() == Phase::Postcopy && !run.is_told);
        if !fetches {
            return;
        }
        // A source that runs has the guest's RAM mapped, also when its VMM is gone.
        let run = self.source.run.as_ref();
        let serves =
            run.is_some_and(|run| run.attempt == attempt && run.machine.phase() >= Phase::Handover);
        let connected = self.source.up && serves && self.network_down_until <= self.now;
        if connected && let Some(page) = self.destination.vmm.missing.pop_first() {
            let content = self.guest.memory[page];
            self.destination.vmm.ram[page] = content;
            if let Some(run) = self.destination_run(attempt) {
                run.receiver.credited[page] = content;
            }
        }
        if !self.destination.vmm.missing.is_empty() {
            return self.fetch_later(attempt);
        }
        let Some(run) = self.destination.runs[attempt].as_mut() else {
            return;
        };
        run.is_told = true;
        let event = DestinationEvent::AllFetched {
            root: (!run.was_restarted).then(|| pages::root(&run.receiver.credited)),
            summary: FetchSummary::default(),
        };
        self.feed_destination(attempt, event);
    }

    /// The source reads its RAM, which stands still.
    pub(crate) fn read_root(&mut self, attempt: usize) {
        let wait = self.action_time();
        let root = pages::root(&self.guest.memory);
        self.source_to(attempt, wait, SourceEvent::RootRead { root });
    }

    /// It looks for the destination until that answers.
    pub(crate) fn serve_again(&mut self, attempt: usize) {
        let boot = self.source.boot;
        let wait = self.network_time() + self.rng.range(1, 500) * MS;
        self.after(wait, Happening::SourceReturns { boot, attempt });
    }

    pub(crate) fn source_returns(&mut self, attempt: usize) {
        let run = self.source.run.as_ref();
        if !run.is_some_and(|run| run.attempt == attempt && run.machine.is_cut_off()) {
            return;
        }
        let there =
            self.destination.up && !self.destination.gone && self.network_down_until <= self.now;
        if !there {
            return self.serve_again(attempt);
        }
        let driver = self.destination_run(attempt).map(|run| run.finished);
        match driver {
            Some(false) => {
                self.links[attempt] = Link::new(self.plan.streams);
                self.feed_source(attempt, SourceEvent::Connected);
                self.feed_destination(attempt, DestinationEvent::SourceIsBack);
            }
            // Nobody fetches any more: the journal answers.
            _ if self.destination.journal.is_fetching(attempt) => self.serve_again(attempt),
            _ => {
                let lost = self.destination.killed || self.destination.journal.has_failed();
                let whole = Control::Whole {
                    verified: if lost { Some(false) } else { None },
                    summary: FetchSummary::default(),
                };
                self.feed_source(attempt, SourceEvent::Peer(whole));
            }
        }
    }

    /// A restarted source whose pages are needed.
    pub(crate) fn recover_serving(&mut self, attempt: usize) {
        if self.mutation == Mutation::ForgetServing {
            return;
        }
        let config = SourceConfig {
            offer: self.offer(attempt),
            limits: self.plan.limits,
            deadline_ns: 0,
            silence_ns: self.plan.silence_ns,
        };
        let machine = Source::serving_again(config, self.plan.epoch + 1);
        self.source.run = Some(SourceRun::new(attempt, machine, self.plan.pages));
        self.serve_again(attempt);
    }

    /// A restarted destination whose guest lacks pages.
    pub(crate) fn recover_fetching(&mut self, attempt: usize, runs: bool) {
        let config = DestinationConfig {
            silence_ns: self.plan.silence_ns,
        };
        let machine = Destination::fetching_again(config, self.plan.epoch + 1, runs);
        self.destination_begins(attempt, machine);
        let instance = self.destination.vmm.instance;
        self.destination.held_by = Some(attempt);
        if let Some(run) = self.destination_run(attempt) {
            run.instance = Some(instance);
            run.was_restarted = true;
        }
        if self.mutation == Mutation::ForgetWhatIsMissing {
            self.destination.vmm.missing.clear();
        }
        if runs {
            self.fetch_later(attempt);
        } else {
            self.order_destination_run(attempt, instance);
        }
    }
}
