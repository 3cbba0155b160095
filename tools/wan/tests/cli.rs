//! The `dwcp-wan` program as far as it needs no privileges: usage, plans, exit codes, JSON.
#![allow(missing_docs)]

use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::process;
use std::time::Duration;

use assert_cmd::Command;
use serde_json::Value;

const PROGRAM: &str = env!("CARGO_BIN_EXE_dwcp-wan");

/// Runs and checks the exit code; gives standard output and standard error.
fn run(arguments: &[&str], code: i32) -> (String, String) {
    let mut command = Command::new(PROGRAM);
    let command = command.args(arguments).timeout(Duration::from_secs(60));
    let output = command.output().unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(
        output.status.code(),
        Some(code),
        "{arguments:?}\n{out}\n{err}"
    );
    (out, err)
}

#[test]
fn help_names_the_exit_codes_and_shows_examples() {
    let (help, _) = run(&["--help"], 0);
    assert!(help.contains("Exit codes:") && help.contains("dwcp-wan up --rate 100mbit"));
    for command in ["up", "down", "run", "set", "cut", "mend", "show", "measure"] {
        let (help, _) = run(&[command, "--help"], 0);
        let examples = help.split("Examples:\n").nth(1).unwrap();
        assert!(
            examples.contains(&format!("  dwcp-wan {command}")),
            "{help}"
        );
        // An example that is wider than the help is broken, within its quotes.
        assert!(
            examples.lines().all(|line| line.starts_with("  ")),
            "{help}"
        );
    }
}

#[test]
fn wrong_usage_is_2_and_names_what_is_wrong_with_an_example() {
    for (arguments, words) in [
        (&["up", "--rate", "100"][..], "100mbit"),
        (&["up", "--delay", "50"], "50ms"),
        (&["up", "--loss", "0.1"], "0.1%"),
        (&["up", "--queue", "big"], "256KiB"),
        (&["up", "--name", "A/B"], "lab-2"),
        (&["up", "--mtu", "100"], "576"),
        (&["up", "--rate", "1mbit", "--trace", "x.csv"], "--trace"),
        (&["up", "--trace", "/no/such.csv"], "/no/such.csv"),
        (&["up", "--trace-name", "x"], "--trace FILE"),
        (
            &["up", "--dry-run", "--trace", "/dev/zero"],
            "no regular file",
        ),
        (&["measure", "--length", "0s"], "100ms at least"),
        (&["down"], "--all"),
        (&["run", "--rate", "1mbit"], "COMMAND"),
        (&["cut", "wan", "--way", "up"], "a-to-b"),
    ] {
        let (_, err) = run(arguments, 2);
        assert!(err.contains(words), "{arguments:?}: {err}");
    }
    let (out, _) = run(&["--json", "up", "--rate", "100"], 2);
    let error: Value = serde_json::from_str(&out).unwrap();
    assert_eq!(error["error"]["exit_code"], 2);
    assert!(
        error["error"]["message"]
            .as_str()
            .unwrap()
            .contains("100mbit")
    );
}

#[test]
fn a_bad_line_of_a_trace_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("lte.csv");
    fs::write(&path, "t_s,mbps\n0,10\n1,x\n").unwrap();
    let (_, err) = run(&["up", "--dry-run", "--trace", path.to_str().unwrap()], 2);
    assert!(err.contains("lte.csv:3: mbps is `x`"), "{err}");
}

#[test]
fn a_dry_run_says_what_would_be_done() {
    let arguments = [
        "up",
        "--dry-run",
        "--name",
        "plan",
        "--rate",
        "100mbit",
        "--delay",
        "20ms",
    ];
    let back = ["--back-rate", "10mbit", "--mtu", "9000"];
    let (out, _) = run(&[&arguments[..], &back].concat(), 0);
    for line in [
        "ip netns add dwcp-wan-plan-a",
        "ip -n dwcp-wan-plan-b link set wan0 mtu 9000 up",
        "ip -n dwcp-wan-plan-b addr add 10.213.8.2 peer 10.213.8.1 dev wan0",
        "a to b: rate 100mbit, delay 20ms, queue auto",
        "b to a: rate 10mbit, delay 20ms, queue auto",
    ] {
        assert!(out.lines().any(|found| found == line), "{line}\n{out}");
    }
    let (out, _) = run(&[&arguments[..], &["--json"]].concat(), 0);
    let plan: Value = serde_json::from_str(&out).unwrap();
    assert!(plan["steps"].as_array().unwrap().len() > 5);
    run(&["show", "plan"], 3);
}

#[test]
fn what_is_not_there_is_3_to_ask_and_no_fault_to_take_down() {
    if dwcp_wan::link::check_rights().is_err() {
        return println!("skipped: this user may not see which links there are");
    }
    run(&["down", "never-was"], 0);
    for arguments in [
        &["show", "never-was"][..],
        &["set", "never-was", "--delay", "1ms"],
        &["cut", "never-was"],
        &["mend", "never-was"],
    ] {
        let (_, err) = run(arguments, 3);
        assert!(err.contains("no link `never-was`"), "{err}");
    }
}

#[test]
fn without_privileges_it_is_4_and_says_what_it_needs() {
    // `nobody`, where the tests run as root.
    let mut command = process::Command::new(PROGRAM);
    command.args(["up", "--name", "no-rights"]);
    if nix::unistd::geteuid().is_root() {
        command.uid(65_534).gid(65_534);
    } else if dwcp_wan::needs::missing().is_empty() {
        return println!("skipped: this user may make links");
    }
    let output = match command.output() {
        Ok(output) => output,
        Err(error) => return println!("skipped: {PROGRAM} as nobody: {error}"),
    };
    let err = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(4), "{err}");
    for need in ["CAP_NET_ADMIN", "CAP_SYS_ADMIN", "run it as root"] {
        assert!(err.contains(need), "{err}");
    }
}

/// Files of links are root's: a user without rights is told so, and not that there is no link.
#[test]
fn without_rights_links_are_not_said_to_be_missing_or_broken() {
    if !nix::unistd::geteuid().is_root() {
        return println!("skipped: only root can make what another user may not see");
    }
    // Half a link, as a crash leaves it: its folder alone.
    let name = format!("seen-{}", process::id());
    let folder = std::path::Path::new(dwcp_wan::link::FOLDER).join(&name);
    fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&folder)
        .unwrap();
    let runs = [
        &["show"][..],
        &["show", &name],
        &["set", &name, "--delay", "1ms"],
        &["cut", &name],
        &["mend", &name],
        &["down", &name],
        &["down", "--all"],
        &["up", "--dry-run", "--beside", &name],
    ];
    let outputs = runs.map(|arguments| {
        let mut command = process::Command::new(PROGRAM);
        let command = command.args(arguments).uid(65_534).gid(65_534);
        (arguments, command.output())
    });
    fs::remove_dir(&folder).unwrap();
    for (arguments, output) in outputs {
        let output = match output {
            Ok(output) => output,
            Err(error) => return println!("skipped: {PROGRAM} as nobody: {error}"),
        };
        let err = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(4), "{arguments:?}: {err}");
        assert!(err.contains("run it as root"), "{arguments:?}: {err}");
    }
}
