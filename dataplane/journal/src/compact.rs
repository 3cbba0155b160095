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
    let (mut outcomes_left, mut ended) = (OUTCOMES_MAX, BTreeSet::new());
    let mut kept: Vec<_> = records
        .iter()
        .rev()
        .filter(|record| {
            if whole.contains(&record.migration) {
                return true;
            }
            // What a later record says of its end says all that an earlier one does.
            let is_outcome = is_failure(record) || is_end(record) && ended.insert(record.migration);
            let keep = is_outcome && outcomes_left > 0;
            outcomes_left -= usize::from(keep);
            keep
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
