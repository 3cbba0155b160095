//! The `dwcp` program: usage, configuration, exit codes, JSON; against a node in this process with
//! a scripted data plane.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;

use std::path::Path;
use std::time::{Duration, Instant};

use assert_cmd::Command;
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{ApiError, ErrorCode, MigrationReport, RunResult};
use dwcp_controlplane::node::{Node, Options, Reloadable};
use dwcp_controlplane::profile;
use fake::{FakePlane, Script};
use serde_json::Value;

fn dwcp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command
        .env_remove("DWCP_NODE_SOCKET")
        .env_remove("DWCP_QEMU")
        .timeout(Duration::from_secs(60));
    command
}

/// Runs and checks the exit code; gives standard output and standard error.
fn run(command: &mut Command, code: i32) -> (String, String) {
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "stdout: {out}\nstderr: {err}"
    );
    (out, err)
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Dropped in this order: the plane's socket must be there until the plane has ended.
struct TestNode {
    plane: Option<FakePlane>,
    _runtime: tokio::runtime::Runtime,
    dir: tempfile::TempDir,
}

impl TestNode {
    fn start(script: Option<Script>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let options = Options {
            name: "a".into(),
            state_folder: dir.path().to_owned(),
            socket: dir.path().join("node.sock"),
            dataplane_socket: dir.path().join("dataplane.sock"),
            reloadable: Reloadable {
                peers: vec![("b".into(), "192.0.2.2:7400".into())],
                default_settings: profile::load("datacenter").unwrap(),
            },
        };
        let running = runtime.block_on(async { Node::start(options).unwrap() });
        let node = running.node();
        runtime.spawn(running.run(std::future::pending()));
        let plane =
            script.map(|script| FakePlane::start(&dir.path().join("dataplane.sock"), script));
        let began = Instant::now();
        while plane.is_some() && node.status().dataplane.is_none() {
            assert!(began.elapsed() < Duration::from_secs(20));
            std::thread::yield_now();
        }
        Self {
            dir,
            _runtime: runtime,
            plane,
        }
    }

    fn dwcp(&self, arguments: &[&str]) -> Command {
        let mut command = dwcp();
        command
            .arg("--node-socket")
            .arg(self.dir.path().join("node.sock"))
            .args(arguments);
        command
    }
}

/// Answers every request with the same refusal.
fn refuses(code: ErrorCode) -> Option<Script> {
    Some(Box::new(move |_| {
        let error = ApiError::new(code, "refused for a test").with_hint("change -m");
        Some(Reply::Error(error))
    }))
}

/// A migration that ends so.
fn ends(result: RunResult) -> Option<Script> {
    reports(move |id, vm| fake::report(id, vm, result))
}

/// A migration that ends with this report.
fn reports(
    make: impl Fn(dwcp_api::MigrationId, &str) -> MigrationReport + Send + 'static,
) -> Option<Script> {
    let mut asked = 0;
    let mut started = None;
    Some(Box::new(move |request| {
        Some(match request {
            Request::StartMigration { id, vm, .. } => {
                started = Some((*id, vm.clone()));
                Reply::Done
            }
            Request::Status { .. } => {
                let (id, vm) = started.clone()?;
                asked += 1;
                let report = (asked > 2).then(|| make(id, &vm));
                Reply::Migration(Box::new(fake::status(id, &vm, report)))
            }
            _ => Reply::Done,
        })
    }))
}

#[test]
fn wrong_usage_is_2_and_every_command_has_help_with_examples() {
    for arguments in [
        &["frobnicate"][..],
        &["migrate"],
        &["migrate", "web"],
        &["migrate", "web", "--to", "b", "--wait", "--no-wait"],
        &["vm", "attach", "web"],
        &["vm", "attach", "web", "--qmp", "/a", "--process", "/b"],
        &["vm", "run-qemu", "web"],
    ] {
        run(dwcp().args(arguments), 2);
    }
    for command in [
        "doctor", "node", "vm", "migrate", "status", "cancel", "journal", "config",
    ] {
        let (out, _) = run(dwcp().args([command, "--help"]), 0);
        assert!(
            out.contains("Examples:") && out.contains("--json"),
            "{command}: {out}"
        );
    }
    let (out, _) = run(dwcp().arg("--help"), 0);
    assert!(out.contains("Exit codes:") && out.contains("DWCP_NODE_SOCKET"));
}

/// A script that reads JSON reads it also when its own arguments are wrong.
#[test]
fn wrong_usage_is_json_where_json_is_asked_for() {
    for (arguments, words) in [
        (&["frobnicate", "--json"][..], "frobnicate"),
        (&["--json", "migrate", "web"], "--to <NODE>"),
        (&["migrate", "--json", "web", "--to"], "--to <NODE>"),
        (&["vm", "--json"], "requires a subcommand"),
        (&["--json"], "requires a subcommand"),
    ] {
        let (out, err) = run(dwcp().args(arguments), 2);
        let error = json(&out)["error"].clone();
        assert_eq!(error["exit_code"], 2);
        let message = error["message"].as_str().unwrap();
        assert!(message.contains(words), "{arguments:?}: {message}");
        assert!(
            !message.contains('\n') && error["hint"].is_string(),
            "{out}"
        );
        assert_eq!(err, "", "{arguments:?}");
    }
    for argument in ["--help", "--version"] {
        let (out, _) = run(dwcp().args(["--json", argument]), 0);
        assert!(out.contains("dwcp") || out.contains("Usage"), "{out}");
        assert!(!out.starts_with('{'), "{out}");
    }
    // QEMU's own argument.
    let (out, _) = run(dwcp().args(["vm", "run-qemu", "--x", "--", "--json"]), 2);
    assert_eq!(out, "");
}

#[test]
fn faults_of_a_profile_are_shown_with_line_column_and_hint() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("p.toml");
    let text = "mode = \"internet\"\n[transfer]\nwindow = \"64ms\"\nstrems = 2\n";
    std::fs::write(&file, text).unwrap();
    let (_, err) = run(dwcp().args(["config", "check"]).arg(&file), 2);
    assert!(err.contains("p.toml:3:13"), "{err}");
    assert!(err.contains("units: B, KiB, MiB, GiB, TiB"), "{err}");
    assert!(err.contains("p.toml:4:1"), "{err}");
    assert!(err.contains("did you mean `transfer.streams`?"), "{err}");

    let (out, _) = run(dwcp().args(["config", "check", "--json"]).arg(&file), 2);
    let error = &json(&out)["error"];
    assert_eq!(error["exit_code"], 2);
    assert_eq!(error["faults"][0]["line"], 3);
    assert_eq!(error["faults"][0]["column"], 13);
    assert_eq!(error["faults"][1]["text"], "strems");

    std::fs::write(&file, "[node]\nname = \"a\"\n").unwrap();
    let (out, _) = run(dwcp().args(["config", "check"]).arg(&file), 0);
    assert!(out.contains("good node file"), "{out}");
    let missing = dir.path().join("missing.toml");
    for (path, says) in [
        (&missing, "missing.toml: there is no such file"),
        (&dir.path().to_owned(), "is a folder, not a file"),
    ] {
        let (_, err) = run(dwcp().args(["config", "check"]).arg(path), 2);
        assert!(err.contains(says) && err.contains("hint: give"), "{err}");
    }
}

#[test]
fn configuration_is_explained_and_shown() {
    let (out, _) = run(dwcp().args(["config", "explain", "transfer.window"]), 0);
    assert!(
        out.contains("1MiB to 4GiB") && out.contains("\"128MiB\""),
        "{out}"
    );
    let (_, err) = run(dwcp().args(["config", "explain", "transfer.windo"]), 3);
    assert!(err.contains("did you mean `transfer.window`?"), "{err}");
    let (out, _) = run(dwcp().args(["config", "explain", "--json"]), 0);
    assert!(json(&out).as_array().unwrap().len() > 20);
    let (out, _) = run(
        dwcp().args(["config", "show", "hybrid", "--set", "transfer.streams=9"]),
        0,
    );
    assert!(out.contains("streams = 9"), "{out}");
    assert_eq!(profile::parse("shown", &out).unwrap().streams, 9);
    let (out, _) = run(dwcp().args(["config", "document"]), 0);
    assert_eq!(out, profile::markdown());
    run(dwcp().args(["config", "show", "intranet-of-mine"]), 2);
}

#[test]
fn a_missing_daemon_is_5_and_names_what_to_start() {
    let dir = tempfile::tempdir().unwrap();
    let (_, err) = run(
        dwcp()
            .args(["vm", "list"])
            .env("DWCP_NODE_SOCKET", dir.path().join("x")),
        5,
    );
    assert!(err.contains("start dwcp-controlplane"), "{err}");
    // One that is stopped takes connections, and says nothing.
    let silent = dir.path().join("silent");
    let _silent = dwcp_api::Listener::bind(&silent).unwrap();
    let mut command = dwcp();
    let (_, err) = run(command.arg("node").env("DWCP_NODE_SOCKET", &silent), 5);
    assert!(
        err.contains("does not answer") && err.contains("kill -CONT"),
        "{err}"
    );
    let node = TestNode::start(None);
    let (_, err) = run(&mut node.dwcp(&["vm", "list"]), 5);
    assert!(err.contains("start dwcp-dataplane"), "{err}");
    let (out, _) = run(
        &mut node.dwcp(&["migrate", "web", "--to", "b", "--json"]),
        5,
    );
    assert_eq!(json(&out)["error"]["exit_code"], 5);
    run(&mut node.dwcp(&["journal"]), 0);
}

#[test]
fn the_doctor_works_without_a_node() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("x");
    let (out, _) = run(
        dwcp()
            .args(["doctor", "--json"])
            .env("DWCP_NODE_SOCKET", &socket),
        0,
    );
    let findings = json(&out);
    assert_eq!(findings[0]["subject"], "control plane");
    assert!(findings.as_array().unwrap().len() >= 5);
    let (out, _) = run(dwcp().arg("doctor").env("DWCP_NODE_SOCKET", &socket), 0);
    assert!(out.contains("memlock") && out.contains("To mend:"), "{out}");
}

#[test]
fn refusals_have_their_exit_codes() {
    for (code, exit) in [
        (ErrorCode::BadRequest, 2),
        (ErrorCode::NotFound, 3),
        (ErrorCode::Peer, 4),
        (ErrorCode::VmUnsuitable, 6),
        (ErrorCode::System, 1),
        (ErrorCode::Busy, 1),
        (ErrorCode::TooLate, 1),
    ] {
        let node = TestNode::start(refuses(code));
        let attach = ["vm", "attach", "web", "--qmp", "/run/web.qmp"];
        let (_, err) = run(&mut node.dwcp(&attach), exit);
        assert!(
            err.contains("refused for a test") && err.contains("hint: change -m"),
            "{err}"
        );
    }
}

#[test]
fn a_migration_is_started_watched_and_reported() {
    let node = TestNode::start(ends(RunResult::Completed));
    let arguments = [
        "migrate",
        "web",
        "--to",
        "b",
        "--watch",
        "--set",
        "transfer.streams=7",
    ];
    let (out, err) = run(&mut node.dwcp(&arguments), 0);
    assert!(
        out.contains("completed: handed over") && out.contains("41.5 ms"),
        "{out}"
    );
    assert!(
        err.contains("round 1") && err.contains("limited by link"),
        "{err}"
    );
    assert!(err.contains("ETA 1.0 s to 3.0 s"), "{err}");
    let plane = node.plane.as_ref().unwrap();
    assert!(plane.seen(
        |request| matches!(request, Request::StartMigration { settings, .. }
        if settings.streams == 7 && settings.mode == "datacenter")
    ));

    let (out, _) = run(
        &mut node.dwcp(&["migrate", "web", "--to", "b", "--json"]),
        0,
    );
    let report: MigrationReport = serde_json::from_str(&out).unwrap();
    assert_eq!(report.schema, "dwcp.migration/1");
    assert_eq!(json(&out)["id"].as_str().unwrap().len(), 32);
    assert_eq!(json(&out)["result"], "completed");

    let (out, _) = run(
        &mut node.dwcp(&["migrate", "web", "--to", "b", "--no-wait", "--json"]),
        0,
    );
    assert_eq!(json(&out)["id"].as_str().unwrap().len(), 32);
}

/// One schema, whatever a dry run finds.
#[test]
fn a_dry_run_has_the_report_of_a_migration() {
    for (result, code, words) in [
        (RunResult::DryRun, 0, "web can be moved to b"),
        (RunResult::Aborted, 4, "web cannot be moved to b: no room"),
    ] {
        let node = TestNode::start(reports(move |id, vm| MigrationReport {
            refused: result == RunResult::Aborted,
            reason: "no room".into(),
            ..fake::report(id, vm, result)
        }));
        let dry = ["migrate", "web", "--to", "b", "--dry-run"];
        let (out, _) = run(&mut node.dwcp(&dry), code);
        assert!(out.contains(words), "{out}");
        let (out, _) = run(node.dwcp(&dry).arg("--json"), code);
        let report: MigrationReport = serde_json::from_str(&out).unwrap();
        assert_eq!(report.result, result);
    }
    let node = TestNode::start(Some(fake::obedient()));
    run(
        &mut node.dwcp(&["migrate", "web", "--to", "b", "--dry-run"]),
        0,
    );
    let (out, _) = run(&mut node.dwcp(&["status"]), 0);
    assert!(out.contains("dry run") && !out.contains("aborted"), "{out}");
    let (out, _) = run(&mut node.dwcp(&["status", "web", "--json"]), 0);
    assert_eq!(json(&out)["phase"], "dry-run");
}

#[test]
fn an_aborted_migration_is_7_a_refused_one_4_and_a_failed_one_1() {
    for (result, code) in [(RunResult::Aborted, 7), (RunResult::Failed, 1)] {
        let node = TestNode::start(ends(result));
        let (out, _) = run(
            &mut node.dwcp(&["migrate", "web", "--to", "b", "--json"]),
            code,
        );
        assert_eq!(json(&out)["result"], serde_json::to_value(result).unwrap());
    }
    let node = TestNode::start(reports(|id, vm| MigrationReport {
        refused: true,
        ..fake::report(id, vm, RunResult::Aborted)
    }));
    let (out, _) = run(
        &mut node.dwcp(&["migrate", "web", "--to", "b", "--json"]),
        4,
    );
    assert_eq!(json(&out)["refused"], true);
    let node = TestNode::start(ends(RunResult::Completed));
    run(&mut node.dwcp(&["migrate", "web", "--to", "nowhere"]), 3);
    let wrong = [
        "migrate",
        "web",
        "--to",
        "b",
        "--set",
        "transfer.window=64ms",
    ];
    let (_, err) = run(&mut node.dwcp(&wrong), 2);
    assert!(err.contains("--set:1:22"), "{err}");
}

#[test]
fn vms_and_status_are_listed() {
    let node = TestNode::start(Some(fake::obedient()));
    run(
        &mut node.dwcp(&["vm", "attach", "web", "--process", "/run/web.sock"]),
        0,
    );
    let (out, _) = run(&mut node.dwcp(&["vm", "list"]), 0);
    assert!(out.contains("web") && out.contains("1.0 GiB"), "{out}");
    run(&mut node.dwcp(&["migrate", "web", "--to", "b"]), 0);
    let (out, _) = run(&mut node.dwcp(&["status"]), 0);
    assert!(out.contains("complete"), "{out}");
    let (out, _) = run(&mut node.dwcp(&["status", "web", "--json"]), 0);
    assert_eq!(json(&out)["report"]["downtime_ms"], 41.5);
    run(&mut node.dwcp(&["status", "db"]), 3);
    run(&mut node.dwcp(&["cancel", "web"]), 0);
    run(&mut node.dwcp(&["vm", "detach", "web"]), 0);
    let (out, _) = run(&mut node.dwcp(&["node", "--json"]), 0);
    assert_eq!(json(&out)["dataplane_pid"], 4711);
}

/// What is not known is not printed as a number.
#[test]
fn a_vm_that_is_not_attached_is_listed_with_the_reason() {
    let mut vm = fake::vm(
        "web",
        &dwcp_api::Attachment::Process {
            socket: "/run/web.sock".into(),
        },
    );
    vm.state = "not attached".into();
    (vm.ram_bytes, vm.tracker, vm.vmm) = (0, String::new(), String::new());
    vm.note = "VMM is gone: /run/web.sock".into();
    let node = TestNode::start(Some(Box::new(move |_| Some(Reply::Vms(vec![vm.clone()])))));
    let (out, _) = run(&mut node.dwcp(&["vm", "list"]), 0);
    assert!(
        out.contains("not attached") && !out.contains("0 B"),
        "{out}"
    );
    assert!(out.contains("web: VMM is gone: /run/web.sock"), "{out}");
}

fn script_file(dir: &Path, text: &str) -> std::path::PathBuf {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join("qemu");
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
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
    let mut child = std::process::Command::new(env!("CARGO_BIN_EXE_dwcp"))
        .arg("--node-socket")
        .arg(folder.join("node.sock"))
        .args(["vm", "run-qemu", "web", "--mem-path"])
        .arg(folder)
        .args(["--", "-m", "64"])
        .env("DWCP_QEMU", &qemu)
        .current_dir(folder)
        .spawn()
        .unwrap();
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
    let mut command = node.dwcp(&["vm", "run-qemu", "web", "--mem-path"]);
    command
        .arg(folder)
        .args(["--", "-m", "64"])
        .env("DWCP_QEMU", &qemu)
        .current_dir(folder);
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
    let (_, err) = run(dwcp().args(missing), 1);
    assert!(err.contains("/no/qemu"), "{err}");
}
