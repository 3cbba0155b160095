//! How a thread that waits for a queue pair is woken, and ended.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::queue::Queue;

/// Ends the thread of one queue pair. Clones end the same.
#[derive(Clone, Debug)]
pub struct Ending {
    is_over: Arc<AtomicBool>,
    bell: Arc<EventFd>,
}

impl Ending {
    /// Of a thread that has yet to begin.
    ///
    /// # Errors
    /// When no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let bell = EventFd::from_flags(EfdFlags::EFD_NONBLOCK | EfdFlags::EFD_CLOEXEC)?;
        Ok(Self {
            is_over: Arc::default(),
            bell: Arc::new(bell),
        })
    }

    /// Its thread ends soon.
    pub fn end(&self) {
        self.is_over.store(true, Ordering::Release);
        self.ring();
    }

    /// Its thread looks around, from now on without a pause: it is to find a reason to end.
    pub(super) fn ring(&self) {
        // A counter that is full is a bell that rings already.
        let _ = self.bell.write(1);
    }

    pub(super) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    /// What the thread waits for: this, and all that its queue pair has to say.
    pub(super) fn watch(&self, queue: &Queue) -> io::Result<Epoll> {
        let watched = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let readable = || EpollEvent::new(EpollFlags::EPOLLIN, 0);
        watched.add(&*self.bell, readable())?;
        for descriptor in queue.descriptors() {
            watched.add(descriptor, readable())?;
        }
        Ok(watched)
    }
}

/// Waits until something has rung, or so long.
pub(super) fn wait(watched: &Epoll, most: Option<Duration>) -> io::Result<()> {
    let most = most.map_or(Ok(EpollTimeout::NONE), EpollTimeout::try_from);
    let most = most.map_err(io::Error::other)?;
    match watched.wait(&mut [EpollEvent::empty()], most) {
        Ok(_) | Err(Errno::EINTR) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}
