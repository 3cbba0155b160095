//! The `dwcp` program: usage, configuration, exit codes, JSON; against a node in this process with
//! a scripted data plane.

#[path = "../../controlplane/tests/fake/mod.rs"]
mod fake;
mod local;

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{
    ApiError, ErrorCode, Forecast, Limit, MigrationReport, PageCounts, Prospect, RunResult,
};
use dwcp_controlplane::profile;
use fake::Script;
use local::{TestNode, dwcp, json, run};

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
        "doctor", "node", "vm", "migrate", "drain", "status", "cancel", "journal", "config", "pki",
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
    run(dwcp().args(["config", "show", "intranet-of-mine"]), 3);
    run(dwcp().args(["config", "show", "./intranet-of-mine"]), 2);
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

/// What would come of it is told, and why it cannot be.
#[test]
fn a_dry_run_foretells() {
    let ahead = |mbit: Option<f64>| Prospect {
        looked_ms: 2000.0,
        pages: 12_288,
        dirty_pages: 1068,
        mbit,
        basis: "by the limit that is set".into(),
        forecast: mbit.map(|_| Forecast {
            after_round: 0,
            converges: true,
            rounds: 2,
            ms: 2200.0,
            ms_p90: 2900.0,
            downtime_ms: 31.0,
            downtime_ms_p90: 40.0,
        }),
        limited_by: Limit::Link,
        least_mbit: mbit.map(|_| 24),
    };
    for (mbit, words) in [
        (
            Some(200.0),
            "at 200 Mbit/s, by the limit that is set: 2 more rounds in 2.2 s to 2.9 s, then a pause of 31.0 ms to 40.0 ms beside device state",
        ),
        (
            None,
            "no forecast: by the limit that is set\nit converges at no rate",
        ),
    ] {
        let node = TestNode::start(reports(move |id, vm| MigrationReport {
            dry_run: true,
            prospect: Some(ahead(mbit)),
            ..fake::report(id, vm, RunResult::DryRun)
        }));
        let dry_run = ["migrate", "web", "--to", "b", "--dry-run"];
        let (out, _) = run(&mut node.dwcp(&dry_run), 0);
        let looked = "12288 pages have memory, and 1068 were written in 2.0 s";
        assert!(out.contains(words) && out.contains(looked), "{out}");
        let (out, _) = run(node.dwcp(&dry_run).arg("--json"), 0);
        assert_eq!(json(&out)["prospect"]["pages"], 12_288);
    }
}

/// Zeros of what was never measured are not printed; the JSON has every field all the same.
#[test]
fn the_report_of_a_migration_that_never_began_is_short() {
    let node = TestNode::start(reports(|id, vm| MigrationReport {
        refused: true,
        reason: "no room".into(),
        rounds: 0,
        verified: false,
        streams: 0,
        transport: String::new(),
        ..fake::report(id, vm, RunResult::Aborted)
    }));
    let migrate = ["migrate", "web", "--to", "b"];
    let (out, _) = run(&mut node.dwcp(&migrate), 4);
    let names = out.lines().map(|line| line.split_whitespace().next());
    let expected = ["vm", "result", "owner", "total", "id"].map(Some);
    assert!(names.eq(expected) && !out.contains("rounds"), "{out}");
    let (out, _) = run(node.dwcp(&migrate).arg("--json"), 4);
    assert_eq!(json(&out)["streams"], 0);
}

/// Its first round did not end; the pause is the source's to measure.
#[test]
fn a_report_has_what_was_measured() {
    let node = TestNode::start(reports(|id, vm| MigrationReport {
        reason: "no link".into(),
        rounds: 0,
        wire_bytes: 31 << 20,
        downtime_ms: 0.0,
        pages: PageCounts::default(),
        ..fake::report(id, vm, RunResult::Aborted)
    }));
    let (out, _) = run(&mut node.dwcp(&["migrate", "web", "--to", "b"]), 7);
    assert!(out.contains("31.0 MiB"), "{out}");
    assert!(
        !out.contains("downtime") && !out.contains(" zero,"),
        "{out}"
    );
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
