//! Pages placed by the network adapter: RDMA, beside TCP in one transport, since a stream that breaks goes on over TCP
//! ([ADR 0021](../../../docs/adr/0021-rdma-pages-placed-by-the-adapter.md)).
//!
//! | file | what |
//! |---|---|
//! | `guest_memory.rs` | guest RAM as verbs see it: the one file with `unsafe` |
//! | `memory.rs` | which pieces of RAM the adapter knows, at either end of a migration |
//! | `queue.rs` | a queue pair: connecting, posting, polling |
//! | `ring.rs` | places and credit in the ring of a stream |
//! | `grants.rs`, `sender.rs` | the source's end of a stream |
//! | `receiver.rs` | the destination's |
//! | `stream.rs` | either, as a stream |
//! | `granter.rs`, `reader.rs`, `readable.rs` | post-copy: pieces of the source's RAM that the destination reads |
//! | `ending.rs` | how the thread of either is ended |
//! | `route.rs` | the way to the other node, before there is a stream; who asks from there |
//!
//! While there is work, completion queues are polled. Before a worker sleeps they are armed, and polled once more; their
//! descriptors, those of the connection manager's events, and the worker's bell are in one epoll, which the TCP transport
//! watches as its bell.

mod ending;
mod granter;
mod grants;
mod guest_memory;
mod memory;
mod queue;
#[cfg(test)]
mod read_tests;
mod readable;
mod reader;
mod receiver;
mod ring;
mod route;
mod sender;
mod stream;
#[cfg(test)]
mod tests;

use std::io;
use std::net::TcpStream;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};

pub use ending::Ending;
pub use granter::PieceGranter;
pub use memory::RdmaMemory;
pub use reader::{PageReader, PagesCame, READ_PAGES_MAX};
pub use route::{RdmaListener, RdmaRequest, find_route};
pub use stream::QueueLink;

use super::poll::drain_bell;
use super::{
    Buffers, Completion, Opened, ReceiveInto, SendFrame, SendMethod, Slot, Transport, Wait,
};
use crate::ram::RamLayout;
use stream::QueueStream;

/// What the bell is called among what epoll watches; streams are called by their slots.
const BELL: u64 = u64::MAX;

/// Events taken from epoll in one call.
const EVENTS: usize = 16;

/// Where a stream is.
#[derive(Debug)]
enum Place {
    /// In the TCP transport, by its slot there.
    Tcp(Slot),
    Queue(Box<QueueStream>),
}

/// Queue pairs, and TCP for streams that have none.
#[derive(Debug)]
pub struct RdmaTransport {
    tcp: Box<dyn Transport>,
    places: Vec<Place>,
    /// Slots by those of the TCP transport.
    tcp_slots: Vec<Slot>,
    memory: Arc<RdmaMemory>,
    ram: Arc<RamLayout>,
    watched: Epoll,
    bell: OwnedFd,
    /// Pages have been placed by an adapter, or may have been.
    was_used: bool,
    from_tcp: Vec<Completion>,
}

impl RdmaTransport {
    /// Over `ram`, of which `memory` knows what is registered. `tcp` opens the transport for other streams, which watches
    /// the bell that it is given.
    ///
    /// # Errors
    /// From the system, or from `tcp`.
    pub(super) fn open(
        ram: Arc<RamLayout>,
        memory: Arc<RdmaMemory>,
        bell: OwnedFd,
        tcp: impl FnOnce(OwnedFd) -> io::Result<Opened>,
    ) -> io::Result<Opened> {
        let watched = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        watched.add(&bell, EpollEvent::new(EpollFlags::EPOLLIN, BELL))?;
        let Opened { transport, notes } = tcp(watched.0.try_clone()?)?;
        let transport = Self {
            tcp: transport,
            places: vec![],
            tcp_slots: vec![],
            memory,
            ram,
            watched,
            bell,
            was_used: false,
            from_tcp: vec![],
        };
        Ok(Opened {
            transport: Box::new(transport),
            notes,
        })
    }

    /// Puts a stream in its place.
    fn put(&mut self, instead_of: Option<Slot>, place: Place) -> io::Result<Slot> {
        let is_over = |old: &Place| match old {
            // The TCP transport has checked its own.
            Place::Tcp(_) => true,
            Place::Queue(stream) => stream.is_over(),
        };
        super::put(&mut self.places, instead_of, is_over, place)
    }

    fn add_to_tcp(
        &mut self,
        instead_of: Option<Slot>,
        add: impl FnOnce(&mut dyn Transport, Option<Slot>) -> io::Result<Slot>,
    ) -> io::Result<Slot> {
        let old = instead_of.and_then(|slot| self.places.get(slot));
        let old = match old {
            Some(Place::Tcp(slot)) => Some(*slot),
            Some(Place::Queue(stream)) if !stream.is_over() => {
                return Err(io::Error::other("the place of a stream that is not over"));
            }
            _ => None,
        };
        let tcp_slot = add(&mut *self.tcp, old)?;
        let slot = self.put(instead_of, Place::Tcp(tcp_slot))?;
        match self.tcp_slots.get_mut(tcp_slot) {
            Some(known) => *known = slot,
            None => self.tcp_slots.push(slot),
        }
        Ok(slot)
    }

    fn progress(&mut self, completions: &mut Vec<Completion>) {
        for (slot, place) in self.places.iter_mut().enumerate() {
            if let Place::Queue(stream) = place {
                stream.progress(slot, self.tcp.buffers(), completions);
                self.was_used |= stream.was_ready;
            }
        }
    }

    /// How long a wait may be.
    fn most(&self) -> Duration {
        let mosts = self.places.iter().filter_map(|place| match place {
            Place::Queue(stream) => stream.most(),
            Place::Tcp(_) => None,
        });
        mosts.min().unwrap_or(Duration::MAX)
    }

    fn arm(&mut self) {
        for place in &mut self.places {
            if let Place::Queue(stream) = place {
                stream.arm();
            }
        }
    }

    /// Waits for TCP, the bell and whatever else is watched.
    fn wait_for_tcp(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let mut came = std::mem::take(&mut self.from_tcp);
        let outcome = self.tcp.wait(wait, &mut came);
        for completion in came.drain(..) {
            let slot_of = |slot: Slot| self.tcp_slots[slot];
            completions.push(match completion {
                Completion::Sent { slot, buffer } => Completion::Sent {
                    slot: slot_of(slot),
                    buffer,
                },
                Completion::Received { slot, bytes } => Completion::Received {
                    slot: slot_of(slot),
                    bytes,
                },
                Completion::Closed { slot, error } => Completion::Closed {
                    slot: slot_of(slot),
                    error,
                },
                Completion::Rung => {
                    self.look(completions)?;
                    continue;
                }
            });
        }
        self.from_tcp = came;
        outcome
    }

    /// Something that is watched has rung.
    fn look(&mut self, completions: &mut Vec<Completion>) -> io::Result<()> {
        let mut events = [EpollEvent::empty(); EVENTS];
        let count = match self.watched.wait(&mut events, EpollTimeout::ZERO) {
            Ok(count) => count,
            Err(nix::errno::Errno::EINTR) => 0,
            Err(errno) => return Err(errno.into()),
        };
        for event in &events[..count] {
            if event.data() == BELL {
                drain_bell(&self.bell);
                completions.push(Completion::Rung);
                continue;
            }
            if let Some(Place::Queue(stream)) = self.places.get_mut(event.data() as usize) {
                stream.rung();
            }
        }
        Ok(())
    }
}

impl Transport for RdmaTransport {
    fn name(&self) -> &'static str {
        if self.was_used {
            return "rdma";
        }
        self.tcp.name()
    }

    fn add(&mut self, stream: TcpStream, instead_of: Option<Slot>) -> io::Result<Slot> {
        self.add_to_tcp(instead_of, |tcp, old| tcp.add(stream, old))
    }

    fn add_queue(&mut self, link: QueueLink, instead_of: Option<Slot>) -> io::Result<Slot> {
        let stream = QueueStream::new(link, &self.memory, &self.ram);
        let slot = self.put(instead_of, Place::Queue(Box::new(stream)))?;
        let Some(Place::Queue(stream)) = self.places.get(slot) else {
            return Ok(slot);
        };
        for descriptor in stream.descriptors().into_iter().flatten() {
            let event = EpollEvent::new(EpollFlags::EPOLLIN, slot as u64);
            self.watched.add(descriptor, event)?;
        }
        Ok(slot)
    }

    fn shut(&mut self, slot: Slot, why: io::Error) {
        match &mut self.places[slot] {
            Place::Tcp(slot) => self.tcp.shut(*slot, why),
            Place::Queue(stream) => stream.shut(why),
        }
    }

    fn buffers(&mut self) -> &mut Buffers {
        self.tcp.buffers()
    }

    fn send(&mut self, slot: Slot, frame: SendFrame<'_>) {
        match &mut self.places[slot] {
            Place::Tcp(slot) => self.tcp.send(*slot, frame),
            Place::Queue(stream) => stream.push(&frame),
        }
    }

    fn receive(&mut self, slot: Slot, wanted: ReceiveInto<'_>) {
        match &mut self.places[slot] {
            Place::Tcp(slot) => self.tcp.receive(*slot, wanted),
            Place::Queue(stream) => stream.receive(&wanted),
        }
    }

    fn send_method(&self, slot: Slot) -> Option<SendMethod> {
        match &self.places[slot] {
            Place::Tcp(slot) => self.tcp.send_method(*slot),
            Place::Queue(_) => None,
        }
    }

    fn is_placed(&self, slot: Slot) -> bool {
        matches!(&self.places[slot], Place::Queue(stream) if stream.is_placed())
    }

    fn wait(&mut self, wait: Wait, completions: &mut Vec<Completion>) -> io::Result<()> {
        let before = completions.len();
        self.progress(completions);
        if completions.len() > before || wait == Wait::No {
            if !self.tcp_slots.is_empty() {
                self.wait_for_tcp(Wait::No, completions)?;
            }
            return Ok(());
        }
        self.arm();
        self.progress(completions);
        let wait = match wait {
            Wait::Upto(time) if completions.len() == before => Wait::Upto(time.min(self.most())),
            _ => Wait::No,
        };
        self.wait_for_tcp(wait, completions)?;
        self.progress(completions);
        Ok(())
    }
}

impl Drop for RdmaTransport {
    /// The TCP transport rings its bell to wake the kernel's watch of it. An epoll cannot be rung: what it watches can.
    fn drop(&mut self) {
        let _ = nix::unistd::write(&self.bell, &1u64.to_ne_bytes());
    }
}
