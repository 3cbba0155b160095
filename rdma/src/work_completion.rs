//! What became of a request: `struct ibv_wc`.

use std::fmt;

use rdma_sys::{ibv_wc, ibv_wc_flags, ibv_wc_opcode, ibv_wc_status};

use crate::in_flight::Retired;

/// A request that is complete, well or not. See `ibv_poll_cq(3)`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkCompletion {
    /// What the request was called when it was posted.
    pub id: u64,
    /// How it ended.
    pub status: CompletionStatus,
    /// What it was; `None` when it failed, since adapters do not say then.
    pub operation: Option<CompletedOperation>,
    /// Requests of the same queue that this one completes, itself included: those before it that were not signalled.
    pub requests: u32,
    /// Bytes that came, of a receive or a READ; otherwise 0.
    pub bytes: u32,
    /// Number that came with a SEND or a WRITE.
    pub immediate: Option<u32>,
    /// Number of the queue pair.
    pub queue_pair: u32,
    /// What the adapter's maker calls the failure; 0 when it succeeded.
    pub vendor_error: u32,
}

/// What a completed request was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletedOperation {
    /// SEND, with or without a number.
    Send,
    /// RDMA WRITE, with or without a number.
    Write,
    /// RDMA READ.
    Read,
    /// A receive, filled by a SEND.
    Receive,
    /// A receive, used up by the number of a WRITE; its bytes are where the peer put them.
    ReceiveWriteImmediate,
    /// Something that this crate does not post.
    Other,
}

impl WorkCompletion {
    pub(crate) fn of(raw: &ibv_wc, retired: Retired) -> Self {
        let status = CompletionStatus::of(raw.status);
        let succeeded = status == CompletionStatus::Success;
        let operation = succeeded.then_some(match raw.opcode {
            ibv_wc_opcode::IBV_WC_SEND => CompletedOperation::Send,
            ibv_wc_opcode::IBV_WC_RDMA_WRITE => CompletedOperation::Write,
            ibv_wc_opcode::IBV_WC_RDMA_READ => CompletedOperation::Read,
            ibv_wc_opcode::IBV_WC_RECV => CompletedOperation::Receive,
            ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM => CompletedOperation::ReceiveWriteImmediate,
            _ => CompletedOperation::Other,
        });
        let comes = matches!(
            operation,
            Some(
                CompletedOperation::Receive
                    | CompletedOperation::ReceiveWriteImmediate
                    | CompletedOperation::Read
            )
        );
        let has_immediate = succeeded && raw.wc_flags & ibv_wc_flags::IBV_WC_WITH_IMM.0 != 0;
        // SAFETY: both members of the union are 32-bit integers, for which every value is valid.
        let immediate = unsafe { raw.imm_data_invalidated_rkey_union.imm_data };
        Self {
            id: retired.id,
            status,
            operation,
            requests: retired.requests,
            bytes: if comes { raw.byte_len } else { 0 },
            immediate: has_immediate.then(|| u32::from_be(immediate)),
            queue_pair: raw.qp_num,
            vendor_error: if succeeded { 0 } else { raw.vendor_err },
        }
    }

    /// Whether it succeeded.
    #[must_use]
    pub fn is_success(&self) -> bool {
        self.status == CompletionStatus::Success
    }
}

/// How a request ended; names as in `enum ibv_wc_status`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CompletionStatus {
    /// Well.
    Success,
    /// More came than the receive has room for, or the request is too long.
    LocalLength,
    /// The queue pair is not set up for it.
    LocalQueuePairOperation,
    /// A key or an access of this side is wrong.
    LocalProtection,
    /// Not done: the queue pair had failed, or was made to.
    Flushed,
    /// The peer answered in a way that makes no sense.
    BadResponse,
    /// This side's own memory failed.
    LocalAccess,
    /// The peer takes no such request.
    RemoteInvalidRequest,
    /// The peer's region does not allow it: wrong key, range or access.
    RemoteAccess,
    /// The peer could not do it.
    RemoteOperation,
    /// The peer did not acknowledge, over all tries: dead, or not connected.
    RetryExceeded,
    /// The peer had no receive posted, over all tries.
    ReceiverNotReadyRetryExceeded,
    /// Given up by the peer.
    RemoteAborted,
    /// The adapter itself failed.
    Fatal,
    /// The peer said nothing in time.
    ResponseTimeout,
    /// Another one.
    Other(u32),
}

impl CompletionStatus {
    pub(crate) const fn of(code: u32) -> Self {
        match code {
            ibv_wc_status::IBV_WC_SUCCESS => Self::Success,
            ibv_wc_status::IBV_WC_LOC_LEN_ERR => Self::LocalLength,
            ibv_wc_status::IBV_WC_LOC_QP_OP_ERR => Self::LocalQueuePairOperation,
            ibv_wc_status::IBV_WC_LOC_PROT_ERR => Self::LocalProtection,
            ibv_wc_status::IBV_WC_WR_FLUSH_ERR => Self::Flushed,
            ibv_wc_status::IBV_WC_BAD_RESP_ERR => Self::BadResponse,
            ibv_wc_status::IBV_WC_LOC_ACCESS_ERR => Self::LocalAccess,
            ibv_wc_status::IBV_WC_REM_INV_REQ_ERR => Self::RemoteInvalidRequest,
            ibv_wc_status::IBV_WC_REM_ACCESS_ERR => Self::RemoteAccess,
            ibv_wc_status::IBV_WC_REM_OP_ERR => Self::RemoteOperation,
            ibv_wc_status::IBV_WC_RETRY_EXC_ERR => Self::RetryExceeded,
            ibv_wc_status::IBV_WC_RNR_RETRY_EXC_ERR => Self::ReceiverNotReadyRetryExceeded,
            ibv_wc_status::IBV_WC_REM_ABORT_ERR => Self::RemoteAborted,
            ibv_wc_status::IBV_WC_FATAL_ERR => Self::Fatal,
            ibv_wc_status::IBV_WC_RESP_TIMEOUT_ERR => Self::ResponseTimeout,
            code => Self::Other(code),
        }
    }

    /// Its name in reports.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Success => "success",
            Self::LocalLength => "local length error",
            Self::LocalQueuePairOperation => "local queue pair operation error",
            Self::LocalProtection => "local protection error",
            Self::Flushed => "flushed",
            Self::BadResponse => "bad response",
            Self::LocalAccess => "local access error",
            Self::RemoteInvalidRequest => "remote invalid request error",
            Self::RemoteAccess => "remote access error",
            Self::RemoteOperation => "remote operation error",
            Self::RetryExceeded => "retries exceeded: the peer does not acknowledge",
            Self::ReceiverNotReadyRetryExceeded => {
                "retries exceeded: the peer has no receive posted"
            }
            Self::RemoteAborted => "aborted by the peer",
            Self::Fatal => "fatal error of the adapter",
            Self::ResponseTimeout => "response timeout",
            Self::Other(_) => "unknown status",
        }
    }
}

impl fmt::Display for CompletionStatus {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.name())?;
        match self {
            Self::Other(code) => write!(formatter, " {code}"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(status: u32) -> ibv_wc {
        // SAFETY: plain integers, for which zero is a value.
        let mut raw: ibv_wc = unsafe { std::mem::zeroed() };
        raw.status = status;
        raw.opcode = ibv_wc_opcode::IBV_WC_RECV_RDMA_WITH_IMM;
        raw.byte_len = 4096;
        raw.wc_flags = ibv_wc_flags::IBV_WC_WITH_IMM.0;
        raw.imm_data_invalidated_rkey_union.imm_data = 77_u32.to_be();
        raw.vendor_err = 5;
        raw
    }

    const RETIRED: Retired = Retired { id: 9, requests: 1 };

    #[test]
    fn a_success_says_what_came() {
        let completion = WorkCompletion::of(&raw(ibv_wc_status::IBV_WC_SUCCESS), RETIRED);
        assert!(completion.is_success());
        assert_eq!((completion.id, completion.bytes), (9, 4096));
        assert_eq!(
            (completion.immediate, completion.vendor_error),
            (Some(77), 0)
        );
        let operation = CompletedOperation::ReceiveWriteImmediate;
        assert_eq!(completion.operation, Some(operation));
    }

    /// Of a failed request only the name, the status, the maker's code and the queue pair are defined.
    #[test]
    fn a_failure_says_nothing_more() {
        let completion = WorkCompletion::of(&raw(ibv_wc_status::IBV_WC_WR_FLUSH_ERR), RETIRED);
        assert_eq!(completion.status, CompletionStatus::Flushed);
        assert_eq!((completion.operation, completion.immediate), (None, None));
        assert_eq!((completion.bytes, completion.vendor_error), (0, 5));
    }

    #[test]
    fn unknown_statuses_keep_their_code() {
        assert_eq!(CompletionStatus::of(99).to_string(), "unknown status 99");
        assert_eq!(
            CompletionStatus::of(ibv_wc_status::IBV_WC_REM_ACCESS_ERR).to_string(),
            "remote access error"
        );
    }
}
