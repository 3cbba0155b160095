//! Requests and replies on the local sockets. What is decoded must be what would be encoded.

#![no_main]

use dwcp_api::codec::{PREFIX_BYTES, body_bytes, decode, encode};
use dwcp_api::{dataplane, node};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    if let Some(prefix) = input.first_chunk::<PREFIX_BYTES>() {
        let _ = body_bytes(*prefix);
    }
    check::<dataplane::Request>(input);
    check::<dataplane::Reply>(input);
    check::<node::Request>(input);
    check::<node::Reply>(input);
});

/// Compares encodings, not values: a report may hold a number that is not equal to itself.
fn check<T: serde::Serialize + serde::de::DeserializeOwned>(body: &[u8]) {
    let Ok(message) = decode::<T>(body) else {
        return;
    };
    let frame = encode(&message).expect("a decoded message can be sent");
    let again = decode::<T>(&frame[PREFIX_BYTES..]).expect("what is sent is accepted");
    assert_eq!(encode(&again).expect("the same message"), frame);
}
