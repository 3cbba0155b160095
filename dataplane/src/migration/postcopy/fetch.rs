//! The destination's side of post-copy: faults told, pages asked for and placed, until none is missing.

mod ask;

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use dwcp_simd::{Fingerprint, PAGE_BYTES, RamRoot};
use dwcp_wire::{FetchSummary, PageRange, PagesRead};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};

use super::link::{self, Requests};
use super::missing::Missing;
use super::order::Order;
use super::place::Place;
use super::read::Reading;
use super::waiting::Waiting;
use super::{DEMAND, LINKS};
use crate::engine::Session;
use crate::migration::meter::Meter;
use crate::migration::node::lock;
use crate::ram::RamBitmap;
use crate::tls::Connection;
use crate::vmm::{Faults, Userfault, VmmError};

/// Until pages that could not be placed are asked for again.
const PLACE_AGAIN: Duration = Duration::from_millis(200);

/// How often the thread that hears of faults looks whether it is to end.
const LOOK_MS: u16 = 100;

/// What the driver is told.
#[derive(Debug)]
pub(in crate::migration) enum FetchEvent {
    /// No page is missing any more.
    All,
    /// A connection ended: the source makes another.
    LinkLost(String),
    /// The adapter reads no more: what somebody waits for is asked for by TCP.
    ReadingBroke(String),
    /// A page cannot be placed.
    Failed(String),
}

/// Shared by the thread that hears of faults and those of the connections.
pub(in crate::migration) struct Fetch {
    session: Arc<Session>,
    userfault: Userfault,
    missing: Missing,
    waiting: Waiting,
    order: Mutex<Order>,
    reading: Reading,
    demand: Mutex<Option<Requests>>,
    /// Connections so far.
    number: AtomicU32,
    /// The newest connection of each link.
    open: Mutex<[Option<Connection>; LINKS as usize]>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    /// What was placed adds to the root.
    root: Mutex<RamRoot>,
    meter: Arc<Meter>,
    began: Instant,
    fetch_ms: AtomicU64,
    breaks: AtomicU32,
    stop: AtomicBool,
    tell: Box<dyn Fn(FetchEvent) + Send + Sync>,
}

impl std::fmt::Debug for Fetch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let left = self.missing.left();
        f.debug_struct("Fetch")
            .field("left", &left)
            .finish_non_exhaustive()
    }
}

/// What fetching needs.
pub(in crate::migration) struct FetchOptions {
    pub(in crate::migration) session: Arc<Session>,
    pub(in crate::migration) userfault: Userfault,
    /// Where it cannot begin, faults are the kernel's again. Not where the guest runs already.
    pub(in crate::migration) lifts_on_error: bool,
    /// Pages that are missing; RAM has no memory for them.
    pub(in crate::migration) missing: RamBitmap,
    pub(in crate::migration) meter: Arc<Meter>,
    pub(in crate::migration) tell: Box<dyn Fn(FetchEvent) + Send + Sync>,
}

impl Fetch {
    /// Has faults told, and answers them from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(in crate::migration) fn start(options: FetchOptions) -> Result<Arc<Self>, VmmError> {
        let lifts_on_error = options.lifts_on_error;
        let empty = options.session.layout.empty_bitmap();
        let fetch = Arc::new(Self {
            missing: Missing::new(&options.missing),
            session: options.session,
            userfault: options.userfault,
            waiting: Waiting::new(),
            order: Mutex::new(Order::new(empty)),
            reading: Reading::new(),
            demand: Mutex::default(),
            number: AtomicU32::new(0),
            open: Mutex::default(),
            threads: Mutex::default(),
            root: Mutex::default(),
            meter: options.meter,
            began: Instant::now(),
            fetch_ms: AtomicU64::new(0),
            breaks: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            tell: options.tell,
        });
        let begun = fetch.begin();
        if begun.is_err() && lifts_on_error {
            fetch.lift();
        }
        begun.map(|()| fetch)
    }

    fn begin(self: &Arc<Self>) -> Result<(), VmmError> {
        for block in self.session.layout.blocks() {
            let (start, bytes) = (block.vmm_address(), block.bytes());
            self.userfault.register(start, bytes, Faults::Missing)?;
        }
        // What a mover before this one was told, and did not answer, is told again.
        for block in self.session.layout.blocks() {
            self.userfault.wake(block.vmm_address(), block.bytes());
        }
        let hears = Arc::clone(self);
        self.spawn("dwcp-faults".into(), move || hears.hear_faults())
    }

    pub(super) fn spawn(
        &self,
        name: String,
        run: impl FnOnce() + Send + 'static,
    ) -> Result<(), VmmError> {
        let meter = Arc::clone(&self.meter);
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            let _helper = meter.helper();
            run();
        });
        let thread = thread.map_err(|error| VmmError::system("thread", error))?;
        let mut threads = lock(&self.threads);
        // Those of connections that were replaced have nothing to say any more.
        threads.retain(|thread| !thread.is_finished());
        threads.push(thread);
        Ok(())
    }

    /// A connection for missing pages, in the place of an older one.
    ///
    /// # Errors
    /// When there is no thread or descriptor for it.
    pub(in crate::migration) fn adopt(
        self: &Arc<Self>,
        index: u16,
        connection: Connection,
    ) -> Result<(), VmmError> {
        let system = |error| VmmError::system("connection for missing pages", error);
        let kept = connection.try_clone().map_err(system)?;
        let old = lock(&self.open)[usize::from(index)].replace(kept);
        if let Some(old) = old {
            old.shut();
        }
        if index != DEMAND {
            lock(&self.order).begin_anew();
        }
        let number = self.number.fetch_add(1, Ordering::Relaxed) + 1;
        let (fetch, meter) = (Arc::clone(self), Arc::clone(&self.meter));
        let spawned = self.spawn(format!("dwcp-fetch-{index}"), move || {
            link::run(&fetch, (number, index), connection, &meter);
        });
        if spawned.is_err()
            && let Some(kept) = lock(&self.open)[usize::from(index)].take()
        {
            // The source sees it end, and makes another.
            kept.shut();
        }
        spawned
    }

    /// Whether pages are still missing, and wanted.
    pub(super) fn is_under_way(&self) -> bool {
        self.missing.left() > 0 && !self.stop.load(Ordering::Acquire)
    }

    pub(super) fn session(&self) -> &Session {
        &self.session
    }

    pub(super) const fn userfault(&self) -> &Userfault {
        &self.userfault
    }

    pub(super) const fn waiting(&self) -> &Waiting {
        &self.waiting
    }

    pub(super) const fn reading(&self) -> &Reading {
        &self.reading
    }

    pub(super) fn meter(&self) -> &Meter {
        &self.meter
    }

    pub(super) fn tell(&self, event: FetchEvent) {
        (self.tell)(event);
    }

    /// Pages to ask for that nobody waits for.
    pub(super) fn next(&self, most: u32) -> Vec<PageRange> {
        lock(&self.order).next(&self.missing, most)
    }

    /// A page is there; noted where it was missing.
    pub(super) fn is_there(
        &self,
        block: u32,
        page: u32,
        found: Option<Fingerprint>,
        root: &mut RamRoot,
    ) {
        if self.missing.take(block, page) {
            let global = self.session.layout.global_page(block as usize, page);
            self.session.digests.set(global, found, root);
        }
        self.waiting.end((block, page));
    }

    /// A frame's pages are in their places.
    pub(super) fn placed(&self, place: &Place<'_>) {
        lock(&self.root).merge(place.root);
        // What comes twice may come when faults are the kernel's again.
        match place.failure.filter(|_| self.is_under_way()) {
            Some(errno @ Errno::ESRCH) => {
                (self.tell)(FetchEvent::Failed(format!(
                    "the VMM is gone: {}",
                    errno.desc()
                )));
            }
            // There may be memory again: who waits goes on waiting.
            Some(errno) => {
                tracing::error!(%errno, "missing pages cannot be placed yet");
                std::thread::sleep(PLACE_AGAIN);
                self.ask_again();
            }
            None => {}
        }
        if place.damaged > 0 {
            tracing::warn!(
                pages = place.damaged,
                "missing pages came damaged, and come again"
            );
            self.ask_again();
        }
        if self.missing.left() == 0 {
            let ms = self.began.elapsed().as_millis() as u64;
            let first =
                self.fetch_ms
                    .compare_exchange(0, ms.max(1), Ordering::AcqRel, Ordering::Acquire);
            if first.is_ok() {
                (self.tell)(FetchEvent::All);
            }
        }
    }

    /// A connection ended by itself.
    pub(super) fn link_lost(&self, number: u32, reason: String) {
        lock(&self.demand).take_if(|requests| requests.number == number);
        // What it was asked for is asked for again.
        lock(&self.order).begin_anew();
        if self.is_under_way() {
            self.breaks.fetch_add(1, Ordering::Relaxed);
            (self.tell)(FetchEvent::LinkLost(reason));
        }
    }

    fn hear_faults(&self) {
        while !self.stop.load(Ordering::Acquire) {
            let mut fds = [PollFd::new(self.userfault.as_fd(), PollFlags::POLLIN)];
            let heard = poll(&mut fds, PollTimeout::from(LOOK_MS));
            if matches!(heard, Ok(0) | Err(Errno::EINTR)) {
                continue;
            }
            let read = self.userfault.read_faults(|address| self.fault(address));
            if let (Err(errno), _) | (_, Err(errno)) = (heard, read) {
                let reason = format!("userfaultfd: {}", errno.desc());
                return (self.tell)(FetchEvent::Failed(reason));
            }
        }
    }

    fn fault(&self, address: u64) {
        let Some((block, page)) = self.page_at(address) else {
            return tracing::warn!(address, "fault outside of RAM");
        };
        if self.missing.contains(block, page) && self.waiting.begin((block, page)) {
            self.ask_now(block, page);
        }
        if !self.missing.contains(block, page) {
            // It has come meanwhile, or it is a zero page that never had memory.
            self.waiting.end((block, page));
            let at = address - address % PAGE_BYTES as u64;
            if self.userfault.zero(at, 1).is_err() {
                self.userfault.wake(at, PAGE_BYTES as u64);
            }
        }
    }

    fn page_at(&self, address: u64) -> Option<(u32, u32)> {
        let blocks = self.session.layout.blocks().iter();
        let (index, offset) = (0..).zip(blocks).find_map(|(index, block)| {
            let offset = address.checked_sub(block.vmm_address())?;
            (offset < block.bytes()).then_some((index, offset))
        })?;
        Some((index, (offset / PAGE_BYTES as u64) as u32))
    }

    /// What the pages that came add to the root.
    pub(in crate::migration) fn root(&self) -> RamRoot {
        *lock(&self.root)
    }

    /// Pages that are missing now.
    pub(in crate::migration) fn left(&self) -> u64 {
        self.missing.left()
    }

    /// Pages that were missing.
    pub(in crate::migration) const fn named(&self) -> u64 {
        self.missing.named()
    }

    /// Pages that the adapter has read.
    pub(in crate::migration) fn read_so_far(&self) -> u64 {
        self.reading.pages()
    }

    /// What the adapter has read, where it was to.
    pub(in crate::migration) fn pages_read(&self) -> Option<PagesRead> {
        self.reading.summary()
    }

    pub(in crate::migration) fn summary(&self) -> FetchSummary {
        FetchSummary {
            pages: self.missing.named(),
            fetch_ms: self.fetch_ms.load(Ordering::Acquire),
            breaks: self.breaks.load(Ordering::Relaxed),
            ..self.waiting.summary()
        }
    }

    /// Faults are the kernel's again: only when nothing is missing, or the guest will never run here.
    pub(in crate::migration) fn lift(&self) {
        for block in self.session.layout.blocks() {
            // A VMM that is gone has no ranges.
            let _ = self
                .userfault
                .unregister(block.vmm_address(), block.bytes());
        }
    }

    /// Ends it. Faults are the kernel's again only where nothing is missing.
    pub(in crate::migration) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.reading.end();
        if self.missing.left() == 0 {
            self.lift();
        }
        for connection in lock(&self.open).iter().flatten() {
            connection.shut();
        }
        let threads = std::mem::take(&mut *lock(&self.threads));
        for thread in threads {
            let _ = thread.join();
        }
    }
}
