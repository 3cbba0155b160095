//! Profile text. Faults must be shown without a panic, and settings must survive being written out.

#![no_main]

use dwcp_controlplane::profile::{parse, to_toml};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|input: &str| {
    match parse("fuzzed", input) {
        Ok(settings) => {
            let text = to_toml(&settings);
            let again = parse("written", &text);
            assert_eq!(again.ok().as_ref(), Some(&settings), "{text}");
        }
        Err(error) => {
            // The long form points into the text: its places must lie there.
            let report = miette::Report::new(error);
            assert!(!format!("{report:?}").is_empty());
        }
    }
});
