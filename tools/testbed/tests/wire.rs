//! Raw movers move everything, whatever the method.

use dwcp_testbed::link::VethLink;
use dwcp_testbed::wire::{Backing, Method, WireOptions, run_mover};

#[test]
fn every_method_moves_all_of_the_memory() {
    for method in Method::ALL {
        for (streams, backing) in [(1, Backing::Allocated), (3, Backing::Fresh)] {
            let options = WireOptions {
                method,
                mib: 4,
                streams,
                backing,
                proven: streams == 3,
            };
            let run = run_mover(options, None);
            assert_eq!(run.unwrap().bytes, 4 << 20, "{method:?}");
        }
    }
}

#[test]
fn a_link_of_namespaces_carries_it_too() {
    let link = match VethLink::up() {
        Ok(link) => link,
        Err(error) => {
            println!("skipped: no veth link: {error}");
            return;
        }
    };
    let options = WireOptions {
        method: Method::Vmsplice,
        mib: 4,
        streams: 2,
        backing: Backing::Fresh,
        proven: true,
    };
    assert_eq!(run_mover(options, Some(&link)).unwrap().bytes, 4 << 20);
}
