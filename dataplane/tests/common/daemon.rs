//! A data plane as a process of its own, spoken to as its control plane does.

use std::os::unix::net::UnixStream;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{MigrationId, MigrationReport, NodeIdentity};
use nix::unistd::Pid;

use super::{TestGuest, until};

/// A traced daemon stops twice at every call.
const PATIENCE: Duration = Duration::from_secs(120);

/// A data plane as a process.
pub(crate) struct Daemon {
    child: Child,
    control: UnixStream,
    /// Where other nodes reach it.
    pub(crate) listen: String,
}

impl Daemon {
    /// On `listen`, which may have the port 0; `io` as its option.
    pub(crate) fn start(folder: &Path, name: &str, (listen, io): (&str, &str)) -> Self {
        let state = folder.join(name);
        let child = Command::new(env!("CARGO_BIN_EXE_dwcp-dataplane"))
            .args(["--name", name, "--listen", listen, "--io", io])
            .arg("--state-folder")
            .arg(&state)
            .env("DWCP_LOG", "warn")
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let socket = state.join("dataplane.sock");
        let mut control = None;
        until("the data plane does not serve", || {
            control = dwcp_api::connect(&socket, PATIENCE).ok();
            control.is_some()
        });
        let mut daemon = Self {
            child,
            control: control.unwrap(),
            listen: String::new(),
        };
        let identity = NodeIdentity {
            name: name.into(),
            id: "0".repeat(32),
        };
        match daemon.ask(&Request::Hello(identity)) {
            Reply::Hello { listen, .. } => daemon.listen = listen,
            other => panic!("{other:?}"),
        }
        daemon
    }

    pub(crate) fn ask(&mut self, request: &Request) -> Reply {
        match self.try_ask(request) {
            Reply::Error(error) => panic!("{error}"),
            reply => reply,
        }
    }

    pub(crate) fn try_ask(&mut self, request: &Request) -> Reply {
        dwcp_api::send(&mut self.control, request, &[]).unwrap();
        dwcp_api::receive(&mut self.control).unwrap().0
    }

    pub(crate) fn attach(&mut self, guest: &TestGuest) {
        self.ask(&Request::AttachVm {
            name: "vm".into(),
            attachment: guest.attachment.clone(),
        });
    }

    pub(crate) fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id() as i32)
    }

    pub(crate) fn report(&mut self, id: MigrationId) -> MigrationReport {
        let began = Instant::now();
        loop {
            if let Reply::Migration(status) = self.ask(&Request::Status { id })
                && let Some(report) = status.report
            {
                return report;
            }
            assert!(began.elapsed() < PATIENCE, "the migration hangs");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it, as the system would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Not waited for: that would take from a tracer what only the tracer can answer.
        let _ = self.child.kill();
    }
}
