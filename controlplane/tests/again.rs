//! Recorded VMs after a restart of a daemon: attached again for as long as it takes.

mod fake;
mod local;

use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{ErrorCode, dataplane};
use fake::FakePlane;
use local::{TestNode, attach, detach, node_with_web, wait};

/// A data plane that was started anew, with a VMM that does not answer it for some tries.
fn restarted_with(node: &TestNode, refusals: usize) -> FakePlane {
    let mut obedient = fake::obedient();
    let mut left = refusals;
    let script = move |request: &dataplane::Request| match request {
        dataplane::Request::AttachVm { name, .. } if name == "web" && left > 0 => {
            left -= 1;
            let text = "VM web: VMM is gone: /run/guest.sock";
            let error = dwcp_api::ApiError::new(ErrorCode::NotFound, text);
            Some(dataplane::Reply::Error(error))
        }
        other => obedient(other),
    };
    FakePlane::start(&node.plane_path(), Box::new(script))
}

fn tries(plane: &FakePlane) -> usize {
    let requests = plane.requests.lock().unwrap();
    let attach = |request: &&dataplane::Request| matches!(request, dataplane::Request::AttachVm { name, .. } if name == "web");
    requests.iter().filter(attach).count()
}

fn web(node: &TestNode) -> dwcp_api::VmInfo {
    match node.ask(&Request::ListVms) {
        Reply::Vms(mut vms) => vms.remove(0),
        other => panic!("{other:?}"),
    }
}

/// A VMM that does not answer in the moment in which the data plane starts is not lost for ever.
#[test]
fn a_vm_that_cannot_be_attached_again_is_tried_on_and_listed_with_the_reason() {
    let node = node_with_web();
    let plane = restarted_with(&node, 2);
    node.wait_for_plane();
    wait(|| tries(&plane) == 1);
    wait(|| !web(&node).note.is_empty());
    let vm = web(&node);
    assert_eq!(
        (vm.state.as_str(), vm.note.as_str()),
        ("not attached", "VMM is gone: /run/guest.sock")
    );
    wait(|| web(&node).state == "running");
    assert_eq!((tries(&plane), web(&node).note), (3, String::new()));
}

/// What a user says of a VM ends the tries that wait for it.
#[test]
fn a_vm_that_is_detached_or_attached_by_hand_is_not_tried_again() {
    for by_hand in [detach("web"), attach("web")] {
        let node = node_with_web();
        let plane = restarted_with(&node, 1);
        node.wait_for_plane();
        wait(|| tries(&plane) == 1);
        assert!(!matches!(node.ask(&by_hand), Reply::Error(_)));
        let tried = tries(&plane);
        std::thread::sleep(Duration::from_millis(1500));
        assert_eq!(tries(&plane), tried, "{by_hand:?}");
    }
}

/// A look at a VM that needs none would keep its users from it.
#[test]
fn a_data_plane_that_was_not_restarted_keeps_its_vms() {
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), fake::obedient());
    node.wait_for_plane();
    node.ask(&attach("web"));
    assert_eq!(tries(&plane), 1);
    let node = TestNode::start_in(node.stop());
    node.wait_for_plane();
    wait(|| plane.seen(|request| matches!(request, dataplane::Request::ListVms)));
    std::thread::sleep(Duration::from_millis(300));
    let found = (tries(&plane), web(&node).state);
    // Its socket is in the node's folder.
    drop(plane);
    assert_eq!(found, (1, "running".to_owned()));
}

/// The tries for a VM that is slow hold up nobody who attaches another.
#[test]
fn a_vm_that_is_slow_to_attach_again_delays_no_other_vm() {
    let node = node_with_web();
    let delay = |request: &dataplane::Request| match request {
        dataplane::Request::AttachVm { name, .. } if name == "web" => Duration::from_secs(3),
        _ => Duration::ZERO,
    };
    let plane = FakePlane::start_slow(&node.plane_path(), fake::obedient(), delay);
    node.wait_for_plane();
    wait(|| tries(&plane) == 1);
    let began = Instant::now();
    assert!(matches!(node.ask(&attach("db")), Reply::Vm(_)));
    assert!(began.elapsed() < Duration::from_secs(2));
}
