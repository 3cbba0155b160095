//! What workers of both ends have in common.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use dwcp_api::{IoPath, KernelTlsChoice, SendChoice};

use super::{Mailbox, StreamRound, WorkerRound};
use crate::cpu_time::thread_cpu_ns;
use crate::transport::{RdmaMemory, Stock};

/// How a worker is to run.
#[derive(Clone, Debug)]
pub struct WorkerSettings {
    /// Its number, for the thread's name.
    pub index: usize,
    /// Transport wanted.
    pub io: IoPath,
    /// How guest pages leave.
    pub send: SendChoice,
    /// CPU to run on, if any.
    pub cpu: Option<usize>,
    /// NUMA node for its buffers, if it matters.
    pub node: Option<usize>,
    /// What earlier workers left to it, and it leaves to later ones.
    pub stock: Stock,
    /// Whether its streams are TLS.
    pub sealed: bool,
    /// Whether the kernel is to seal them.
    pub kernel_tls: KernelTlsChoice,
    /// Whether the destination knows shuffled pages.
    pub shuffles: bool,
    /// RAM as the migration's adapter knows it, if streams may be queue pairs.
    pub rdma: Option<Arc<RdmaMemory>>,
    /// Streams that it will get.
    pub streams: usize,
    /// Streams of the migration.
    pub streams_in_all: usize,
    /// What its streams may have under way together.
    pub window_bytes: u64,
    /// What each of them may.
    pub stream_window_bytes: u64,
    /// Bytes between acknowledgements of a stream.
    pub ack_bytes: u64,
    /// How long to look for completions before sleeping for them, at most.
    pub busy_poll: Duration,
}

/// What a worker tells its driver.
#[derive(Debug)]
pub enum WorkerEvent {
    /// It runs on this transport, with these notes.
    Started {
        /// Transport's name.
        transport: &'static str,
        /// Fallbacks taken.
        notes: Vec<String>,
    },
    /// The kernel seals a stream's records.
    KernelSeals,
    /// Source: its part of a round is sent, marks included.
    RoundSent(WorkerRound),
    /// Destination: a stream's part of a round is applied.
    StreamRound(StreamRound),
    /// A stream is over. Another connection may take its place.
    StreamLost {
        /// Stream index.
        stream: u16,
        /// Destination: which of its connections, as its hello said.
        generation: u16,
        /// Why.
        reason: String,
        /// Bytes of it that are applied, as far as this end knows.
        bytes: u64,
    },
    /// Source: another connection has taken a stream's place. What was lost with it goes once more.
    StreamResumed {
        /// Stream index.
        stream: u16,
        /// Bytes of it that are applied.
        carried: u64,
        /// Pages that were lost.
        pages: u64,
        /// Bytes of their frames.
        bytes: u64,
    },
    /// What came on a stream breaks the protocol.
    PeerBroke {
        /// Stream index.
        stream: u16,
        /// What is wrong.
        reason: String,
    },
    /// The worker itself is over.
    Failed(String),
}

/// A running worker: its mailbox, and its thread to join.
#[derive(Debug)]
pub struct WorkerHandle<C> {
    commands: Mailbox<C>,
    thread: Option<JoinHandle<u64>>,
    stop: fn() -> C,
}

impl<C: Send + 'static> WorkerHandle<C> {
    /// Starts a worker's thread. A panic in it becomes [`WorkerEvent::Failed`]: the source's process
    /// guards a running guest and must live on.
    ///
    /// # Errors
    /// When the system has no thread or descriptor left.
    pub(super) fn spawn<E: From<WorkerEvent> + Send + 'static>(
        name: String,
        cpu: Option<usize>,
        events: Mailbox<E>,
        stop: fn() -> C,
        run: impl FnOnce(&Mailbox<C>, &Mailbox<E>) -> Result<(), String> + Send + 'static,
    ) -> std::io::Result<Self> {
        let commands = Mailbox::new()?;
        let mailbox = commands.clone();
        let thread = std::thread::Builder::new().name(name).spawn(move || {
            if let Some(cpu) = cpu
                && let Err(error) = dwcp_numa::pin_current_thread(cpu)
            {
                tracing::warn!(%error, cpu, "worker is not pinned");
            }
            let failure = match catch_unwind(AssertUnwindSafe(|| run(&mailbox, &events))) {
                Ok(Ok(())) => None,
                Ok(Err(reason)) => Some(reason),
                Err(panic) => Some(format!("worker panicked: {}", panic_text(&*panic))),
            };
            if let Some(reason) = failure {
                let _ = events.push(WorkerEvent::Failed(reason).into());
            }
            thread_cpu_ns()
        })?;
        Ok(Self {
            commands,
            thread: Some(thread),
            stop,
        })
    }

    /// Gives the worker something to do.
    pub fn command(&self, command: C) {
        if let Err(error) = self.commands.push(command) {
            tracing::error!(%error, "worker hangs");
        }
    }

    /// Stops the worker and waits for it. Returns the CPU time that it took, in nanoseconds.
    pub fn stop(&mut self) -> u64 {
        let Some(thread) = self.thread.take() else {
            return 0;
        };
        self.command((self.stop)());
        thread.join().unwrap_or(0)
    }
}

impl<C> Drop for WorkerHandle<C> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.commands.push((self.stop)());
            let _ = thread.join();
        }
    }
}

/// Tells the driver. Its mailbox is full only when it hangs.
pub(super) fn tell<E: From<WorkerEvent>>(events: &Mailbox<E>, event: WorkerEvent) {
    if let Err(error) = events.push(event.into()) {
        tracing::error!(%error, "driver hangs");
    }
}

fn panic_text(panic: &(dyn std::any::Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}
