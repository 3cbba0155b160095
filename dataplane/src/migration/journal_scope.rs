//! What a node writes into its journal about one migration.

use std::sync::Arc;

use dwcp_api::{MigrationId, Role};
use dwcp_journal::{GuestMemory, Record, RecordKind, Unfinished, wall_ms};
use dwcp_proto::{Ending, JournalEntry};

use super::doubt::ASK_AGAIN;
use super::node::Node;

/// Exit code when the journal cannot be trusted any more (`EX_IOERR` of sysexits.h).
const EXIT_JOURNAL: i32 = 74;

/// What this node writes into its journal about one migration.
#[derive(Clone, Debug)]
pub(super) struct JournalScope {
    pub(super) migration: MigrationId,
    pub(super) vm: String,
    pub(super) role: Role,
    pub(super) peer_node: String,
    pub(super) peer_address: String,
    /// Its connections are TLS.
    pub(super) tls: bool,
    /// Of the source's ownership before the move.
    pub(super) epoch: u64,
    /// Destination in post-copy: the guest's memory here.
    pub(super) memory: GuestMemory,
}

impl From<&Unfinished> for JournalScope {
    fn from(unfinished: &Unfinished) -> Self {
        let record = &unfinished.last;
        Self {
            migration: record.migration,
            vm: record.vm.clone(),
            role: record.role,
            peer_node: record.peer_node.clone(),
            peer_address: record.peer_address.clone(),
            tls: record.tls,
            epoch: record.epoch.saturating_sub(record.kind.epochs_ahead()),
            memory: unfinished.fetching.clone().unwrap_or_default(),
        }
    }
}

impl JournalScope {
    /// Makes a record durable.
    pub(super) fn write(&self, node: &Node, kind: RecordKind) -> Result<(), String> {
        let record = Record {
            sequence: 0,
            migration: self.migration,
            vm: self.vm.clone(),
            role: self.role,
            peer_node: self.peer_node.clone(),
            peer_address: self.peer_address.clone(),
            tls: self.tls,
            epoch: self.epoch + kind.epochs_ahead(),
            wall_ms: wall_ms(),
            kind,
        };
        node.journal().append(&record).map(drop).map_err(|error| {
            if !error.is_not_written() {
                // A restart may find the record or not, and this process can act on neither. The
                // service manager starts it again, and the journal that is read then decides.
                tracing::error!(%error, "the journal is unusable: this data plane ends");
                std::process::exit(EXIT_JOURNAL);
            }
            error.to_string()
        })
    }

    /// Who owns the VM at the end, and at which epoch, by what this node knows.
    pub(super) fn owner_after(&self, node: &Node, end: Ending) -> (&'static str, u64) {
        let state = node.journal().state();
        match end {
            Ending::Completed => ("destination", self.epoch + 1),
            // It could not be run there, or its operator has given it up here: it is the destination's all the same.
            Ending::Failed if state.committed(self.migration) => ("destination", self.epoch + 1),
            Ending::Failed => ("unknown", self.epoch),
            // One more than was handed over, where an operator has taken it back.
            Ending::Aborted if self.role == Role::Source => ("source", state.epoch_of(&self.vm)),
            Ending::Aborted => ("source", self.epoch),
        }
    }

    /// Makes an entry durable that could not be written, as soon as it can, if it tells what has happened: that is so
    /// whether it is written or not, and without it the next start would ask once more. What is only to happen is
    /// not written later.
    pub(super) fn write_at_last(&self, node: &Arc<Node>, entry: &JournalEntry) {
        let has_happened = match (self.role, entry) {
            (Role::Source, JournalEntry::Committed { .. } | JournalEntry::Serving { .. })
            | (Role::Destination, JournalEntry::Resumed | JournalEntry::Whole)
            | (_, JournalEntry::Aborted { .. } | JournalEntry::Failed { .. }) => true,
            (Role::Source | Role::Destination, _) => false,
        };
        if !has_happened {
            return;
        }
        let (scope, node, entry) = (self.clone(), Arc::clone(node), entry.clone());
        let write = move || {
            while scope.is_open(&node) {
                std::thread::sleep(ASK_AGAIN);
                if scope.write_entry(&node, &entry).is_ok() {
                    tracing::info!(vm = scope.vm, ?entry, "journal: written at last");
                    return;
                }
            }
        };
        let thread = std::thread::Builder::new().name("dwcp-recover".into());
        if let Err(error) = thread.spawn(write) {
            tracing::error!(%error, "the next start of this data plane writes it");
        }
    }

    /// Whether the journal still waits for an end of the migration.
    fn is_open(&self, node: &Node) -> bool {
        let open = node.journal().state().unfinished();
        open.iter()
            .any(|open| open.migration == self.migration && open.role == self.role)
    }

    /// Makes an entry of the protocol durable.
    pub(super) fn write_entry(&self, node: &Node, entry: &JournalEntry) -> Result<(), String> {
        let kind = match entry {
            JournalEntry::Prepared => RecordKind::Prepared,
            JournalEntry::PreparedPostcopy => RecordKind::PreparedPostcopy,
            JournalEntry::Committed { .. } => RecordKind::Committed,
            JournalEntry::Serving { .. } => RecordKind::Serving,
            JournalEntry::Fetching => RecordKind::Fetching {
                memory: self.memory.clone(),
            },
            JournalEntry::Whole => RecordKind::Whole,
            JournalEntry::Refused => RecordKind::Refused,
            JournalEntry::Resumed => RecordKind::Resumed,
            JournalEntry::Aborted { reason } => RecordKind::Aborted {
                reason: reason.clone(),
            },
            JournalEntry::Failed { reason } => RecordKind::Failed {
                reason: reason.clone(),
            },
        };
        self.write(node, kind)
    }
}
