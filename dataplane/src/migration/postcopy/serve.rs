//! The source's side of post-copy: pages are given to whoever asks, from RAM that stands still.

use std::sync::atomic::{AtomicBool, Ordering};

use dwcp_api::Codec;
use dwcp_wire::{FrameKind, PageRange, PageRequest, RequestError};

use super::DEMAND;
use crate::engine::Session;
use crate::migration::meter::Meter;
use crate::migration::peer::{PeerError, read_frame};
use crate::path::{Asked, Encoder, FRAME_BUFFER_BYTES};
use crate::tls::Connection;

/// zstd level of pages that are asked for: somebody waits.
const LEVEL: i32 = 1;

/// Why a connection for missing pages ended.
#[derive(Debug, thiserror::Error)]
pub(in crate::migration) enum ServeError {
    #[error(transparent)]
    Peer(#[from] PeerError),
    #[error("connection lost: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Request(#[from] RequestError),
    #[error("{0:?} frame where a page request was expected")]
    Kind(FrameKind),
    #[error("request for {0:?}, outside of RAM")]
    Outside(PageRange),
}

/// Answers the requests on a connection until it ends. What somebody waits for leaves at once; the rest keeps the
/// limit of the migration for both.
///
/// # Errors
/// Always: why it ended.
pub(in crate::migration) fn serve(
    (mut connection, index): (Connection, u16),
    session: &Session,
    codec: Codec,
    (meter, stop): (&Meter, &AtomicBool),
) -> Result<std::convert::Infallible, ServeError> {
    let codec = match codec {
        Codec::Raw => Codec::Raw,
        // What was sent before is of no use to pages that come in the guest's order.
        _ => Codec::Zstd { level: LEVEL },
    };
    let mut encoder = Encoder::new(codec, 1);
    let mut asked = Asked::new(&session.layout, &session.key);
    let mut buffer = vec![0; FRAME_BUFFER_BYTES];
    let mut sequence = 0;
    loop {
        let (header, payload) = read_frame(&mut connection, meter)?;
        if header.kind != FrameKind::PageRequest {
            return Err(ServeError::Kind(header.kind));
        }
        for range in &PageRequest::from_bytes(&payload)?.ranges {
            if !asked.has(range) {
                return Err(ServeError::Outside(*range));
            }
            if index != DEMAND {
                wait_for_pace(session, stop);
            }
            sequence += 1;
            let frame = asked.frame(range, &mut buffer, &mut encoder, header.stream, sequence);
            let bytes = &buffer[frame.head];
            std::io::Write::write_all(&mut connection, bytes)?;
            meter.count_bytes(bytes.len());
            session.pace.sent(bytes.len() as u64);
            session.count(0, range.count.into());
        }
    }
}

fn wait_for_pace(session: &Session, stop: &AtomicBool) {
    while let Some(time) = session.pace.wait()
        && !stop.load(Ordering::Acquire)
    {
        std::thread::sleep(time);
    }
}
