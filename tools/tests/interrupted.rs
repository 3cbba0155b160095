//! A demo or a bench that a signal ends leaves nothing behind.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Processes whose arguments name the folder.
fn processes_of(folder: &Path) -> Vec<String> {
    let folder = folder.to_string_lossy().into_owned();
    let entries = std::fs::read_dir("/proc").unwrap().flatten();
    let lines = entries.filter_map(|entry| {
        let line = std::fs::read(entry.path().join("cmdline")).ok()?;
        Some(String::from_utf8_lossy(&line).replace('\0', " "))
    });
    lines.filter(|line| line.contains(&folder)).collect()
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn start(arguments: &[&str], scratch: &Path) -> Child {
    Command::new(env!("CARGO_BIN_EXE_dwcp"))
        .args(arguments)
        .env("TMPDIR", scratch)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Ends it once both nodes' daemons are there and `is_ready`, and looks for what is left.
fn ends_by(signal: Signal, arguments: &[&str], is_ready: impl Fn(u32) -> bool) {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = start(arguments, scratch.path());
    until("no daemons", || {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended by itself");
        let all = processes_of(scratch.path());
        let of = |name| all.iter().filter(|line| line.contains(name)).count();
        of("dwcp-dataplane") == 2 && is_ready(child.id())
    });
    kill(Pid::from_raw(child.id() as i32), signal).unwrap();
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(128 + signal as i32), "{status}");
    assert_eq!(processes_of(scratch.path()), [""; 0]);
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
}

#[test]
fn a_demo() {
    let demo = ["demo", "--guest", "synthetic", "--size", "512MiB"];
    ends_by(Signal::SIGTERM, &demo, |_| true);
}

#[test]
fn a_bench_over_a_link_of_its_own() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a link between namespaces: needs root");
        return;
    }
    let bench = ["bench", "goodput", "--link", "100mbit,20ms"];
    let of = |pid: u32| {
        let names = dwcp_wan::namespace::names();
        let own = format!("bench-{pid}-");
        names.iter().filter(|name| name.contains(&own)).count()
    };
    let process = std::cell::Cell::new(0);
    ends_by(Signal::SIGINT, &bench, |pid| {
        process.set(pid);
        of(pid) == 2
    });
    assert_eq!(of(process.get()), 0);
}
