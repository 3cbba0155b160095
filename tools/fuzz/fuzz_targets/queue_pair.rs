//! What the ends of a queue pair tell each other: private data, the numbers of records, messages. What is accepted lies
//! in its bounds and is what would be sent.

#![no_main]

use dwcp_wire::limits::{FRAME_BYTES_MAX, FRAME_DATA_PAGES_MAX, RAM_BLOCKS_MAX};
use dwcp_wire::rdma::{
    PIECE_BYTES_MAX, PIECE_BYTES_MIN, QueueHello, QueueMessage, QueueReply, RING_BYTES, RecordMark,
};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    let Some((&what, bytes)) = input.split_first() else {
        return;
    };
    match what % 4 {
        0 => hello(bytes),
        1 => reply(bytes),
        2 => bytes.first_chunk().into_iter().for_each(mark),
        _ => bytes.first_chunk().into_iter().for_each(message),
    }
});

fn check_piece(bytes: u32) {
    assert!(bytes.is_power_of_two());
    assert!((PIECE_BYTES_MIN..=PIECE_BYTES_MAX).contains(&bytes));
}

fn hello(bytes: &[u8]) {
    match QueueHello::from_bytes(bytes) {
        Ok(hello) => {
            check_piece(hello.piece_bytes_max);
            assert_eq!(QueueHello::from_bytes(&hello.to_bytes()), Ok(hello));
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn reply(bytes: &[u8]) {
    match QueueReply::from_bytes(bytes) {
        Ok(reply) => {
            assert_eq!(reply.ring_bytes, RING_BYTES);
            check_piece(reply.piece_bytes);
            assert_eq!(reply.to_bytes(), bytes[..QueueReply::BYTES]);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn mark(bytes: &[u8; 4]) {
    let number = u32::from_le_bytes(*bytes);
    match RecordMark::from_immediate(number) {
        Ok(mark) => {
            assert!((1..=FRAME_BYTES_MAX).contains(&(mark.ring_bytes as usize)));
            assert!(mark.pages as usize <= FRAME_DATA_PAGES_MAX);
            assert_eq!(mark.to_immediate(), number);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}

fn message(bytes: &[u8; QueueMessage::BYTES]) {
    match QueueMessage::from_bytes(bytes) {
        Ok(message) => {
            if let QueueMessage::PieceWanted(piece)
            | QueueMessage::PieceGranted { piece, .. }
            | QueueMessage::PieceRefused(piece)
            | QueueMessage::PieceReturned(piece)
            | QueueMessage::PieceFingerprints { piece, .. } = message
            {
                assert!((piece.ram_block as usize) < RAM_BLOCKS_MAX);
            }
            assert_eq!(message.to_bytes(), *bytes);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
}
