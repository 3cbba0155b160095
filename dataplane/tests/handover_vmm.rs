//! A destination's VMM that dies between the load of the device state and the commit.

mod common;

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};

use common::proxy::{CONTROL, Harm, Plan, Proxy, Way};
use common::{TestGuest, node, settings, small, until, wait};
use dwcp_api::{Attachment, MigrationId, Role, RunResult};
use dwcp_journal::Stage;
use dwcp_testbed::synthetic::{SyntheticGuest, SyntheticOptions};
use dwcp_wire::Control;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Where the guest that is a process of its own serves.
const SOCKET_ENV: &str = "DWCP_TEST_GUEST";

static VMM: AtomicI32 = AtomicI32::new(0);

/// The test program once more, as the destination's VMM.
#[test]
fn child_is_a_guest() {
    let Some(socket) = std::env::var_os(SOCKET_ENV) else {
        return;
    };
    let options = SyntheticOptions {
        socket: PathBuf::from(socket),
        ..small(1, true)
    };
    let _guest = SyntheticGuest::start(options).unwrap();
    loop {
        std::thread::park();
    }
}

#[test]
fn a_guest_whose_new_vmm_has_died_is_not_taken_over() {
    let folder = tempfile::tempdir().unwrap();
    let (a, b) = (
        node(folder.path(), "a", &settings()),
        node(folder.path(), "b", &settings()),
    );
    let old = TestGuest::start(folder.path(), "old", &small(1, false));
    let socket = folder.path().join("new.sock");
    let mut vmm = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child_is_a_guest", "--nocapture"])
        .env(SOCKET_ENV, &socket)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    VMM.store(vmm.id() as i32, Ordering::Relaxed);
    a.node.attach("vm", old.attachment.clone()).unwrap();
    let attachment = Attachment::Process {
        socket: socket.to_string_lossy().into_owned(),
    };
    until("the new VMM does not serve", || {
        b.node.attach("vm", attachment.clone()).is_ok()
    });
    let plan = Plan {
        connections: CONTROL..CONTROL + 1,
        way: Way::ToDestination,
        harm: Harm::Before {
            message: |message| matches!(message, Control::Handover { .. }),
            act: |_| {
                let pid = Pid::from_raw(VMM.load(Ordering::Relaxed));
                kill(pid, Signal::SIGKILL).unwrap();
                // Until it has no memory, and no socket, any more.
                nix::sys::wait::waitpid(pid, None).unwrap();
            },
        },
    };
    let proxy = Proxy::start(&b.address, plan);
    let id = MigrationId(7);
    a.node
        .start_migration(id, "vm", &proxy.address, settings(), false)
        .unwrap();
    let report = wait(&a.node, id);
    assert!(proxy.has_harmed());
    assert_eq!(report.result, RunResult::Aborted, "{}", report.reason);
    assert!(report.reason.contains("its VMM"), "{}", report.reason);
    assert!(old.is_running());
    assert_eq!(old.bad_pages(), 0);
    until("the destination holds on to it", || {
        b.node.journal().state().stage(id, Role::Destination) == Some(Stage::Aborted)
    });
    // It has been waited for already.
    let _ = vmm.try_wait();
}
