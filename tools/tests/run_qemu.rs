//! `dwcp vm run-qemu`: what is started, attached, passed on and left behind; scripts play QEMU.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use std::path::Path;
use std::time::{Duration, Instant};

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode};
use local::{TestNode, dwcp, json, run};

fn script_file(dir: &Path, text: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("qemu");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// `dwcp vm run-qemu web` with `qemu` for QEMU, in the node's folder.
fn run_qemu(node: &TestNode, qemu: &Path) -> std::process::Command {
    let folder = node.dir.path();
    let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command.arg("--node-socket").arg(folder.join("node.sock"));
    command.args(["vm", "run-qemu", "web", "--mem-path"]);
    command.arg(folder).args(["--", "-m", "64"]);
    command.env("DWCP_QEMU", qemu).current_dir(folder);
    command
}

#[test]
fn qemu_is_run_attached_and_its_exit_code_passed_on() {
    let node = TestNode::start(Some(fake::obedient()));
    let folder = node.dir.path();
    // Plays QEMU: its monitor appears, it runs until it is told to end.
    let qemu = script_file(
        folder,
        &format!(
            "trap 'exit 7' TERM; : > {}; touch started; while :; do sleep 0.05; done",
            folder.join("web.qmp").display()
        ),
    );
    let mut child = run_qemu(&node, &qemu).spawn().unwrap();
    let plane = node.plane.as_ref().unwrap();
    let began = Instant::now();
    while !plane.seen(|request| matches!(request, Request::AttachVm { name, .. } if name == "web"))
    {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::yield_now();
    }
    let pid = nix::unistd::Pid::from_raw(i32::try_from(child.id()).unwrap());
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(7));
    assert!(plane.seen(|request| matches!(request, Request::DetachVm { name } if name == "web")));
}

/// A monitor that nobody listens on yet, one that does not answer in time, a data plane that is
/// restarted: none of them is the last word on a QEMU that runs.
#[test]
fn qemu_is_attached_however_often_that_fails_at_first() {
    let mut obedient = fake::obedient();
    let mut failures = vec![ErrorCode::PlaneDown, ErrorCode::System, ErrorCode::NotFound];
    let script = move |request: &Request| match (request, failures.pop()) {
        (Request::AttachVm { .. }, Some(code)) => Some(Reply::Error(ApiError::new(
            code,
            format!("{code:?} for a test"),
        ))),
        (request, code) => {
            failures.extend(code);
            obedient(request)
        }
    };
    let node = TestNode::start(Some(Box::new(script)));
    let folder = node.dir.path();
    // Plays QEMU: ends by itself once it was attached.
    let qemu = script_file(
        folder,
        &format!(
            ": > {}; while [ ! -e attached ]; do sleep 0.05; done",
            folder.join("web.qmp").display()
        ),
    );
    let mut command = assert_cmd::Command::from_std(run_qemu(&node, &qemu));
    command.timeout(Duration::from_secs(60));
    let plane = node.plane.as_ref().unwrap();
    let attached = |request: &Request| matches!(request, Request::AttachVm { .. });
    let (_, err) = std::thread::scope(|scope| {
        scope.spawn(|| {
            let began = Instant::now();
            while plane
                .requests
                .lock()
                .unwrap()
                .iter()
                .filter(|r| attached(r))
                .count()
                < 4
            {
                assert!(began.elapsed() < Duration::from_secs(20));
                std::thread::sleep(Duration::from_millis(5));
            }
            std::thread::sleep(Duration::from_millis(200));
            std::fs::write(folder.join("attached"), "").unwrap();
        });
        run(&mut command, 0)
    });
    assert!(err.contains("web attached: running"), "{err}");
    assert!(
        err.contains("not attached yet") && err.contains("PlaneDown for a test"),
        "{err}"
    );
    assert!(!err.contains("System for a test"), "too early: {err}");
}

/// The first QEMU would be out of reach without its monitor's socket.
#[test]
fn a_second_qemu_of_a_name_is_refused_and_the_first_keeps_its_monitor() {
    let node = TestNode::start(Some(fake::obedient()));
    let folder = node.dir.path();
    let socket = folder.join("web.qmp");
    let _first = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let mut command = node.dwcp(&["vm", "run-qemu", "web", "--mem-path"]);
    command.arg(folder).args(["--", "-m", "64"]);
    let (_, err) = run(command.env("DWCP_QEMU", "/bin/true"), 1);
    assert!(err.contains("a QEMU named web runs on this node"), "{err}");
    assert!(socket.exists());
    let plane = node.plane.as_ref().unwrap();
    assert!(!plane.seen(|request| matches!(request, Request::DetachVm { .. })));
}

#[test]
fn a_qemu_that_is_not_there_is_told_with_what_names_it() {
    let node = TestNode::start(Some(fake::obedient()));
    let mut command = node.dwcp(&["vm", "run-qemu", "web", "--mem-path"]);
    command.arg(node.dir.path()).args(["--", "-m", "64"]);
    let (_, err) = run(command.env("DWCP_QEMU", "/nowhere/qemu"), 2);
    assert!(
        err.contains("no /nowhere/qemu: ") && err.contains("DWCP_QEMU"),
        "{err}"
    );
}

/// Whose name it is does not depend on who ends first.
#[test]
fn a_name_of_another_vm_is_neither_taken_nor_forgotten() {
    let node = TestNode::start(Some(fake::obedient()));
    let folder = node.dir.path();
    let by_hand = |to: &str| {
        let socket = folder.join(to);
        let mut command = node.dwcp(&["vm", "attach", "web", "--process"]);
        run(command.arg(socket), 0);
    };
    let is_listed = || {
        let (out, _) = run(&mut node.dwcp(&["vm", "list", "--json"]), 0);
        out.contains("\"web\"")
    };
    by_hand("other.sock");
    let refused = run_qemu(&node, Path::new("/bin/true")).output().unwrap();
    let err = String::from_utf8_lossy(&refused.stderr);
    assert!(err.contains("another VM web is attached"), "{err}");
    assert_eq!(refused.status.code(), Some(1));
    assert!(is_listed());
    // The name changes hands while QEMU runs.
    run(&mut node.dwcp(&["vm", "detach", "web"]), 0);
    let ends = folder.join("ends");
    let qemu = script_file(
        folder,
        &format!(
            ": > started; while [ ! -e {} ]; do sleep 0.05; done",
            ends.display()
        ),
    );
    let mut child = run_qemu(&node, &qemu).spawn().unwrap();
    let began = Instant::now();
    while !folder.join("started").exists() {
        assert!(began.elapsed() < Duration::from_secs(20));
        std::thread::sleep(Duration::from_millis(5));
    }
    by_hand("another.sock");
    std::fs::write(&ends, "").unwrap();
    assert!(child.wait().unwrap().success());
    assert!(is_listed());
}

/// kill -9 of everything must leave no RAM behind: the file has no name, and QEMU has it open.
#[test]
fn guest_ram_has_no_name_and_goes_with_qemu() {
    let node = TestNode::start(Some(fake::obedient()));
    let folder = node.dir.path();
    let ram = folder.join("ram");
    std::fs::create_dir(&ram).unwrap();
    // Plays QEMU: says what it was given, and what that is.
    let qemu = script_file(
        folder,
        "path=$(echo \"$*\" | sed 's/.*mem-path=\\([^,]*\\),.*/\\1/'); echo $path; readlink $path",
    );
    let mut command = node.dwcp(&["vm", "run-qemu", "web", "--mem-path"]);
    command
        .arg(&ram)
        .args(["--", "-m", "64"])
        .env("DWCP_QEMU", &qemu);
    let (out, _) = run(&mut command, 0);
    let (path, target) = out.split_once('\n').unwrap();
    assert!(path.starts_with("/proc/self/fd/"), "{out}");
    assert!(target.starts_with(ram.to_str().unwrap()), "{out}");
    assert!(target.trim_end().ends_with("(deleted)"), "{out}");
    assert_eq!(std::fs::read_dir(&ram).unwrap().count(), 0);
}

/// A QEMU that inherits blocked signals cannot be told to end. grep, told to read its own status,
/// plays QEMU: no shell in between that would clear the mask.
#[test]
fn qemu_does_not_inherit_blocked_signals() {
    let node = TestNode::start(Some(fake::obedient()));
    let folder = node.dir.path().to_str().unwrap();
    let qemu = ["--", "/bin/grep", "SigBlk", "--", "/proc/self/status"];
    let mut command = node.dwcp(&["vm", "run-qemu", "web", "--mem-path", folder]);
    let (out, _) = run(command.args(qemu), 2);
    assert!(out.contains("SigBlk:\t0000000000000000"), "{out}");
}

#[test]
fn run_qemu_shows_its_command_and_refuses_what_cannot_be_moved() {
    let dry = [
        "vm",
        "run-qemu",
        "web",
        "--run-folder",
        "/run/x",
        "--dry-run",
    ];
    let (out, _) = run(
        dwcp()
            .args(dry)
            .args(["--incoming", "--", "my-qemu", "-m", "1G"]),
        0,
    );
    assert!(out.contains("my-qemu -m 1G -object memory-backend-file,id=dwcp-ram,size=1073741824"));
    assert!(out.contains("-qmp unix:/run/x/web.qmp") && out.contains("-incoming defer -S"));
    let (out, _) = run(dwcp().args(dry).args(["--json", "--", "-m", "1G"]), 0);
    assert_eq!(json(&out)["program"], "qemu-system-x86_64");
    let (_, err) = run(dwcp().args(dry).args(["--", "-m", "1G", "-daemonize"]), 2);
    assert!(err.contains("remove -daemonize"), "{err}");
    run(dwcp().args(["vm", "run-qemu", "../x", "--", "-m", "1G"]), 2);
    let missing = [
        "vm",
        "run-qemu",
        "web",
        "--run-folder",
        "/tmp",
        "--",
        "/no/qemu",
        "-m",
        "1G",
    ];
    let (_, err) = run(dwcp().args(missing), 2);
    assert!(err.contains("/no/qemu"), "{err}");
}
