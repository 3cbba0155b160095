//! Raw movers move everything, whatever the method.

use dwcp_testbed::wire::{Method, WireOptions, run_mover};

#[test]
fn every_method_moves_all_of_the_memory() {
    for method in Method::ALL {
        for (streams, prealloc) in [(1, true), (3, false)] {
            let run = run_mover(WireOptions {
                method,
                mib: 4,
                streams,
                prealloc,
            });
            assert_eq!(run.unwrap().bytes, 4 << 20, "{method:?}");
        }
    }
}
