//! `dwcp drain` against a node in this process with a scripted data plane: who is offered to whom, and what is said
//! of it.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use std::collections::HashMap;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{Attachment, MigrationReport, RunResult, VmInfo};
use fake::Script;
use local::{TestNode, json, run};
use serde_json::Value;

const NODES: [&str; 2] = ["192.0.2.2:7440", "192.0.2.3:7440"];

fn vm(name: &str, state: &str) -> VmInfo {
    let attachment = Attachment::Process {
        socket: "/run/vm.sock".into(),
    };
    VmInfo {
        state: state.into(),
        ..fake::vm(name, &attachment)
    }
}

/// Three guests run, one stands. The second node takes nothing; `web2` cannot be moved at all.
fn plane() -> Script {
    let mut started = HashMap::new();
    Box::new(move |request| {
        Some(match request {
            Request::ListVms => Reply::Vms(vec![
                vm("web1", "running"),
                vm("web2", "running"),
                vm("web3", "running"),
                vm("spare", "incoming"),
            ]),
            Request::StartMigration {
                id,
                vm,
                destination,
                dry_run,
                ..
            } => {
                started.insert(*id, (vm.clone(), destination.clone(), *dry_run));
                Reply::Done
            }
            Request::Status { id } => {
                let (vm, to, dry_run) = started.get(id)?;
                let refused = to == NODES[1];
                let result = match (refused || vm == "web2", dry_run) {
                    (true, _) => RunResult::Aborted,
                    (false, true) => RunResult::DryRun,
                    (false, false) => RunResult::Completed,
                };
                let report = MigrationReport {
                    refused,
                    peer: to.clone(),
                    ..fake::report(*id, vm, result)
                };
                Reply::Migration(Box::new(fake::status(*id, vm, Some(report))))
            }
            _ => Reply::Done,
        })
    })
}

/// Each guest's name, where it went, and how that ended.
fn drained(node: &TestNode, more: &[&str], code: i32) -> Vec<[String; 3]> {
    let arguments = ["drain", "--to", NODES[0], "--to", NODES[1], "--json"];
    let (out, _) = run(&mut node.dwcp(&[&arguments, more].concat()), code);
    let found = json(&out);
    assert_eq!(found["schema"], "dwcp.drain/1");
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let vms = found["vms"].as_array().unwrap().iter();
    vms.map(|vm| ["vm", "to", "result"].map(|name| text(&vm[name])))
        .collect()
}

#[test]
fn every_guest_that_runs_is_offered_to_the_nodes_in_turn_until_one_takes_it() {
    let node = TestNode::start(Some(plane()));
    let expected = [
        ["web1", NODES[0], "completed"],
        // Refused by the second, and not moved to the first for another reason: it is offered no further.
        ["web2", NODES[0], "aborted"],
        ["web3", NODES[0], "completed"],
    ];
    assert_eq!(drained(&node, &[], 7), expected);
    let plane = node.plane.as_ref().unwrap();
    let asked = |name: &'static str, node: &'static str| {
        plane.seen(move |request| {
            matches!(request, Request::StartMigration { vm, destination, .. }
                if vm == name && destination == node)
        })
    };
    assert!(asked("web1", NODES[0]) && !asked("web1", NODES[1]));
    assert!(asked("web2", NODES[1]) && asked("web2", NODES[0]));
    assert!(!asked("spare", NODES[0]));
}

#[test]
fn a_dry_run_moves_nothing() {
    let node = TestNode::start(Some(plane()));
    let expected = [
        ["web1", NODES[0], "dry-run"],
        ["web2", NODES[0], "aborted"],
        ["web3", NODES[0], "dry-run"],
    ];
    assert_eq!(drained(&node, &["--dry-run"], 7), expected);
    let plane = node.plane.as_ref().unwrap();
    let moves =
        |request: &Request| matches!(request, Request::StartMigration { dry_run: false, .. });
    assert!(!plane.seen(moves));
}

#[test]
fn a_node_without_guests_is_drained() {
    let node = TestNode::start(Some(Box::new(|request| {
        Some(match request {
            Request::ListVms => Reply::Vms(vec![]),
            _ => Reply::Done,
        })
    })));
    let (out, _) = run(&mut node.dwcp(&["drain", "--to", "b"]), 0);
    assert_eq!(out.trim(), "no VM runs here");
}
