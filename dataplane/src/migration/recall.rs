//! A guest that an operator has taken back: its destination, should it ever come again, is told and must not run it.
//!
//! | who | when | does |
//! |---|---|---|
//! | source | `TakenBack` is durable | says `TakenBack` each second until the destination has answered; each minute once a person has looked after it |
//! | destination | it hears that, and had committed | ends the guest, writes `Yielded`, answers |
//! | destination | starts anew, had committed, the guest stands | asks the source once before it runs it; only a source that knows of it can say so |

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use dwcp_api::{ApiError, ErrorCode, MigrationId, Role};
use dwcp_journal::{RecordKind, Stage, Unfinished};
use dwcp_proto::VmState;
use dwcp_wire::{Control, SourceStands};

use super::destination::DestinationInput;
use super::doubt::{ASK_AGAIN, ASK_TIME, committed, say};
use super::node::{JournalScope, Node};
use super::peer::PeerError;
use super::recovery;
use crate::vmm::{self, RunState, Vm, VmmError};

/// A guest that stands waits so long for the word of its source, which may be gone.
const HEAR_TIME: Duration = Duration::from_secs(2);

/// Between words to a destination that nobody expects to hear of any more.
const TELL_AGAIN: Duration = Duration::from_secs(60);

/// A driver ends within this time.
const END_TIME: Duration = Duration::from_secs(5);

/// Tells the destination that it is not the owner, until it knows.
pub(super) fn tell(node: &Arc<Node>, scope: JournalScope) {
    let node = Arc::clone(node);
    let run = move || {
        let untold = || {
            let open = node.journal().state().find(scope.migration, Role::Source)?;
            let period = if open.is_closed {
                TELL_AGAIN
            } else {
                ASK_AGAIN
            };
            (open.stage == Stage::TakenBack).then_some(period)
        };
        while let Some(period) = untold() {
            match tell_once(&node, &scope) {
                Ok(()) => tracing::info!(
                    vm = scope.vm,
                    "the destination knows that it was taken back"
                ),
                Err(error) => {
                    tracing::debug!(vm = scope.vm, error, "the destination does not know it yet");
                    std::thread::sleep(period);
                }
            }
        }
    };
    if std::thread::Builder::new()
        .name("dwcp-recover".into())
        .spawn(run)
        .is_err()
    {
        tracing::error!(
            "no thread to tell the destination; the next start of this data plane does"
        );
    }
}

/// The same once, and the record of it.
pub(super) fn tell_once(node: &Node, scope: &JournalScope) -> Result<(), String> {
    let words = Control::TakenBack {
        migration: scope.migration.0,
        vm: scope.vm.clone(),
        epoch: scope.epoch + 2,
    };
    let said = say(node, scope, &words, (ASK_TIME, &Arc::default()), committed);
    let told = said.map_err(|error| error.to_string()).and_then(|owns| {
        if owns {
            return Err("it insists on being the owner".to_owned());
        }
        scope.write(node, RecordKind::Told)
    });
    if let (Err(error), Some(handle)) = (&told, node.migration(scope.migration)) {
        handle.note_trouble(error.clone());
    }
    told
}

/// A start of this data plane finds a guest that was taken back: it runs here, whatever else.
pub(super) fn run_taken_back(
    node: &Arc<Node>,
    scope: JournalScope,
    vm: Option<Box<dyn Vm>>,
    state: VmState,
) {
    let resumed = match (state, vm) {
        (VmState::Running, _) => Ok(()),
        (VmState::Paused, Some(mut vm)) => {
            recovery::resume(&mut *vm).map_err(|error| error.to_string())
        }
        _ => Err("its VMM is gone".to_owned()),
    };
    if let Err(error) = resumed {
        let reason = format!("taken back by an operator, and not running: {error}");
        recovery::fail(node, &scope, reason);
    }
    tell(node, scope);
}

/// A start of this data plane finds a guest that it had committed and not run: the source may know better.
pub(super) fn run_unless_taken_back(node: &Node, committed: &Unfinished) {
    let scope = JournalScope::from(committed);
    if was_taken_back(node, &scope) {
        if let Err(error) = yield_guest(node, scope.migration, scope.epoch + 2) {
            tracing::error!(
                vm = scope.vm,
                error,
                "taken back, and what is here is not ended yet"
            );
        }
    } else {
        let reached = recovery::reach_at_last(committed);
        // The source may have said it meanwhile.
        let stage = node
            .journal()
            .state()
            .stage(scope.migration, Role::Destination);
        if stage == Some(Stage::Committed) {
            recovery::run_owned(node, &scope, reached.vm);
        }
    }
    node.give_vm(&scope.vm);
}

/// How a migration stands by the journal of this node; `None` where that does not know it as its source.
pub(super) fn stands(node: &Node, id: MigrationId) -> Option<SourceStands> {
    let open = node.journal().state().find(id, Role::Source)?;
    Some(match open.stage {
        Stage::TakenBack | Stage::Aborted => SourceStands::Here,
        Stage::Serving if open.failed => SourceStands::PagesLost,
        Stage::Serving => SourceStands::Serving,
        Stage::Committed => SourceStands::Given,
        // Only the destination knows.
        _ => SourceStands::InDoubt,
    })
}

/// How it stands by the journal of its source, which answers only from what it knows.
pub(super) fn ask_source(
    node: &Node,
    scope: &JournalScope,
    time: Duration,
) -> Result<SourceStands, PeerError> {
    let question = Control::RecallQuery {
        migration: scope.migration.0,
        vm: scope.vm.clone(),
        epoch: scope.epoch + 1,
    };
    let stands = |answer: &Control| match answer {
        Control::RecallAnswer { stands } => Some(*stands),
        _ => None,
    };
    say(node, scope, &question, (time, &Arc::default()), stands)
}

/// Whether an operator has taken back a guest that this node owns by its own journal. Who does not say so has
/// not: the source may be what is gone.
fn was_taken_back(node: &Node, scope: &JournalScope) -> bool {
    match ask_source(node, scope, HEAR_TIME) {
        Ok(stands) => stands == SourceStands::Here,
        Err(error) => {
            tracing::info!(vm = scope.vm, %error, "the source does not say whether it was taken back");
            false
        }
    }
}

/// Whether the source of a migration can be asked: it has said where.
pub(super) fn can_ask(scope: &JournalScope) -> bool {
    scope.peer_address.parse::<SocketAddr>().is_ok()
}

/// The source says that its operator took a guest back that this node had committed.
pub(super) fn yield_guest(node: &Node, id: MigrationId, epoch: u64) -> Result<(), String> {
    let state = node.journal().state();
    let Some(committed) = state.find(id, Role::Destination) else {
        return Ok(());
    };
    if committed.stage == Stage::Yielded {
        return Ok(());
    }
    let scope = JournalScope::from(&committed);
    if epoch != scope.epoch + 2 {
        return Err(format!("epoch {epoch} does not follow {}", scope.epoch + 1));
    }
    if state.decided_by(&committed.vm) != Some(id) {
        return Err(format!(
            "VM {} was taken back, and was moved on from here since: two guests may run",
            committed.vm
        ));
    }
    tracing::error!(
        vm = committed.vm,
        epoch,
        "taken back by the operator of its source: what is here is ended"
    );
    end_driver(node, id, "taken back by the operator of its source")?;
    end_guest(&committed).map_err(|error| format!("its VMM cannot be ended: {error}"))?;
    scope.write(node, RecordKind::Yielded)
}

/// An operator gives up a guest whose missing pages nobody has any more.
pub(super) fn give_up(node: &Node, open: &Unfinished) -> Result<String, ApiError> {
    let failed = |error: String| ApiError::new(ErrorCode::System, error);
    let reason = "given up by an operator: pages were missing, and their source is gone for good";
    end_driver(node, open.migration, reason).map_err(failed)?;
    end_guest(open).map_err(|error| failed(error.to_string()))?;
    let kind = RecordKind::Failed {
        reason: reason.to_owned(),
    };
    JournalScope::from(open).write(node, kind).map_err(failed)?;
    let vm = &open.vm;
    Ok(format!(
        "the VMM of VM {vm} was ended here; start it from its disks, then `dwcp recover {vm} \
         --looked-after`"
    ))
}

/// Ends the driver that still has something to do for the guest.
fn end_driver(node: &Node, id: MigrationId, reason: &str) -> Result<(), String> {
    let Some(mailbox) = node.incoming(id) else {
        return Ok(());
    };
    let pushed = mailbox.push(DestinationInput::GivenUp(reason.to_owned()));
    pushed.map_err(|error| error.to_string())?;
    let deadline = Instant::now() + END_TIME;
    let has_ended = || {
        let status = node.migration(id).map(|handle| handle.status());
        node.incoming(id).is_none() && status.is_none_or(|status| status.report.is_some())
    };
    while !has_ended() {
        if Instant::now() >= deadline {
            return Err("its driver has not ended yet".to_owned());
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// Makes sure that the guest does not run here, now and later.
fn end_guest(committed: &Unfinished) -> Result<(), VmmError> {
    // One that waits for a page answers nobody.
    if let Some(memory) = &committed.fetching {
        return vmm::end_process(memory.pid, memory.started_ticks);
    }
    // An empty place is for another migration.
    recovery::discard_unless(committed, |state| *state == RunState::Incoming)
}
