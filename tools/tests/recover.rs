//! `dwcp recover` against a node in this process with a scripted data plane: what is asked for, what is said, and
//! with which exit code.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{
    ApiError, Attachment, ErrorCode, HalfDone, MigrationId, PhaseName, RecoverRequest, Recovery,
    Role, SettledOwner,
};
use dwcp_journal::{Journal, Live, Record, RecordKind, State};
use fake::Script;
use local::{TestNode, json, run};

fn records() -> Vec<Record> {
    let begin = RecordKind::Begin {
        attachment: Attachment::Process {
            socket: "/run/web.sock".into(),
        },
    };
    let record = |(sequence, kind)| Record {
        sequence,
        migration: MigrationId(7),
        vm: "web".into(),
        role: Role::Source,
        peer_node: "b".into(),
        peer_address: "192.0.2.2:7440".into(),
        tls: false,
        epoch: 0,
        wall_ms: 1_700_000_000_000,
        kind,
    };
    [(1, begin), (2, RecordKind::Prepared)].map(record).to_vec()
}

fn in_doubt() -> HalfDone {
    let live = Live {
        is_up: true,
        phase: Some(PhaseName::InDoubt),
        trouble: "Connection refused".into(),
        ..Live::default()
    };
    State::from_records(&records()).unfinished()[0].explain(&live)
}

/// In doubt until an operator decides.
fn plane() -> Script {
    let mut decided = false;
    Box::new(move |request| {
        let Request::Recover(request) = request else {
            return Some(Reply::Done);
        };
        let said = match request {
            RecoverRequest::List => String::new(),
            RecoverRequest::Try { vm } if vm == "web" => "b does not answer: refused".into(),
            RecoverRequest::Settle { vm, owner, dry_run } if vm == "web" => {
                assert_eq!(*owner, SettledOwner::Here);
                decided |= !dry_run;
                "the guest of VM web runs here, at epoch 2".into()
            }
            _ => {
                let error = ApiError::new(ErrorCode::NotFound, "nothing is half done");
                return Some(Reply::Error(error));
            }
        };
        let half_done = if decided { vec![] } else { vec![in_doubt()] };
        Some(Reply::Recovery(Recovery { said, half_done }))
    })
}

fn has_settled(node: &TestNode) -> bool {
    let settles = |request: &Request| {
        let Request::Recover(RecoverRequest::Settle { dry_run, .. }) = request else {
            return false;
        };
        !dry_run
    };
    node.plane.as_ref().unwrap().seen(settles)
}

#[test]
fn what_is_half_done_is_told_with_what_can_be_done() {
    let node = TestNode::start(Some(plane()));
    let (out, _) = run(&mut node.dwcp(&["recover"]), 8);
    for words in [
        "web: in doubt",
        "this node is its source",
        "b (192.0.2.2:7440)",
        "handover sent",
        "b is asked each second",
        "Connection refused",
        "dwcp recover web --owner here --the-other-node-is-gone",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    let (out, _) = run(&mut node.dwcp(&["recover", "--json"]), 8);
    let shown = json(&out);
    assert_eq!(shown["schema"], "dwcp.recover/1");
    assert_eq!(shown["half_done"][0]["state"], "in-doubt");
    assert_eq!(shown["half_done"][0]["migration"], "0".repeat(31) + "7");
    assert_eq!(shown["half_done"][0]["since_ms"], 1_700_000_000_000_u64);
}

#[test]
fn one_is_tried_and_waited_for() {
    let node = TestNode::start(Some(plane()));
    let (out, err) = run(&mut node.dwcp(&["recover", "web", "--timeout-s", "0"]), 8);
    assert!(err.contains("web: in doubt"), "{err}");
    assert!(out.contains("b does not answer: refused"), "{out}");
    assert!(out.contains("not finished: in doubt"), "{out}");
    run(&mut node.dwcp(&["recover", "db"]), 3);
    run(&mut node.dwcp(&["recover", "db", "--looked-after"]), 3);
}

#[test]
fn nobody_decides_by_accident() {
    let node = TestNode::start(Some(plane()));
    for wrong in [
        &["recover", "web", "--owner", "here"][..],
        &["recover", "web", "--the-other-node-is-gone"],
        &["recover", "--owner", "here", "--the-other-node-is-gone"],
        &["recover", "web", "--dry-run"],
        &["recover", "web", "--owner", "b", "--the-other-node-is-gone"],
        &["recover", "--timeout-s", "5"],
        &["recover", "--looked-after"],
    ] {
        run(&mut node.dwcp(wrong), 2);
    }
    let decide = [
        "recover",
        "web",
        "--owner",
        "here",
        "--the-other-node-is-gone",
    ];
    let would = [&decide[..], &["--dry-run"]].concat();
    run(&mut node.dwcp(&would), 0);
    assert!(!has_settled(&node));
    let (out, _) = run(&mut node.dwcp(&decide), 0);
    assert!(out.contains("runs here, at epoch 2"), "{out}");
    assert!(has_settled(&node));
    let (out, _) = run(&mut node.dwcp(&["recover"]), 0);
    assert_eq!(out.trim(), "nothing is half done");
}

/// The journal says it, and that nobody acts on it.
#[test]
fn without_a_data_plane_the_journal_is_read() {
    let node = TestNode::start(None);
    let journal = Journal::open(node.dir.path()).unwrap();
    for record in records() {
        journal.append(&record).unwrap();
    }
    let (out, _) = run(&mut node.dwcp(&["recover"]), 8);
    for words in [
        "no data plane",
        "web: in doubt",
        "the data plane is down",
        "start dwcp-dataplane",
    ] {
        assert!(out.contains(words), "{words}: {out}");
    }
    run(&mut node.dwcp(&["recover", "web"]), 5);
}
