//! Raw movers move everything, whatever the method.

use dwcp_testbed::link::VethLink;
use dwcp_testbed::wire::{Backing, Method, Receive, WireOptions, run_mover};

#[test]
fn every_method_moves_all_of_the_memory() {
    for (method, receive) in Method::ALL
        .into_iter()
        .flat_map(|method| Receive::ALL.map(|receive| (method, receive)))
    {
        for (streams, backing) in [(1, Backing::Allocated), (3, Backing::Fresh)] {
            let options = WireOptions {
                method,
                receive,
                mib: 4,
                streams,
                backing,
                proven: streams == 3,
            };
            let run = run_mover(options, None);
            assert_eq!(run.unwrap().bytes, 4 << 20, "{method:?} {receive:?}");
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
        receive: Receive::InPlace,
        mib: 4,
        streams: 2,
        backing: Backing::Fresh,
        proven: true,
    };
    assert_eq!(run_mover(options, Some(&link)).unwrap().bytes, 4 << 20);
}

/// 8 MiB do not pass 200 Mbit/s in less than 0.3 s; the first bytes pass in a burst.
#[test]
fn a_shaped_link_is_as_slow_as_it_was_asked_to_be() {
    let link = VethLink::up().and_then(|link| link.shape(200, 0).map(|()| link));
    let link = match link {
        Ok(link) => link,
        Err(error) => {
            println!("skipped: no shaped link: {error}");
            return;
        }
    };
    let options = WireOptions {
        method: Method::Write,
        receive: Receive::InPlace,
        mib: 8,
        streams: 2,
        proven: false,
        backing: Backing::Allocated,
    };
    let run = run_mover(options, Some(&link)).unwrap();
    assert!(run.seconds > 0.3, "{run:?}");
}
