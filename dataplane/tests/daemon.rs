//! The daemon as a process: what it says before it serves.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use dwcp_api::NodeIdentity;
use dwcp_api::dataplane::{Reply, Request};

/// Starts a data plane that cannot serve, and gives what it said.
fn daemon(folder: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_dwcp-dataplane"))
        .args(["--state-folder", folder.to_str().unwrap()])
        .args(arguments)
        .output()
        .unwrap()
}

#[test]
fn a_text_that_is_no_name_is_refused_with_the_rule() {
    let folder = tempfile::tempdir().unwrap();
    for wrong in ["", "a b", "-a", "a/b"] {
        let name = format!("--name={wrong}");
        let output = daemon(folder.path(), &[&name, "--listen", "127.0.0.1:0"]);
        let shown = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{shown}");
        assert!(shown.contains(dwcp_api::NAME_RULE), "{shown}");
    }
}

#[test]
fn an_address_in_use_is_said_once() {
    let folder = tempfile::tempdir().unwrap();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let output = daemon(folder.path(), &["--name", "a", "--listen", &address]);
    let shown = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{shown}");
    assert!(
        shown.contains(&format!("cannot listen on {address}: ")),
        "{shown}"
    );
    assert_eq!(shown.matches("in use").count(), 1, "{shown}");
}

/// Colours are for terminals; in a file they are noise.
#[test]
fn a_log_that_goes_to_a_file_has_no_colours() {
    let folder = tempfile::tempdir().unwrap();
    let log = folder.path().join("log");
    let mut child = Command::new(env!("CARGO_BIN_EXE_dwcp-dataplane"))
        .args(["--name", "a", "--listen", "127.0.0.1:0", "--state-folder"])
        .arg(folder.path())
        .env_remove("NO_COLOR")
        .stderr(Stdio::from(std::fs::File::create(&log).unwrap()))
        .spawn()
        .unwrap();
    let began = Instant::now();
    let said = loop {
        let said = std::fs::read_to_string(&log).unwrap();
        if said.contains("data plane serves") || began.elapsed() > Duration::from_secs(20) {
            break said;
        }
        std::thread::sleep(Duration::from_millis(5));
    };
    child.kill().unwrap();
    child.wait().unwrap();
    assert!(
        said.contains("data plane serves") && !said.contains('\x1b'),
        "{said:?}"
    );
}

/// A disk that is full costs the log, and nothing else: the thread that logs may hold a guest that stands.
#[test]
fn a_log_that_cannot_be_written_ends_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let full = std::fs::File::options().write(true).open("/dev/full");
    let mut child = Command::new(env!("CARGO_BIN_EXE_dwcp-dataplane"))
        .args(["--name", "a", "--listen", "127.0.0.1:0", "--state-folder"])
        .arg(folder.path())
        .stderr(Stdio::from(full.unwrap()))
        .spawn()
        .unwrap();
    let socket = folder.path().join("dataplane.sock");
    let began = Instant::now();
    let time = Duration::from_secs(20);
    let hello = Request::Hello(NodeIdentity {
        name: "a".into(),
        id: "0".repeat(32),
    });
    let serves = || {
        let mut stream = dwcp_api::connect(&socket, time).ok()?;
        dwcp_api::send(&mut stream, &hello, &[]).ok()?;
        let (reply, _) = dwcp_api::receive::<Reply>(&mut stream).ok()?;
        Some(matches!(reply, Reply::Hello { .. }))
    };
    let mut ended = None;
    while serves() != Some(true) && ended.is_none() {
        assert!(began.elapsed() < time, "it does not serve");
        ended = child.try_wait().unwrap();
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(ended, None);
}
