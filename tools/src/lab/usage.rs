//! What a daemon holds, as the kernel counts it.

use std::fs;
use std::process::Child;

use serde::Serialize;

/// What a process holds. All zero for one that does not run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Usage {
    /// Memory of its own (`RssAnon`); what it maps of others does not count.
    pub bytes: u64,
    /// Open descriptors.
    pub descriptors: u64,
    /// Threads.
    pub threads: u64,
}

impl Usage {
    pub(super) fn of(child: Option<&Child>) -> Self {
        child.map_or_else(Self::default, |child| Self::of_pid(child.id()))
    }

    fn of_pid(pid: u32) -> Self {
        let count = |folder: &str| {
            let entries = fs::read_dir(format!("/proc/{pid}/{folder}"));
            entries.map_or(0, |entries| entries.count() as u64)
        };
        let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
        let own = status
            .lines()
            .find_map(|line| line.strip_prefix("RssAnon:"));
        let kib = own.and_then(|kib| kib.trim().trim_end_matches(" kB").parse::<u64>().ok());
        Self {
            bytes: kib.unwrap_or(0) * 1024,
            descriptors: count("fd"),
            threads: count("task"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_this_process_holds_is_counted() {
        let pid = std::process::id();
        let before = Usage::of_pid(pid);
        assert!(before.bytes > 0 && before.descriptors >= 3 && before.threads >= 1);
        // Other tests open files, too: more than they do.
        let files: Vec<_> = (0..200)
            .map(|_| fs::File::open("/dev/null").unwrap())
            .collect();
        assert!(Usage::of_pid(pid).descriptors >= before.descriptors + 150);
        drop(files);
        assert_eq!(Usage::of(None), Usage::default());
    }
}
