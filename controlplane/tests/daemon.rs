//! The daemon as a process: exit codes, signals.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dwcp_api::node::{NodeStatus, Reply, Request};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

fn daemon(dir: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp-controlplane"));
    command
        .env_remove("DWCP_CONFIG")
        .arg("--config")
        .arg(dir.join("node.toml"))
        .arg("--state-folder")
        .arg(dir.join("state"))
        .stderr(Stdio::piped());
    command
}

fn node(dir: &Path) -> Option<NodeStatus> {
    let socket = dir.join("state/node.sock");
    let mut stream = dwcp_api::connect(&socket, Duration::from_secs(5)).ok()?;
    dwcp_api::send(&mut stream, &Request::Node, &[]).ok()?;
    match dwcp_api::receive(&mut stream).ok()?.0 {
        Reply::Node(status) => Some(status),
        _ => None,
    }
}

fn wait<T>(mut until: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = until() {
            return found;
        }
        assert!(began.elapsed() < Duration::from_secs(20), "waited too long");
        std::thread::yield_now();
    }
}

fn signal(child: &Child, signal: Signal) {
    kill(Pid::from_raw(i32::try_from(child.id()).unwrap()), signal).unwrap();
}

#[test]
fn it_serves_reloads_and_ends_on_sigterm() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(
        &file,
        "[node]\nname = \"a\"\n[peers]\nb = \"192.0.2.2:7400\"\n",
    )
    .unwrap();
    let child = daemon(dir.path()).spawn().unwrap();
    let status = wait(|| node(dir.path()));
    assert_eq!((status.node.name.as_str(), status.peers.len()), ("a", 1));

    let second = daemon(dir.path()).output().unwrap();
    assert_eq!(second.status.code(), Some(3));
    assert!(String::from_utf8_lossy(&second.stderr).contains("in use"));

    let more = "[node]\nname = \"a\"\ndefault_profile = \"internet\"\n\
                [peers]\nb = \"192.0.2.2:7400\"\nc = \"192.0.2.3:7400\"\n";
    std::fs::write(&file, more).unwrap();
    signal(&child, Signal::SIGHUP);
    wait(|| node(dir.path()).filter(|status| status.peers.len() == 2));
    assert_eq!(node(dir.path()).unwrap().default_settings.mode, "internet");

    std::fs::write(&file, "[peers]\nb = 7\n").unwrap();
    signal(&child, Signal::SIGHUP);
    assert_eq!(node(dir.path()).unwrap().peers.len(), 2);

    signal(&child, Signal::SIGTERM);
    let ended = child.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(0));
    let log = String::from_utf8_lossy(&ended.stderr);
    assert!(log.contains("serving") && !log.contains('\x1b'), "{log:?}");
    assert!(!dir.path().join("state/node.sock").exists());
}

/// kill -9 leaves the socket file behind; the next daemon takes its place.
#[test]
fn a_left_over_socket_is_replaced() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("node.toml"), "").unwrap();
    let mut child = daemon(dir.path()).spawn().unwrap();
    let first = wait(|| node(dir.path()));
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(dir.path().join("state/node.sock").exists());
    let mut child = daemon(dir.path()).spawn().unwrap();
    let second = wait(|| node(dir.path()));
    assert_eq!(first.node, second.node);
    signal(&child, Signal::SIGINT);
    assert_eq!(child.wait().unwrap().code(), Some(0));
}

#[test]
fn a_wrong_configuration_is_shown_with_its_place() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("node.toml");
    std::fs::write(&file, "[node]\nnmae = \"a\"\n").unwrap();
    let output = daemon(dir.path()).output().unwrap();
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2));
    assert!(shown.contains("node.toml:2:1"), "{shown}");
    assert!(shown.contains("did you mean `node.name`?"), "{shown}");
}

/// A name becomes part of records and of what other nodes are told: it is checked at the door.
#[test]
fn a_text_that_is_no_name_is_refused_with_the_rule() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("node.toml"), "").unwrap();
    for wrong in [
        ["--name", ""],
        ["--name", "a b"],
        ["--peer", "=192.0.2.2:7400"],
        ["--peer", "b/c=192.0.2.2:7400"],
    ] {
        let output = daemon(dir.path()).args(wrong).output().unwrap();
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains(dwcp_api::NAME_RULE), "{shown}");
    }
}
