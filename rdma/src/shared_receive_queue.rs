//! Receives of several queue pairs: `ibv_create_srq`, `ibv_post_recv`, `ibv_post_srq_recv`.

use std::io;
use std::ptr;
use std::sync::Arc;

use rdma_sys::{
    ibv_create_srq, ibv_destroy_srq, ibv_post_srq_recv, ibv_recv_wr, ibv_sge, ibv_srq,
    ibv_srq_attr, ibv_srq_init_attr,
};

use crate::in_flight::{Held, Posted, ReceiveLedger};
use crate::owned::{Owned, result_of};
use crate::{Access, LocalSpan, ProtectionDomain, RdmaError};

/// Spans of a receive, at most.
pub const RECEIVE_SPANS_MAX: usize = 4;

/// Receives that several queue pairs take from, in the order in which messages come. See `ibv_create_srq(3)`.
///
/// A receive belongs to whoever gets the next message: its completion is found in that queue pair's completion queue. Poll that
/// until it is empty before you drop the pair: a receive whose completion is lost stays held, and takes up its place, until
/// this queue is dropped. So does one that a pair had begun when it failed, of which adapters say nothing.
#[derive(Debug)]
pub struct SharedReceiveQueue {
    queue: Owned<ibv_srq>,
    ledger: Arc<ReceiveLedger>,
    domain: Arc<ProtectionDomain>,
}

/// Where a message may go. With no spans it takes a number ([`immediate`](crate::WorkCompletion::immediate)) alone.
#[derive(Clone, Debug)]
pub struct ReceiveRequest<'a> {
    /// What its completion will be called.
    pub id: u64,
    /// Pieces of regions, filled front to back.
    pub spans: &'a [LocalSpan],
}

impl SharedReceiveQueue {
    /// Makes a queue for `capacity` receives of at most `spans` pieces each.
    ///
    /// # Errors
    /// [`RdmaError::Create`] when the device has not that many, [`RdmaError::TooManySpans`] over [`RECEIVE_SPANS_MAX`].
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        capacity: u32,
        spans: u32,
    ) -> Result<Arc<Self>, RdmaError> {
        check_span_limit(spans as usize)?;
        let mut attributes = ibv_srq_init_attr {
            srq_context: ptr::null_mut(),
            attr: ibv_srq_attr {
                max_wr: capacity,
                max_sge: spans,
                srq_limit: 0,
            },
        };
        // SAFETY: the domain is alive, and stays so: the queue keeps it. The attributes are read, and written, in the call.
        let queue = unsafe { ibv_create_srq(domain.as_ptr(), &raw mut attributes) };
        // SAFETY: it was returned just now, and `ibv_destroy_srq` is its destructor.
        let queue = unsafe { Owned::new(queue, ibv_destroy_srq, "shared receive queue") }?;
        Ok(Arc::new(Self {
            queue,
            ledger: ReceiveLedger::new(capacity),
            domain: domain.clone(),
        }))
    }

    /// Posts a receive. It holds its regions until its completion has been polled, or the queue is dropped.
    ///
    /// # Errors
    /// [`RdmaError::QueueFull`], [`RdmaError::NotWritable`], [`RdmaError::OtherProtectionDomain`],
    /// [`RdmaError::TooManySpans`], [`RdmaError::Post`]; nothing is posted then.
    pub fn post(&self, request: &ReceiveRequest<'_>) -> Result<(), RdmaError> {
        post_receive(&self.ledger, &self.domain, request, |wire, bad| {
            // SAFETY: the queue is alive. By `post_receive`, `wire` and its list are valid during the call, and what they
            // name is registered, writable, and held until the completion.
            unsafe { ibv_post_srq_recv(self.queue.as_ptr(), wire, bad) }
        })
    }

    /// Receives that are posted and not complete.
    #[must_use]
    pub fn outstanding(&self) -> usize {
        self.ledger.outstanding()
    }

    /// Returns the domain that it belongs to.
    #[must_use]
    pub const fn domain(&self) -> &Arc<ProtectionDomain> {
        &self.domain
    }

    pub(crate) const fn as_ptr(&self) -> *mut ibv_srq {
        self.queue.as_ptr()
    }

    pub(crate) const fn ledger(&self) -> &Arc<ReceiveLedger> {
        &self.ledger
    }
}

pub(crate) fn check_span_limit(spans: usize) -> Result<(), RdmaError> {
    if spans <= RECEIVE_SPANS_MAX {
        return Ok(());
    }
    Err(RdmaError::TooManySpans {
        spans,
        limit: RECEIVE_SPANS_MAX as u32,
    })
}

/// Checks a receive, enters it, and gives it to `call`, which is a driver's function: both its pointers are valid until it
/// returns.
pub(crate) fn post_receive(
    ledger: &ReceiveLedger,
    domain: &Arc<ProtectionDomain>,
    request: &ReceiveRequest<'_>,
    call: impl FnOnce(*mut ibv_recv_wr, *mut *mut ibv_recv_wr) -> i32,
) -> Result<(), RdmaError> {
    check_span_limit(request.spans.len())?;
    let nothing = ibv_sge {
        addr: 0,
        length: 0,
        lkey: 0,
    };
    let mut list = [nothing; RECEIVE_SPANS_MAX];
    for (entry, span) in list.iter_mut().zip(request.spans) {
        check_span(span, domain, true)?;
        *entry = span.entry();
    }
    let posted = Posted {
        id: request.id,
        _held: Held::of(request.spans),
    };
    ledger.post(posted, |wr_id| -> io::Result<()> {
        let mut wire = ibv_recv_wr {
            wr_id,
            next: ptr::null_mut(),
            sg_list: list.as_mut_ptr(),
            num_sge: request.spans.len() as i32,
        };
        let mut bad = ptr::null_mut();
        result_of(call(&raw mut wire, &raw mut bad))
    })
}

/// Whether a span may be used by a queue of `domain`, and written.
pub(crate) fn check_span(
    span: &LocalSpan,
    domain: &Arc<ProtectionDomain>,
    written: bool,
) -> Result<(), RdmaError> {
    if !Arc::ptr_eq(span.region().domain(), domain) {
        return Err(RdmaError::OtherProtectionDomain);
    }
    if written && !span.region().access().contains(Access::LOCAL_WRITE) {
        return Err(RdmaError::NotWritable);
    }
    Ok(())
}
