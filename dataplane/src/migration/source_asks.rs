//! The source asks which of its pages the destination has, before round 0.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, sync_channel};
use std::thread::JoinHandle;

use dwcp_proto::SourceEvent;
use dwcp_simd::{PAGE_BYTES, RamRoot};
use dwcp_wire::limits::WANTED_UNANSWERED_MAX;
use dwcp_wire::{AbortCode, KnownPages, PageRange};

use super::readers::{read_on, reader_count};
use super::source::{SourceDriver, SourceInput};
use crate::engine::{Asker, Asking, Question, Taken, take_found};
use crate::ram::RamBitmap;

/// Answers after which it is clear whether asking is worthwhile: they are from all over RAM.
const TRIAL_ANSWERS: u64 = 16;

/// A page is asked for with 8 bytes and read once more for it. Where fewer than one in so many is there,
/// that is more than it saves.
const PAGES_PER_FOUND_MAX: u64 = 50;

/// Questions under way.
#[derive(Debug)]
pub(super) struct Asked {
    unanswered: VecDeque<Question>,
    /// One is taken with each answer; the threads that ask wait when there are too many.
    permits: Option<Receiver<()>>,
    by_hash: Arc<AtomicBool>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    all_asked: bool,
    /// Round 0 has.
    has_begun: bool,
    /// Of what was asked by hash.
    answers: u64,
    asked_pages: u64,
    found_pages: u64,
    /// Pages that have not changed since the VM left there, and those of them that are there.
    unchanged: (u64, u64),
    /// What the pages that are there add to the root.
    root: RamRoot,
    /// Pages that the destination may hold something else for than it says.
    pub(super) doubtful: Vec<PageRange>,
}

/// What the destination says of the VM's RAM as it left there.
#[derive(Clone, Copy, Debug)]
pub(super) struct Held {
    /// The migration by which it left.
    migration: u128,
    /// Nothing else can be found there.
    is_all: bool,
}

impl Asked {
    /// What came of it, in words.
    fn explain(&self) -> impl Iterator<Item = String> + use<> {
        let mib = |pages: u64| (pages * PAGE_BYTES as u64) >> 20;
        let (found, asked) = (mib(self.found_pages), mib(self.asked_pages));
        let (unchanged, there) = (mib(self.unchanged.0), mib(self.unchanged.1));
        let by_bits = (self.unchanged.0 > 0).then(|| {
            format!(
                "{unchanged} MiB have not changed since the VM left there; the destination has {there} of them"
            )
        });
        let by_hash = (asked > 0 || by_bits.is_none())
            .then(|| format!("the destination has {found} of {asked} MiB that it was asked for"));
        by_bits.into_iter().chain(by_hash)
    }
}

impl SourceDriver {
    pub(super) const fn baseline_is_held(&mut self, migration: u128, is_all: bool) {
        self.held = Some(Held { migration, is_all });
    }

    /// Reads RAM and asks, on threads of its own: gigabytes take seconds.
    pub(super) fn ask_for_pages(&mut self, content_seed: u64) {
        let (session, mailbox) = (Arc::clone(&self.session), self.mailbox.clone());
        let (by_hash, stop) = (Arc::new(AtomicBool::new(true)), Arc::default());
        let (permit, permits) = sync_channel(WANTED_UNANSWERED_MAX);
        let (asks_by_hash, stops) = (Arc::clone(&by_hash), Arc::clone(&stop));
        let meter = Arc::clone(&self.recorder.meter);
        let (node, vm, held) = (Arc::clone(&self.node), self.request.vm.clone(), self.held);
        let settings = &self.request.settings;
        let threads = reader_count(settings, settings.streams);
        let ask = move || {
            let _helper = meter.helper();
            let store = node.store.as_ref();
            let came = held.zip(store).and_then(|(held, store)| {
                let came = store.arrival(&vm, held.migration, &session.layout)?;
                asks_by_hash.store(!held.is_all, Ordering::Release);
                Some(came)
            });
            let asking = Asking {
                content_seed,
                came: came.as_ref(),
                by_hash: &asks_by_hash,
                stop: &stops,
            };
            let asker = Asker::new(&session, &asking).map_err(|error| error.to_string());
            let asked = asker.and_then(|asker| {
                let read = read_on("dwcp-ask", threads, || {
                    let mut helper = meter.helper();
                    asker.ask(|question| {
                        helper.lap();
                        permit.send(()).is_ok()
                            && mailbox.push(SourceInput::Question(question)).is_ok()
                    });
                });
                read.map_err(|error| format!("no thread: {error}"))
            });
            let _ = mailbox.push(SourceInput::AllAsked(asked));
        };
        let thread = std::thread::Builder::new().name("dwcp-ask".into());
        match thread.spawn(ask) {
            Ok(thread) => {
                self.asking = Some(Asked {
                    unanswered: VecDeque::new(),
                    permits: Some(permits),
                    by_hash,
                    stop,
                    thread: Some(thread),
                    all_asked: false,
                    has_begun: false,
                    answers: 0,
                    asked_pages: 0,
                    found_pages: 0,
                    unchanged: (0, 0),
                    root: RamRoot::default(),
                    doubtful: vec![],
                });
            }
            Err(error) => self.fail(AbortCode::Other, format!("no thread: {error}")),
        }
    }

    pub(super) fn question(&mut self, question: Question) {
        let Some(asking) = &mut self.asking else {
            return;
        };
        let message = question.asked.clone().into();
        match question.is_by_hash() {
            true => asking.asked_pages += question.pages(),
            false => asking.unchanged.0 += question.pages(),
        }
        asking.unanswered.push_back(question);
        self.send(&message);
    }

    pub(super) fn all_asked(&mut self, asked: Result<(), String>) {
        if let Err(reason) = asked {
            return self.fail(AbortCode::Other, reason);
        }
        if let Some(asking) = &mut self.asking {
            asking.all_asked = true;
        }
        self.check_answers();
    }

    pub(super) fn take_found(&mut self, found: &KnownPages) {
        let Some(asking) = &mut self.asking else {
            return;
        };
        let Some(question) = asking.unanswered.pop_front() else {
            let reason = "the destination answers what it was not asked";
            return self.fail(AbortCode::Protocol, reason.into());
        };
        let _ = asking.permits.as_ref().map(Receiver::try_recv);
        asking.answers += u64::from(question.is_by_hash());
        match take_found(&self.session, &question, found) {
            // Round 0 was to leave them out.
            Ok(Taken::Found { pages: 0, .. }) if asking.has_begun => {
                asking.doubtful.push(question.range());
            }
            Ok(Taken::Found { pages, root }) => {
                match question.is_by_hash() {
                    true => asking.found_pages += pages,
                    false => asking.unchanged.1 += pages,
                }
                asking.root.merge(root);
            }
            Ok(Taken::Doubtful(range)) => asking.doubtful.push(range),
            Err(error) => return self.fail(AbortCode::Protocol, error.to_string()),
        }
        self.check_answers();
    }

    /// Goes on to round 0 when what is not answered is about pages that it can leave out; asks no more by hash when that is
    /// of no use.
    fn check_answers(&mut self) {
        let Some(asking) = &mut self.asking else {
            return;
        };
        let is_rare = asking.found_pages * PAGES_PER_FOUND_MAX < asking.asked_pages;
        if asking.answers >= TRIAL_ANSWERS && is_rare {
            asking.by_hash.store(false, Ordering::Release);
        }
        if !asking.all_asked {
            return;
        }
        if !asking.has_begun && !asking.unanswered.iter().any(Question::is_by_hash) {
            asking.has_begun = true;
            self.pending.push_back(SourceEvent::MayBegin);
        }
        if asking.unanswered.is_empty() {
            let remarks = asking.explain();
            remarks.for_each(|text| self.recorder.remark(text));
            self.round_is_sent();
        }
    }

    /// Whether there are answers to come: then round 0 does not end.
    pub(super) fn has_unanswered(&self) -> bool {
        let asking = self.asking.as_ref();
        asking.is_some_and(|asking| !asking.unanswered.is_empty())
    }

    /// What the destination has, or is about to say that it has, is no part of round 0: if it is written meanwhile, the tracker
    /// says so, and an older copy cannot come behind a newer one.
    pub(super) fn leave_known_out(&self, dirty: &mut RamBitmap) {
        let Some(asking) = &self.asking else { return };
        let layout = &self.session.layout;
        for (index, bitmap) in dirty.blocks.iter_mut().enumerate() {
            let is_known = |page: &u32| {
                let global = layout.global_page(index, *page);
                self.session.digests.get(global).is_some()
            };
            (0..bitmap.pages())
                .filter(is_known)
                .for_each(|page| bitmap.clear_page(page));
        }
        for (index, page) in asking.unanswered.iter().flat_map(Question::asked_pages) {
            dirty.blocks[index].clear_page(page);
        }
    }

    /// Pages that the destination has without their being sent, and what they add to the root.
    pub(super) fn known(&self) -> (u64, RamRoot) {
        let asking = self.asking.as_ref();
        let known = asking.map(|asking| (asking.found_pages + asking.unchanged.1, asking.root));
        known.unwrap_or_default()
    }

    /// Pages that were asked for and must be sent in any case; each is told once.
    pub(super) fn take_doubtful(&mut self) -> Vec<PageRange> {
        let asking = self.asking.as_mut();
        asking.map_or_else(Vec::new, |asking| std::mem::take(&mut asking.doubtful))
    }

    /// The thread that asks ends.
    pub(super) fn stop_asking(&mut self) {
        let Some(asking) = &mut self.asking else {
            return;
        };
        asking.stop.store(true, Ordering::Release);
        asking.permits = None;
        if let Some(thread) = asking.thread.take() {
            let _ = thread.join();
        }
    }
}
