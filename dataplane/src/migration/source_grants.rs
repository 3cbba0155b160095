//! Post-copy at the source: a queue pair by which the destination reads what somebody waits for there.
//!
//! It is made beside the connections for missing pages, and never in their place: where it cannot be had, or breaks, the
//! destination asks by those.

use std::sync::{Arc, Once, OnceLock};
use std::thread::JoinHandle;
use std::time::Duration;

use dwcp_rdma::ConnectionId;
use dwcp_wire::{Capabilities, PageRange, StreamHello, StreamRole};

use super::postcopy::{DEMAND, fingerprints};
use super::recorder::NOT_READ;
use super::source::{SourceDriver, SourceInput};
use crate::ram::RamBitmap;
use crate::transport::{Ending, PieceGranter, find_route};

/// The way to the destination's adapter, or why there is none.
pub(super) type ReaderFound = std::io::Result<ConnectionId>;

/// Who lets the destination read.
#[derive(Debug, Default)]
pub(super) struct Granting {
    thread: Option<(JoinHandle<std::io::Result<()>>, Ending)>,
    /// Why the destination could not read.
    never_made: Option<String>,
    /// Nothing is granted any more.
    is_over: bool,
    /// What the destination may have read, once the guest stands: until then nothing is granted.
    missing: Arc<OnceLock<RamBitmap>>,
}

impl Granting {
    /// The guest stands, and these pages are missing at the destination.
    pub(super) fn begin(&self, missing: Option<RamBitmap>) {
        if let Some(missing) = missing {
            let _ = self.missing.set(missing);
        }
    }

    /// Nothing of RAM can be read when this returns.
    pub(super) fn end(&mut self) {
        self.is_over = true;
        if let Some((thread, ending)) = self.thread.take() {
            ending.end();
            if let Ok(Err(error)) = thread.join() {
                self.never_made = Some(error.to_string());
            }
        }
    }
}

impl SourceDriver {
    /// Looks for a way to the destination's adapter, on a thread of its own, where pages have come by it so far.
    pub(super) fn find_reader(&self) {
        let knows = self
            .can
            .is_some_and(|can| can.contains(Capabilities::POSTCOPY_READ));
        let Some(address) = self.streams.rdma.address() else {
            return;
        };
        if !knows || !self.streams.has_queues() {
            return;
        }
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        let mailbox = self.mailbox.clone();
        let find = move || {
            // A driver that has ended lets nobody read.
            let _ = mailbox.push(SourceInput::ReaderFound(find_route(address, time)));
        };
        let thread = std::thread::Builder::new().name("dwcp-dial".into());
        if let Err(error) = thread.spawn(find) {
            tracing::error!(%error, "no thread to find a way");
        }
    }

    /// Grants pieces of RAM from now on, on a thread of its own.
    pub(super) fn reader_found(&mut self, found: ReaderFound) {
        if self.serving.granting.is_over {
            return;
        }
        let granted = found.and_then(|id| self.grant_by(id));
        if let Err(error) = granted {
            self.recorder.note(format!("{NOT_READ}: {error}"));
        }
    }

    fn grant_by(&mut self, id: ConnectionId) -> std::io::Result<()> {
        let hello = StreamHello {
            token: self.streams.token(),
            index: DEMAND,
            role: StreamRole::Missing,
            generation: 0,
        };
        let ending = Ending::new()?;
        let ram = &self.session.layout;
        let mut granter = PieceGranter::ask(id, hello, ram, ending.clone())?;
        let (session, meter) = (Arc::clone(&self.session), Arc::clone(&self.recorder.meter));
        let missing = Arc::clone(&self.serving.granting.missing);
        let (written, is_written) = (self.streams.rdma.memory().cloned(), Once::new());
        let run = move || {
            let _helper = meter.helper();
            let table = |run: &PageRange| {
                let missing = missing.get()?;
                // The last WRITE is long done, and there may be little that can be locked.
                is_written.call_once(|| written.iter().for_each(|memory| memory.let_go()));
                fingerprints(&session, missing, run)
            };
            granter.connect()?;
            // That the destination needs no more is how it ends; what breaks it, the destination says.
            if let Err(error) = granter.run(&table) {
                tracing::info!(%error, "pages are not read any more");
            }
            Ok(())
        };
        let thread = std::thread::Builder::new().name("dwcp-grant".into());
        self.serving.granting.thread = Some((thread.spawn(run)?, ending));
        Ok(())
    }

    /// Why nothing could be read, if there was something to read.
    pub(super) fn explain_grants(&mut self) {
        let never_made = self.serving.granting.never_made.take();
        if let Some(reason) = never_made.filter(|_| self.recorder.postcopy.is_some()) {
            self.recorder.note(format!("{NOT_READ}: {reason}"));
        }
    }
}
