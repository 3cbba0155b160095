//! 64 bytes as a header. What is accepted must come out as it went in and keep every limit.

#![no_main]

use dwcp_fuzz::seal;
use dwcp_wire::limits::{PAYLOAD_BYTES_MAX, STREAMS_MAX, TABLE_BYTES_MAX};
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some(bytes) = input.first_chunk::<HEADER_BYTES>() else {
        return;
    };
    check(bytes);
    let mut sealed = *bytes;
    seal(&mut sealed);
    check(&sealed);
});

fn check(bytes: &[u8; HEADER_BYTES]) {
    let header = match FrameHeader::from_bytes(bytes) {
        Ok(header) => header,
        Err(error) => {
            assert!(!error.to_string().is_empty());
            return;
        }
    };
    assert_eq!(&header.to_bytes(), bytes);
    assert!(header.payload_len() <= PAYLOAD_BYTES_MAX);
    assert!(header.table_bytes <= header.payload_bytes);
    assert!(header.kind != FrameKind::Pages || header.table_bytes as usize <= TABLE_BYTES_MAX);
    assert!(usize::from(header.stream) < STREAMS_MAX);
}
