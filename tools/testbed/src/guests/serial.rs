//! What a guest says of itself on its serial port.

use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};

/// One of the lines that a guest prints each second.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct TickLine {
    /// Seconds since it was ready, by its own clock.
    pub seconds: u64,
    /// Pages rewritten.
    pub writes: u64,
    /// Pages checked by the pass over all of them.
    pub verified: u64,
    /// Pages found wrong.
    pub bad: u64,
    /// Longest time between two turns of its loop, by its own clock.
    pub max_gap_ms: u64,
}

impl TickLine {
    /// Reads a line; `None` when it is something else, or half of one.
    #[must_use]
    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.trim_end().strip_prefix("DWCP ")?.split(' ');
        let mut next = |key: &str| -> Option<u64> {
            words
                .next()?
                .strip_prefix(key)?
                .strip_prefix('=')?
                .parse()
                .ok()
        };
        Some(Self {
            seconds: next("T")?,
            writes: next("writes")?,
            verified: next("verified")?,
            bad: next("bad")?,
            max_gap_ms: next("max_gap_ms")?,
        })
    }
}

/// The serial log of one QEMU, a growing file.
#[derive(Debug, Clone)]
pub struct SerialLog {
    path: PathBuf,
    /// Of a guest that became ready elsewhere.
    filled_mib: Option<u64>,
}

impl SerialLog {
    /// The log in that file, which need not exist yet.
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            filled_mib: None,
        }
    }

    /// The guest of this log is that of an earlier one, and was moved.
    pub fn goes_on_from(&mut self, earlier: &Self) {
        self.filled_mib = earlier.filled_mib();
    }

    /// MiB that the guest filled, here or before it came.
    #[must_use]
    pub fn filled_mib(&self) -> Option<u64> {
        self.ready_mib().or(self.filled_mib)
    }

    /// Its file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// All of it, as it is now.
    #[must_use]
    pub fn text(&self) -> String {
        // No file yet is an empty log; a firmware may print anything.
        String::from_utf8_lossy(&fs::read(&self.path).unwrap_or_default()).into_owned()
    }

    /// Whole lines of it. A line cut by a migration is in neither log.
    pub(super) fn lines(&self) -> Vec<String> {
        let text = self.text();
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        whole.lines().map(str::to_owned).collect()
    }

    /// MiB that the guest filled, once it is ready.
    #[must_use]
    pub fn ready_mib(&self) -> Option<u64> {
        self.lines().iter().find_map(|line| {
            line.trim_end()
                .strip_prefix("DWCP READY filled_mib=")
                .and_then(|mib| mib.parse().ok())
        })
    }

    /// What the guest said when it could not work.
    #[must_use]
    pub fn failure(&self) -> Option<String> {
        let lines = self.lines();
        lines.iter().find_map(|line| {
            line.split_once("DWCP FAILED ")
                .map(|(_, why)| why.to_owned())
        })
    }

    /// How the program ended that the guest was started for.
    #[must_use]
    pub fn exit_code(&self) -> Option<i32> {
        self.lines().iter().find_map(|line| {
            line.trim_end()
                .strip_prefix("DWCP EXIT ")
                .and_then(|code| code.parse().ok())
        })
    }

    /// Every tick so far.
    #[must_use]
    pub fn ticks(&self) -> Vec<TickLine> {
        self.lines()
            .iter()
            .filter_map(|line| TickLine::parse(line))
            .collect()
    }

    /// The newest tick.
    #[must_use]
    pub fn latest(&self) -> Option<TickLine> {
        self.ticks().pop()
    }
}

/// Whether a guest came through a move, by its own account.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Verdict {
    /// True when the guest goes on where it was and found no bad page.
    pub ok: bool,
    /// Why not.
    pub reason: Option<String>,
    /// Whether the destination checked every page since the move, so that `ok` covers all of RAM.
    pub full_pass: bool,
    /// The source's last word.
    pub source: Option<TickLine>,
    /// The destination's newest.
    pub destination: Option<TickLine>,
}

/// Compares the two logs of one guest: the destination's ticks must go on from the source's counters,
/// all of them without a bad page.
#[must_use]
pub fn verify(source: &SerialLog, destination: &SerialLog) -> Verdict {
    let (before, after) = (source.ticks(), destination.ticks());
    let pages = source.filled_mib().map(|mib| mib << 8);
    let full_pass = match (before.last(), after.last(), pages) {
        (Some(before), Some(after), Some(pages)) => {
            after.verified.saturating_sub(before.verified) >= pages
        }
        _ => false,
    };
    let reason = why_not(&before, &after, destination);
    Verdict {
        ok: reason.is_none(),
        reason,
        full_pass,
        source: before.last().copied(),
        destination: after.last().copied(),
    }
}

fn why_not(before: &[TickLine], after: &[TickLine], destination: &SerialLog) -> Option<String> {
    if let Some(failure) = destination.failure() {
        return Some(format!("the guest failed at the destination: {failure}"));
    }
    if destination.ready_mib().is_some() {
        return Some("the guest started anew at the destination".into());
    }
    let Some(last) = before.last() else {
        return Some("the guest said nothing at the source".into());
    };
    if after.is_empty() {
        return Some("the guest said nothing at the destination".into());
    }
    let mut previous = last;
    for tick in after {
        if tick.seconds <= previous.seconds
            || tick.writes < previous.writes
            || tick.verified < previous.verified
        {
            return Some(format!("{tick:?} does not go on from {previous:?}"));
        }
        previous = tick;
    }
    let bad = before
        .iter()
        .chain(after)
        .map(|tick| tick.bad)
        .max()
        .unwrap_or(0);
    (bad > 0).then(|| format!("{bad} bad pages"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(folder: &Path, name: &str, text: &str) -> SerialLog {
        let path = folder.join(name);
        fs::write(&path, text).expect("write");
        SerialLog::new(path)
    }

    const SOURCE: &str = "SeaBIOS\r\nDWCP READY filled_mib=1\n\
        DWCP T=1 writes=10 verified=100 bad=0 max_gap_ms=3\n\
        DWCP T=2 writes=20 verified=200 bad=0 max_gap_ms=3\nDWCP T=3 writes=3";

    fn judge(destination: &str) -> Verdict {
        let folder = tempfile::tempdir().expect("folder");
        let source = log(folder.path(), "a", SOURCE);
        assert_eq!((source.ready_mib(), source.ticks().len()), (Some(1), 2));
        verify(&source, &log(folder.path(), "b", destination))
    }

    #[test]
    fn a_guest_that_goes_on_is_verified() {
        let verdict = judge(
            "0 verified=300 bad=0 max_gap_ms=9\n\
             DWCP T=4 writes=40 verified=400 bad=0 max_gap_ms=9\n",
        );
        assert!(verdict.ok && !verdict.full_pass, "{verdict:?}");
        let verdict = judge("DWCP T=4 writes=40 verified=456 bad=0 max_gap_ms=9\r\n");
        assert!(verdict.ok && verdict.full_pass, "{verdict:?}");
    }

    #[test]
    fn everything_else_is_not() {
        for (destination, why) in [
            ("", "said nothing"),
            (
                "DWCP T=3 writes=30 verified=300 bad=1 max_gap_ms=9\n",
                "bad pages",
            ),
            (
                "DWCP T=3 writes=3 verified=300 bad=0 max_gap_ms=9\n",
                "go on",
            ),
            (
                "DWCP T=2 writes=30 verified=300 bad=0 max_gap_ms=9\n",
                "go on",
            ),
            (
                "DWCP READY filled_mib=1\nDWCP T=3 writes=30 verified=300 bad=0 max_gap_ms=9\n",
                "anew",
            ),
            ("DWCP FAILED panic\n", "panic"),
        ] {
            let verdict = judge(destination);
            let reason = verdict.reason.unwrap_or_default();
            assert!(
                !verdict.ok && reason.contains(why),
                "{destination}: {reason}"
            );
        }
    }
}
