//! A connection's two queues: `ibv_create_qp`, `ibv_modify_qp`, `ibv_destroy_qp`.

use std::fmt;
use std::marker::PhantomData;
use std::mem::MaybeUninit;
use std::ptr;
use std::sync::Arc;

use rdma_sys::{
    ibv_create_qp, ibv_destroy_qp, ibv_modify_qp, ibv_post_recv, ibv_qp, ibv_qp_attr,
    ibv_qp_attr_mask, ibv_qp_cap, ibv_qp_init_attr, ibv_qp_state, ibv_qp_type, ibv_query_qp,
};

use crate::completion_queue::Entered;
use crate::in_flight::{Ledger, ReceiveLedger, SendLedger};
use crate::owned::{Owned, result_of};
use crate::shared_receive_queue::post_receive;
use crate::work_request::{SendLimits, Staging};
use crate::{
    CompletionQueue, ProtectionDomain, RdmaError, ReceiveRequest, SendBatch, SharedReceiveQueue,
    ToInit, ToReadyToReceive, ToReadyToSend,
};

/// State of a queue pair; names as in `enum ibv_qp_state`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum QueuePairState {
    /// Made, and nothing else.
    Reset,
    /// Receives may be posted.
    Init,
    /// What the peer sends is taken.
    ReadyToReceive,
    /// Requests are worked on.
    ReadyToSend,
    /// All requests, old and new, are flushed.
    Error,
    /// Another one, which this crate does not use.
    Other,
}

impl QueuePairState {
    const fn of(code: u32) -> Self {
        match code {
            ibv_qp_state::IBV_QPS_RESET => Self::Reset,
            ibv_qp_state::IBV_QPS_INIT => Self::Init,
            ibv_qp_state::IBV_QPS_RTR => Self::ReadyToReceive,
            ibv_qp_state::IBV_QPS_RTS => Self::ReadyToSend,
            ibv_qp_state::IBV_QPS_ERR => Self::Error,
            _ => Self::Other,
        }
    }
}

impl fmt::Display for QueuePairState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Reset => "RESET",
            Self::Init => "INIT",
            Self::ReadyToReceive => "RTR (ready to receive)",
            Self::ReadyToSend => "RTS (ready to send)",
            Self::Error => "ERR",
            Self::Other => "another state",
        })
    }
}

mod states {
    /// A state as a type; nobody else can add one.
    pub trait State: std::fmt::Debug {
        /// The same as a value.
        const STATE: super::QueuePairState;
    }
    /// A state in which receives may be posted.
    pub trait TakesReceives: State {}
}

macro_rules! states {
    ($($name:ident: $text:literal,)*) => {$(
        #[doc = $text]
        #[derive(Debug)]
        pub enum $name {}
        impl states::State for $name {
            const STATE: QueuePairState = QueuePairState::$name;
        }
    )*};
}

states! {
    Reset: "A queue pair that was just made.",
    Init: "A queue pair that takes receives.",
    ReadyToReceive: "A queue pair that takes what its peer sends.",
    ReadyToSend: "A queue pair that is connected.",
}
impl states::TakesReceives for Init {}
impl states::TakesReceives for ReadyToReceive {}
impl states::TakesReceives for ReadyToSend {}

/// What a queue pair is to be made of.
#[derive(Debug)]
pub struct QueuePairOptions<'a> {
    /// Where completions of sends, writes and reads come.
    pub send_completions: &'a Arc<CompletionQueue>,
    /// Where completions of receives come; may be the same.
    pub receive_completions: &'a Arc<CompletionQueue>,
    /// Receives shared with others; without, it has its own.
    pub shared_receives: Option<&'a Arc<SharedReceiveQueue>>,
    /// Requests of the send queue, at most.
    pub sends_max: u32,
    /// Receives of its own, at most.
    pub receives_max: u32,
    /// Spans of a request, at most.
    pub spans_max: u32,
    /// Inline bytes of a request, at most. Not every adapter has many.
    pub inline_bytes_max: u32,
}

/// A reliably connected queue pair, in a state that its type tells.
///
/// `RESET -> INIT -> RTR -> RTS`; [`fail`](Self::fail) makes any of them flush what it has. What each step needs is in
/// [`ToInit`], [`ToReadyToReceive`] and [`ToReadyToSend`], which the connection manager gives, or a [`Path`](crate::Path).
///
/// The type does not know when the pair failed by itself: requests are then taken and flushed. See `ibv_modify_qp(3)`.
#[derive(Debug)]
pub struct QueuePair<S> {
    // Destroyed first; then its requests are forgotten, then its parents let go.
    pair: Owned<ibv_qp>,
    send: Arc<SendLedger>,
    receive: Option<Arc<ReceiveLedger>>,
    _entered: [Entered; 2],
    _shared: Option<Arc<SharedReceiveQueue>>,
    domain: Arc<ProtectionDomain>,
    staging: Staging,
    limits: SendLimits,
    state: PhantomData<S>,
}

impl QueuePair<Reset> {
    /// Makes one.
    ///
    /// # Errors
    /// [`RdmaError::Create`] when the device has not that much, [`RdmaError::OtherProtectionDomain`] when the shared
    /// receives belong to another.
    pub fn new(
        domain: &Arc<ProtectionDomain>,
        options: &QueuePairOptions<'_>,
    ) -> Result<Self, RdmaError> {
        let shared = options.shared_receives;
        if shared.is_some_and(|shared| !Arc::ptr_eq(shared.domain(), domain)) {
            return Err(RdmaError::OtherProtectionDomain);
        }
        let own_receives = if shared.is_some() {
            0
        } else {
            options.receives_max
        };
        let mut attributes = ibv_qp_init_attr {
            qp_context: ptr::null_mut(),
            send_cq: options.send_completions.as_ptr(),
            recv_cq: options.receive_completions.as_ptr(),
            srq: shared.map_or(ptr::null_mut(), |shared| shared.as_ptr()),
            cap: ibv_qp_cap {
                max_send_wr: options.sends_max,
                max_recv_wr: own_receives,
                max_send_sge: options.spans_max,
                max_recv_sge: crate::RECEIVE_SPANS_MAX as u32,
                max_inline_data: options.inline_bytes_max,
            },
            qp_type: ibv_qp_type::IBV_QPT_RC,
            sq_sig_all: 0,
        };
        // SAFETY: domain, completion queues and shared queue are alive, and stay so: the pair keeps them, behind itself. The
        // attributes are read, and written, in the call.
        let pair = unsafe { ibv_create_qp(domain.as_ptr(), &raw mut attributes) };
        // SAFETY: it was returned just now, and `ibv_destroy_qp` is its destructor.
        let pair = unsafe { Owned::new(pair, ibv_destroy_qp, "queue pair") }?;
        let send = SendLedger::new(options.sends_max);
        let own = shared
            .is_none()
            .then(|| ReceiveLedger::new(options.receives_max));
        let receives = own
            .as_ref()
            .or_else(|| shared.map(|shared| shared.ledger()));
        let receives = receives.map_or(Ledger::Send(send.clone()), |ledger| {
            Ledger::Receive(ledger.clone())
        });
        let entered = [
            Entered::new(options.send_completions, Ledger::Send(send.clone())),
            Entered::new(options.receive_completions, receives),
        ];
        Ok(Self {
            pair,
            send,
            receive: own,
            _entered: entered,
            _shared: shared.cloned(),
            domain: domain.clone(),
            staging: Staging::default(),
            limits: SendLimits {
                spans: options.spans_max,
                inline_bytes: options.inline_bytes_max,
            },
            state: PhantomData,
        })
    }

    /// Lets it take receives.
    ///
    /// # Errors
    /// [`RdmaError::Transition`]; the pair is destroyed then.
    pub fn init(self, step: ToInit) -> Result<QueuePair<Init>, RdmaError> {
        self.step(step.attributes, step.mask)
    }
}

impl QueuePair<Init> {
    /// Lets it take what the peer sends.
    ///
    /// # Errors
    /// [`RdmaError::Transition`]; the pair is destroyed then.
    pub fn ready_to_receive(
        self,
        step: ToReadyToReceive,
    ) -> Result<QueuePair<ReadyToReceive>, RdmaError> {
        self.step(step.attributes, step.mask)
    }
}

impl QueuePair<ReadyToReceive> {
    /// Lets it send.
    ///
    /// # Errors
    /// [`RdmaError::Transition`]; the pair is destroyed then.
    pub fn ready_to_send(self, step: ToReadyToSend) -> Result<QueuePair<ReadyToSend>, RdmaError> {
        self.step(step.attributes, step.mask)
    }
}

impl QueuePair<ReadyToSend> {
    /// Begins a batch of requests.
    pub fn send_batch(&mut self) -> SendBatch<'_> {
        SendBatch {
            pair: &self.pair,
            staging: &mut self.staging,
            ledger: &self.send,
            domain: &self.domain,
            limits: self.limits,
        }
    }

    /// Requests of the send queue whose completion has not been polled, by themselves or by a later one.
    #[must_use]
    pub fn sends_outstanding(&self) -> usize {
        self.send.outstanding()
    }
}

impl<S: states::TakesReceives> QueuePair<S> {
    /// Posts a receive of its own.
    ///
    /// # Errors
    /// As [`SharedReceiveQueue::post`]. One that shares its receives has no room for its own: [`RdmaError::QueueFull`].
    pub fn post_receive(&mut self, request: &ReceiveRequest<'_>) -> Result<(), RdmaError> {
        let Some(ledger) = &self.receive else {
            return Err(RdmaError::QueueFull {
                outstanding: 0,
                more: 1,
                limit: 0,
            });
        };
        post_receive(ledger, &self.domain, request, |wire, bad| {
            // SAFETY: the pair is alive and, by its type, past RESET. By `post_receive`, `wire` and its list are valid
            // during the call, and what they name is registered, writable, and held until the completion.
            unsafe { ibv_post_recv(self.pair.as_ptr(), wire, bad) }
        })
    }
}

impl<S: states::State> QueuePair<S> {
    /// Returns its number, which the peer has to know.
    #[must_use]
    pub fn number(&self) -> u32 {
        // SAFETY: the pair is alive; its number was set before it was returned and does not change.
        unsafe { (*self.pair.as_ptr()).qp_num }
    }

    /// Makes it fail: what is posted is flushed, and what will be. This way, all its requests complete.
    ///
    /// # Errors
    /// [`RdmaError::Transition`].
    pub fn fail(&self) -> Result<(), RdmaError> {
        let mut attributes = zeroed_attributes();
        attributes.qp_state = ibv_qp_state::IBV_QPS_ERR;
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0.cast_signed();
        self.modify(QueuePairState::Error, attributes, mask)
    }

    /// Asks the adapter for the state, which is [`QueuePairState::Error`] when the pair has failed.
    ///
    /// # Errors
    /// [`RdmaError::Query`].
    pub fn query_state(&self) -> Result<QueuePairState, RdmaError> {
        let mut attributes = zeroed_attributes();
        let mut made_with = MaybeUninit::<ibv_qp_init_attr>::zeroed();
        let mask = ibv_qp_attr_mask::IBV_QP_STATE.0.cast_signed();
        // SAFETY: the pair is alive, both structures are writable and initialised.
        let code = unsafe {
            ibv_query_qp(
                self.pair.as_ptr(),
                &raw mut attributes,
                mask,
                made_with.as_mut_ptr(),
            )
        };
        let context = self.domain.context();
        context.check(code, || format!("queue pair {}", self.number()))?;
        Ok(QueuePairState::of(attributes.qp_state))
    }

    fn step<To: states::State>(
        self,
        attributes: ibv_qp_attr,
        mask: i32,
    ) -> Result<QueuePair<To>, RdmaError> {
        self.modify(To::STATE, attributes, mask)?;
        Ok(QueuePair {
            pair: self.pair,
            send: self.send,
            receive: self.receive,
            _entered: self._entered,
            _shared: self._shared,
            domain: self.domain,
            staging: self.staging,
            limits: self.limits,
            state: PhantomData,
        })
    }

    fn modify(
        &self,
        to: QueuePairState,
        mut attributes: ibv_qp_attr,
        mask: i32,
    ) -> Result<(), RdmaError> {
        // SAFETY: the pair is alive; the attributes are initialised and only read.
        let code = unsafe { ibv_modify_qp(self.pair.as_ptr(), &raw mut attributes, mask) };
        let from = S::STATE;
        result_of(code).map_err(|source| RdmaError::Transition { from, to, source })
    }
}

pub(crate) fn zeroed_attributes() -> ibv_qp_attr {
    // SAFETY: integers, and a union of bytes, for which zero is a value.
    unsafe { std::mem::zeroed() }
}
