//! Whether a source's data streams are queue pairs, and what becomes of one that breaks.

use std::net::SocketAddr;
use std::sync::Arc;

use dwcp_api::{ApiError, ErrorCode, RdmaChoice, TransferSettings};

use super::recorder::RDMA;
use super::secure::INTERNET;
use super::source::SourceDriver;
use crate::transport::RdmaMemory;

/// What a source has for queue pairs.
#[derive(Debug, Default)]
pub(super) struct SourceRdma {
    /// Where the destination takes them, and RAM as our adapter knows it.
    found: Option<(SocketAddr, Arc<RdmaMemory>)>,
}

impl SourceRdma {
    pub(super) fn memory(&self) -> Option<&Arc<RdmaMemory>> {
        self.found.as_ref().map(|(_, memory)| memory)
    }

    pub(super) fn address(&self) -> Option<SocketAddr> {
        self.found.as_ref().map(|(address, _)| *address)
    }
}

/// Whether TCP will not do.
pub(super) fn is_required(settings: &TransferSettings) -> bool {
    settings.rdma == RdmaChoice::Required
}

/// Whether what is asked for can be had at all.
///
/// # Errors
/// [`ErrorCode::BadRequest`]: RDMA is demanded where it is never used.
pub(super) fn check_choice(settings: &TransferSettings, is_tls: bool) -> Result<(), ApiError> {
    let why = match settings.rdma {
        RdmaChoice::Auto | RdmaChoice::Off => return Ok(()),
        RdmaChoice::Required if settings.mode == INTERNET => "mode internet is TLS always",
        RdmaChoice::Required if is_tls => "this migration is TLS",
        RdmaChoice::Required => return Ok(()),
    };
    let message = format!("transfer.rdma = \"required\", and {why}: RDMA has no encryption");
    Err(ApiError::new(ErrorCode::BadRequest, message).with_hint(
        "on a network that only your hypervisors have access to, set transfer.tls = \"off\"",
    ))
}

impl SourceDriver {
    /// The destination takes queue pairs. What it says is used only where this node's operator allows it.
    pub(super) fn rdma_listens(&mut self, address: SocketAddr) {
        let settings = &self.request.settings;
        let is_wanted = settings.rdma != RdmaChoice::Off
            && settings.mode != INTERNET
            && settings.paths.is_empty();
        if is_wanted && !self.way.is_tls() && self.streams.rdma.found.is_none() {
            let memory = RdmaMemory::of_source(&self.session.layout);
            self.streams.rdma.found = Some((address, memory));
        }
    }

    /// Before the next round: what was granted so far is to be asked for again.
    pub(super) fn keys_are_gone(&self) {
        if let Some(memory) = self.streams.rdma.memory() {
            memory.forget_grants();
        }
    }

    /// Bytes of pages on queue pairs: placed by the adapter, and through rings.
    fn queued_bytes(&self) -> Option<(u64, u64)> {
        let memory = self.streams.rdma.memory()?;
        let (written, ring) = memory.counted();
        (written + ring > 0).then_some((written, ring))
    }

    /// Pages go by queue pairs as soon as the first has.
    pub(super) fn note_queue_pairs(&mut self) {
        if self.queued_bytes().is_some() {
            self.recorder.carried_by(RDMA);
        }
    }

    /// What became of pages on queue pairs.
    pub(super) fn explain_rdma(&mut self) {
        if let Some((written, ring)) = self.queued_bytes() {
            self.recorder.remark(format!(
                "RDMA: {} MiB of pages placed by the adapter, {} MiB through rings",
                written >> 20,
                ring >> 20
            ));
        }
    }

    /// Whether streams can be what they must be.
    pub(super) fn check_rdma(&self) -> Result<(), String> {
        if is_required(&self.request.settings) && self.streams.rdma.found.is_none() {
            return Err("transfer.rdma = \"required\", and the destination has no RDMA".to_owned());
        }
        Ok(())
    }

    /// A queue pair broke. Its stream goes on over TCP, and stays there.
    pub(super) fn queue_lost(&mut self, index: u16, reason: &str) -> Result<(), String> {
        if is_required(&self.request.settings) {
            return Err(format!(
                "stream {index}: {reason}; transfer.rdma = \"required\" leaves no other way"
            ));
        }
        self.recorder
            .note(format!("stream {index} went on over TCP: {reason}"));
        Ok(())
    }
}
