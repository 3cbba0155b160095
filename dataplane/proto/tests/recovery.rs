//! What a restarted daemon does.

use dwcp_proto::{
    DestinationRecovery, LastRecord, SourceRecovery, VmState, recover_destination, recover_source,
};

/// A VMM that waits for a migration has lost the guest it once held: to run it would run nothing.
#[test]
fn an_empty_vmm_is_never_run() {
    assert_eq!(
        recover_destination(LastRecord::Committed, VmState::Incoming),
        DestinationRecovery::Lost
    );
    assert_eq!(
        recover_source(LastRecord::Begin, VmState::Incoming),
        SourceRecovery::Lost
    );
}

#[test]
fn a_prepared_source_asks_unless_the_guest_runs() {
    for vm in [VmState::Paused, VmState::Incoming, VmState::Gone] {
        let recovery = recover_source(LastRecord::Prepared, vm);
        assert_eq!(recovery, SourceRecovery::AskDestination);
    }
    let recovery = recover_source(LastRecord::Prepared, VmState::Running);
    assert_eq!(recovery, SourceRecovery::RunsHere);
}

#[test]
fn only_a_committed_destination_runs() {
    for last in [LastRecord::Begin, LastRecord::Prepared, LastRecord::Refused] {
        for vm in [
            VmState::Running,
            VmState::Paused,
            VmState::Incoming,
            VmState::Gone,
        ] {
            assert_eq!(recover_destination(last, vm), DestinationRecovery::Refuse);
        }
    }
    let recovery = recover_destination(LastRecord::Committed, VmState::Paused);
    assert_eq!(recovery, DestinationRecovery::Resume);
}
