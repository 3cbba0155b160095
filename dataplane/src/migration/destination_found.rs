//! Pages that the source asks for, looked for in the waiting VM's RAM and in the node's store.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use dwcp_simd::{FingerprintKey, PAGE_BYTES};
use dwcp_wire::limits::WANTED_UNANSWERED_MAX;
use dwcp_wire::{AbortCode, Control, RefuseCode, WantedPages};

use super::destination::{DestinationDriver, DestinationInput};
use super::destination_actions::Refusal;
use super::node::Node;
use super::source::random;
use crate::engine::{Found, Session, find_pages, keep_allocated};
use crate::store::Library;

/// What came of looking whether there is anything to find.
#[derive(Debug)]
pub(super) struct Looked {
    /// For the streams.
    token: u128,
    /// Seed of the hashes, if there is.
    content_seed: Result<Option<u64>, String>,
}

/// Questions for pages, and what came of them.
#[derive(Debug, Default)]
pub(super) struct Finding {
    /// Where they go, until round 0 is here.
    pub(super) questions: Option<SyncSender<WantedPages>>,
    in_ram: u64,
    in_store: u64,
}

impl DestinationDriver {
    /// Looks at RAM and the store, and then for the pages that the source asks for. On a thread of its own:
    /// meanwhile the source must hear that this side lives.
    pub(super) fn look_at_ram(&mut self, token: u128) -> Result<(), Refusal> {
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let (stop, mailbox) = (Arc::clone(&self.vm_stop), self.mailbox.clone());
        let node = Arc::clone(&self.node);
        let meter = Arc::clone(&self.recorder.meter);
        let (ask, asked) = sync_channel(WANTED_UNANSWERED_MAX);
        let look = move || {
            let mut helper = meter.helper();
            let looked = look(&node, &session);
            helper.lap();
            let seed_of = |library: &Option<Library>| library.as_ref().map(Library::seed);
            let content_seed = looked.as_ref().map(seed_of).map_err(Clone::clone);
            let looked_at = Looked {
                token,
                content_seed,
            };
            let _ = mailbox.push(DestinationInput::Looked(looked_at));
            let Ok(Some(mut library)) = looked else {
                return;
            };
            answer(&session, &mut library, &asked, &stop, |found| {
                helper.lap();
                mailbox.push(DestinationInput::Found(found)).is_ok()
            });
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
        match looked.content_seed {
            Ok(content_seed) => self.vm_is_ready(looked.token, content_seed),
            Err(reason) => self.failed(AbortCode::Other, reason),
        }
    }

    /// The source asks for pages.
    pub(super) fn find_pages(&mut self, wanted: WantedPages) {
        let questions = self.finding.questions.as_ref();
        let is_taken = questions.is_some_and(|questions| questions.try_send(wanted).is_ok());
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
        self.recorder.add_to_root(found.root);
        self.finding.in_ram += found.in_ram;
        self.finding.in_store += found.elsewhere;
        self.send(&Control::Found(found.answer));
    }

    /// Round 0 is here: nothing more is looked for.
    pub(super) fn stop_finding(&mut self) {
        if self.finding.questions.take().is_none() {
            return;
        }
        self.join_helpers();
        let mib = |pages: u64| (pages * PAGE_BYTES as u64) >> 20;
        let (in_ram, in_store) = (mib(self.finding.in_ram), mib(self.finding.in_store));
        if in_ram + in_store > 0 {
            let text =
                format!("{in_ram} MiB were in the VM's RAM already, {in_store} MiB in the store");
            self.recorder.remark(text);
        }
    }
}

/// Where to look for pages besides RAM, which may be nowhere; `None` when nothing can be found at all.
fn look(node: &Node, session: &Session) -> Result<Option<Library>, String> {
    let allocated = keep_allocated(session).map_err(|error| error.to_string())?;
    let library = node.store.as_ref().map(|store| store.library());
    if let Some(library) = library.filter(|library| library.pages() > 0) {
        return Ok(Some(library));
    }
    if allocated == 0 {
        return Ok(None);
    }
    let seed = random().map_err(|error| error.to_string())?;
    Ok(Some(Library::empty((seed & u128::from(u64::MAX)) as u64)))
}

/// Answers until nobody asks any more.
fn answer(
    session: &Session,
    library: &mut Library,
    asked: &Receiver<WantedPages>,
    stop: &AtomicBool,
    mut give: impl FnMut(Result<Found, String>) -> bool,
) {
    let key = FingerprintKey::new(library.seed());
    for wanted in asked {
        if stop.load(Ordering::Acquire) {
            return;
        }
        let found = find_pages(session, &wanted, &key, library);
        let found = found.map_err(|error| error.to_string());
        if found.is_err() | !give(found) {
            return;
        }
    }
}
