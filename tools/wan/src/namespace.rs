//! Network namespaces by name, as `ip netns` keeps them.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sched::{CloneFlags, setns};

const FOLDER: &str = "/run/netns";

/// A TCP buffer holds what a long link holds; what one connection learnt is not the next one's
/// (runs are to be comparable); no packet of IPv6's own takes a place among the seeded decisions.
const SETTINGS: [(&str, &str); 5] = [
    ("ipv4/tcp_rmem", "4096 131072 134217728"),
    ("ipv4/tcp_wmem", "4096 65536 134217728"),
    ("ipv4/tcp_no_metrics_save", "1"),
    ("ipv6/conf/all/disable_ipv6", "1"),
    ("ipv6/conf/default/disable_ipv6", "1"),
];

/// Where a namespace is to be found.
#[must_use]
pub fn path(name: &str) -> PathBuf {
    Path::new(FOLDER).join(name)
}

/// Those that are there.
#[must_use]
pub fn names() -> Vec<String> {
    let entries = fs::read_dir(FOLDER).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    names.collect()
}

/// Makes one, with its loopback up and its TCP fit for long links.
///
/// # Errors
/// What `ip` said.
pub(crate) fn add(name: &str) -> io::Result<()> {
    ip(&["netns", "add", name])?;
    ip(&["-n", name, "link", "set", "lo", "up"])?;
    within(name, || {
        for (setting, value) in SETTINGS {
            let path = Path::new("/proc/sys/net").join(setting);
            // A kernel without IPv6 has no such setting, and needs none.
            if path.exists() {
                fs::write(path, value)?;
            }
        }
        Ok(())
    })
}

/// Takes one away, if it is there.
///
/// # Errors
/// What `ip` said.
pub fn remove(name: &str) -> io::Result<bool> {
    if !path(name).exists() {
        return Ok(false);
    }
    ip(&["netns", "del", name])?;
    Ok(true)
}

/// Runs `work` on a thread of that namespace: sockets made there belong there.
///
/// # Errors
/// From the system, or `work`'s own.
pub fn within<T: Send>(name: &str, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    let path = path(name);
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            let file = File::open(&path).map_err(|error| {
                io::Error::new(error.kind(), format!("{}: {error}", path.display()))
            })?;
            setns(file, CloneFlags::CLONE_NEWNET)?;
            work()
        });
        let outcome = thread.join();
        outcome.map_err(|_| io::Error::other("a thread in a namespace panicked"))?
    })
}

/// Runs `ip` of iproute2.
///
/// # Errors
/// What it said.
pub fn ip(arguments: &[&str]) -> io::Result<()> {
    run("ip", arguments)
}

/// Runs a program of iproute2.
///
/// # Errors
/// What it said.
pub fn run(program: &str, arguments: &[&str]) -> io::Result<()> {
    let output = Command::new(program)
        .args(arguments)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| io::Error::other(format!("{program} of iproute2: {error}")))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.split_whitespace().collect::<Vec<_>>().join(" ");
    let command = arguments.join(" ");
    Err(io::Error::other(format!("{program} {command}: {said}")))
}
