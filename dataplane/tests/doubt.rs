//! A restarted source that must ask the destination: the VM is nobody's until the answer.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use common::stranger::{frame, unchecked};
use common::{TestGuest, node, settings, small, until, wait};
use dwcp_api::{ErrorCode, MigrationId, PhaseName, Role, RunResult};
use dwcp_dataplane::migration::recover;
use dwcp_journal::{Record, RecordKind, Stage};
use dwcp_wire::{Control, FrameHeader, FrameKind, HEADER_BYTES, Hello};

/// A destination that says nothing before it is told what, and then that to everybody.
fn destination(answers: Receiver<bool>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        let committed = answers.recv().unwrap();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut hear = || {
                let mut header = [0; HEADER_BYTES];
                stream.read_exact(&mut header).ok()?;
                let header = FrameHeader::from_bytes(&header).ok()?;
                let mut payload = vec![0; header.payload_len()];
                stream.read_exact(&mut payload).ok()
            };
            if hear().is_none() {
                continue;
            }
            let reply = frame(FrameKind::HelloReply, 1, &Hello::own().to_bytes());
            let answer = unchecked(&Control::OwnerAnswer { committed });
            let _ = stream.write_all(&[reply, answer].concat());
            let _ = stream.read(&mut [0; 1024]);
        }
    });
    address
}

/// Restarts a node whose journal ends with `Prepared`, and looks at what it does before and after
/// the answer.
fn settles(committed: bool) {
    let folder = tempfile::tempdir().unwrap();
    let old = TestGuest::start(folder.path(), "old", &small(1, false));
    old.client().pause().unwrap();
    let (answer, answers) = channel();
    let peer = destination(answers);
    let a = node(folder.path(), "a", &settings());
    let id = MigrationId(7);
    let attachment = old.attachment.clone();
    for kind in [
        RecordKind::Begin {
            attachment: attachment.clone(),
        },
        RecordKind::Prepared,
    ] {
        let record = Record {
            sequence: 0,
            migration: id,
            vm: "vm".into(),
            role: Role::Source,
            peer_node: "b".into(),
            peer_address: peer.clone(),
            tls: false,
            epoch: 0,
            wall_ms: 0,
            kind,
        };
        a.node.journal().append(&record).unwrap();
    }
    recover(&a.node, &settings());

    let started = a
        .node
        .start_migration(MigrationId(8), "vm", &peer, settings(), false);
    let attached = a.node.attach("vm", attachment).map(drop);
    let words = format!("VM vm is in doubt: its handover to b ({peer}) was sent");
    for refused in [attached, a.node.detach("vm"), started] {
        let error = refused.unwrap_err();
        assert_eq!(error.code, ErrorCode::Busy);
        assert!(error.message.contains(&words), "{error}");
        assert!(error.hint.unwrap().contains("is asked each second"));
    }
    assert_eq!(a.node.list()[0].state, "in doubt");
    let status = a.node.migration(id).unwrap().status();
    assert_eq!(status.phase, PhaseName::InDoubt);
    let refused = a.node.cancel(id).unwrap_err();
    assert_eq!(refused.code, ErrorCode::Peer);
    let words = "in doubt: its handover to b was sent";
    assert!(refused.message.contains(words), "{refused}");
    assert!(!old.is_running());

    answer.send(committed).unwrap();
    let report = wait(&a.node, id);
    let (result, stage) = if committed {
        (RunResult::Completed, Stage::Committed)
    } else {
        (RunResult::Aborted, Stage::Aborted)
    };
    assert_eq!(report.result, result, "{}", report.reason);
    assert!(!report.refused, "b had accepted: {}", report.reason);
    assert_eq!(report.connection_lost, !committed, "it may be tried again");
    assert_eq!(a.node.cancel(id).unwrap_err().code, ErrorCode::TooLate);
    assert_eq!(
        a.node.journal().state().stage(id, Role::Source),
        Some(stage)
    );
    assert_eq!(old.is_running(), !committed);
    until("the VM is not attached again", || {
        let list = a.node.list();
        list.len() == 1 && list[0].state == if committed { "paused" } else { "running" }
    });
    a.node.detach("vm").unwrap();
}

#[test]
fn a_guest_that_was_taken_over_stays_paused() {
    settles(true);
}

#[test]
fn a_guest_that_was_not_taken_over_runs_again() {
    settles(false);
}

/// Somebody else holds the VMM when the data plane comes back: it is there, and says nothing of its
/// guest.
fn busy_vmm(socket: &std::path::Path) -> std::sync::mpsc::Sender<()> {
    let listener = std::os::unix::net::UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (end, ended) = channel();
    std::thread::spawn(move || {
        while ended.try_recv().is_err() {
            if let Ok((mut stream, _)) = listener.accept() {
                let _ = stream.write_all(b"busy\n");
            }
            std::thread::yield_now();
        }
    });
    end
}

#[test]
fn a_vmm_that_does_not_answer_after_a_restart_has_not_gone() {
    for role in [Role::Source, Role::Destination] {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("vm.sock");
        let busy = busy_vmm(&socket);
        let a = node(folder.path(), "a", &settings());
        let id = MigrationId(7);
        let attachment = dwcp_api::Attachment::Process {
            socket: socket.to_string_lossy().into_owned(),
        };
        let record = Record {
            sequence: 0,
            migration: id,
            vm: "vm".into(),
            role,
            peer_node: "b".into(),
            peer_address: "127.0.0.1:9".into(),
            tls: false,
            epoch: 0,
            wall_ms: 0,
            kind: RecordKind::Begin {
                attachment: attachment.clone(),
            },
        };
        a.node.journal().append(&record).unwrap();
        recover(&a.node, &settings());
        let stage = || a.node.journal().state().stage(id, role);
        assert_eq!(stage(), Some(Stage::Begun), "{role:?}");
        let refused = a.node.attach("vm", attachment).unwrap_err();
        assert!(refused.message.contains("in doubt"), "{refused}");

        // At no moment is there nobody on the socket.
        let guest = TestGuest::start(folder.path(), "guest", &small(1, false));
        let link = folder.path().join("link");
        std::os::unix::fs::symlink(folder.path().join("guest.sock"), &link).unwrap();
        std::fs::rename(&link, &socket).unwrap();
        until("the migration is closed", || {
            stage() == Some(Stage::Aborted)
        });
        // Whoever still waits on the old socket would take its end for the VMM's.
        busy.send(()).unwrap();
        assert!(guest.is_running(), "{role:?}");
        until("the VM is not attached again", || {
            let list = a.node.list();
            list.len() == 1 && list[0].state == "running"
        });
    }
}
