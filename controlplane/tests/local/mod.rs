//! A node in this process, and a client on its socket.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations
)]

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use dwcp_api::Attachment;
use dwcp_api::node::{Reply, Request};
use dwcp_controlplane::node::{Node, Options, Reloadable};
use dwcp_controlplane::profile;
use tokio::sync::oneshot;

use crate::fake::{FakePlane, obedient};

pub struct TestNode {
    pub dir: tempfile::TempDir,
    pub runtime: tokio::runtime::Runtime,
    end: Option<oneshot::Sender<()>>,
    served: Option<tokio::task::JoinHandle<()>>,
}

impl TestNode {
    pub fn start() -> Self {
        Self::start_in(tempfile::tempdir().unwrap())
    }

    pub fn start_in(dir: tempfile::TempDir) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let options = options(dir.path());
        let (end, ended) = oneshot::channel::<()>();
        let running = runtime.block_on(async { Node::start(options).unwrap() });
        let served = runtime.spawn(running.run(async {
            let _ = ended.await;
        }));
        Self {
            dir,
            runtime,
            end: Some(end),
            served: Some(served),
        }
    }

    pub fn plane_path(&self) -> PathBuf {
        self.dir.path().join("dataplane.sock")
    }

    pub fn client(&self) -> UnixStream {
        dwcp_api::connect(&self.dir.path().join("node.sock"), Duration::from_secs(20)).unwrap()
    }

    pub fn ask(&self, request: &Request) -> Reply {
        let mut client = self.client();
        dwcp_api::send(&mut client, request, &[]).unwrap();
        dwcp_api::receive(&mut client).unwrap().0
    }

    pub fn refusal(&self, request: &Request) -> dwcp_api::ApiError {
        match self.ask(request) {
            Reply::Error(error) => error,
            other => panic!("{other:?}"),
        }
    }

    pub fn wait_for_plane(&self) {
        wait(|| matches!(self.ask(&Request::Node), Reply::Node(node) if node.dataplane.is_some()));
    }

    pub fn stop(mut self) -> tempfile::TempDir {
        drop(self.end.take());
        self.runtime.block_on(self.served.take().unwrap()).unwrap();
        self.dir
    }
}

pub fn options(dir: &Path) -> Options {
    Options {
        name: "a".into(),
        state_folder: dir.to_owned(),
        socket: dir.join("node.sock"),
        dataplane_socket: dir.join("dataplane.sock"),
        reloadable: Reloadable {
            peers: vec![("b".into(), "192.0.2.2:7400".into())],
            default_settings: profile::load("datacenter").unwrap(),
        },
    }
}

pub fn wait(mut until: impl FnMut() -> bool) {
    let began = Instant::now();
    while !until() {
        assert!(began.elapsed() < Duration::from_secs(20), "waited too long");
        std::thread::yield_now();
    }
}

/// A node with the VM `web` on record whose data plane has ended.
pub fn node_with_web() -> TestNode {
    let node = TestNode::start();
    let plane = FakePlane::start(&node.plane_path(), obedient());
    node.wait_for_plane();
    node.ask(&attach("web"));
    drop(plane);
    wait(|| matches!(node.ask(&Request::Node), Reply::Node(node) if node.dataplane.is_none()));
    node
}

pub fn detach(name: &str) -> Request {
    Request::DetachVm {
        name: name.into(),
        attached_as: None,
    }
}

pub fn attach(name: &str) -> Request {
    Request::AttachVm {
        name: name.into(),
        attachment: Attachment::Process {
            socket: "/run/guest.sock".into(),
        },
    }
}

pub fn migrate(to: &str) -> Request {
    Request::Migrate {
        vm: "web".into(),
        to: to.into(),
        settings: profile::load("internet").unwrap(),
        dry_run: false,
    }
}
