//! Hand-overs between threads: a bounded queue and a bell that a ring or a poll can watch.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::{Duration, Instant};

use crossbeam_queue::ArrayQueue;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Messages that may wait. They are few: a round is one message to a worker and one back.
/// Every slot is written when the queue is made, by each migration for each of its threads.
const CAPACITY: usize = 512;

/// Why a message was not taken.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MailboxError {
    /// The receiver does not keep up with what should be a few messages: it hangs.
    #[error("mailbox is full: its owner does not read it")]
    Full,
}

/// A queue with a bell. Cloning gives another end of the same queue.
#[derive(Debug)]
pub struct Mailbox<T> {
    inner: Arc<Inner<T>>,
}

#[derive(Debug)]
struct Inner<T> {
    queue: ArrayQueue<T>,
    /// Messages pushed and not popped, as far as both have said so. Whoever takes it away from 0 rings:
    /// an owner that reads until nothing is left needs no bell for the rest.
    waiting: AtomicIsize,
    bell: EventFd,
}

impl<T> Clone for Mailbox<T> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
        }
    }
}

impl<T> Mailbox<T> {
    /// An empty mailbox.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> std::io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            inner: Arc::new(Inner {
                queue: ArrayQueue::new(CAPACITY),
                waiting: AtomicIsize::new(0),
                bell,
            }),
        })
    }

    /// Leaves a message, and rings if nothing was there.
    ///
    /// # Errors
    /// [`MailboxError::Full`].
    pub fn push(&self, message: T) -> Result<(), MailboxError> {
        self.offer(message).map_err(|_| MailboxError::Full)
    }

    /// Leaves a message, or gives it back.
    fn offer(&self, message: T) -> Result<(), T> {
        self.inner.queue.push(message)?;
        // Below 0 another push has yet to say so, and will ring then.
        if self.inner.waiting.fetch_add(1, Ordering::AcqRel) == 0 {
            // A counter that is full is a bell that rings already.
            let _ = self.inner.bell.write(1);
        }
        Ok(())
    }

    /// As [`Self::push`], by a thread that can wait: for as long as the mailbox is full, `most` at most.
    ///
    /// # Errors
    /// [`MailboxError::Full`].
    pub fn push_within(&self, mut message: T, most: Duration) -> Result<(), MailboxError> {
        let end = Instant::now() + most;
        loop {
            message = match self.offer(message) {
                Ok(()) => return Ok(()),
                Err(_) if Instant::now() >= end => return Err(MailboxError::Full),
                Err(message) => message,
            };
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// The oldest message. The owner of a bell that rang pops until there is none.
    #[must_use]
    pub fn pop(&self) -> Option<T> {
        let message = self.inner.queue.pop()?;
        self.inner.waiting.fetch_sub(1, Ordering::AcqRel);
        Some(message)
    }

    /// The oldest message, waiting for one up to `time`.
    #[must_use]
    pub fn wait(&self, time: Duration) -> Option<T> {
        if let Some(message) = self.pop() {
            return Some(message);
        }
        let timeout = PollTimeout::try_from(time).unwrap_or(PollTimeout::MAX);
        let mut watched = [PollFd::new(self.inner.bell.as_fd(), PollFlags::POLLIN)];
        // An interrupted wait is a wait that was short.
        if poll(&mut watched, timeout).is_ok_and(|ready| ready > 0) {
            let _ = self.inner.bell.read();
        }
        self.pop()
    }

    /// The bell's descriptor, for a transport to watch.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn bell(&self) -> std::io::Result<OwnedFd> {
        self.inner.bell.as_fd().try_clone_to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An owner that sleeps while a message waits sleeps until the time limit.
    #[test]
    fn no_message_is_left_behind_a_sleeping_owner() {
        const EACH: u64 = 30_000;
        let mailbox = Mailbox::new().unwrap();
        std::thread::scope(|scope| {
            for pusher in 0..3 {
                let mailbox = mailbox.clone();
                scope.spawn(move || {
                    for message in 0..EACH {
                        while mailbox.push(pusher * EACH + message).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            const LIMIT: Duration = Duration::from_secs(20);
            let mut sum: u64 = 0;
            for taken in 0..3 * EACH {
                // A bell may still ring for what was popped before; a wait is then short.
                sum += loop {
                    let began = Instant::now();
                    if let Some(message) = mailbox.wait(LIMIT) {
                        break message;
                    }
                    assert!(
                        began.elapsed() < LIMIT,
                        "{taken} came, no bell for the next"
                    );
                };
            }
            assert_eq!(sum, (0..3 * EACH).sum::<u64>());
        });
        assert!(mailbox.pop().is_none());
    }

    #[test]
    fn a_full_mailbox_says_so() {
        let mailbox = Mailbox::new().unwrap();
        let pushed = (0..).take_while(|&message| mailbox.push(message).is_ok());
        assert_eq!(pushed.count(), CAPACITY);
        assert_eq!(mailbox.pop(), Some(0));
        mailbox.push(7).unwrap();
    }
}
