//! A demo or a bench that a signal ends leaves nothing behind, whenever that comes.

use std::collections::BTreeSet;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::Pid;

/// A loaded machine is slow.
const PATIENCE: Duration = Duration::from_secs(60);

const DEMO: [&str; 5] = ["demo", "--guest", "synthetic", "--size", "512MiB"];
const BENCH: [&str; 4] = ["bench", "goodput", "--link", "100mbit,20ms"];

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

/// Links of benches, and their namespaces.
fn links() -> BTreeSet<String> {
    let names = dwcp_wan::namespace::names().into_iter();
    let namespaces = names.filter(|name| name.starts_with("dwcp-wan-bench-"));
    let links = dwcp_wan::link::list();
    namespaces
        .chain(links.iter().map(ToString::to_string))
        .collect()
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
        .process_group(0)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Whom a signal is sent to.
#[derive(Clone, Copy)]
enum To {
    Process,
    /// All that it has started, too, as a terminal does.
    Group,
}

/// A test sees the links of all.
static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

/// Ends it when `is_ready`, given its folder, and looks for what is left. Not by SIGINT, which shells have ignored by what they
/// start in the background, these tests maybe.
fn ends(to: To, signal: Signal, arguments: &[&str], mut is_ready: impl FnMut(&Path) -> bool) {
    let _alone = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
    let before = links();
    let scratch = tempfile::tempdir().unwrap();
    let mut child = start(arguments, scratch.path());
    until("it does not begin", || {
        assert_eq!(child.try_wait().unwrap(), None, "it has ended by itself");
        is_ready(scratch.path())
    });
    let process = Pid::from_raw(child.id() as i32);
    match to {
        To::Group => killpg(process, signal).unwrap(),
        To::Process => kill(process, signal).unwrap(),
    }
    let status = child.wait().unwrap();
    assert_eq!(status.code(), Some(128 + signal as i32), "{status}");
    assert_eq!(processes_of(scratch.path()), [""; 0]);
    let left: Vec<_> = std::fs::read_dir(scratch.path()).unwrap().collect();
    assert!(left.is_empty(), "{left:?}");
    let left: Vec<_> = links().difference(&before).cloned().collect();
    assert_eq!(left, [""; 0]);
}

fn both_nodes_run(scratch: &Path) -> bool {
    let all = processes_of(scratch);
    all.iter()
        .filter(|line| line.contains("dwcp-dataplane"))
        .count()
        == 2
}

#[test]
fn a_demo() {
    // The second is Ctrl-\, which a terminal sends to all.
    for (to, signal) in [(To::Process, Signal::SIGTERM), (To::Group, Signal::SIGQUIT)] {
        ends(to, signal, &DEMO, both_nodes_run);
    }
}

#[test]
fn a_bench_over_a_link_of_its_own_at_any_moment() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: a link between namespaces: needs root");
        return;
    }
    for signal in [Signal::SIGTERM, Signal::SIGQUIT] {
        ends(To::Process, signal, &BENCH, both_nodes_run);
    }
    for step in 0..10 {
        let moment = Duration::from_millis(20 * step);
        let mut began = None;
        // Signals are heard before its folder is there.
        ends(To::Group, Signal::SIGTERM, &BENCH, |scratch| {
            let is_there = || std::fs::read_dir(scratch).unwrap().next().is_some();
            if began.is_none() && is_there() {
                began = Some(Instant::now());
            }
            began.is_some_and(|began| began.elapsed() >= moment)
        });
    }
}

/// What `nohup` starts does not hear of a terminal that is gone.
#[test]
fn a_signal_that_is_ignored_ends_nothing() {
    let scratch = tempfile::tempdir().unwrap();
    let mut child = Command::new("nohup")
        .arg(env!("CARGO_BIN_EXE_dwcp"))
        .args(["demo", "--guest", "synthetic", "--size", "256MiB"])
        .env("TMPDIR", scratch.path())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    until("no nodes", || both_nodes_run(scratch.path()));
    kill(Pid::from_raw(child.id() as i32), Signal::SIGHUP).unwrap();
    assert!(child.wait().unwrap().success());
}
