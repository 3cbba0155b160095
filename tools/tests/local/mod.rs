//! The program, and a node in this process with a scripted data plane.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations
)]

use std::time::{Duration, Instant};

use assert_cmd::Command;
use dwcp_controlplane::node::{Node, Options, Reloadable};
use dwcp_controlplane::profile;
use serde_json::Value;

use crate::fake::{FakePlane, Script};

pub fn dwcp() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_dwcp"));
    command
        .env_remove("DWCP_NODE_SOCKET")
        .env_remove("DWCP_QEMU")
        .timeout(Duration::from_secs(60));
    command
}

/// Runs and checks the exit code; gives standard output and standard error.
pub fn run(command: &mut Command, code: i32) -> (String, String) {
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

pub fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Dropped in this order: the plane's socket must be there until the plane has ended.
pub struct TestNode {
    pub plane: Option<FakePlane>,
    _runtime: tokio::runtime::Runtime,
    pub dir: tempfile::TempDir,
}

impl TestNode {
    pub fn start(script: Option<Script>) -> Self {
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

    pub fn dwcp(&self, arguments: &[&str]) -> Command {
        let mut command = dwcp();
        command
            .arg("--node-socket")
            .arg(self.dir.path().join("node.sock"))
            .args(arguments);
        command
    }
}
