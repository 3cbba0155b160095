//! What a restarted data plane finishes: migrations that were under way when it died.

mod postcopy;
mod resume;

use std::sync::Arc;

use dwcp_api::{Role, TransferSettings};
use dwcp_journal::{RecordKind, Stage, Unfinished};
use dwcp_proto::{
    DestinationRecovery, Ending, LastRecord, SourceRecovery, VmState, recover_destination,
    recover_source,
};

use super::doubt::{ASK_AGAIN, Question, ask};
use super::node::{JournalScope, Node};
use super::recall;
use super::vms::Doubt;
use crate::vmm::{self, RunState, Vm, VmmError};
pub(super) use resume::resume;

/// Finishes what the journal says is unfinished. Questions to other nodes that are not answered at
/// once are asked again on a thread; until then the guest stays paused.
///
/// What was agreed on with the other node is forgotten: `settings` take its place.
pub fn recover(node: &Arc<Node>, settings: &TransferSettings) {
    // For what an operator tries once more.
    let _ = node.incoming_settings.set(settings.clone());
    for unfinished in node.journal().state().unfinished() {
        let scope = JournalScope::from(&unfinished);
        tracing::warn!(
            vm = scope.vm, migration = %scope.migration, role = ?scope.role,
            stage = ?unfinished.stage, "a migration was under way when this node stopped"
        );
        if unfinished.superseded {
            // The VM is a newer migration's: to resume or to discard it would be that one's guest.
            close_superseded(node, scope, unfinished.stage);
            continue;
        }
        let Some(unfinished) = postcopy::recover(node, unfinished, settings) else {
            continue;
        };
        match reach(&unfinished) {
            Ok(reached) => recover_one(node, &unfinished, reached, settings),
            Err(error) => recover_later(node, unfinished, &error, settings),
        }
    }
}

/// What a restart would do for a VM, done now; how it is then.
pub(super) fn try_again(node: &Arc<Node>, unfinished: &Unfinished) -> String {
    let is_tried = matches!(
        (unfinished.role, unfinished.stage),
        (Role::Source, Stage::Begun | Stage::Prepared) | (Role::Destination, Stage::Committed)
    );
    if !is_tried || unfinished.fetching.is_some() {
        return "there is nothing that could be tried".to_owned();
    }
    match reach(unfinished) {
        Err(error) => format!("its VMM does not answer: {error}"),
        Ok(reached) => {
            let Some(settings) = node.incoming_settings.get() else {
                return "the data plane is starting".to_owned();
            };
            recover_one(node, unfinished, reached, settings);
            "what a start of the data plane does for it was done again".to_owned()
        }
    }
}

fn recover_one(
    node: &Arc<Node>,
    unfinished: &Unfinished,
    reached: Reached,
    settings: &TransferSettings,
) {
    let scope = JournalScope::from(unfinished);
    match scope.role {
        Role::Source => recover_as_source(node, scope, unfinished, reached, settings),
        Role::Destination => recover_as_destination(node, &scope, unfinished, reached),
    }
}

/// A VMM that is there and does not answer (its monitor may be somebody else's for the moment) says
/// nothing of its guest. It is asked until it does; until then nobody gets the VM's name, and the
/// journal stays open.
fn recover_later(
    node: &Arc<Node>,
    unfinished: Unfinished,
    error: &VmmError,
    settings: &TransferSettings,
) {
    let vm = unfinished.last.vm.clone();
    tracing::error!(vm, %error, "its VMM does not say what its guest does; it is asked again");
    let doubt = Doubt {
        migration: unfinished.last.migration,
        peer: None,
        attachment: unfinished.attachment.clone(),
    };
    node.hold_in_doubt(&vm, doubt);
    let (node, settings) = (Arc::clone(node), settings.clone());
    spawn_question(move || {
        let reached = reach_at_last(&unfinished);
        // The other node may have been answered meanwhile.
        let id = unfinished.last.migration;
        let open = node.journal().state().unfinished();
        match open.iter().find(|other| other.last.migration == id) {
            Some(now) => recover_one(&node, now, reached, &settings),
            None => drop(reached),
        }
        // Attaching asks the VMM again, which serves one client: ours is gone by now.
        node.end_silence(&vm);
    });
}

const fn last_record(stage: Stage) -> LastRecord {
    match stage {
        Stage::Prepared => LastRecord::Prepared,
        Stage::Serving => LastRecord::Serving,
        Stage::Committed | Stage::Resumed => LastRecord::Committed,
        Stage::Refused | Stage::Aborted => LastRecord::Refused,
        // It is this node's, as if it had only begun.
        Stage::Begun | Stage::TakenBack => LastRecord::Begin,
        Stage::Yielded => LastRecord::Refused,
    }
}

/// The VM of an unfinished migration.
pub(super) struct Reached {
    pub(super) vm: Option<Box<dyn Vm>>,
    pub(super) state: VmState,
    /// Its VMM's process, where it was reached.
    pub(super) pid: Option<i32>,
}

/// What the VMM of an unfinished migration says.
///
/// # Errors
/// When it is there and does not say it: that is not the same as gone.
pub(super) fn reach(unfinished: &Unfinished) -> Result<Reached, VmmError> {
    let gone = Reached {
        vm: None,
        state: VmState::Gone,
        pid: None,
    };
    let Some(attachment) = &unfinished.attachment else {
        return Ok(gone);
    };
    let asked = vmm::open(attachment).and_then(|mut vm| vm.facts().map(|facts| (vm, facts)));
    let (vm, facts) = match asked {
        Ok(asked) => asked,
        Err(VmmError::Gone(_)) => return Ok(gone),
        Err(error) => return Err(error),
    };
    let state = match facts.state {
        RunState::Running => VmState::Running,
        RunState::Incoming => VmState::Incoming,
        _ => VmState::Paused,
    };
    Ok(Reached {
        vm: Some(vm),
        state,
        pid: Some(facts.pid),
    })
}

/// Asks the VMM until it says something, or is gone.
pub(super) fn reach_at_last(unfinished: &Unfinished) -> Reached {
    loop {
        match reach(unfinished) {
            Ok(reached) => return reached,
            Err(error) => {
                tracing::warn!(vm = unfinished.last.vm, %error, "its VMM does not answer yet");
                std::thread::sleep(ASK_AGAIN);
            }
        }
    }
}

pub(super) use postcopy::recover_serving;

pub(super) fn note(node: &Node, scope: &JournalScope, kind: RecordKind) {
    if let Err(error) = scope.write(node, kind) {
        tracing::error!(vm = scope.vm, error, "journal");
    }
}

/// Ends the record of a migration whose VM is a newer one's, and leaves the VM alone.
fn close_superseded(node: &Arc<Node>, scope: JournalScope, stage: Stage) {
    let reason = "superseded by a newer migration of the same VM".to_owned();
    match (scope.role, stage) {
        // Only the destination knows: its answer is noted, nothing is done.
        (Role::Source, Stage::Prepared) => {
            let node = Arc::clone(node);
            spawn_question(move || {
                let committed = ask(&node, &scope, &Arc::default());
                let kind = if committed {
                    RecordKind::Committed
                } else {
                    RecordKind::Aborted { reason }
                };
                note(&node, &scope, kind);
            });
        }
        (Role::Source, Stage::TakenBack) => recall::tell(node, scope),
        // The VM has been here, and gone or not, since.
        (Role::Source, Stage::Serving) => note(node, &scope, RecordKind::Committed),
        (Role::Source, _) => note(node, &scope, RecordKind::Aborted { reason }),
        // It was taken over and has left, or come back, since: so it was run, and whole.
        (Role::Destination, Stage::Committed) => note(node, &scope, RecordKind::Resumed),
        (Role::Destination, Stage::Resumed) => note(node, &scope, RecordKind::Whole),
        (Role::Destination, _) => note(node, &scope, RecordKind::Aborted { reason }),
    }
}

fn recover_as_source(
    node: &Arc<Node>,
    scope: JournalScope,
    unfinished: &Unfinished,
    reached: Reached,
    settings: &TransferSettings,
) {
    let Reached { vm, state, pid } = reached;
    if unfinished.stage == Stage::TakenBack {
        return recall::run_taken_back(node, scope, vm, state);
    }
    match recover_source(last_record(unfinished.stage), state) {
        // A source in post-copy is not asked for here.
        SourceRecovery::GivenAway | SourceRecovery::Serve => {
            note(node, &scope, RecordKind::Committed);
        }
        SourceRecovery::RunsHere => {
            // QEMU may still hold the dead mover's migration: end it.
            resume_here(
                node,
                &scope,
                vm,
                "data plane was restarted; the guest ran on here",
            );
        }
        SourceRecovery::Resume => {
            resume_here(
                node,
                &scope,
                vm,
                "data plane was restarted before the handover",
            );
        }
        SourceRecovery::AskDestination => {
            drop(vm);
            let question = Question::open(node, scope, unfinished.clone(), pid, settings);
            spawn_question(move || question.settle());
        }
        SourceRecovery::Lost => {
            let reason = "its VMM was gone when the data plane came back, and it was never \
                          handed over";
            fail(node, &scope, reason.into());
        }
    }
}

/// Runs the guest here. What became of it.
pub(super) fn resume_here(
    node: &Node,
    scope: &JournalScope,
    vm: Option<Box<dyn Vm>>,
    why: &str,
) -> (Ending, String) {
    let resumed = vm.map_or_else(
        || Err("VMM is gone".to_owned()),
        |mut vm| resume(&mut *vm).map_err(|error| error.to_string()),
    );
    match resumed {
        Ok(()) => {
            tracing::info!(vm = scope.vm, why, "the guest runs here");
            note(node, scope, RecordKind::Aborted { reason: why.into() });
            (Ending::Aborted, why.to_owned())
        }
        Err(error) => fail(
            node,
            scope,
            format!("{why}, but it could not be resumed: {error}"),
        ),
    }
}

pub(super) fn fail(node: &Node, scope: &JournalScope, reason: String) -> (Ending, String) {
    tracing::error!(vm = scope.vm, reason);
    let kind = RecordKind::Failed {
        reason: reason.clone(),
    };
    note(node, scope, kind);
    (Ending::Failed, reason)
}

fn spawn_question(run: impl FnOnce() + Send + 'static) {
    if std::thread::Builder::new()
        .name("dwcp-recover".into())
        .spawn(run)
        .is_err()
    {
        tracing::error!("no thread to ask the destination");
    }
}

/// Runs a guest that this node owns.
pub(super) fn run_owned(node: &Node, scope: &JournalScope, vm: Option<Box<dyn Vm>>) {
    match vm.map(|mut vm| resume(&mut *vm)) {
        Some(Ok(())) => {
            tracing::info!(vm = scope.vm, "owned here: the guest was resumed");
            note(node, scope, RecordKind::Resumed);
        }
        other => {
            let reason = format!("owned here, but it could not be resumed: {other:?}");
            fail(node, scope, reason);
        }
    }
}

fn recover_as_destination(
    node: &Arc<Node>,
    scope: &JournalScope,
    unfinished: &Unfinished,
    reached: Reached,
) {
    let Reached { vm, state, .. } = reached;
    match recover_destination(last_record(unfinished.stage), state) {
        // One that fetches pages is not asked for here.
        DestinationRecovery::RunsHere | DestinationRecovery::Fetch => {
            note(node, scope, RecordKind::Resumed);
        }
        DestinationRecovery::Resume if recall::can_ask(scope) => {
            // A VMM serves one client, and it is asked again once the source has been.
            drop(vm);
            let (node, unfinished) = (Arc::clone(node), unfinished.clone());
            if let Some(attachment) = &unfinished.attachment {
                node.hold_moving(&unfinished.vm, attachment, unfinished.migration);
            }
            spawn_question(move || recall::run_unless_taken_back(&node, &unfinished));
        }
        DestinationRecovery::Resume => run_owned(node, scope, vm),
        DestinationRecovery::Refuse => {
            // A VMM serves one client: what asked it must be gone before what ends it.
            drop(vm);
            if let Err(error) = refuse(node, unfinished) {
                tracing::error!(
                    vm = scope.vm,
                    error,
                    "not refused yet; the next question of the \
                                                       source, or a restart, tries again"
                );
            }
        }
        DestinationRecovery::Lost => {
            let reason = "owned here, but its VMM is gone: the source's paused copy is the last \
                          state before the handover";
            fail(node, scope, reason.into());
        }
    }
}

/// Promises that a migration to this node, which no driver carries any more, is never committed.
/// A copy that it has loaded is ended first: what is refused must not stand here, where somebody
/// could run it.
pub(super) fn refuse(node: &Node, unfinished: &Unfinished) -> Result<(), String> {
    // The VM of a superseded migration is a newer one's.
    if !unfinished.superseded {
        postcopy::lift_missing(unfinished);
        discard_copy(unfinished).map_err(|error| format!("its VMM cannot be ended: {error}"))?;
    }
    let reason = "given up before the handover".to_owned();
    JournalScope::from(unfinished).write(node, RecordKind::Aborted { reason })
}

/// A guest that runs is not what was left half-loaded.
fn discard_copy(unfinished: &Unfinished) -> Result<(), VmmError> {
    let stays = |state: &RunState| matches!(state, RunState::Running | RunState::Incoming);
    discard_unless(unfinished, stays)
}

/// Makes sure that what the VMM of a migration holds never runs here, unless it may stay. A VMM that is gone holds
/// nothing.
pub(super) fn discard_unless(
    unfinished: &Unfinished,
    stays: impl FnOnce(&RunState) -> bool,
) -> Result<(), VmmError> {
    let Some(attachment) = &unfinished.attachment else {
        return Ok(());
    };
    let discard = || {
        let mut vm = vmm::open(attachment)?;
        if stays(&vm.facts()?.state) {
            return Ok(());
        }
        vm.discard().map(drop)
    };
    match discard() {
        Err(VmmError::Gone(_)) => Ok(()),
        other => other,
    }
}
