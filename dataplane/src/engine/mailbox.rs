//! Hand-overs between threads: a bounded queue and a bell that a ring or a poll can watch.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::eventfd::{EfdFlags, EventFd};

/// Messages that may wait. They are few: a round is one message to a worker and one back.
const CAPACITY: usize = 4096;

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
                bell,
            }),
        })
    }

    /// Leaves a message and rings.
    ///
    /// # Errors
    /// [`MailboxError::Full`].
    pub fn push(&self, message: T) -> Result<(), MailboxError> {
        self.inner
            .queue
            .push(message)
            .map_err(|_| MailboxError::Full)?;
        // A counter that is full is a bell that rings already.
        let _ = self.inner.bell.write(1);
        Ok(())
    }

    /// The oldest message.
    #[must_use]
    pub fn pop(&self) -> Option<T> {
        self.inner.queue.pop()
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
