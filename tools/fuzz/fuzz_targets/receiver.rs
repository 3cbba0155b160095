//! A stream of frames through stage 6, cut in two ways: as large reads as the receiver wants, and
//! as the input says. Both must see the same frames and end with the same refusal.
//!
//! Input: a byte that seeds the cuts, then parts of (operation, length, bytes).

#![no_main]

use std::cell::RefCell;

use dwcp_dataplane::path::{RECEIVE_BUFFER_BYTES, Received, Receiver};
use dwcp_fuzz::{page_frame, seal};
use dwcp_simd::kernels;
use dwcp_wire::{FrameHeader, FrameKind, HEADER_BYTES};
use libfuzzer_sys::fuzz_target;

const STREAM: u16 = 3;

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = RefCell::new(vec![0; RECEIVE_BUFFER_BYTES]);
}

/// What came out of a stream: headers with the checksums of their payloads, and the refusal.
type Seen = (Vec<(FrameHeader, u32)>, Option<String>);

fuzz_target!(|input: &[u8]| {
    let Some((&cuts, parts)) = input.split_first() else {
        return;
    };
    let stream = stream_of(parts);
    let whole = run(&stream, |wanted| wanted);
    let mut state = u64::from(cuts) | 1 << 32;
    let cut = run(&stream, |wanted| {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        let most = if state >> 63 == 0 { 70 } else { wanted };
        1 + (state >> 33) as usize % most.min(wanted)
    });
    assert_eq!(whole, cut);
});

fn stream_of(mut parts: &[u8]) -> Vec<u8> {
    let (mut stream, mut sequence) = (vec![], 0);
    while let Some((&[operation, low, high], rest)) = parts.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes([low, high])).min(rest.len());
        let (bytes, rest) = rest.split_at(length);
        parts = rest;
        match operation % 4 {
            0 => stream.extend_from_slice(bytes),
            1 => {
                if let Some((header, payload)) = page_frame(bytes, STREAM, sequence + 1) {
                    sequence += 1;
                    stream.extend_from_slice(&header.to_bytes());
                    stream.extend_from_slice(&payload);
                }
            }
            2 => {
                sequence += 1;
                let mark = FrameHeader::empty(FrameKind::RoundMark, STREAM, sequence);
                stream.extend_from_slice(&mark.to_bytes());
            }
            _ => {
                if let Some(header) = bytes.first_chunk::<HEADER_BYTES>() {
                    let mut header = *header;
                    seal(&mut header);
                    stream.extend_from_slice(&header);
                    stream.extend_from_slice(&bytes[HEADER_BYTES..]);
                }
            }
        }
    }
    stream
}

/// Reads as a worker does; `read_bytes` says how much a read brings of what is wanted.
fn run(mut stream: &[u8], mut read_bytes: impl FnMut(usize) -> usize) -> Seen {
    BUFFER.with_borrow_mut(|buffer| {
        let mut receiver = Receiver::new(STREAM);
        let mut seen = vec![];
        while !stream.is_empty() {
            let wanted = receiver.wanted().range;
            assert!(!wanted.is_empty() && wanted.end <= buffer.len());
            let bytes = read_bytes(wanted.len()).min(stream.len());
            let (read, rest) = stream.split_at(bytes);
            stream = rest;
            buffer[wanted.start..wanted.start + bytes].copy_from_slice(read);
            receiver.received(bytes);
            loop {
                match receiver.next(buffer) {
                    Ok(Received::Frame(header, data)) => {
                        let table = header.table_bytes as usize;
                        assert_eq!(header.payload_len(), table + data.len());
                        assert_eq!(header.sequence, seen.len() as u64 + 1);
                        let payload = &buffer[data.start - table..data.end];
                        seen.push((header, kernels().crc32c(0, payload)));
                        receiver.consume(buffer);
                    }
                    Ok(Received::Table(header, range)) => {
                        assert_eq!(header.table_bytes as usize, range.len());
                        receiver.place(&[]);
                    }
                    Ok(Received::Nothing) => break,
                    Err(error) => return (seen, Some(error.to_string())),
                }
            }
        }
        (seen, None)
    })
}
