//! What an adapter is asked to do: `struct ibv_send_wr`, `ibv_post_send`.

use std::fmt;
use std::ptr;
use std::sync::Arc;

use rdma_sys::{
    ibv_post_send, ibv_qp, ibv_send_flags, ibv_send_wr, ibv_sge, ibv_wr_opcode, rdma_t, wr_t,
};

use crate::in_flight::{Held, PostOutcome, Posted, SendLedger};
use crate::owned::{Owned, result_of};
use crate::shared_receive_queue::check_span;
use crate::{LocalSpan, ProtectionDomain, RdmaError, RemoteAddress};

/// Requests given to the driver in one call; a larger batch takes several.
const CHAIN: usize = 16;

/// Bytes that a request takes from this side.
#[derive(Clone, Copy, Debug)]
pub enum Payload<'a> {
    /// Pieces of regions, front to back, read when the adapter gets there.
    Spans(&'a [LocalSpan]),
    /// These bytes, copied into the request when it is pushed. For a few of them this is quicker, and needs no region.
    Inline(&'a [u8]),
}

impl<'a> From<&'a [LocalSpan]> for Payload<'a> {
    fn from(spans: &'a [LocalSpan]) -> Self {
        Self::Spans(spans)
    }
}

impl<'a> From<&'a LocalSpan> for Payload<'a> {
    fn from(span: &'a LocalSpan) -> Self {
        Self::Spans(std::slice::from_ref(span))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Verb {
    Send,
    Write,
    Read,
}

/// A request of a send queue. Requests of a queue pair begin in order; READs may end later than what follows them.
#[derive(Clone, Copy, Debug)]
#[must_use]
pub struct SendRequest<'a> {
    verb: Verb,
    payload: Payload<'a>,
    remote: Option<RemoteAddress>,
    immediate: Option<u32>,
    id: u64,
    flags: u32,
}

impl<'a> SendRequest<'a> {
    const fn new(verb: Verb, payload: Payload<'a>, remote: Option<RemoteAddress>) -> Self {
        Self {
            verb,
            payload,
            remote,
            immediate: None,
            id: 0,
            flags: 0,
        }
    }

    /// SEND: the peer's next receive takes the bytes.
    pub fn send(payload: impl Into<Payload<'a>>) -> Self {
        Self::new(Verb::Send, payload.into(), None)
    }

    /// RDMA WRITE: the bytes appear at `to`, front to back, and nobody at the peer is told.
    pub fn write(payload: impl Into<Payload<'a>>, to: RemoteAddress) -> Self {
        Self::new(Verb::Write, payload.into(), Some(to))
    }

    /// RDMA READ: bytes at `from` come into the spans, whose regions have to be writable.
    pub fn read(spans: &'a [LocalSpan], from: RemoteAddress) -> Self {
        Self::new(Verb::Read, Payload::Spans(spans), Some(from))
    }

    /// With a number for the peer. A WRITE with one uses up a receive there, whose completion comes when the bytes of this
    /// request, and of all WRITEs before it on this queue pair, are in place. Not for a READ, which ignores it.
    pub const fn immediate(mut self, number: u32) -> Self {
        self.immediate = Some(number);
        self
    }

    /// What its completion will be called; 0 otherwise.
    pub const fn id(mut self, id: u64) -> Self {
        self.id = id;
        self
    }

    /// A completion comes when it succeeded. Without, one comes only when it failed, and it counts as complete when a later
    /// request of the queue does: signal at least one in as many as the queue holds.
    pub const fn signalled(mut self) -> Self {
        self.flags |= ibv_send_flags::IBV_SEND_SIGNALED.0;
        self
    }

    /// Its completion at the peer rings where only [`Notify::Solicited`](crate::Notify::Solicited) ones do.
    pub const fn solicited(mut self) -> Self {
        self.flags |= ibv_send_flags::IBV_SEND_SOLICITED.0;
        self
    }

    /// Does not begin before all READs that precede it have ended.
    pub const fn fenced(mut self) -> Self {
        self.flags |= ibv_send_flags::IBV_SEND_FENCE.0;
        self
    }

    const fn opcode(&self) -> u32 {
        match (self.verb, self.immediate) {
            (Verb::Send, None) => ibv_wr_opcode::IBV_WR_SEND,
            (Verb::Send, Some(_)) => ibv_wr_opcode::IBV_WR_SEND_WITH_IMM,
            (Verb::Write, None) => ibv_wr_opcode::IBV_WR_RDMA_WRITE,
            (Verb::Write, Some(_)) => ibv_wr_opcode::IBV_WR_RDMA_WRITE_WITH_IMM,
            (Verb::Read, _) => ibv_wr_opcode::IBV_WR_RDMA_READ,
        }
    }
}

/// What a send queue was made for.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SendLimits {
    pub(crate) spans: u32,
    pub(crate) inline_bytes: u32,
}

/// Requests that are pushed and not posted, with what they refer to. Kept by the queue pair, so that its room is used again.
#[derive(Default)]
pub(crate) struct Staging {
    requests: Vec<Staged>,
    entries: Vec<ibv_sge>,
    inline: Vec<u8>,
}

#[derive(Debug)]
struct Staged {
    posted: Option<Posted>,
    opcode: u32,
    flags: u32,
    immediate: u32,
    remote: RemoteAddress,
    /// First of its entries, and how many they are.
    entries: (usize, usize),
}

/// Requests that are posted together, with one ring of the adapter's bell for up to 16 of them.
///
/// It borrows its queue pair: there is one at a time. Dropping it posts nothing.
/// ```compile_fail,E0499
/// # use dwcp_rdma::*;
/// fn two_at_once(pair: &mut QueuePair<ReadyToSend>) {
///     let one = pair.send_batch();
///     let other = pair.send_batch();
///     one.post().unwrap();
///     other.post().unwrap();
/// }
/// ```
/// ```
/// # use dwcp_rdma::*;
/// fn one_after_the_other(pair: &mut QueuePair<ReadyToSend>) {
///     let one = pair.send_batch();
///     one.post().unwrap();
///     let other = pair.send_batch();
///     other.post().unwrap();
/// }
/// ```
/// A batch that was posted is gone:
/// ```compile_fail,E0382
/// # use dwcp_rdma::*;
/// fn posted_twice(pair: &mut QueuePair<ReadyToSend>) {
///     let batch = pair.send_batch();
///     batch.post().unwrap();
///     batch.post().unwrap();
/// }
/// ```
/// Only a queue pair that is ready to send has one:
/// ```compile_fail,E0599
/// # use dwcp_rdma::*;
/// fn too_early(pair: &mut QueuePair<ReadyToReceive>) {
///     pair.send_batch();
/// }
/// ```
/// Inline bytes are copied and need not live until it is posted; a region that is named is held:
/// ```
/// # use dwcp_rdma::*;
/// # use std::sync::Arc;
/// fn nothing_dangles(
///     pair: &mut QueuePair<ReadyToSend>,
///     region: Arc<MemoryRegion>,
///     to: RemoteAddress,
/// ) -> Result<(), RdmaError> {
///     let mut batch = pair.send_batch();
///     batch.push(&SendRequest::send(Payload::Inline(&vec![7; 16])))?;
///     let span = region.span(0..4096)?;
///     drop(region);
///     batch.push(&SendRequest::write(&span, to).signalled())?;
///     drop(span);
///     batch.post()
/// }
/// ```
#[derive(Debug)]
#[must_use = "requests of a batch that is dropped are not posted"]
pub struct SendBatch<'pair> {
    pub(crate) pair: &'pair Owned<ibv_qp>,
    pub(crate) staging: &'pair mut Staging,
    pub(crate) ledger: &'pair SendLedger,
    pub(crate) domain: &'pair Arc<ProtectionDomain>,
    pub(crate) limits: SendLimits,
}

impl SendBatch<'_> {
    /// Adds a request; it is posted by [`post`](Self::post).
    ///
    /// # Errors
    /// [`RdmaError::QueueFull`], [`RdmaError::TooManySpans`], [`RdmaError::InlineTooLong`],
    /// [`RdmaError::OtherProtectionDomain`], and [`RdmaError::NotWritable`] for a READ. The batch is as it was then.
    pub fn push(&mut self, request: &SendRequest<'_>) -> Result<(), RdmaError> {
        self.ledger.reserve(self.staging.requests.len() + 1)?;
        let first = self.staging.entries.len();
        let mut flags = request.flags;
        let held = match request.payload {
            Payload::Spans(spans) => self.stage_spans(spans, request.verb)?,
            Payload::Inline(bytes) => {
                flags |= ibv_send_flags::IBV_SEND_INLINE.0;
                self.stage_inline(bytes)?
            }
        };
        self.staging.requests.push(Staged {
            posted: Some(Posted {
                id: request.id,
                _held: held,
            }),
            opcode: request.opcode(),
            flags,
            immediate: request.immediate.unwrap_or(0),
            remote: request.remote.unwrap_or(RemoteAddress {
                address: 0,
                rkey: 0,
            }),
            entries: (first, self.staging.entries.len() - first),
        });
        Ok(())
    }

    /// How many requests it has.
    #[must_use]
    pub fn len(&self) -> usize {
        self.staging.requests.len()
    }

    /// Whether it has none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.staging.requests.is_empty()
    }

    fn stage_spans(&mut self, spans: &[LocalSpan], verb: Verb) -> Result<Held, RdmaError> {
        let limit = self.limits.spans;
        if spans.len() > limit as usize {
            let spans = spans.len();
            return Err(RdmaError::TooManySpans { spans, limit });
        }
        for span in spans {
            check_span(span, self.domain, verb == Verb::Read)?;
        }
        let entries = spans.iter().map(LocalSpan::entry);
        self.staging.entries.extend(entries);
        Ok(Held::of(spans))
    }

    /// Copies bytes; their entry has their place among all inline bytes until the batch is posted.
    fn stage_inline(&mut self, bytes: &[u8]) -> Result<Held, RdmaError> {
        let limit = self.limits.inline_bytes;
        if bytes.len() > limit as usize {
            let bytes = bytes.len();
            return Err(RdmaError::InlineTooLong { bytes, limit });
        }
        self.staging.entries.push(ibv_sge {
            addr: self.staging.inline.len() as u64,
            length: bytes.len() as u32,
            lkey: 0,
        });
        self.staging.inline.extend_from_slice(bytes);
        Ok(Held::Nothing)
    }

    /// Posts all of them. Each holds its regions until its completion has been polled.
    ///
    /// # Errors
    /// [`RdmaError::Post`] says how many the driver took before it refused one.
    pub fn post(self) -> Result<(), RdmaError> {
        let requests = self.staging.requests.len();
        self.staging.place_inline();
        let Staging {
            requests: staged,
            entries,
            ..
        } = &mut *self.staging;
        let mut before = 0;
        for chain in staged.chunks_mut(CHAIN) {
            let count = chain.len();
            post_chain(self.pair, self.ledger, chain, entries).map_err(|(posted, source)| {
                RdmaError::Post {
                    posted: before + posted,
                    requests,
                    source,
                }
            })?;
            before += count;
        }
        Ok(())
    }
}

impl Drop for SendBatch<'_> {
    fn drop(&mut self) {
        self.staging.requests.clear();
        self.staging.entries.clear();
        self.staging.inline.clear();
    }
}

impl fmt::Debug for Staging {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_list().entries(&self.requests).finish()
    }
}

impl Staging {
    /// Turns places among the inline bytes into addresses: nothing is added any more, so they stay where they are.
    fn place_inline(&mut self) {
        let base = self.inline.as_ptr() as u64;
        for request in &self.requests {
            if request.flags & ibv_send_flags::IBV_SEND_INLINE.0 != 0 {
                self.entries[request.entries.0].addr += base;
            }
        }
    }
}

/// Posts up to [`CHAIN`] requests by one call.
fn post_chain(
    pair: &Owned<ibv_qp>,
    ledger: &SendLedger,
    chain: &mut [Staged],
    entries: &mut [ibv_sge],
) -> PostOutcome {
    // SAFETY: integers and null pointers, for which zero is a value.
    let mut wires: [ibv_send_wr; CHAIN] = unsafe { std::mem::zeroed() };
    let count = chain.len();
    for (wire, request) in wires.iter_mut().zip(chain.iter()) {
        let (first, spans) = request.entries;
        wire.sg_list = entries[first..first + spans].as_mut_ptr();
        wire.num_sge = spans as i32;
        wire.opcode = request.opcode;
        wire.send_flags = request.flags;
        wire.imm_data_invalidated_rkey_union.imm_data = request.immediate.to_be();
        wire.wr = wr_t {
            rdma: rdma_t {
                remote_addr: request.remote.address,
                rkey: request.remote.rkey,
            },
        };
    }
    let start = wires.as_mut_ptr();
    for index in 1..count {
        wires[index - 1].next = start.wrapping_add(index);
    }
    let posted = chain.iter_mut().filter_map(|request| request.posted.take());
    ledger.post(posted, |name| {
        for wire in &mut wires[..count] {
            wire.wr_id = name();
        }
        let start = wires.as_mut_ptr();
        let mut bad = ptr::null_mut();
        // SAFETY:
        // - The queue pair is alive, and ready to send: only such a one has a batch.
        // - `start` is a chain of `count` requests, ended by null, and each list of entries lies in `entries`; both are
        //   borrowed until after the call, which copies them.
        // - What entries name is registered with this domain and held by the ledger until the request is complete; or it is
        //   inline, lies in the staging's bytes, and is copied in the call.
        let code = unsafe { ibv_post_send(pair.as_ptr(), start, &raw mut bad) };
        result_of(code).map_err(|error| {
            // `bad` is one of the chain: the first that was refused.
            let posted = (bad as usize).saturating_sub(start as usize) / size_of::<ibv_send_wr>();
            (posted.min(count), error)
        })
    })
}
