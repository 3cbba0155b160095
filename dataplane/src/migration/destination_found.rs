//! Pages that the source asks for, looked for in the waiting VM's RAM and in the node's store.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};

use dwcp_simd::PAGE_BYTES;
use dwcp_wire::limits::WANTED_UNANSWERED_MAX;
use dwcp_wire::{AbortCode, Capabilities, Control, PageQuestion, RefuseCode};

use super::destination::{DestinationDriver, DestinationInput};
use super::destination_actions::Refusal;
use super::node::{Node, lock};
use super::readers::{read_on, reader_count};
use super::source::random;
use crate::engine::{Finder, Found, Session, keep_allocated};
use crate::store::Library;

/// What came of looking whether there is anything to find.
#[derive(Debug)]
pub(super) struct Looked {
    /// For the streams.
    token: u128,
    /// What there is.
    content: Result<Option<Content>, String>,
}

/// Pages that the source may ask for.
#[derive(Clone, Copy, Debug)]
struct Content {
    /// Seed of the hashes.
    seed: u64,
    /// The migration by which the VM left, when its RAM as it was then is here.
    left_by: Option<u128>,
    /// There are other pages, too.
    others: bool,
}

/// Questions for pages, and what came of them.
#[derive(Debug, Default)]
pub(super) struct Finding {
    /// Where they go, until round 0 is here.
    pub(super) questions: Option<SyncSender<PageQuestion>>,
    /// What is said of the VM's baseline.
    holds: Option<Control>,
    /// Questions that are not answered yet.
    unanswered: u64,
    in_ram: u64,
    in_store: u64,
}

impl Finding {
    /// Whether the source may still ask.
    pub(super) const fn is_open(&self) -> bool {
        self.questions.is_some()
    }
}

impl DestinationDriver {
    /// Looks at RAM and the store, and then for the pages that the source asks for. On threads of its own:
    /// meanwhile the source must hear that this side lives.
    pub(super) fn look_at_ram(&mut self, token: u128) -> Result<(), Refusal> {
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let (stop, mailbox) = (Arc::clone(&self.vm_stop), self.mailbox.clone());
        let (node, vm) = (Arc::clone(&self.node), self.offer.vm.clone());
        let meter = Arc::clone(&self.recorder.meter);
        let (ask, asked) = sync_channel(WANTED_UNANSWERED_MAX);
        let threads = reader_count(&self.settings, self.granted_streams());
        let look = move || {
            let mut helper = meter.helper();
            let looked = look(&node, &vm, &session);
            helper.lap();
            let content = looked
                .as_ref()
                .map(|there| there.as_ref().map(|(_, content)| *content));
            let content = content.map_err(Clone::clone);
            let _ = mailbox.push(DestinationInput::Looked(Looked { token, content }));
            let Ok(Some((library, _))) = looked else {
                return;
            };
            let finder = Finder::new(&session, library.seed(), &library);
            let give = |found| mailbox.push(DestinationInput::Found(found)).is_ok();
            let desk = Desk::new(asked, give);
            let read = read_on("dwcp-find", threads, || {
                let mut helper = meter.helper();
                desk.answer(|question| {
                    let found = finder.find(question).map_err(|error| error.to_string());
                    helper.lap();
                    (!stop.load(Ordering::Acquire)).then_some(found)
                });
            });
            if let Err(error) = read {
                let reason = format!("no thread: {error}");
                let _ = mailbox.push(DestinationInput::Found(Err(reason)));
            }
            library
                .stale()
                .for_each(|what| tracing::warn!(what, "store"));
        };
        let thread = std::thread::Builder::new().name("dwcp-look".into());
        let thread = thread.spawn(look);
        self.ram_thread =
            Some(thread.map_err(|error| (RefuseCode::Other, format!("no thread: {error}")))?);
        self.finding.questions = Some(ask);
        Ok(())
    }

    pub(super) fn was_looked_at(&mut self, looked: Looked) {
        if self.vm_stop.load(Ordering::Acquire) {
            return;
        }
        let content = match looked.content {
            Ok(content) => content,
            Err(reason) => return self.failed(AbortCode::Other, reason),
        };
        self.finding.holds = content.and_then(|content| {
            Some(Control::HoldsBaseline {
                migration: content.left_by?,
                is_all: !content.others,
            })
        });
        self.vm_is_ready(looked.token, content.map(|content| content.seed));
    }

    /// What tells the source that the VM's RAM is here as it left, if it knows what to do with it.
    pub(super) fn tell_baseline(&mut self) -> Option<Control> {
        let holds = self.finding.holds.take();
        holds.filter(|_| self.source_can.contains(Capabilities::BASELINE))
    }

    /// The source asks for pages.
    pub(super) fn find_pages(&mut self, asked: PageQuestion) {
        let questions = self.finding.questions.as_ref();
        let is_taken = questions.is_some_and(|questions| questions.try_send(asked).is_ok());
        self.finding.unanswered += 1;
        if !is_taken {
            let reason = "the source asks for more pages at once than it may";
            self.failed(AbortCode::Protocol, reason.into());
        }
    }

    /// Pages were looked for.
    pub(super) fn found_pages(&mut self, found: Result<Found, String>) {
        if self.vm_stop.load(Ordering::Acquire) {
            return;
        }
        let found = match found {
            Ok(found) => found,
            Err(reason) => return self.failed(AbortCode::Protocol, reason),
        };
        self.finding.unanswered = self.finding.unanswered.saturating_sub(1);
        self.recorder.add_to_root(found.root);
        self.finding.in_ram += found.in_ram;
        self.finding.in_store += found.elsewhere;
        self.send(&Control::Found(found.answer));
    }

    /// Round 0 has ended at the source, which has all answers: nothing more is looked for.
    pub(super) fn first_round_ended(&mut self) {
        if self.finding.unanswered > 0 {
            let reason = "the source ends round 0 before its questions are answered";
            return self.failed(AbortCode::Protocol, reason.into());
        }
        self.join_helpers();
        let mib = |pages: u64| (pages * PAGE_BYTES as u64) >> 20;
        let (in_ram, in_store) = (mib(self.finding.in_ram), mib(self.finding.in_store));
        if in_ram + in_store > 0 {
            let text =
                format!("{in_ram} MiB were in the VM's RAM already, {in_store} MiB in the store");
            self.recorder.remark(text);
        }
        if !self.round.is_empty() && self.round.len() == usize::from(self.recorder.streams) {
            self.wipe();
        }
    }
}

/// Where to look for pages besides RAM, which may be nowhere, and what is there; `None` when nothing can be found at all.
fn look(node: &Node, vm: &str, session: &Session) -> Result<Option<(Library, Content)>, String> {
    let allocated = keep_allocated(session).map_err(|error| error.to_string())?;
    let library = node.store.as_ref();
    let library = library.map(|store| store.library_for(vm, &session.layout));
    if let Some(library) = library.filter(|library| library.pages() > 0) {
        let baseline = library.baseline();
        let content = Content {
            seed: library.seed(),
            left_by: baseline.map(|(migration, _)| migration),
            others: allocated > 0 || baseline.is_none_or(|(_, others)| others),
        };
        return Ok(Some((library, content)));
    }
    if allocated == 0 {
        return Ok(None);
    }
    let random = random().map_err(|error| error.to_string())?;
    let content = Content {
        seed: (random & u128::from(u64::MAX)) as u64,
        left_by: None,
        others: true,
    };
    Ok(Some((Library::empty(content.seed), content)))
}

/// Where several threads take questions, and bring answers, which leave in the order of the questions.
struct Desk<Q, A, G> {
    /// And how many have been taken.
    asked: Mutex<(Receiver<Q>, u64)>,
    answers: Mutex<Answers<A, G>>,
}

struct Answers<A, G> {
    /// The question whose answer leaves next.
    next: u64,
    /// Answers to later ones.
    early: BTreeMap<u64, A>,
    give: G,
}

impl<Q, A, G: FnMut(A) -> bool> Desk<Q, A, G> {
    /// `give` says whether anybody wants more.
    const fn new(asked: Receiver<Q>, give: G) -> Self {
        Self {
            asked: Mutex::new((asked, 0)),
            answers: Mutex::new(Answers {
                next: 0,
                early: BTreeMap::new(),
                give,
            }),
        }
    }

    /// Answers questions until there are no more, or nobody wants to hear it.
    fn answer(&self, mut answer: impl FnMut(&Q) -> Option<A>) {
        while let Some((number, question)) = self.take() {
            let Some(answer) = answer(&question) else {
                return;
            };
            if !lock(&self.answers).put(number, answer) {
                return;
            }
        }
    }

    /// The next question. Others wait meanwhile: there is none for them either.
    fn take(&self) -> Option<(u64, Q)> {
        let mut asked = lock(&self.asked);
        let question = asked.0.recv().ok()?;
        asked.1 += 1;
        Some((asked.1 - 1, question))
    }
}

impl<A, G: FnMut(A) -> bool> Answers<A, G> {
    fn put(&mut self, number: u64, answer: A) -> bool {
        self.early.insert(number, answer);
        while let Some(answer) = self.early.remove(&self.next) {
            self.next += 1;
            if !(self.give)(answer) {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The first question is answered last.
    #[test]
    fn answers_leave_in_the_order_of_the_questions() {
        let (ask, asked) = sync_channel(64);
        (0..40u32).for_each(|question| ask.send(question).unwrap());
        drop(ask);
        let mut given = vec![];
        let (others, the_first) = sync_channel(64);
        let the_first = Mutex::new(the_first);
        let desk = Desk::new(asked, |answer: u32| {
            given.push(answer);
            true
        });
        read_on("dwcp-test", 4, || {
            desk.answer(|question| {
                match question {
                    0 => (1..40).for_each(|_| lock(&the_first).recv().unwrap()),
                    _ => others.send(()).unwrap(),
                }
                Some(*question)
            });
        })
        .unwrap();
        assert_eq!(given, (0..40).collect::<Vec<_>>());
    }

    #[test]
    fn nobody_is_answered_who_does_not_want_it() {
        let (ask, asked) = sync_channel(64);
        (0..40u32).for_each(|question| ask.send(question).unwrap());
        let mut given = 0;
        let desk = Desk::new(asked, |_: u32| {
            given += 1;
            given < 3
        });
        desk.answer(|question| (*question < 30).then_some(*question));
        assert_eq!(given, 3);
    }
}
