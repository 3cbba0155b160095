//! A scripted data plane on a Unix socket.
#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    missing_debug_implementations
)]

use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use dwcp_api::counters::CountersPage;
use dwcp_api::dataplane::{Reply, Request};
use dwcp_api::{
    DowntimePartsMs, Limit, Listener, MigrationId, MigrationReport, MigrationStatus, PageCounts,
    PhaseName, Progress, Role, RunResult, VmInfo,
};

/// What the fake does with a request; `None` closes the connection without an answer.
pub type Script = Box<dyn FnMut(&Request) -> Option<Reply> + Send>;

pub struct FakePlane {
    pub requests: Arc<Mutex<Vec<Request>>>,
    pub counters: Arc<CountersPage>,
    path: PathBuf,
    ends: Arc<AtomicBool>,
    open: Arc<Mutex<Vec<UnixStream>>>,
    thread: Option<JoinHandle<()>>,
}

impl FakePlane {
    pub fn start(path: &Path, script: Script) -> Self {
        Self::start_slow(path, script, |_| Duration::ZERO)
    }

    /// With a delay before the answer to a request, that holds up its own connection only.
    pub fn start_slow(path: &Path, script: Script, delay: fn(&Request) -> Duration) -> Self {
        let script = Arc::new(Mutex::new(script));
        let listener = Listener::bind(path).unwrap();
        let mut fake = Self {
            requests: Arc::default(),
            counters: Arc::new(CountersPage::create().unwrap()),
            path: path.to_owned(),
            ends: Arc::default(),
            open: Arc::default(),
            thread: None,
        };
        let (requests, counters) = (Arc::clone(&fake.requests), Arc::clone(&fake.counters));
        let (ends, open) = (Arc::clone(&fake.ends), Arc::clone(&fake.open));
        let thread = std::thread::spawn(move || {
            loop {
                let stream = listener.accept().unwrap();
                open.lock().unwrap().push(stream.try_clone().unwrap());
                if ends.load(Ordering::SeqCst) {
                    return;
                }
                let (requests, counters) = (Arc::clone(&requests), Arc::clone(&counters));
                let script = Arc::clone(&script);
                std::thread::spawn(move || serve(stream, &requests, &counters, &script, delay));
            }
        });
        fake.thread = Some(thread);
        fake
    }

    pub fn seen(&self, what: impl Fn(&Request) -> bool) -> bool {
        self.requests.lock().unwrap().iter().any(what)
    }
}

impl Drop for FakePlane {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for stream in self.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(std::net::Shutdown::Both);
        }
        let _ = UnixStream::connect(&self.path);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

fn serve(
    mut stream: UnixStream,
    requests: &Mutex<Vec<Request>>,
    counters: &CountersPage,
    script: &Mutex<Script>,
    delay: fn(&Request) -> Duration,
) {
    while let Ok((request, _)) = dwcp_api::receive::<Request>(&mut stream) {
        requests.lock().unwrap().push(request.clone());
        let sent = if matches!(request, Request::Hello(_)) {
            let hello = Reply::Hello {
                version: "0.0.0".into(),
                listen: "192.0.2.1:7400".into(),
                pid: 4711,
            };
            let file = counters.file();
            dwcp_api::send(&mut stream, &hello, &[file.as_fd().as_raw_fd()])
        } else {
            std::thread::sleep(delay(&request));
            let reply = script.lock().unwrap()(&request);
            match reply {
                Some(reply) => dwcp_api::send(&mut stream, &reply, &[]),
                None => break,
            }
        };
        if sent.is_err() {
            break;
        }
    }
    let _ = stream.shutdown(std::net::Shutdown::Both);
}

pub fn vm(name: &str, attachment: &dwcp_api::Attachment) -> VmInfo {
    VmInfo {
        name: name.to_owned(),
        attachment: attachment.clone(),
        state: "running".into(),
        ram_bytes: 1 << 30,
        tracker: "userfaultfd".into(),
        vmm: "qemu 7.2.22".into(),
        note: String::new(),
    }
}

pub fn status(id: MigrationId, vm: &str, report: Option<MigrationReport>) -> MigrationStatus {
    MigrationStatus {
        id,
        vm: vm.to_owned(),
        role: Role::Source,
        peer: "b".into(),
        phase: match &report {
            Some(report) if report.result == RunResult::DryRun => PhaseName::DryRun,
            Some(_) => PhaseName::Complete,
            None => PhaseName::Precopy,
        },
        progress: Progress {
            round: 1,
            pages_left: 1000,
            pages_in_round: 2000,
            wire_bytes: 4_096_000,
            bytes_per_s: 1e8,
            dirty_pages_per_s: 500.0,
            eta_ms: Some((1000, 3000)),
            limit: Limit::Link,
            forecast: None,
            transport: "tcp-uring".into(),
            read_pages: 0,
        },
        path: None,
        rounds: Vec::new(),
        report,
    }
}

pub fn report(id: MigrationId, vm: &str, result: RunResult) -> MigrationReport {
    MigrationReport {
        schema: "dwcp.migration/1".into(),
        id,
        vm: vm.to_owned(),
        role: Role::Source,
        peer: "b".into(),
        dry_run: result == RunResult::DryRun,
        result,
        mode: "datacenter".into(),
        verified: true,
        guest_verified: None,
        rounds: 3,
        queued_ms: 0.0,
        total_ms: 2345.6,
        downtime_ms: 41.5,
        downtime_parts_ms: DowntimePartsMs::default(),
        ram_bytes: 1 << 30,
        wire_bytes: 300 << 20,
        pages: PageCounts {
            zero: 200_000,
            raw: 70_000,
            ..Default::default()
        },
        streams_replaced: 0,
        streams_in_use: 2,
        throttle_percent: 0,
        forecast: None,
        prospect: None,
        postcopy: None,
        streams: 2,
        transport: "tcp-uring".into(),
        tls: None,
        send_method: "vmsplice".into(),
        tracker: "userfaultfd".into(),
        reason: "handed over".into(),
        refused: false,
        connection_lost: false,
        ram_root: Some("0".repeat(32)),
        owner: "destination".into(),
        epoch: 1,
        round_reports: Vec::new(),
        cpu_s: 0.8,
        notes: Vec::new(),
    }
}

/// A data plane that accepts everything: VMs stay attached, every migration is complete at once.
pub fn obedient() -> Script {
    let mut vms: Vec<VmInfo> = Vec::new();
    let mut migrations: Vec<MigrationStatus> = Vec::new();
    Box::new(move |request| {
        Some(match request {
            Request::AttachVm { name, attachment } => {
                vms.retain(|vm| vm.name != *name);
                vms.push(vm(name, attachment));
                Reply::Vm(vm(name, attachment))
            }
            Request::DetachVm { name } => {
                vms.retain(|vm| vm.name != *name);
                Reply::Done
            }
            Request::ListVms => Reply::Vms(vms.clone()),
            Request::StartMigration {
                id, vm, dry_run, ..
            } => {
                let result = if *dry_run {
                    RunResult::DryRun
                } else {
                    RunResult::Completed
                };
                let report = report(*id, vm, result);
                migrations.push(status(*id, vm, Some(report)));
                Reply::Done
            }
            Request::ListMigrations => Reply::Migrations(migrations.clone()),
            Request::Status { id } => match migrations.iter().find(|found| found.id == *id) {
                Some(found) => Reply::Migration(Box::new(found.clone())),
                None => Reply::Error(dwcp_api::ApiError::new(
                    dwcp_api::ErrorCode::NotFound,
                    format!("no migration {id}"),
                )),
            },
            Request::Doctor => Reply::Doctor(Vec::new()),
            _ => Reply::Done,
        })
    })
}
