//! Post-copy at the destination: what is missing is taken out of RAM, and fetched while the guest runs.

use std::sync::Arc;
use std::time::Duration;

use dwcp_journal::{GuestMemory, MemoryBlock};
use dwcp_proto::{DestinationEvent, Phase};
use dwcp_simd::RamRoot;
use dwcp_wire::{AbortCode, Control, MissingPages};

use super::control_writer::ControlWriter;
use super::destination::{DestinationDriver, DestinationInput, listen_to_peer};
use super::destination_streams::{JoinLink, StreamJoin};
use super::node::lock;
use super::postcopy::{DEMAND, Fetch, FetchEvent, FetchOptions, LINKS, note_missing};
use super::recorder::Fetching;
use crate::ram::{RamBitmap, RamBlock, RamLayout};
use crate::tls::Connection;
use crate::transport::{PageReader, RdmaRequest};
use crate::vmm::{Faults, Userfault, Vm, VmmError, started_ticks};

/// What post-copy needs, and how far it is.
#[derive(Debug, Default)]
pub(super) struct Postcopy {
    userfault: Option<Userfault>,
    missing: Option<RamBitmap>,
    /// Those of them that are out of RAM.
    pub(super) taken: Option<RamBitmap>,
    /// Connections that wait to be used.
    links: [Option<Connection>; LINKS as usize],
    generations: [u16; LINKS as usize],
    /// Reads what somebody waits for, once there is something to fetch.
    pub(super) reader: Option<PageReader>,
    /// The source asks for it.
    pub(super) asked: Option<RdmaRequest>,
    /// It has: it does so once.
    pub(super) was_asked: bool,
    pub(super) fetch: Option<Arc<Fetch>>,
    /// The machine knows that all is there to begin.
    is_prepared: bool,
    /// This data plane was started anew: what came before is in nobody's root.
    is_root_forgotten: bool,
}

impl Postcopy {
    /// Ends it. What is missing stays so: who needs it waits.
    pub(super) fn stop(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            fetch.stop();
        }
    }

    /// Ends it for a guest that will never run here. What is missing is zero from now on.
    pub(super) fn discard(&mut self) {
        if let Some(fetch) = self.fetch.take() {
            fetch.lift();
            fetch.stop();
        }
    }

    /// What came before this data plane was started is in no root.
    pub(super) const fn root_is_forgotten(&mut self) {
        self.is_root_forgotten = true;
    }

    /// How far fetching is, once it has begun.
    pub(super) fn fetching(&self) -> Option<Fetching> {
        let fetch = self.fetch.as_ref()?;
        Some(Fetching {
            left: fetch.left(),
            named: fetch.named(),
            read: fetch.read_so_far(),
        })
    }
}

/// A userfaultfd that tells of missing pages, if the guest can run without them.
fn missing_faults(vm: &mut dyn Vm, layout: &RamLayout) -> Result<Userfault, VmmError> {
    let failed = |text: &str| Err(VmmError::Failed(text.to_owned()));
    if layout.blocks().iter().any(|block| block.is_in_hugetlbfs()) {
        return failed("its RAM is of huge pages (hugetlbfs), which do not come one by one");
    }
    let handed = vm.userfaultfd()?;
    if !handed.tells_kernel_faults {
        return failed(
            "its userfaultfd does not tell faults of the kernel: give the VMM's user access to \
             /dev/userfaultfd, or set vm.unprivileged_userfaultfd = 1",
        );
    }
    let userfault = Userfault::new(handed.fd, Faults::Missing)?;
    let block = &layout.blocks()[0];
    let (start, bytes) = (block.vmm_address(), block.bytes());
    userfault.register(start, bytes, Faults::Missing)?;
    userfault
        .unregister(start, bytes)
        .map_err(|errno| VmmError::Failed(format!("UFFDIO_UNREGISTER: {errno}")))?;
    Ok(userfault)
}

/// Sees to it that a run of pages has no memory: what has any is no fault, whatever is in it.
fn take_out(block: &RamBlock, first: u32, count: u32) -> Result<(), VmmError> {
    let is_out = || {
        Ok::<_, VmmError>(
            block
                .data_from(first)?
                .is_some_and(|data| data >= first + count),
        )
    };
    if is_out()? {
        return Ok(());
    }
    block.discard_pages(first, count)?;
    // A huge page that is pinned is cleared, and stays.
    if is_out()? {
        return Ok(());
    }
    Err(VmmError::Failed(format!(
        "the kernel keeps memory of RAM block {} that it was to give back: no huge pages for it, please",
        block.name()
    )))
}

/// What a data plane that is started anew must know, to answer faults before the VMM answers it.
fn memory(
    vm: &mut dyn Vm,
    layout: &RamLayout,
    fingerprint_seed: u64,
) -> Result<GuestMemory, VmmError> {
    let pid = vm.facts()?.pid;
    let blocks = layout.blocks().iter().map(|block| MemoryBlock {
        name: block.name().to_owned(),
        bytes: block.bytes(),
        address: block.vmm_address(),
    });
    Ok(GuestMemory {
        pid,
        started_ticks: started_ticks(pid)?,
        fingerprint_seed,
        blocks: blocks.collect(),
    })
}

impl DestinationDriver {
    /// Looks whether the guest can run on missing pages. The connections for them come by themselves.
    pub(super) fn prepare_postcopy(&mut self) {
        let (Some(vm), Some(session)) = (&self.vm, &self.session) else {
            return;
        };
        let seed = self.offer.fingerprint_seed;
        let prepared = {
            let vm = &mut **lock(vm);
            missing_faults(vm, &session.layout)
                .and_then(|faults| Ok((faults, memory(vm, &session.layout, seed)?)))
        };
        match prepared {
            Ok((userfault, memory)) => {
                self.journal.memory = memory;
                self.postcopy.userfault = Some(userfault);
                self.postcopy.missing = Some(session.layout.empty_bitmap());
                self.postcopy_is_prepared();
            }
            Err(error) => {
                let event = DestinationEvent::PostcopyImpossible(error.to_string());
                self.pending.push_back(event);
            }
        }
    }

    /// A connection for missing pages; one that comes later takes the place of one that broke.
    pub(super) fn join_missing(&mut self, join: StreamJoin) {
        let connection = match join.link {
            JoinLink::Connection(connection) => connection,
            JoinLink::Queue(request) => return self.take_reader(request),
        };
        let at = usize::from(join.index);
        let Some(known) = self.postcopy.generations.get(at).copied() else {
            let reason = format!("connection {at} for missing pages joins unasked");
            return self.failed(AbortCode::Protocol, reason);
        };
        if join.generation < known {
            tracing::debug!(index = at, "a connection that was given up");
            return;
        }
        self.postcopy.generations[at] = join.generation;
        self.postcopy.links[at] = Some(connection);
        if self.postcopy.fetch.is_none() {
            return self.postcopy_is_prepared();
        }
        self.use_links();
    }

    /// Fetches by the connections that are there: those for what nobody waits for once the guest runs.
    pub(super) fn use_links(&mut self) {
        let runs = self.machine.phase() == Phase::Postcopy;
        let Some(fetch) = &self.postcopy.fetch else {
            return;
        };
        for (index, link) in (0..).zip(&mut self.postcopy.links) {
            let Some(link) = link.take_if(|_| runs || index == DEMAND) else {
                continue;
            };
            if let Err(error) = fetch.adopt(index, link) {
                // The source sees it end, and makes another.
                tracing::error!(%error, "a connection for missing pages was not taken");
            }
        }
    }

    fn postcopy_is_prepared(&mut self) {
        let are_there = self.postcopy.links.iter().all(Option::is_some);
        if are_there && self.postcopy.userfault.is_some() && !self.postcopy.is_prepared {
            self.postcopy.is_prepared = true;
            self.pending.push_back(DestinationEvent::PostcopyPrepared);
        }
    }

    pub(super) fn note_missing(&mut self, message: &MissingPages) {
        let Some(missing) = &mut self.postcopy.missing else {
            return;
        };
        if let Err(error) = note_missing(message, missing) {
            self.failed(AbortCode::Protocol, error.to_string());
        }
    }

    /// Takes what is missing out of RAM and of the root, and answers faults from now on: loading device state
    /// reads RAM.
    pub(super) fn take_missing(&mut self) {
        if let Err(reason) = self.revoke_keys_early() {
            return self.failed(AbortCode::Other, reason);
        }
        let root = match self.try_take_missing() {
            Ok(forgotten) => self.recorder.add_to_root(forgotten),
            Err(error) => return self.failed(AbortCode::Vmm, format!("post-copy: {error}")),
        };
        self.pending
            .push_back(DestinationEvent::MissingTaken { root });
    }

    fn try_take_missing(&mut self) -> Result<RamRoot, VmmError> {
        let root = self.take_out_missing()?;
        let gone = || VmmError::Failed("it was not prepared".into());
        let missing = self.postcopy.missing.take().ok_or_else(gone)?;
        let userfault = self.postcopy.userfault.take().ok_or_else(gone)?;
        self.start_fetching(userfault, missing)?;
        Ok(root)
    }

    /// Takes out what is known to be missing so far: the guest runs at the source, and does not wait for it.
    pub(super) fn take_missing_ahead(&mut self) {
        if let Err(reason) = self.revoke_keys_early() {
            return self.failed(AbortCode::Other, reason);
        }
        match self.take_out_missing() {
            Ok(forgotten) => {
                self.recorder.add_to_root(forgotten);
                self.answer_reader();
                self.pending.push_back(DestinationEvent::MissingTakenAhead);
            }
            Err(error) => self.failed(AbortCode::Vmm, format!("post-copy: {error}")),
        }
    }

    /// Gives back the memory of what is missing, and forgets what was held of it. Returns the change of the
    /// root.
    fn take_out_missing(&mut self) -> Result<RamRoot, VmmError> {
        let (Some(session), Some(missing)) = (&self.session, &self.postcopy.missing) else {
            return Ok(RamRoot::default());
        };
        let mut rest = missing.clone();
        if let Some(taken) = &self.postcopy.taken {
            rest.subtract(taken);
        }
        for (block, bitmap) in session.layout.blocks().iter().zip(&rest.blocks) {
            for (first, count) in bitmap.runs() {
                take_out(block, first, count)?;
            }
        }
        let root = session.forget(&rest);
        self.postcopy.taken = Some(missing.clone());
        Ok(root)
    }

    /// Answers faults from now on. RAM has no memory for what is missing.
    pub(super) fn start_fetching(
        &mut self,
        userfault: Userfault,
        missing: RamBitmap,
    ) -> Result<(), VmmError> {
        let Some(session) = self.session.clone() else {
            return Ok(());
        };
        let mailbox = self.mailbox.clone();
        let fetch = Fetch::start(FetchOptions {
            session,
            userfault,
            missing,
            lifts_on_error: !self.postcopy.is_root_forgotten,
            meter: Arc::clone(&self.recorder.meter),
            tell: Box::new(move |event| drop(mailbox.push(DestinationInput::Fetch(event)))),
        })?;
        // What nobody waits for follows the guest's device state, which it does not run without.
        self.postcopy.fetch = Some(fetch);
        self.use_reader();
        self.use_links();
        Ok(())
    }

    pub(super) fn fetch_event(&mut self, event: FetchEvent) {
        match event {
            // Looked at after every event.
            FetchEvent::All => {}
            FetchEvent::LinkLost(reason) => self.recorder.stream_broke(reason),
            FetchEvent::ReadingBroke(reason) => self.not_read(&reason),
            FetchEvent::Failed(reason) => self.failed(AbortCode::Vmm, reason),
        }
    }

    /// Ends fetching when the last page is here, and the guest runs.
    pub(super) fn end_fetching(&mut self) {
        if self.machine.phase() != Phase::Postcopy {
            return;
        }
        let is_whole = |fetch: &mut Arc<Fetch>| fetch.left() == 0;
        let Some(fetch) = self.postcopy.fetch.take_if(is_whole) else {
            return;
        };
        fetch.stop();
        let summary = fetch.summary();
        self.tell_read(&fetch);
        let root = self.recorder.add_to_root(fetch.root());
        if self.postcopy.is_root_forgotten {
            self.recorder.ram_root = None;
        }
        self.pending.push_back(DestinationEvent::AllFetched {
            root: (!self.postcopy.is_root_forgotten).then_some(root),
            summary,
        });
    }

    /// Whether pages are missing, and who has them is not heard any more: it says something in a quarter of that time.
    pub(super) fn lacks_pages_and_source(&self) -> bool {
        let silence = Duration::from_millis(self.offer.peer_silence_ms.into());
        let is_heard = self
            .source_heard
            .is_some_and(|heard| heard.elapsed() <= silence);
        let lacks = self.postcopy.fetching().is_some_and(|at| at.left > 0);
        lacks && !is_heard
    }

    /// The source has lost its way to here, and found it again.
    pub(super) fn source_is_back(&mut self, connection: Connection) {
        let is_expected = matches!(self.machine.phase(), Phase::Handover | Phase::Postcopy);
        // Its name was looked at when it asked.
        if !is_expected || connection.is_sealed() != self.journal.tls {
            return connection.shut();
        }
        let Some((token, _)) = self.expected else {
            return;
        };
        if let Some(control) = self.control.take() {
            control.shut();
        }
        // It may have been started anew, and count from the beginning.
        self.postcopy.generations = Default::default();
        let silence = Duration::from_millis(self.offer.peer_silence_ms.into());
        let meter = Arc::clone(&self.recorder.meter);
        let listened = connection.try_clone().and_then(|writer| {
            self.control = Some(ControlWriter::new(writer, silence, &meter)?);
            listen_to_peer(connection, self.mailbox.clone(), &meter)
        });
        if let Err(error) = listened {
            // The source sees it end, and comes again.
            return tracing::error!(%error, "the source was not taken back");
        }
        self.recorder
            .note("the source was lost in post-copy, and is back".into());
        self.send(&Control::PostcopyGoOn {
            token,
            fingerprint_seed: self.offer.fingerprint_seed,
        });
        self.feed(DestinationEvent::SourceIsBack);
    }
}
