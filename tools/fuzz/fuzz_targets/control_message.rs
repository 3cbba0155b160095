//! A control message. What is decoded must be what would be encoded.

#![no_main]

use dwcp_wire::{decode_control, encode_control};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match decode_control(input) {
        Ok(message) => {
            let bytes = encode_control(&message).expect("an accepted message can be sent");
            assert!(bytes.len() <= input.len(), "numbers have one shortest form");
            let again = decode_control(&bytes).expect("what is sent is accepted");
            assert_eq!(again, message);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
