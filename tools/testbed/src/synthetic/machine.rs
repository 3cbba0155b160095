//! The guest itself: one thread that rewrites and checks pages, and the ways to stop and start it.
//!
//! Locks are taken in this order: `operation`, `control`, `device`, `published`. While the worker is
//! stuck in a page fault it holds `device` only, so `status` is answered even then.

use dwcp_guest_page::{GuestOptions, Pace, UNWRITTEN, next_random};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::SyntheticOptions;
use super::client::{GuestStatus, VerifyReport};
use super::memory::Memory;
use super::state::DeviceState;

/// Time between two turns of the guest's loop.
const BEAT: Duration = Duration::from_millis(1);

/// The same of a guest that neither rewrites nor checks pages: a hundred of them must cost nothing.
const IDLE_BEAT: Duration = Duration::from_millis(20);

/// How long `pause` and `resume` wait for the worker; a page fault that nobody serves may hold it.
const OBEY_TIMEOUT: Duration = Duration::from_secs(30);

/// Pages of a full check between two chances for the worker.
const VERIFY_CHUNK: usize = 1024;

/// What the worker is told to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Wanted {
    Paused,
    Running,
    Ended,
}

/// What the worker was told and what it does.
#[derive(Debug)]
struct Control {
    wanted: Wanted,
    running: bool,
    /// Wall clock of the last change of `running`.
    since_us: u64,
    /// True until the first `resume` of an incoming guest.
    incoming: bool,
    /// Whether an incoming guest got its device state.
    loaded: bool,
}

/// One synthetic guest without its socket.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) memory: Memory,
    operation: Mutex<()>,
    control: Mutex<Control>,
    changed: Condvar,
    /// Set whenever `wanted` is not `Running`: looked at between two pages, without a lock.
    halt: AtomicBool,
    device: Mutex<DeviceState>,
    published: Mutex<GuestStatus>,
}

/// A guest that panicked in one client's thread has no half-made state: go on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The wall clock, microseconds since 1970.
pub(crate) fn wall_clock_us() -> u64 {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

impl Machine {
    /// A guest with its RAM filled, or empty when it is incoming; paused.
    pub(crate) fn new(options: &SyntheticOptions, memory: Memory) -> Self {
        let guest = GuestOptions {
            fill_mib: options.ram_mib,
            hot_mib: options.hot_mib,
            rate: options.rate,
            verify_rate: options.verify_rate,
            kind: options.kind,
        };
        let mut device = DeviceState::new(&guest, options.seed, memory.pages());
        if !options.incoming {
            fill(&memory, &mut device, options.zero_percent);
        }
        let control = Control {
            wanted: Wanted::Paused,
            running: false,
            since_us: wall_clock_us(),
            incoming: options.incoming,
            loaded: false,
        };
        Self {
            memory,
            operation: Mutex::new(()),
            control: Mutex::new(control),
            changed: Condvar::new(),
            halt: AtomicBool::new(true),
            device: Mutex::new(device),
            published: Mutex::new(GuestStatus::default()),
        }
    }

    /// The worker's whole life; returns after [`Self::end`].
    pub(crate) fn work(&self) {
        let mut paces: Option<(Pace, Pace)> = None;
        loop {
            let mut control = lock(&self.control);
            while control.wanted == Wanted::Paused {
                self.set_running(&mut control, false);
                paces = None;
                control = self
                    .changed
                    .wait(control)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            if control.wanted == Wanted::Ended {
                self.set_running(&mut control, false);
                return;
            }
            self.set_running(&mut control, true);
            drop(control);
            let beat = self.turn(&mut paces);
            let control = lock(&self.control);
            if control.wanted == Wanted::Running {
                drop(self.changed.wait_timeout(control, beat));
            }
        }
    }

    /// Stops the guest; returns when it stopped.
    pub(crate) fn pause(&self) -> Result<u64, String> {
        let _one = lock(&self.operation);
        self.order(Wanted::Paused, false)
    }

    /// Lets the guest run; returns when it began to.
    pub(crate) fn resume(&self) -> Result<u64, String> {
        let _one = lock(&self.operation);
        let mut control = lock(&self.control);
        if control.incoming && !control.loaded {
            return Err("no device state was loaded".into());
        }
        control.incoming = false;
        drop(control);
        self.order(Wanted::Running, true)
    }

    /// Ends the worker, without waiting for it.
    pub(crate) fn end(&self) {
        lock(&self.control).wanted = Wanted::Ended;
        self.halt.store(true, Ordering::Relaxed);
        self.changed.notify_all();
    }

    pub(crate) fn has_ended(&self) -> bool {
        lock(&self.control).wanted == Wanted::Ended
    }

    pub(crate) fn is_incoming(&self) -> bool {
        lock(&self.control).incoming
    }

    pub(crate) fn status(&self) -> GuestStatus {
        let control = lock(&self.control);
        let (running, incoming) = (control.running, control.incoming && !control.loaded);
        drop(control);
        GuestStatus {
            running,
            incoming,
            ..lock(&self.published).clone()
        }
    }

    /// Hands the encoded device state of the paused guest to `sink`, keeping it paused meanwhile.
    pub(crate) fn save<T>(&self, sink: impl FnOnce(&[u8]) -> T) -> Result<T, String> {
        let _one = lock(&self.operation);
        let control = lock(&self.control);
        if control.running || control.wanted == Wanted::Running {
            return Err("the guest runs: pause it first".into());
        }
        if control.incoming {
            return Err("the guest waits for its own device state".into());
        }
        drop(control);
        let bytes = lock(&self.device).encode();
        Ok(sink(&bytes))
    }

    /// Takes the device state that `source` gives, which is told how many bytes it may read.
    pub(crate) fn load(
        &self,
        source: impl FnOnce(u64) -> Result<Vec<u8>, String>,
    ) -> Result<usize, String> {
        let _one = lock(&self.operation);
        if !self.is_incoming() {
            return Err("not an incoming guest".into());
        }
        let pages = self.memory.pages();
        let bytes = source(DeviceState::bytes_max(pages))?;
        let state = DeviceState::decode(&bytes, pages)?;
        self.publish(&state);
        *lock(&self.device) = state;
        lock(&self.control).loaded = true;
        Ok(bytes.len())
    }

    /// Checks every page against the table as it is now. A running guest runs on between chunks.
    pub(crate) fn verify(&self) -> Result<VerifyReport, String> {
        let control = lock(&self.control);
        if control.incoming && !control.loaded {
            return Err("no device state was loaded".into());
        }
        drop(control);
        let pages = self.memory.pages();
        let mut bad = 0;
        for start in (0..pages).step_by(VERIFY_CHUNK) {
            let device = lock(&self.device);
            bad += (start..pages.min(start + VERIFY_CHUNK))
                .filter(|&page| !self.is_good(&device, page))
                .count();
        }
        Ok(VerifyReport {
            bad: bad as u64,
            pages: pages as u64,
        })
    }

    fn order(&self, wanted: Wanted, running: bool) -> Result<u64, String> {
        let mut control = lock(&self.control);
        if control.wanted == Wanted::Ended {
            return Err("the guest ends".into());
        }
        control.wanted = wanted;
        self.halt
            .store(wanted != Wanted::Running, Ordering::Relaxed);
        self.changed.notify_all();
        let deadline = Instant::now() + OBEY_TIMEOUT;
        while control.running != running {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(format!("the guest did not obey within {OBEY_TIMEOUT:?}"));
            }
            let waited = self.changed.wait_timeout(control, left);
            control = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(control.since_us)
    }

    fn set_running(&self, control: &mut Control, running: bool) {
        if control.running != running {
            control.running = running;
            control.since_us = wall_clock_us();
            self.changed.notify_all();
        }
    }

    /// One turn of the guest's loop: the writes that are due, then the checks that are due. Returns
    /// the time until the next.
    fn turn(&self, paces: &mut Option<(Pace, Pace)>) -> Duration {
        let mut device = lock(&self.device);
        let (writes, checks) =
            paces.get_or_insert_with(|| (Pace::new(device.rate), Pace::new(device.verify_rate)));
        let now_us = wall_clock_us();
        let elapsed_us = match device.last_beat_us {
            0 => 0,
            last => now_us.saturating_sub(last),
        };
        device.last_beat_us = now_us;
        device.max_gap_us = device.max_gap_us.max(elapsed_us);
        let due = writes.advance(elapsed_us);
        writes.take(self.repeat(due, || self.rewrite_one(&mut device)));
        let due = checks.advance(elapsed_us);
        checks.take(self.repeat(due, || self.check_one(&mut device)));
        self.publish(&device);
        match (device.rate, device.verify_rate) {
            (0, 0) => IDLE_BEAT,
            _ => BEAT,
        }
    }

    /// Calls `each` up to `times` times, less when the guest is told to stop; returns how often.
    fn repeat(&self, times: u64, mut each: impl FnMut()) -> u64 {
        for done in 0..times {
            if self.halt.load(Ordering::Relaxed) {
                return done;
            }
            each();
        }
        times
    }

    fn rewrite_one(&self, device: &mut DeviceState) {
        if device.hot_pages == 0 {
            return;
        }
        device.random = next_random(device.random);
        let page = (device.random % device.hot_pages) as usize;
        if !self.is_good(device, page) {
            device.bad += 1;
        }
        let before = device.generations[page];
        // Never back to UNWRITTEN, which would mean a page of zeros.
        let generation = before.checked_add(1).unwrap_or(UNWRITTEN + 1);
        self.memory
            .write(page, device.kind, device.salt, before, generation);
        device.generations[page] = generation;
        device.writes += 1;
    }

    fn check_one(&self, device: &mut DeviceState) {
        let page = device.cursor as usize;
        if !self.is_good(device, page) {
            device.bad += 1;
        }
        device.verified += 1;
        device.cursor += 1;
        if device.cursor >= self.memory.pages() as u64 {
            device.cursor = 0;
            device.passes += 1;
        }
    }

    fn is_good(&self, device: &DeviceState, page: usize) -> bool {
        self.memory
            .check(page, device.kind, device.salt, device.generations[page])
    }

    fn publish(&self, device: &DeviceState) {
        let mut published = lock(&self.published);
        published.writes = device.writes;
        published.verified = device.verified;
        published.bad = device.bad;
        published.passes = device.passes;
        published.max_gap_ms = device.max_gap_us / 1000;
    }
}

fn fill(memory: &Memory, device: &mut DeviceState, zero_percent: u8) {
    for page in 0..memory.pages() {
        device.random = next_random(device.random);
        if device.random % 100 >= u64::from(zero_percent) {
            memory.write(page, device.kind, device.salt, UNWRITTEN, UNWRITTEN + 1);
            device.generations[page] = UNWRITTEN + 1;
        }
    }
}
