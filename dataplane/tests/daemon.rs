//! The daemon as a process: what it says before it serves.

use std::path::Path;
use std::process::{Command, Output};

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
