//! Whether a destination's data streams may be queue pairs; and the end of their keys.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use dwcp_wire::{Capabilities, Control, StreamHello};

use super::destination::{DestinationDriver, DestinationInput};
use super::destination_streams::{JoinLink, StreamJoin};
use super::node::{Node, lock};
use super::postcopy::Fetch;
use super::recorder::NOT_READ;
use crate::engine::{Session, count_zero, give_back};
use crate::transport::{PageReader, RdmaListener, RdmaMemory, RdmaRequest};

/// What `--rdma-listen` says where no queue pairs are taken.
const NONE: &str = "none";

impl Node {
    /// Takes queue pairs from now on, if this node has RDMA.
    pub(super) fn listen_for_queue_pairs(&self, ip: IpAddr) {
        let address = match self.options().rdma_listen.as_deref() {
            Some(NONE) => return,
            Some(text) => match text.parse::<SocketAddr>() {
                Ok(address) => address,
                Err(error) => {
                    return tracing::error!(text, %error, "--rdma-listen: no queue pairs are taken");
                }
            },
            None => SocketAddr::new(ip, 0),
        };
        match RdmaListener::bind(address) {
            Ok(Some(listener)) => {
                tracing::info!(address = %listener.address_for(ip), "queue pairs are taken");
                *lock(&self.rdma) = Some(Arc::new(listener));
            }
            Ok(None) => tracing::info!("no RDMA on this node: data streams are TCP"),
            Err(error) => tracing::info!(%address, %error, "no RDMA here: data streams are TCP"),
        }
    }

    /// Brings queue pairs to their migrations, for ever.
    pub(super) fn take_queue_pairs(&self) {
        let Some(listener) = lock(&self.rdma).clone() else {
            return;
        };
        let outcome = listener.run(|request| self.take_queue_pair(request));
        *lock(&self.rdma) = None;
        if let Err(error) = outcome {
            tracing::warn!(%error, "no more queue pairs are taken");
        }
    }

    fn take_queue_pair(&self, request: RdmaRequest) {
        let StreamHello {
            token,
            index,
            role,
            generation,
        } = request.hello.stream;
        let Some(mailbox) = self.joins_of(token) else {
            tracing::warn!("queue pair refused: no migration has this token");
            return request.refuse("no migration has this token");
        };
        let join = StreamJoin {
            role,
            index,
            generation,
            link: JoinLink::Queue(request),
        };
        // One that is not taken is refused as it is dropped.
        if let Err(error) = mailbox.push(DestinationInput::Join(join)) {
            tracing::warn!(%error, "queue pair refused");
        }
    }
}

/// Pages of a piece that nothing came to: so many are worth deregistering it.
const GIVEN_BACK_MIN: u64 = 64;

/// Memory that pages got by being registered, and that nothing came to in the first round, goes back. Nothing writes RAM
/// meanwhile. Returns whether keys are gone for it.
pub(super) fn give_back_made(session: &Session, memory: &RdmaMemory) -> bool {
    let mut are_gone = false;
    for (piece, pages) in memory.made() {
        if count_zero(session, &pages) < GIVEN_BACK_MIN {
            continue;
        }
        are_gone = true;
        let given = memory
            .take_back(piece)
            .map_err(|error| error.to_string())
            .and_then(|()| give_back(session, &pages).map_err(|error| error.to_string()));
        if let Err(error) = given {
            tracing::warn!(error, "memory that nothing came to stays");
        }
    }
    are_gone
}

impl DestinationDriver {
    /// What tells the source where queue pairs are taken, if it knows them and nothing is to be sealed.
    pub(super) fn offer_rdma(&mut self) -> Option<Control> {
        let listener = lock(&self.node.rdma).clone()?;
        let session = self.session.as_ref()?;
        if self.journal.tls || self.offer.dry_run || !self.source_can.contains(Capabilities::RDMA) {
            return None;
        }
        let reached = self.control.as_ref()?.local_address()?;
        self.rdma = Some(RdmaMemory::of_destination(&session.layout));
        Some(Control::RdmaListens {
            address: listener.address_for(reached),
        })
    }

    /// The same before memory is taken out of RAM: an adapter would go on writing what was there. What the source sends later
    /// goes through rings.
    pub(super) fn revoke_keys_early(&mut self) -> Result<(), String> {
        self.revoke_keys()?;
        if self.rdma.is_some() {
            self.send(&Control::RdmaKeysGone);
        }
        Ok(())
    }

    /// Nobody but this node writes RAM from now on.
    pub(super) fn revoke_keys(&self) -> Result<(), String> {
        let Some(memory) = &self.rdma else {
            return Ok(());
        };
        memory
            .revoke()
            .map_err(|error| format!("RAM may still be written by the other node: {error}"))
    }

    /// The source would have what somebody waits for read out of its RAM.
    pub(super) fn take_reader(&mut self, request: RdmaRequest) {
        if std::mem::replace(&mut self.postcopy.was_asked, true) {
            return request.refuse("there was one already");
        }
        self.postcopy.asked = Some(request);
        self.answer_reader();
    }

    /// Takes it once RAM is not registered any more: there may be little that can be locked.
    pub(super) fn answer_reader(&mut self) {
        if self.postcopy.taken.is_none() {
            return;
        }
        let Some(request) = self.postcopy.asked.take() else {
            return;
        };
        match PageReader::answer(request) {
            Ok(reader) => {
                self.postcopy.reader = Some(reader);
                self.use_reader();
            }
            Err(error) => self.not_read(&error.to_string()),
        }
    }

    /// Reads what somebody waits for from now on, where there is something to fetch, and a queue pair for it.
    pub(super) fn use_reader(&mut self) {
        if let Some(fetch) = &self.postcopy.fetch
            && let Some(reader) = self.postcopy.reader.take()
        {
            fetch.read_by(reader);
        }
    }

    pub(super) fn not_read(&mut self, reason: &str) {
        self.recorder.note(format!("{NOT_READ}: {reason}"));
    }

    /// Tells both nodes' operators what was read.
    pub(super) fn tell_read(&mut self, fetch: &Fetch) {
        let Some(read) = fetch.pages_read() else {
            return;
        };
        self.recorder.pages_were_read(&read);
        self.send(&Control::PagesRead(read));
    }
}
