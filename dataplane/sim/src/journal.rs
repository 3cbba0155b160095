//! A node's journal: records that survive, and the orders in which they may be written.

use dwcp_proto::{JournalEntry, LastRecord};

use crate::faults::{JournalFault, Side};

/// How far an attempt got in this node's journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Stage {
    Begun,
    Prepared,
    Serving,
    Committed,
    Resumed,
    Refused,
    Aborted,
}

/// What became of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Written {
    Durable,
    Failed(&'static str),
}

/// One node's journal. It outlives the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Journal {
    side: Side,
    attempts: Vec<Attempt>,
    poisoned: bool,
    next_fault: Option<JournalFault>,
}

/// What it holds of an attempt.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
struct Attempt {
    stage: Option<Stage>,
    begun: bool,
    failed: bool,
    postcopy: bool,
    fetching: bool,
}

impl Journal {
    pub(crate) const fn new(side: Side) -> Self {
        Self {
            side,
            attempts: vec![],
            poisoned: false,
            next_fault: None,
        }
    }

    /// An attempt begins; its number is its migration id.
    pub(crate) fn begin(&mut self, attempt: usize) -> Written {
        if self.poisoned {
            return Written::Failed("journal is poisoned");
        }
        self.grow(attempt);
        let of_it = &mut self.attempts[attempt];
        if of_it.stage.is_some() {
            return Written::Failed("it has begun already, or was refused");
        }
        of_it.stage = Some(Stage::Begun);
        of_it.begun = true;
        Written::Durable
    }

    pub(crate) const fn fail_next(&mut self, fault: JournalFault) {
        self.next_fault = Some(fault);
    }

    /// Faults are over: what was about to fail does not.
    pub(crate) const fn calm(&mut self) {
        self.next_fault = None;
    }

    /// A new process reads what is there and may write again.
    pub(crate) const fn reopen(&mut self) {
        self.poisoned = false;
    }

    pub(crate) fn append(&mut self, attempt: usize, entry: &JournalEntry) -> Written {
        self.grow(attempt);
        if self.poisoned {
            return Written::Failed("journal is poisoned");
        }
        if !self.is_allowed(attempt, entry) {
            return Written::Failed("the journal forbids it");
        }
        match self.next_fault.take() {
            None => {}
            Some(JournalFault::NotWritten { times }) => {
                let times = times.saturating_sub(1);
                self.next_fault = (times > 0).then_some(JournalFault::NotWritten { times });
                return Written::Failed("no space left");
            }
            Some(JournalFault::UnknownButThere) => {
                self.apply(attempt, entry);
                self.poisoned = true;
                return Written::Failed("input/output error");
            }
            Some(JournalFault::UnknownAndLost) => {
                self.poisoned = true;
                return Written::Failed("input/output error");
            }
        }
        self.apply(attempt, entry);
        Written::Durable
    }

    pub(crate) const fn is_poisoned(&self) -> bool {
        self.poisoned
    }

    fn attempt(&self, attempt: usize) -> Attempt {
        self.attempts.get(attempt).copied().unwrap_or_default()
    }

    pub(crate) fn stage(&self, attempt: usize) -> Option<Stage> {
        self.attempt(attempt).stage
    }

    pub(crate) fn is_committed(&self, attempt: usize) -> bool {
        matches!(self.stage(attempt), Some(Stage::Committed | Stage::Resumed))
    }

    /// Source: what was handed over needs the pages here.
    pub(crate) fn is_postcopy(&self, attempt: usize) -> bool {
        self.attempt(attempt).postcopy
    }

    /// Destination: pages may be missing.
    pub(crate) fn is_fetching(&self, attempt: usize) -> bool {
        let of_it = self.attempt(attempt);
        of_it.fetching && !of_it.failed
    }

    pub(crate) fn has_failed(&self) -> bool {
        self.attempts.iter().any(|of_it| of_it.failed)
    }

    pub(crate) fn attempts(&self) -> usize {
        self.attempts.len()
    }

    /// The newest attempt that began; it supersedes those before it, ended or not.
    pub(crate) fn newest(&self) -> Option<usize> {
        self.attempts.iter().rposition(|of_it| of_it.begun)
    }

    /// What a restarted process must bring to an end: the attempt's last record.
    pub(crate) fn unfinished(&self, attempt: usize) -> Option<LastRecord> {
        let Attempt { begun, failed, .. } = self.attempt(attempt);
        match (self.side, self.stage(attempt)?) {
            (_, Stage::Begun) if !failed => Some(LastRecord::Begin),
            (Side::Source, Stage::Prepared) => Some(LastRecord::Prepared),
            (Side::Source, Stage::Serving) if !failed => Some(LastRecord::Serving),
            (Side::Destination, Stage::Committed | Stage::Resumed) if self.is_fetching(attempt) => {
                Some(LastRecord::Fetching)
            }
            (Side::Destination, Stage::Committed) if !failed => Some(LastRecord::Committed),
            (Side::Destination, Stage::Refused) if begun => Some(LastRecord::Refused),
            _ => None,
        }
    }

    fn grow(&mut self, attempt: usize) {
        if self.attempts.len() <= attempt {
            self.attempts.resize(attempt + 1, Attempt::default());
        }
    }

    fn apply(&mut self, attempt: usize, entry: &JournalEntry) {
        let of_it = &mut self.attempts[attempt];
        let stage = match entry {
            JournalEntry::PreparedPostcopy => {
                of_it.postcopy = true;
                Stage::Prepared
            }
            JournalEntry::Prepared => Stage::Prepared,
            JournalEntry::Fetching => {
                of_it.fetching = true;
                return;
            }
            JournalEntry::Whole => {
                of_it.fetching = false;
                return;
            }
            JournalEntry::Serving { .. } => Stage::Serving,
            JournalEntry::Committed { .. } => Stage::Committed,
            JournalEntry::Refused => Stage::Refused,
            JournalEntry::Resumed => Stage::Resumed,
            JournalEntry::Aborted { .. } => Stage::Aborted,
            JournalEntry::Failed { .. } => {
                of_it.failed = true;
                return;
            }
        };
        of_it.stage = Some(stage);
    }

    /// The orders that a node's journal keeps, the same as in the daemon's.
    fn is_allowed(&self, attempt: usize, entry: &JournalEntry) -> bool {
        use Stage::{Aborted, Begun, Committed, Prepared, Refused, Resumed, Serving};
        let stage = self.stage(attempt);
        match (self.side, entry) {
            (_, JournalEntry::Failed { .. }) => stage.is_some(),
            (Side::Source, JournalEntry::Prepared | JournalEntry::PreparedPostcopy) => {
                matches!(stage, Some(Begun | Prepared))
            }
            (Side::Source, JournalEntry::Serving { .. }) => {
                matches!(stage, Some(Prepared | Serving))
            }
            (Side::Source, JournalEntry::Committed { .. }) => {
                matches!(stage, Some(Prepared | Serving | Committed))
            }
            (Side::Source, JournalEntry::Aborted { .. }) => {
                matches!(stage, Some(Begun | Prepared | Aborted))
            }
            (Side::Destination, JournalEntry::Committed { .. }) => {
                matches!(stage, Some(Begun | Committed))
            }
            (Side::Destination, JournalEntry::Resumed) => {
                matches!(stage, Some(Committed | Resumed))
            }
            (Side::Destination, JournalEntry::Refused) => {
                matches!(stage, None | Some(Begun | Refused | Aborted))
            }
            (Side::Destination, JournalEntry::Aborted { .. }) => {
                matches!(stage, Some(Begun | Refused | Aborted))
            }
            (Side::Destination, JournalEntry::Fetching) => matches!(stage, Some(Begun)),
            (Side::Destination, JournalEntry::Whole) => matches!(stage, Some(Committed | Resumed)),
            (
                Side::Source,
                JournalEntry::Refused
                | JournalEntry::Resumed
                | JournalEntry::Fetching
                | JournalEntry::Whole,
            )
            | (
                Side::Destination,
                JournalEntry::Prepared
                | JournalEntry::PreparedPostcopy
                | JournalEntry::Serving { .. },
            ) => false,
        }
    }
}
