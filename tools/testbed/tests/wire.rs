//! Raw movers move everything, whatever the method.

use dwcp_testbed::wire::{Backing, Method, WireOptions, run_mover};

#[test]
fn every_method_moves_all_of_the_memory() {
    for method in Method::ALL {
        for (streams, backing) in [(1, Backing::Allocated), (3, Backing::Fresh)] {
            let run = run_mover(WireOptions {
                method,
                mib: 4,
                streams,
                backing,
            });
            assert_eq!(run.unwrap().bytes, 4 << 20, "{method:?}");
        }
    }
}
