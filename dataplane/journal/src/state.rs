//! Records folded into answers. Pure.

use std::collections::BTreeMap;

use dwcp_api::{Attachment, MigrationId, Role, node::Ownership};

use crate::order::is_allowed;
use crate::{GuestMemory, JournalError, Record, RecordKind};

/// How far a migration got at this node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// Under way; the source owns the VM.
    Begun,
    /// Source: the handover message may have left.
    Prepared,
    /// Source: the destination owns the VM, and some of its pages are here.
    Serving,
    /// The destination owns the VM.
    Committed,
    /// Destination: owns the VM, and the guest runs.
    Resumed,
    /// Destination: promised never to commit; its copy may still be loaded.
    Refused,
    /// Over; the source owns the VM, and no copy of it is loaded at the destination.
    Aborted,
    /// Source: an operator took the guest back; the destination does not know it yet.
    TakenBack,
    /// Destination: committed, and given up since: the source's operator took the guest back.
    Yielded,
}

/// A migration that a restarted daemon must bring to an end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unfinished {
    /// Which.
    pub migration: MigrationId,
    /// VM name.
    pub vm: String,
    /// This node's part.
    pub role: Role,
    /// Name of the other node.
    pub peer_node: String,
    /// `host:port` of its data plane.
    pub peer_address: String,
    /// Epoch of the newest record.
    pub epoch: u64,
    /// How the VM was reached when it began.
    pub attachment: Option<Attachment>,
    /// How far it got.
    pub stage: Stage,
    /// Source: what was handed over needs the guest's RAM here.
    pub postcopy: bool,
    /// Destination: pages of the guest may be missing; how its memory is reached.
    pub fetching: Option<GuestMemory>,
    /// Its newest record.
    pub last: Record,
    /// A newer migration of the same VM has begun here: the VM is that one's, not this one's.
    pub superseded: bool,
    /// It has said that a person must look, and none has yet.
    pub failed: bool,
    /// A person has looked, and wants to hear no more of it.
    pub is_closed: bool,
}

#[derive(Clone, Debug)]
struct Migration {
    stage: Stage,
    failed: bool,
    /// A person has seen that it failed.
    looked_after: bool,
    /// Source: an operator took the guest back; it is this node's to run, whatever the destination says later.
    taken_back: bool,
    postcopy: bool,
    /// Between `Fetching` and `Whole`.
    fetching: Option<GuestMemory>,
    attachment: Option<Attachment>,
    /// Sequence of its first record.
    began: u64,
    last: Record,
}

/// What the records say of a VM.
#[derive(Clone, Debug)]
pub(crate) struct Vm {
    pub(crate) owner: Owner,
    pub(crate) epoch: u64,
    /// The migration whose records decide about `owner` now.
    decided_by: MigrationId,
    pub(crate) last: Record,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Owner {
    Here,
    Away,
    InDoubt,
}

/// What the records say of each VM and each migration.
#[derive(Clone, Debug, Default)]
pub struct State {
    migrations: BTreeMap<(MigrationId, bool), Migration>,
    vms: BTreeMap<String, Vm>,
}

impl State {
    /// Folds records, oldest first.
    #[must_use]
    pub fn from_records<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut state = Self::default();
        for record in records {
            state.apply(record);
        }
        state
    }

    /// Adds the next record. Orders were checked when it was written, see [`Self::check`].
    pub fn apply(&mut self, record: &Record) {
        self.apply_to_vm(record);
        let stage = match record.kind {
            RecordKind::Begin { .. } => Some(Stage::Begun),
            RecordKind::Prepared | RecordKind::PreparedPostcopy => Some(Stage::Prepared),
            RecordKind::Committed => Some(Stage::Committed),
            RecordKind::Refused => Some(Stage::Refused),
            RecordKind::Resumed => Some(Stage::Resumed),
            RecordKind::Aborted { .. } => Some(Stage::Aborted),
            RecordKind::Serving => Some(Stage::Serving),
            RecordKind::TakenBack { .. } => Some(Stage::TakenBack),
            RecordKind::Told => Some(Stage::Aborted),
            RecordKind::Yielded => Some(Stage::Yielded),
            RecordKind::Fetching { .. }
            | RecordKind::Whole
            | RecordKind::Failed { .. }
            | RecordKind::LookedAfter => None,
        };
        let migration = self
            .migrations
            .entry(key(record.migration, record.role))
            .or_insert_with(|| Migration {
                stage: Stage::Begun,
                failed: false,
                looked_after: false,
                taken_back: false,
                postcopy: false,
                fetching: None,
                attachment: None,
                began: record.sequence,
                last: record.clone(),
            });
        migration.stage = stage.unwrap_or(migration.stage);
        match &record.kind {
            RecordKind::Failed { .. } => migration.failed = true,
            RecordKind::LookedAfter => migration.looked_after = true,
            RecordKind::TakenBack { .. } => migration.taken_back = true,
            RecordKind::PreparedPostcopy => migration.postcopy = true,
            RecordKind::Fetching { memory } => migration.fetching = Some(memory.clone()),
            RecordKind::Whole => migration.fetching = None,
            _ => {}
        }
        if let RecordKind::Begin { attachment } = &record.kind {
            migration.attachment = Some(attachment.clone());
        }
        migration.last = record.clone();
    }

    /// | role | record | owner becomes |
    /// |---|---|---|
    /// | source | `Begin` | here |
    /// | source | `Prepared`, `Serving` or `Committed`, `Aborted` of the migration that decides | in doubt, away, here |
    /// | source | `TakenBack`, `Told` of the migration that decides | here |
    /// | destination | `Committed`, `Resumed` | here |
    /// | destination | `Yielded` of the migration that decides | away |
    /// | destination | any, VM never seen before | away |
    /// | any | other | as it was |
    fn apply_to_vm(&mut self, record: &Record) {
        let vm = self.vms.entry(record.vm.clone()).or_insert_with(|| Vm {
            owner: Owner::Away,
            epoch: record.epoch,
            decided_by: record.migration,
            last: record.clone(),
        });
        vm.last = record.clone();
        let decides = vm.decided_by == record.migration;
        let owner = match (record.role, &record.kind) {
            (Role::Source, RecordKind::Begin { .. })
            | (Role::Destination, RecordKind::Committed | RecordKind::Resumed) => Owner::Here,
            (Role::Source, RecordKind::Prepared | RecordKind::PreparedPostcopy) if decides => {
                Owner::InDoubt
            }
            (Role::Source, RecordKind::Serving | RecordKind::Committed)
            | (Role::Destination, RecordKind::Yielded)
                if decides =>
            {
                Owner::Away
            }
            (
                Role::Source,
                RecordKind::Aborted { .. } | RecordKind::TakenBack { .. } | RecordKind::Told,
            ) if decides => Owner::Here,
            _ => return,
        };
        vm.owner = owner;
        vm.epoch = record.epoch;
        vm.decided_by = record.migration;
    }

    /// Whether `next` may be written after what this state holds; the table is in `order.rs`.
    ///
    /// # Errors
    /// [`JournalError::Forbidden`] says what stands against it.
    pub fn check(&self, next: &Record) -> Result<(), JournalError> {
        let stage = self.stage(next.migration, next.role);
        let forbidden = |why: String| JournalError::Forbidden {
            migration: next.migration,
            role: next.role,
            next: next.kind.name(),
            why,
        };
        let in_doubt = self
            .vms
            .get(&next.vm)
            .is_some_and(|vm| vm.owner == Owner::InDoubt);
        let begins_as_source =
            next.role == Role::Source && matches!(next.kind, RecordKind::Begin { .. });
        if in_doubt && begins_as_source {
            return Err(forbidden(format!(
                "who owns VM {} is in doubt since an earlier migration",
                next.vm
            )));
        }
        if next.epoch == u64::MAX {
            return Err(forbidden("no handover could follow its epoch".to_owned()));
        }
        if is_allowed(next.role, stage, &next.kind) {
            return Ok(());
        }
        Err(forbidden(stage.map_or_else(
            || "it has not begun here".to_owned(),
            |stage| format!("it is {stage:?} here"),
        )))
    }

    /// How far a migration got at this node, in that part; `None` when the journal knows nothing.
    #[must_use]
    pub fn stage(&self, migration: MigrationId, role: Role) -> Option<Stage> {
        Some(self.migrations.get(&key(migration, role))?.stage)
    }

    /// Who owns each VM, by name.
    #[must_use]
    pub fn ownership(&self) -> Vec<Ownership> {
        self.vms.values().map(Vm::ownership).collect()
    }

    /// Who owns a VM.
    #[must_use]
    pub fn ownership_of(&self, vm: &str) -> Option<Ownership> {
        self.vms.get(vm).map(Vm::ownership)
    }

    /// Ownership epoch of a VM; 0 before its first migration.
    #[must_use]
    pub fn epoch_of(&self, vm: &str) -> u64 {
        self.vms.get(vm).map_or(0, |vm| vm.epoch)
    }

    /// Whether this node knows that the migration was committed.
    #[must_use]
    pub fn committed(&self, migration: MigrationId) -> bool {
        [Role::Source, Role::Destination].into_iter().any(|role| {
            matches!(
                self.stage(migration, role),
                Some(Stage::Serving | Stage::Committed | Stage::Resumed)
            )
        })
    }

    /// Whether this node, as destination, has said that a person must look at the migration.
    #[must_use]
    pub fn needs_a_look(&self, migration: MigrationId) -> bool {
        let of_it = self.migrations.get(&key(migration, Role::Destination));
        of_it.is_some_and(|migration| migration.failed)
    }

    /// Whether this node, as destination, promised never to commit the migration.
    #[must_use]
    pub fn refused(&self, migration: MigrationId) -> bool {
        matches!(
            self.stage(migration, Role::Destination),
            Some(Stage::Refused | Stage::Aborted)
        )
    }

    /// Migrations without an end, oldest last record first. A source in doubt stays here even when
    /// it wrote `Failed`: only the destination's answer, or an operator, ends it.
    #[must_use]
    pub fn unfinished(&self) -> Vec<Unfinished> {
        self.without_an_end(Migration::is_unfinished)
    }

    /// Migrations that a person must look at, oldest last record first: they said so, and no newer one of their
    /// VM has begun since.
    #[must_use]
    pub fn failed(&self) -> Vec<Unfinished> {
        let mut list = self.without_an_end(|migration| {
            migration.failed && !migration.looked_after && !migration.is_over()
        });
        list.retain(|failed| !failed.superseded);
        list
    }

    /// One migration, ended or not, in that part.
    #[must_use]
    pub fn find(&self, migration: MigrationId, role: Role) -> Option<Unfinished> {
        let found = self.migrations.get(&key(migration, role))?;
        Some(found.unfinished(self.is_superseded(found)))
    }

    /// What is half done, oldest last record first: without an end, or with a word that a person must look.
    #[must_use]
    pub fn half_done(&self) -> Vec<Unfinished> {
        let mut list = self.unfinished();
        // The other node is still told of it, and nobody waits for that.
        list.retain(|open| !(open.stage == Stage::TakenBack && open.is_closed));
        let known = |failed: &Unfinished| {
            list.iter()
                .any(|open| open.migration == failed.migration && open.role == failed.role)
        };
        let failed: Vec<_> = self
            .failed()
            .into_iter()
            .filter(|one| !known(one))
            .collect();
        list.extend(failed);
        list.sort_by_key(|one| one.last.sequence);
        list
    }

    fn without_an_end(&self, wanted: impl Fn(&Migration) -> bool) -> Vec<Unfinished> {
        let wanted = self.migrations.values().filter(|one| wanted(one));
        let mut list: Vec<_> = wanted
            .map(|migration| migration.unfinished(self.is_superseded(migration)))
            .collect();
        list.sort_by_key(|unfinished| unfinished.last.sequence);
        list
    }

    fn is_superseded(&self, migration: &Migration) -> bool {
        self.migrations.values().any(|other| {
            other.last.vm == migration.last.vm
                && other.began > migration.began
                && other.attachment.is_some()
        })
    }

    /// The migration whose records decide who owns the VM now.
    #[must_use]
    pub fn decided_by(&self, vm: &str) -> Option<MigrationId> {
        Some(self.vms.get(vm)?.decided_by)
    }
}

const fn key(migration: MigrationId, role: Role) -> (MigrationId, bool) {
    (migration, matches!(role, Role::Source))
}

impl Migration {
    const fn is_unfinished(&self) -> bool {
        match (self.last.role, self.stage) {
            (Role::Source, Stage::Prepared | Stage::TakenBack) => true,
            (Role::Source, Stage::Serving)
            | (Role::Source | Role::Destination, Stage::Begun)
            | (Role::Destination, Stage::Committed) => !self.failed,
            (Role::Destination, Stage::Resumed) => self.fetching.is_some() && !self.failed,
            // The copy that it refused may still be loaded: `Aborted` says that it is not.
            (Role::Destination, Stage::Refused) => self.attachment.is_some(),
            _ => false,
        }
    }

    /// Whether it has an end that a later `Failed` does not take away.
    const fn is_over(&self) -> bool {
        !self.taken_back && matches!(self.stage, Stage::Aborted | Stage::Yielded)
            || matches!(
                (self.last.role, self.stage),
                (Role::Source, Stage::Committed)
            )
    }

    fn unfinished(&self, superseded: bool) -> Unfinished {
        Unfinished {
            migration: self.last.migration,
            vm: self.last.vm.clone(),
            role: self.last.role,
            peer_node: self.last.peer_node.clone(),
            peer_address: self.last.peer_address.clone(),
            epoch: self.last.epoch,
            attachment: self.attachment.clone(),
            stage: self.stage,
            postcopy: self.postcopy,
            fetching: self.fetching.clone(),
            last: self.last.clone(),
            superseded,
            failed: self.failed && !self.looked_after,
            is_closed: self.looked_after,
        }
    }
}
