//! What happened, as a hash always and as lines when somebody wants to read them.

use crate::rng::mix;

/// The record of a run. Two runs of one seed have equal hashes, or the simulation is broken.
#[derive(Debug, Default)]
pub(crate) struct Trace {
    hash: u64,
    steps: u64,
    lines: Option<Vec<String>>,
}

impl Trace {
    /// An empty record, that keeps lines or not.
    #[must_use]
    pub(crate) fn new(keep_lines: bool) -> Self {
        Self {
            hash: 0,
            steps: 0,
            lines: keep_lines.then(Vec::new),
        }
    }

    /// Adds a step: `tag` and two numbers count for the hash, `detail` for people.
    pub(crate) fn note(
        &mut self,
        now: u64,
        tag: &'static str,
        numbers: [u64; 2],
        detail: impl FnOnce() -> String,
    ) {
        self.steps += 1;
        let mut hash = mix(self.hash ^ now);
        for word in tag.as_bytes().chunks(8) {
            let word = word
                .iter()
                .fold(0, |sum, &byte| (sum << 8) | u64::from(byte));
            hash = mix(hash ^ word);
        }
        self.hash = mix(hash ^ numbers[0].rotate_left(32) ^ numbers[1]);
        if let Some(lines) = &mut self.lines {
            let (ms, us) = (now / 1_000_000, now / 1000 % 1000);
            lines.push(format!("{ms:>7}.{us:03} ms  {tag:<22} {}", detail()));
        }
    }

    /// Whether lines are kept.
    #[must_use]
    pub(crate) const fn keeps_lines(&self) -> bool {
        self.lines.is_some()
    }

    /// Hash over all steps.
    #[must_use]
    pub(crate) const fn hash(&self) -> u64 {
        self.hash
    }

    /// Steps so far.
    #[must_use]
    pub(crate) const fn steps(&self) -> u64 {
        self.steps
    }

    /// The lines, when they were kept.
    #[must_use]
    pub(crate) fn lines(&self) -> &[String] {
        self.lines.as_deref().unwrap_or_default()
    }
}
