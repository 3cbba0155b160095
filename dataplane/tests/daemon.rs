//! The daemon as a process: what it says before it serves.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

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
