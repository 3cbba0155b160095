//! Post-copy at the source: what is missing is named, pages are served, and a lost way is found again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use dwcp_proto::{Phase, SourceEvent};
use dwcp_simd::RamRoot;
use dwcp_wire::{AbortCode, Capabilities, Control, PageRange, StreamHello, StreamRole};

use super::control_writer::ControlWriter;
use super::node::lock;
use super::peer::{self, PeerError};
use super::postcopy::{LINKS, serve, tell_missing};
use super::source::{SourceDriver, SourceInput};
use super::source_grants::Granting;
use crate::engine::{Session, read_root};
use crate::ram::RamBitmap;
use crate::tls::Connection;
use crate::vmm::VmmError;

/// Between tries to connect again. The guest waits for pages, and a source that gave up would lose it.
const AGAIN: Duration = Duration::from_millis(250);

/// Tries to open a connection before the guest is paused: until then it can stay here.
const TRIES_MAX: u32 = 8;

/// A connection for missing pages that ended.
#[derive(Debug)]
pub(super) struct ServeEnded {
    index: u16,
    generation: u16,
    reason: String,
}

/// The control connection once more.
#[derive(Debug)]
pub(super) struct BackAgain {
    connection: Connection,
    token: u128,
    fingerprint_seed: u64,
}

/// Connections for missing pages.
#[derive(Debug, Default)]
pub(super) struct Serving {
    generations: [u16; LINKS as usize],
    open: [Option<Connection>; LINKS as usize],
    tries: u32,
    /// Pages that were named as missing.
    missing: Option<RamBitmap>,
    /// Who lets the destination read.
    pub(super) granting: Granting,
    /// The migration is over.
    stop: Arc<AtomicBool>,
}

impl Serving {
    pub(super) fn generation(&self, index: u16) -> u16 {
        self.generations[usize::from(index)]
    }

    /// Nobody is served any more.
    pub(super) fn end(&mut self) {
        self.stop.store(true, Ordering::Release);
        self.shut();
    }

    fn shut(&mut self) {
        self.granting.end();
        for connection in self.open.iter_mut().filter_map(Option::take) {
            connection.shut();
        }
    }
}

impl SourceDriver {
    /// The operator wants it.
    pub(super) fn go_postcopy(&mut self) {
        let can = self.can;
        if can.is_some_and(|can| !can.contains(Capabilities::POSTCOPY)) {
            return self.recorder.note(PeerError::NoPostcopy.to_string());
        }
        self.recorder
            .remark("post-copy after this round, as asked meanwhile".into());
        self.feed(SourceEvent::GoPostcopy);
    }

    pub(super) fn open_missing(&mut self) {
        for index in 0..LINKS {
            self.dial(StreamRole::Missing, index, Duration::ZERO);
        }
        self.find_reader();
    }

    /// Serves pages on a connection, on a thread of its own.
    pub(super) fn serve_on(
        &mut self,
        hello: StreamHello,
        connection: Connection,
    ) -> Result<(), PeerError> {
        let StreamHello {
            index, generation, ..
        } = hello;
        let kept = connection.try_clone()?;
        self.serving.open[usize::from(index)] = Some(kept);
        let (session, mailbox) = (Arc::clone(&self.session), self.mailbox.clone());
        let (codec, meter) = (
            self.request.settings.codec,
            Arc::clone(&self.recorder.meter),
        );
        let stop = Arc::clone(&self.serving.stop);
        let run = move || {
            let _helper = meter.helper();
            let Err(error) = serve((connection, index), &session, codec, (&meter, &stop));
            let ended = ServeEnded {
                index,
                generation,
                reason: error.to_string(),
            };
            // A driver that has ended serves nobody.
            let _ = mailbox.push(SourceInput::ServeEnded(ended));
        };
        let thread = std::thread::Builder::new().name(format!("dwcp-serve-{index}"));
        thread.spawn(run)?;
        Ok(())
    }

    pub(super) fn serve_ended(&mut self, ended: &ServeEnded) {
        if self.serving.generation(ended.index) == ended.generation {
            tracing::info!(
                vm = self.request.vm,
                index = ended.index,
                reason = ended.reason,
                "missing pages"
            );
            self.serve_index_again(ended.index);
        }
    }

    /// A connection for missing pages could not be made.
    pub(super) fn not_serving(&mut self, hello: StreamHello, error: &PeerError) {
        if self.serving.generation(hello.index) != hello.generation {
            return;
        }
        self.serving.tries += 1;
        if self.recorder.pause.paused.is_none() && self.serving.tries >= TRIES_MAX {
            let reason = format!("no connection for missing pages: {error}");
            return self.fail(AbortCode::Connection, reason);
        }
        self.serve_index_again(hello.index);
    }

    fn serve_index_again(&mut self, index: u16) {
        // Where the way is lost, all of it is found again at once.
        let phase = self.machine.phase();
        let is_needed = (Phase::Switchover..=Phase::Postcopy).contains(&phase);
        if is_needed && !self.machine.is_cut_off() {
            self.serving.generations[usize::from(index)] += 1;
            self.dial(StreamRole::Missing, index, AGAIN);
        }
    }

    /// Names what is dirty as missing, while the guest runs: what that takes is no part of the pause.
    pub(super) fn name_missing_ahead(&mut self, again: &[PageRange]) {
        if let Err(reason) = self.try_name_missing(again) {
            self.fail(AbortCode::Vmm, reason);
        }
    }

    /// The same of what is dirty since, with a mark on each stream.
    pub(super) fn name_missing(&mut self, round: u32) {
        let began = Instant::now();
        if let Err(reason) = self.try_name_missing(&[]) {
            return self.fail(AbortCode::Vmm, reason);
        }
        let missing = self.serving.missing.as_ref();
        let pages = missing.map_or(0, RamBitmap::count);
        // The guest stands.
        self.serving.granting.begin(missing.cloned());
        self.recorder.remark(format!(
            "post-copy: {pages} of {} pages follow the guest",
            self.session.layout.pages()
        ));
        let nothing = || self.session.layout.empty_bitmap();
        self.begin_round(round, (nothing(), nothing()), began);
        self.recorder.pages_in_round = pages;
    }

    /// Both ends forget what the destination held of it, so that the roots say what is there.
    fn try_name_missing(&mut self, again: &[PageRange]) -> Result<(), String> {
        let all = !self.tracker.is_exact();
        let dirty = self.dirty_pages(self.recorder.round + 1, all);
        let mut missing = dirty.map_err(|error| error.to_string())?;
        for range in again {
            missing.blocks[range.ram_block as usize].set_range(range.page, range.count);
        }
        for message in tell_missing(&missing)? {
            self.send(&Control::Missing(message));
        }
        let root = self.session.forget(&missing);
        self.recorder.add_to_root(root);
        match &mut self.serving.missing {
            Some(named) => named.union(&missing),
            none => *none = Some(missing),
        }
        Ok(())
    }

    /// Reads all of RAM, which stands still, on a thread of its own.
    pub(super) fn read_root(&mut self) {
        let (session, mailbox) = (Arc::clone(&self.session), self.mailbox.clone());
        let stop = Arc::clone(&self.serving.stop);
        let meter = Arc::clone(&self.recorder.meter);
        let run = move || {
            let _helper = meter.helper();
            while !stop.load(Ordering::Acquire) {
                match read_root(&session) {
                    Ok(RamRoot(root)) => {
                        let event = SourceInput::Event(SourceEvent::RootRead { root });
                        return drop(mailbox.push(event));
                    }
                    Err(reason) => tracing::error!(reason, "RAM was not read again yet"),
                }
                std::thread::sleep(AGAIN);
            }
        };
        if let Err(error) = std::thread::Builder::new()
            .name("dwcp-root".into())
            .spawn(run)
        {
            tracing::error!(%error, "no thread to read RAM again");
        }
    }

    /// Looks for the destination until it answers: its guest waits for pages of this node.
    pub(super) fn serve_again(&mut self) {
        self.serving.shut();
        if let Some(control) = self.control.take() {
            control.shut();
        }
        self.recorder
            .note("the destination was lost in post-copy, and looked for again".into());
        let (stop, mailbox) = (Arc::clone(&self.serving.stop), self.mailbox.clone());
        let (address, id) = (self.request.destination.address.clone(), self.request.id.0);
        let time = Duration::from_millis(self.request.settings.connect_timeout_ms.into());
        let meter = Arc::clone(&self.recorder.meter);
        let (node, way) = (Arc::clone(&self.node), self.way.clone());
        let run = move || {
            let _helper = meter.helper();
            while !stop.load(Ordering::Acquire) {
                let connect = || way.connect(&node, &address, time);
                match peer::resume_postcopy(connect, id, time, &meter) {
                    Ok((connection, answer)) => {
                        return drop(mailbox.push(input(connection, answer)));
                    }
                    Err(error) => tracing::info!(%error, "the destination is not back yet"),
                }
                std::thread::sleep(AGAIN);
            }
        };
        let thread = std::thread::Builder::new().name("dwcp-query".into());
        if let Err(error) = thread.spawn(run) {
            self.fail(AbortCode::Other, format!("no thread: {error}"));
        }
    }

    pub(super) fn back_again(&mut self, back: BackAgain) {
        let BackAgain {
            connection,
            token,
            fingerprint_seed,
        } = back;
        if let Err(error) = self.use_seed(fingerprint_seed) {
            // It is tried again: without them the guest is lost.
            tracing::error!(%error, "pages cannot be served");
            connection.shut();
            return self.serve_again();
        }
        let patience = self.patience();
        let meter = Arc::clone(&self.recorder.meter);
        let listened = connection.try_clone().and_then(|writer| {
            self.peer = Some(connection.peer_addr()?);
            self.control = Some(ControlWriter::new(writer, patience, &meter)?);
            self.listen(connection, |_, _| true)
        });
        // Given up while nobody could be sent anything.
        self.join_shares();
        self.feed(SourceEvent::Connected);
        if let Err(error) = listened {
            return self.feed(SourceEvent::PeerLost(error.to_string()));
        }
        self.streams.set_token(token);
        for index in 0..LINKS {
            self.serving.generations[usize::from(index)] += 1;
            self.dial(StreamRole::Missing, index, Duration::ZERO);
        }
    }

    /// Fingerprints are under the seed of before, which a data plane that was started anew is told.
    fn use_seed(&mut self, seed: u64) -> Result<(), VmmError> {
        if self.session.key.seed() != seed {
            let layout = lock(&self.vm).ram()?;
            self.session = Arc::new(Session::new(layout, seed, self.request.settings.codec));
        }
        Ok(())
    }
}

/// A destination that needs nothing more says so instead of going on.
fn input(connection: Connection, answer: Control) -> SourceInput {
    match answer {
        Control::PostcopyGoOn {
            token,
            fingerprint_seed,
        } => SourceInput::BackAgain(BackAgain {
            connection,
            token,
            fingerprint_seed,
        }),
        answer => SourceInput::Event(SourceEvent::Peer(answer)),
    }
}
