//! Where completions come: `ibv_create_cq`, `ibv_poll_cq`, `ibv_req_notify_cq`, and the channel that wakes sleepers.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::ptr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use rdma_sys::{
    ibv_ack_cq_events, ibv_comp_channel, ibv_cq, ibv_create_comp_channel, ibv_create_cq,
    ibv_destroy_comp_channel, ibv_destroy_cq, ibv_get_cq_event, ibv_poll_cq, ibv_req_notify_cq,
    ibv_wc,
};

use crate::in_flight::{Ledger, parts};
use crate::owned::{Owned, result_of};
use crate::{Context, RdmaError, WorkCompletion};

/// Completions taken from the driver in one call.
const POLL_BATCH: usize = 32;

/// Which completions ring.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Notify {
    /// Each of them.
    All,
    /// Those of receives whose sender asked for it ([`solicited`](crate::SendRequest::solicited)), and failures.
    Solicited,
}

/// Ledgers by number, and how many queue pairs brought each: several share one that is of a shared receive queue.
type Ledgers = HashMap<u32, (Ledger, usize)>;

/// A completion queue with its channel. Queue pairs bring their completions here; any thread may poll.
///
/// It must have room for all requests of its queue pairs that are outstanding at a time, or it overruns and all of them fail.
/// See `ibv_create_cq(3)`.
#[derive(Debug)]
pub struct CompletionQueue {
    queue: Owned<ibv_cq>,
    channel: Owned<ibv_comp_channel>,
    ledgers: Mutex<Ledgers>,
    context: Arc<Context>,
}

impl CompletionQueue {
    /// Makes a queue for `capacity` completions.
    ///
    /// # Errors
    /// [`RdmaError::Create`] when the device has not that many.
    pub fn new(context: &Arc<Context>, capacity: u32) -> Result<Arc<Self>, RdmaError> {
        let channel = new_channel(context)?;
        let capacity = i32::try_from(capacity).unwrap_or(i32::MAX);
        let (device, name) = (context.as_ptr(), ptr::null_mut());
        // SAFETY: the context and the channel are alive, and stay so: the queue keeps both, behind itself. Vector 0 exists on
        // every device. The name is not looked at.
        let queue = unsafe { ibv_create_cq(device, capacity, name, channel.as_ptr(), 0) };
        // SAFETY: it was returned just now, and `ibv_destroy_cq` is its destructor.
        let queue = unsafe { Owned::new(queue, ibv_destroy_cq, "completion queue") }?;
        Ok(Arc::new(Self {
            queue,
            channel,
            ledgers: Mutex::default(),
            context: context.clone(),
        }))
    }

    /// Returns the device that it is of.
    #[must_use]
    pub const fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(crate) const fn as_ptr(&self) -> *mut ibv_cq {
        self.queue.as_ptr()
    }

    /// Appends what is complete, up to 32, and returns how many that were. Never waits. Completions of queue pairs that are
    /// destroyed are dropped and not counted.
    ///
    /// The regions that these requests held are let go.
    ///
    /// # Errors
    /// [`RdmaError::CompletionQueue`] when the queue overran.
    pub fn poll(&self, into: &mut Vec<WorkCompletion>) -> Result<usize, RdmaError> {
        // SAFETY: plain integers, for which zero is a value.
        let mut raw: [ibv_wc; POLL_BATCH] = unsafe { std::mem::zeroed() };
        // Locked before: two threads that poll retire in the order in which requests completed.
        let ledgers = self.lock();
        // SAFETY: the queue is alive, and `raw` has room for that many.
        let count = unsafe { ibv_poll_cq(self.as_ptr(), POLL_BATCH as i32, raw.as_mut_ptr()) };
        let count = usize::try_from(count).map_err(|_| RdmaError::CompletionQueue {
            step: "poll",
            source: io::Error::other("the driver says that it overran or its device is gone"),
        })?;
        let before = into.len();
        for raw in &raw[..count] {
            let (ledger, place) = parts(raw.wr_id);
            let retired = ledgers
                .get(&ledger)
                .and_then(|(ledger, _)| ledger.retire(place));
            into.extend(retired.map(|retired| WorkCompletion::of(raw, retired)));
        }
        Ok(into.len() - before)
    }

    /// Makes the next completion ring, once. One that came before this call does not: poll once more after it.
    ///
    /// # Errors
    /// [`RdmaError::CompletionQueue`].
    pub fn arm(&self, notify: Notify) -> Result<(), RdmaError> {
        let solicited = i32::from(notify == Notify::Solicited);
        // SAFETY: the queue is alive, and has a channel.
        let code = unsafe { ibv_req_notify_cq(self.as_ptr(), solicited) };
        result_of(code).map_err(|source| RdmaError::CompletionQueue {
            step: "arm",
            source,
        })
    }

    /// Takes what has rung, so that [`as_fd`](AsFd::as_fd) is readable no more. Never waits.
    ///
    /// # Errors
    /// [`RdmaError::CompletionQueue`].
    pub fn take_events(&self) -> Result<u32, RdmaError> {
        let mut events = 0;
        loop {
            let (mut queue, mut name) = (ptr::null_mut(), ptr::null_mut());
            // SAFETY: the channel is alive and does not block; both places are writable.
            let code =
                unsafe { ibv_get_cq_event(self.channel.as_ptr(), &raw mut queue, &raw mut name) };
            match result_of(code) {
                // SAFETY: the channel is of this queue alone, so the event is its own, to be acknowledged once.
                Ok(()) => unsafe { ibv_ack_cq_events(self.as_ptr(), 1) },
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(events),
                Err(source) => {
                    let step = "wait for";
                    return Err(RdmaError::CompletionQueue { step, source });
                }
            }
            events += 1;
        }
    }

    /// Appends completions; waits for one until `timeout` is over. Returns how many there were, 0 when time is over.
    ///
    /// # Errors
    /// [`RdmaError::CompletionQueue`].
    pub fn wait(
        &self,
        timeout: Duration,
        into: &mut Vec<WorkCompletion>,
    ) -> Result<usize, RdmaError> {
        let deadline = Instant::now() + timeout;
        loop {
            let mut count = self.poll(into)?;
            if count > 0 {
                return Ok(count);
            }
            self.arm(Notify::All)?;
            count = self.poll(into)?;
            let left = deadline.saturating_duration_since(Instant::now());
            if count > 0 || left.is_zero() {
                return Ok(count);
            }
            wait_readable(self.as_fd(), left).map_err(|source| RdmaError::CompletionQueue {
                step: "wait for",
                source,
            })?;
            self.take_events()?;
        }
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Ledgers> {
        self.ledgers.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Readable when the queue has rung.
impl AsFd for CompletionQueue {
    fn as_fd(&self) -> BorrowedFd<'_> {
        descriptor(&self.channel)
    }
}

/// A ledger that a completion queue knows, until this is dropped.
#[derive(Debug)]
pub(crate) struct Entered {
    ledger: u32,
    queue: Arc<CompletionQueue>,
}

impl Entered {
    pub(crate) fn new(queue: &Arc<CompletionQueue>, ledger: Ledger) -> Self {
        let number = ledger.number();
        queue.lock().entry(number).or_insert((ledger, 0)).1 += 1;
        Self {
            ledger: number,
            queue: queue.clone(),
        }
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        let mut ledgers = self.queue.lock();
        let Some((_, pairs)) = ledgers.get_mut(&self.ledger) else {
            return;
        };
        *pairs -= 1;
        let last = (*pairs == 0).then(|| ledgers.remove(&self.ledger));
        // The lock is open again when regions are deregistered.
        drop(ledgers);
        drop(last);
    }
}

fn new_channel(context: &Context) -> Result<Owned<ibv_comp_channel>, RdmaError> {
    // SAFETY: the context is open.
    let channel = unsafe { ibv_create_comp_channel(context.as_ptr()) };
    // SAFETY: it was returned just now, and `ibv_destroy_comp_channel` is its destructor.
    let channel = unsafe { Owned::new(channel, ibv_destroy_comp_channel, "completion channel") }?;
    let flags = fcntl(descriptor(&channel), FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    flags.map_err(|source| RdmaError::Create {
        what: "completion channel",
        source: source.into(),
    })?;
    Ok(channel)
}

fn descriptor(channel: &Owned<ibv_comp_channel>) -> BorrowedFd<'_> {
    // SAFETY: the channel is alive; its descriptor was set before it was returned and does not change.
    let descriptor = unsafe { (*channel.as_ptr()).fd };
    // SAFETY: it is open as long as the channel, which is borrowed.
    unsafe { BorrowedFd::borrow_raw(descriptor) }
}

/// Waits until a descriptor is readable or the time is over, and says which.
pub(crate) fn wait_readable(descriptor: BorrowedFd<'_>, timeout: Duration) -> io::Result<bool> {
    // Rounded up: no turns without waiting at the end.
    let millis = timeout.as_micros().div_ceil(1000);
    let timeout = PollTimeout::try_from(millis.min(i32::MAX as u128) as i32);
    let mut watched = [PollFd::new(descriptor, PollFlags::POLLIN)];
    match poll(&mut watched, timeout.unwrap_or(PollTimeout::MAX)) {
        Ok(count) => Ok(count > 0),
        Err(nix::errno::Errno::EINTR) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
