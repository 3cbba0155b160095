//! What a message may hold.

use std::net::SocketAddr;

use super::{Control, ControlError, Offer, PageRange};
use crate::limits::{
    MISSING_BYTES_MAX, NAME_BYTES_MAX, PAGE_BYTES, PEER_SILENCE_MS_MAX, RAM_BLOCK_BYTES_MAX,
    RAM_BLOCKS_MAX, REASON_BYTES_MAX, STREAMS_MAX, SUSPECT_RANGES_MAX, WANTED_PAGES_MAX,
};
use crate::{KnownPages, MissingPages, PagesRead, WantedPages};

pub(super) fn check(message: &Control) -> Result<(), ControlError> {
    match message {
        Control::Offer(offer) => check_offer(offer),
        Control::Accept { streams, .. } => check_streams(*streams),
        Control::Refuse { reason, .. } | Control::Abort { reason, .. } => {
            limit("reason", reason.len() as u64, REASON_BYTES_MAX as u64)
        }
        Control::RoundReport { suspects, .. } => check_suspects(suspects),
        Control::OwnerQuery { vm, .. }
        | Control::TakenBack { vm, .. }
        | Control::RecallQuery { vm, .. } => name("vm", vm),
        Control::Wanted(wanted) => check_wanted(wanted),
        Control::Found(found) => check_known("found.bits", found),
        Control::Unchanged(known) => check_known("unchanged.bits", known),
        Control::PostcopyRefused { reason }
        | Control::PagesRead(PagesRead {
            broke: Some(reason),
            ..
        }) => limit("reason", reason.len() as u64, REASON_BYTES_MAX as u64),
        Control::Missing(missing) => check_missing(missing),
        Control::RdmaListens { address } | Control::SourceListens { address } => {
            check_listener(*address)
        }
        Control::Ready
        | Control::RdmaKeysGone
        | Control::RoundEnd { .. }
        | Control::SwitchoverStart
        | Control::DeviceLoaded
        | Control::Handover { .. }
        | Control::Committed { .. }
        | Control::Resumed
        | Control::OwnerAnswer { .. }
        | Control::RecallAnswer { .. }
        | Control::HoldsBaseline { .. }
        | Control::Alive
        | Control::PostcopyStart
        | Control::PostcopyReady
        | Control::Fetched
        | Control::RamRoot { .. }
        | Control::Whole { .. }
        | Control::PostcopyResume { .. }
        | Control::PostcopyGoOn { .. }
        | Control::MissingAhead
        | Control::MissingAheadTaken
        | Control::PagesRead(PagesRead { broke: None, .. }) => Ok(()),
    }
}

fn check_offer(offer: &Offer) -> Result<(), ControlError> {
    name("vm", &offer.vm)?;
    name("source_node", &offer.source_node)?;
    name("vmm", &offer.vmm)?;
    check_streams(offer.streams)?;
    let blocks = offer.ram.len();
    if blocks == 0 {
        return Err(ControlError::Field {
            field: "ram",
            value: 0,
        });
    }
    limit("ram", blocks as u64, RAM_BLOCKS_MAX as u64)?;
    for block in &offer.ram {
        name("ram.name", &block.name)?;
        limit("ram.bytes", block.bytes, RAM_BLOCK_BYTES_MAX)?;
        if block.bytes == 0 || !block.bytes.is_multiple_of(PAGE_BYTES as u64) {
            return Err(ControlError::Field {
                field: "ram.bytes",
                value: block.bytes,
            });
        }
    }
    // The new owner's epoch is one more.
    limit("epoch", offer.epoch, u64::MAX - 1)?;
    if !(1..=PEER_SILENCE_MS_MAX).contains(&offer.peer_silence_ms) {
        return Err(ControlError::Field {
            field: "peer_silence_ms",
            value: offer.peer_silence_ms.into(),
        });
    }
    if offer.ack_bytes < 64 * 1024 {
        return Err(ControlError::Field {
            field: "ack_bytes",
            value: offer.ack_bytes,
        });
    }
    Ok(())
}

fn check_suspects(suspects: &[PageRange]) -> Result<(), ControlError> {
    limit("suspects", suspects.len() as u64, SUSPECT_RANGES_MAX as u64)?;
    for range in suspects {
        let end = u64::from(range.page) + u64::from(range.count);
        if range.count == 0 {
            return Err(ControlError::Field {
                field: "suspects.count",
                value: 0,
            });
        }
        limit(
            "suspects.page",
            end,
            RAM_BLOCK_BYTES_MAX / PAGE_BYTES as u64,
        )?;
        limit(
            "suspects.ram_block",
            u64::from(range.ram_block),
            RAM_BLOCKS_MAX as u64 - 1,
        )?;
    }
    Ok(())
}

fn check_wanted(wanted: &WantedPages) -> Result<(), ControlError> {
    let pages = wanted.pages() as u64;
    if pages == 0 || !wanted.is_whole() {
        let field = "wanted.pages";
        return Err(ControlError::Field {
            field,
            value: pages,
        });
    }
    limit("wanted.pages", pages, WANTED_PAGES_MAX as u64)
}

fn check_known(field: &'static str, known: &KnownPages) -> Result<(), ControlError> {
    let most = WANTED_PAGES_MAX.div_ceil(8) as u64;
    limit(field, known.bit_bytes() as u64, most)
}

fn check_missing(missing: &MissingPages) -> Result<(), ControlError> {
    let blocks = RAM_BLOCKS_MAX as u64 - 1;
    limit("missing.ram_block", missing.ram_block.into(), blocks)?;
    limit(
        "missing.zstd",
        missing.zstd.len() as u64,
        MISSING_BYTES_MAX as u64,
    )
}

fn check_listener(address: SocketAddr) -> Result<(), ControlError> {
    let ip = address.ip();
    if address.port() != 0 && !ip.is_unspecified() && !ip.is_multicast() {
        return Ok(());
    }
    Err(ControlError::Field {
        field: "address",
        value: address.port().into(),
    })
}

fn check_streams(streams: u16) -> Result<(), ControlError> {
    if streams == 0 {
        return Err(ControlError::Field {
            field: "streams",
            value: 0,
        });
    }
    limit("streams", u64::from(streams), STREAMS_MAX as u64)
}

fn name(field: &'static str, text: &str) -> Result<(), ControlError> {
    if text.is_empty() {
        return Err(ControlError::Field { field, value: 0 });
    }
    if text.contains(char::is_control) {
        return Err(ControlError::Unprintable { field });
    }
    limit(field, text.len() as u64, NAME_BYTES_MAX as u64)
}

/// Words of the other node come to terminals and logs: nothing in them may be a command to these.
pub(super) fn make_printable(message: &mut Control) {
    let (Control::Refuse { reason, .. }
    | Control::Abort { reason, .. }
    | Control::PostcopyRefused { reason }
    | Control::PagesRead(PagesRead {
        broke: Some(reason),
        ..
    })) = message
    else {
        return;
    };
    if reason.contains(char::is_control) {
        *reason = reason.replace(char::is_control, " ");
    }
}

pub(super) const fn limit(field: &'static str, value: u64, most: u64) -> Result<(), ControlError> {
    if value > most {
        Err(ControlError::Field { field, value })
    } else {
        Ok(())
    }
}
