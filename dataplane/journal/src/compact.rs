//! Which records a shorter journal must keep.

use std::collections::{BTreeMap, BTreeSet};

use dwcp_api::Role;

use crate::{Record, RecordKind, State};

/// Outcomes of this node as destination that are kept beyond the newest state of every VM: a source
/// that was down may still ask for them. One that has none of it any more does not answer, and a person decides.
pub(crate) const OUTCOMES_MAX: usize = 1024;

/// The records, in order, that hold
/// - everything of unfinished migrations,
/// - per VM, everything of the migration that decides who owns it and of the newest one,
/// - the newest [`OUTCOMES_MAX`] outcomes of this node as destination: how each ended, and that a person must look.
pub(crate) fn compact(records: &[Record]) -> Vec<Record> {
    let state = State::from_records(records);
    let mut whole: BTreeSet<_> = state
        .unfinished()
        .into_iter()
        .map(|unfinished| unfinished.migration)
        .collect();
    let newest: BTreeMap<_, _> = records
        .iter()
        .map(|record| (record.vm.as_str(), record.migration))
        .collect();
    for (vm, migration) in newest {
        whole.insert(migration);
        whole.extend(state.decided_by(vm));
    }
    // All that says how one ended, or nothing: a failure alone would hide a commit.
    let (mut remembered, mut ended) = (BTreeSet::new(), BTreeSet::new());
    let mut kept: Vec<_> = records
        .iter()
        .rev()
        .filter(|record| {
            if whole.contains(&record.migration) {
                return true;
            }
            if !is_failure(record) && !is_end(record) {
                return false;
            }
            if remembered.len() < OUTCOMES_MAX {
                remembered.insert(record.migration);
            }
            // What a later record says of its end says all that an earlier one does.
            remembered.contains(&record.migration)
                && (is_failure(record) || ended.insert(record.migration))
        })
        .cloned()
        .collect();
    kept.reverse();
    kept
}

fn is_end(record: &Record) -> bool {
    record.role == Role::Destination
        && matches!(
            record.kind,
            RecordKind::Committed
                | RecordKind::Resumed
                | RecordKind::Refused
                | RecordKind::Aborted { .. }
                | RecordKind::Yielded
        )
}

fn is_failure(record: &Record) -> bool {
    record.role == Role::Destination
        && matches!(
            record.kind,
            RecordKind::Failed { .. } | RecordKind::LookedAfter
        )
}

#[cfg(test)]
mod tests {
    use dwcp_api::{Attachment, MigrationId};

    use super::*;
    use crate::Stage;

    fn record(migration: u128, vm: &str, role: Role, kind: RecordKind) -> Record {
        Record {
            sequence: 0,
            migration: MigrationId(migration),
            vm: vm.into(),
            role,
            peer_node: "a".into(),
            peer_address: "192.0.2.1".into(),
            tls: false,
            epoch: kind.epochs_ahead(),
            wall_ms: 0,
            kind,
        }
    }

    fn begin() -> RecordKind {
        RecordKind::Begin {
            attachment: Attachment::Process {
                socket: "/s".into(),
            },
        }
    }

    /// A VM that came, failed and was moved on, then so many others of a second one; what the first ended with comes
    /// again at the very end.
    fn history(others: usize, again: &[RecordKind]) -> Vec<Record> {
        use Role::{Destination, Source};
        let reason = || "test".to_owned();
        let came = [
            begin(),
            RecordKind::Committed,
            RecordKind::Resumed,
            RecordKind::Failed { reason: reason() },
        ];
        let left = [begin(), RecordKind::Prepared, RecordKind::Committed];
        let mut all: Vec<_> = came
            .map(|kind| record(1, "web", Destination, kind))
            .into_iter()
            .chain(left.map(|kind| record(2, "web", Source, kind)))
            .collect();
        for other in 0..others as u128 {
            let kinds = [begin(), RecordKind::Committed, RecordKind::Resumed];
            all.extend(kinds.map(|kind| record(10 + other, "other", Destination, kind)));
        }
        all.extend(
            again
                .iter()
                .map(|kind| record(1, "web", Destination, kind.clone())),
        );
        all
    }

    /// "It failed" without "it was committed" would be answered as "never committed": a second guest would run.
    #[test]
    fn an_outcome_is_kept_whole_or_not_at_all() {
        let reason = "test".to_owned();
        for again in [
            &[][..],
            &[RecordKind::LookedAfter],
            &[RecordKind::Failed { reason }],
        ] {
            for others in OUTCOMES_MAX - 3..OUTCOMES_MAX + 4 {
                let kept = compact(&history(others, again));
                let after = State::from_records(&kept);
                let stage = after.stage(MigrationId(1), Role::Destination);
                let is_there = others < OUTCOMES_MAX + 1 || !again.is_empty();
                let expected = is_there.then_some(Stage::Resumed);
                assert_eq!(stage, expected, "{others} others, {again:?}");
            }
        }
    }
}
