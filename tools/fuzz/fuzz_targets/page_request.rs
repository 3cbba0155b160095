//! Pages that a destination asks for in post-copy. What is accepted is within the limits, and is what would be sent.

#![no_main]

use dwcp_wire::PageRequest;
use dwcp_wire::limits::{REQUEST_PAGES_MAX, REQUEST_RANGES_MAX};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &[u8]| {
    match PageRequest::from_bytes(input) {
        Ok(request) => {
            assert!((1..=REQUEST_RANGES_MAX).contains(&request.ranges.len()));
            assert!((1..=u64::from(REQUEST_PAGES_MAX)).contains(&request.pages()));
            assert_eq!(request.to_bytes(), input);
        }
        Err(error) => assert!(!error.to_string().is_empty()),
    }
});
