//! The system calls of the hot path: what the workers of two real data planes ask of the kernel
//! while a known number of pages goes from one to the other, counted by ptrace.
//!
//! `cargo test -p dwcp-dataplane --test hot_path_calls -- --nocapture` prints the counts.

mod common;

use std::collections::BTreeMap;

use common::calls::{Counted, Counts, Tracer, call_name};
use common::daemon::Daemon;
use common::{TestGuest, settings};
use dwcp_api::dataplane::Request;
use dwcp_api::{IoPath, MigrationId, MigrationReport, RunResult, SendChoice, TransferSettings};
use dwcp_guest_page::Kind;
use dwcp_testbed::synthetic::SyntheticOptions;
use dwcp_wire::limits::FRAME_DATA_PAGES_MAX;
use nix::libc;

const RAM_MIB: u64 = 128;

/// Threads of the path, as they are named.
const WORKERS: [&str; 2] = ["dwcp-recv-", "dwcp-send-"];

/// Calls that move the bytes of frames and wait for them.
const MOVES_BYTES: [i64; 9] = [
    libc::SYS_io_uring_enter,
    libc::SYS_vmsplice,
    libc::SYS_splice,
    libc::SYS_sendto,
    libc::SYS_sendmsg,
    libc::SYS_recvmsg,
    libc::SYS_poll,
    libc::SYS_madvise,
    libc::SYS_sendfile,
];

/// For the 64 pages of a frame. Three to six are seen; a socket that gives its bytes in smaller
/// pieces takes more. One for each page would be 64.
const CALLS_PER_FRAME_MAX: u64 = 16;

/// Of a worker, for all of its life: its start, its ring, its mailbox. About 60 are seen. One for
/// each frame would be some hundreds.
const CALLS_BESIDE_MAX: u64 = 150;

/// Of a worker, for all of its life: a lock that was contended while it was started or ended.
const FUTEX_CALLS_MAX: u64 = 10;

/// An idle guest without a zero page: how many pages are sent is known.
fn full(incoming: bool) -> SyntheticOptions {
    SyntheticOptions {
        ram_mib: RAM_MIB,
        hot_mib: 1,
        rate: 0,
        verify_rate: 0,
        kind: Kind::Random,
        incoming,
        prealloc: incoming,
        ..SyntheticOptions::default()
    }
}

/// Moves the guest; gives what the source says and what each worker called. `None` when the system
/// permits no tracing.
fn moved(io: &str, settings: &TransferSettings) -> Option<(MigrationReport, Vec<Counted>)> {
    let folder = tempfile::tempdir().unwrap();
    let mut a = Daemon::start(folder.path(), "a", ("127.0.0.1:0", io));
    let mut b = Daemon::start(folder.path(), "b", ("127.0.0.1:0", io));
    let old = TestGuest::start(folder.path(), "source", &full(false));
    let new = TestGuest::start(folder.path(), "destination", &full(true));
    a.attach(&old);
    b.attach(&new);
    let tracer = match Tracer::start(vec![a.pid(), b.pid()]) {
        Ok(tracer) => tracer,
        Err(errno) => {
            println!("skipped: system calls are not counted, ptrace is not permitted: {errno}");
            return None;
        }
    };
    let id = MigrationId(7);
    a.ask(&Request::StartMigration {
        id,
        vm: "vm".into(),
        destination: b.listen.clone(),
        destination_name: None,
        settings: settings.clone(),
        dry_run: false,
    });
    let report = a.report(id);
    assert_eq!(report.result, RunResult::Completed, "{}", report.reason);
    let there = b.report(id);
    assert_eq!(there.ram_root, report.ram_root);
    drop((a, b));
    let mut threads = tracer.finish();
    threads.retain(|counted| WORKERS.iter().any(|name| counted.thread.starts_with(name)));
    threads.sort_by(|one, other| other.thread.cmp(&one.thread));
    Some((report, threads))
}

/// What both ends' workers of one role called.
#[derive(Default)]
struct Role {
    workers: u64,
    calls: Counts,
}

impl Role {
    fn calls_that(&self, wanted: impl Fn(i64) -> bool) -> u64 {
        let wanted = self.calls.iter().filter(|(number, _)| wanted(**number));
        wanted.map(|(_, count)| count).sum()
    }

    /// The bytes of a frame, and what waits for them, cost a few calls; anything else is setting up,
    /// and does not grow with the pages.
    fn check(&self, role: &str, frames: u64) {
        let moving = self.calls_that(|number| MOVES_BYTES.contains(&number));
        let beside = self.calls_that(|number| !MOVES_BYTES.contains(&number));
        assert!(self.workers > 0, "no worker {role} was seen");
        let most = frames * CALLS_PER_FRAME_MAX;
        let most_beside = self.workers * CALLS_BESIDE_MAX;
        let seen = listed(&self.calls);
        assert!(
            moving > frames,
            "{role}: {frames} frames by {moving} calls: {seen}"
        );
        assert!(
            moving <= most,
            "{role}: {moving} calls, {most} allowed: {seen}"
        );
        assert!(
            beside <= most_beside,
            "{role}: {beside} calls that move no bytes, {most_beside} allowed: {seen}"
        );
        let hand_overs = self.calls_that(|number| number == libc::SYS_futex);
        let most = self.workers * FUTEX_CALLS_MAX;
        assert!(
            hand_overs <= most,
            "{role}: {hand_overs} futex calls: {seen}"
        );
    }
}

fn roles(threads: &[Counted]) -> BTreeMap<&'static str, Role> {
    let mut roles: BTreeMap<_, Role> = WORKERS.map(|name| (name, Role::default())).into();
    for counted in threads {
        let of_worker = |(name, _): &(&&str, &mut Role)| counted.thread.starts_with(**name);
        let Some((_, role)) = roles.iter_mut().find(of_worker) else {
            continue;
        };
        role.workers += 1;
        for (number, count) in &counted.calls {
            *role.calls.entry(*number).or_default() += count;
        }
    }
    roles
}

/// By name, the most frequent first; the rare ones of setting up in one sum.
fn listed(calls: &Counts) -> String {
    let mut calls: Vec<_> = calls
        .iter()
        .map(|(number, count)| (*number, *count))
        .collect();
    calls.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let (often, rare): (Vec<_>, Vec<_>) = calls.into_iter().partition(|(_, count)| *count > 10);
    let often = often
        .into_iter()
        .map(|(number, count)| format!("{} {count}", call_name(number)));
    let rare: u64 = rare.into_iter().map(|(_, count)| count).sum();
    often
        .chain([format!("others {rare}")])
        .collect::<Vec<_>>()
        .join(", ")
}

fn print(case: &str, pages: u64, frames: u64, threads: &[Counted]) {
    println!("\n{case}: {pages} pages with data, {frames} frames\n");
    println!("{:<12} {:>6}  calls by name", "worker", "calls");
    for counted in threads {
        let (thread, total) = (&counted.thread, counted.calls.values().sum::<u64>());
        println!("{thread:<12} {total:>6}  {}", listed(&counted.calls));
    }
    for (name, role) in roles(threads) {
        let total = role.calls_that(|_| true) as f64;
        println!(
            "{name}*: {:.2} calls per frame, {:.3} per page",
            total / frames as f64,
            total / pages as f64
        );
    }
}

#[test]
fn a_page_costs_no_system_call() {
    for (io, name) in [(IoPath::Uring, "uring"), (IoPath::Poll, "poll")] {
        let ring = io_uring::IoUring::new(2);
        if let (IoPath::Uring, Err(error)) = (io, ring) {
            println!("skipped: system calls over io_uring are not counted: {error}");
            continue;
        }
        for send in [SendChoice::Vmsplice, SendChoice::Write] {
            let settings = TransferSettings {
                io,
                send,
                ..settings()
            };
            let Some((report, threads)) = moved(name, &settings) else {
                return;
            };
            let pages = report.pages.raw;
            assert!(pages >= RAM_MIB << 8, "{pages} pages were sent");
            let frames = pages.div_ceil(FRAME_DATA_PAGES_MAX as u64);
            let case = format!("{}, {}", report.transport, report.send_method);
            print(&case, pages, frames, &threads);
            for (name, role) in roles(&threads) {
                role.check(name, frames);
            }
        }
    }
}
