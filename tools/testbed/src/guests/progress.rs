//! Whether a workload goes on after a move, by its own account.

use super::serial::SerialLog;

/// One of the lines that a workload prints each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkLine {
    /// Seconds since it began, by the guest's clock.
    pub seconds: u64,
    /// Work done: transactions, writes and compilations, or seconds.
    pub done: u64,
}

/// Lines that a moved guest must have printed: one could have been on its way.
const LINES_AFTER: usize = 3;

impl WorkLine {
    /// Reads a line; `None` when it is something else, or half of one.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_end().strip_prefix("DWCP WORK t=")?;
        let (seconds, done) = rest.split_once(" done=")?;
        Some(Self {
            seconds: seconds.parse().ok()?,
            done: done.parse().ok()?,
        })
    }
}

impl SerialLog {
    /// Whether its workload is warm.
    #[must_use]
    pub fn is_warm(&self) -> bool {
        let is_it = |line: &String| line.starts_with("DWCP READY workload=");
        self.lines().iter().any(is_it)
    }

    /// All that its workload says.
    #[must_use]
    pub fn work(&self) -> Vec<WorkLine> {
        let lines = self.lines();
        lines
            .iter()
            .filter_map(|line| WorkLine::parse(line))
            .collect()
    }
}

/// Whether the workload of `source` goes on at `destination`: the work that it has done there, `None`
/// when it has not said enough yet.
///
/// # Errors
/// Why it does not.
pub fn goes_on(source: &SerialLog, destination: &SerialLog) -> Result<Option<u64>, String> {
    if let Some(failure) = destination.failure() {
        return Err(format!("the guest failed at the destination: {failure}"));
    }
    for sign in [
        "Kernel panic",
        "BUG:",
        "Oops:",
        "DWCP STEP started",
        "segfault at",
    ] {
        if destination.text().contains(sign) {
            return Err(format!("the guest says `{sign}` at the destination"));
        }
    }
    let before = source.work();
    let Some(&last) = before.last() else {
        return Err("the guest said nothing at the source".into());
    };
    let after = destination.work();
    let mut previous = last;
    for &line in &after {
        if line.seconds <= previous.seconds || line.done < previous.done {
            return Err(format!("{line:?} does not go on from {previous:?}"));
        }
        previous = line;
    }
    let done = previous.done - last.done;
    Ok((after.len() >= LINES_AFTER && done > 0).then_some(done))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &std::path::Path, name: &str, text: &str) -> SerialLog {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        SerialLog::new(path)
    }

    fn judge(destination: &str) -> Result<Option<u64>, String> {
        let folder = tempfile::tempdir().unwrap();
        let source =
            "DWCP READY workload=idle\r\nDWCP WORK t=1 done=10\nDWCP WORK t=2 done=20\nDWCP WO";
        let source = log(folder.path(), "a", source);
        assert!(source.is_warm());
        goes_on(&source, &log(folder.path(), "b", destination))
    }

    #[test]
    fn a_workload_that_goes_on_says_how_much_it_did() {
        assert_eq!(judge(""), Ok(None));
        let lines = "RK t=3 done=30\nDWCP WORK t=4 done=31\r\nDWCP WORK t=5 done=31\nDWCP WORK t=6 done=40\n";
        assert_eq!(judge(lines), Ok(Some(20)));
    }

    #[test]
    fn standing_still_is_not_going_on() {
        let lines = "DWCP WORK t=4 done=20\nDWCP WORK t=5 done=20\nDWCP WORK t=6 done=20\n";
        assert_eq!(judge(lines), Ok(None));
    }

    #[test]
    fn everything_else_is_named() {
        for (text, why) in [
            ("DWCP WORK t=3 done=19\n", "go on"),
            ("DWCP WORK t=2 done=30\n", "go on"),
            ("DWCP FAILED pgbench ended\n", "pgbench"),
            ("DWCP STEP started\n", "STEP"),
            ("[ 1.0] Kernel panic - not syncing\n", "panic"),
        ] {
            let reason = judge(text).unwrap_err();
            assert!(reason.contains(why), "{text}: {reason}");
        }
    }
}
