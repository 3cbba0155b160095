//! A handover whose answer is not known after a restart: asked for, shown, and settled.
//!
//! Until the answer is acted on the VM's name is held: a VM that got it meanwhile would be somebody
//! else's. `dwcp status` shows the migration as in doubt.

use std::sync::Arc;
use std::time::Duration;

use dwcp_api::{MigrationId, Role, TransferSettings};
use dwcp_journal::{RecordKind, Unfinished};
use dwcp_proto::{Ending, LastRecord, Outcome, Phase, SourceRecovery, recover_source};
use dwcp_wire::Control;

use super::handle::MigrationHandle;
use super::meter::Meter;
use super::node::{JournalScope, Node};
use super::peer::{self, PeerError};
use super::recorder::{End, Recorder, Subject};
use super::recovery::{Reached, fail, note, reach, reach_at_last, recover_serving, resume_here};
use super::secure::Way;
use super::vms::Doubt;
use crate::vmm::{Vm, VmmError};

/// Between questions to a node, or a VMM, that does not answer.
pub(super) const ASK_AGAIN: Duration = Duration::from_secs(1);

pub(super) const ASK_TIME: Duration = Duration::from_secs(5);

/// An open question.
pub(super) struct Question {
    node: Arc<Node>,
    scope: JournalScope,
    unfinished: Unfinished,
    /// Process of the VMM when the question arose.
    pid: Option<i32>,
    recorder: Recorder,
    handle: Arc<MigrationHandle>,
    settings: TransferSettings,
}

impl Question {
    /// Holds the VM's name and shows the migration.
    pub(super) fn open(
        node: &Arc<Node>,
        scope: JournalScope,
        unfinished: Unfinished,
        pid: Option<i32>,
        settings: &TransferSettings,
    ) -> Self {
        let id: MigrationId = scope.migration;
        let doubt = Doubt {
            migration: id,
            peer: Some(unfinished.last.peer()),
            attachment: unfinished.attachment.clone(),
        };
        node.hold_in_doubt(&scope.vm, doubt);
        let mut recorder = Recorder::new(Subject {
            id,
            vm: scope.vm.clone(),
            role: Role::Source,
            peer: scope.peer_node.clone(),
            mode: String::new(),
            meter: Arc::default(),
        });
        // What was handed over had been accepted.
        recorder.accepted = true;
        // The connection ended with the data plane: another try may do better.
        recorder.peer_lost = true;
        recorder.note("the data plane was restarted after the handover was sent".into());
        let handle = node.register(id, recorder.status(Phase::Handover, true, None));
        Self {
            node: Arc::clone(node),
            scope,
            unfinished,
            pid,
            recorder,
            handle,
            settings: settings.clone(),
        }
    }

    /// Asks until there is an answer, or an operator has decided; acts on it, and lets the name go.
    pub(super) fn settle(mut self) {
        let answer = self.wait();
        let committed = matches!(answer, Ok(true));
        let serves = committed && self.unfinished.postcopy;
        let (result, reason) = if let Err(decided) = answer {
            decided
        } else if committed {
            tracing::info!(vm = self.scope.vm, "the destination owns the VM");
            let kind = if serves {
                RecordKind::Serving
            } else {
                RecordKind::Committed
            };
            note(&self.node, &self.scope, kind);
            let reason = "handed over; the destination confirmed it after a restart";
            (Ending::Completed, reason.to_owned())
        } else {
            self.take_back()
        };
        self.node.end_doubt(&self.scope.vm);
        self.finish(&Outcome { result, reason });
        if serves {
            if let Some(attachment) = &self.unfinished.attachment {
                self.node
                    .hold_moving(&self.unfinished.vm, attachment, self.scope.migration);
            }
            recover_serving(&self.node, &self.unfinished, &self.settings);
        }
    }

    /// The answer, or what an operator has decided instead of it.
    fn wait(&self) -> Result<bool, (Ending, String)> {
        loop {
            if let Some(settlement) = self.handle.take_settlement() {
                let reached = reach(&self.unfinished);
                let mut vm = reached.and_then(|reached| {
                    let gone = || VmmError::Gone("its process has ended".to_owned());
                    reached.vm.ok_or_else(gone)
                });
                let vm = match &mut vm {
                    Ok(vm) => Ok(&mut **vm as &mut dyn Vm),
                    Err(error) => Err(VmmError::Failed(error.to_string())),
                };
                if let Some(end) = settlement.carry_out((&self.node, &self.handle), &self.scope, vm)
                {
                    return Err(end);
                }
            }
            match ask_once(&self.node, &self.scope, (ASK_TIME, &self.recorder.meter)) {
                Ok(committed) => return Ok(committed),
                Err(error) => {
                    self.handle.note_trouble(error.to_string());
                    wait_to_ask(&self.scope, &error);
                }
            }
        }
    }

    fn take_back(&self) -> (Ending, String) {
        let why = "destination did not commit the handover";
        let (node, scope) = (&self.node, &self.scope);
        let Reached { vm, state, pid } = reach_at_last(&self.unfinished);
        if self.pid.is_some() && pid != self.pid {
            return fail(
                node,
                scope,
                format!("{why}, and its VMM is gone from this node"),
            );
        }
        // Not given away, as if it had only begun.
        match recover_source(LastRecord::Begin, state) {
            SourceRecovery::Resume | SourceRecovery::RunsHere => resume_here(node, scope, vm, why),
            _ => fail(
                node,
                scope,
                format!("{why}, and its VMM is gone from this node"),
            ),
        }
    }

    fn finish(&mut self, outcome: &Outcome) {
        let phase = match outcome.result {
            Ending::Completed => Phase::Complete,
            Ending::Aborted => Phase::Aborted,
            Ending::Failed => Phase::Failed,
        };
        let (owner, epoch) = self.scope.owner_after(&self.node, outcome.result);
        // A destination commits only what it has proven.
        self.recorder.verified = outcome.result == Ending::Completed;
        let report = self.recorder.report(&End {
            outcome,
            owner,
            epoch,
            wire_bytes: self.recorder.wire_bytes(None),
            cpu_ns: crate::cpu_time::thread_cpu_ns(),
        });
        let status = self.recorder.status(phase, false, None);
        self.handle.finish(status, report);
    }
}

/// Asks the destination whether it committed, until it answers.
pub(super) fn ask(node: &Node, scope: &JournalScope, meter: &Arc<Meter>) -> bool {
    loop {
        match ask_once(node, scope, (ASK_TIME, meter)) {
            Ok(committed) => return committed,
            Err(error) => wait_to_ask(scope, &error),
        }
    }
}

fn wait_to_ask(scope: &JournalScope, error: &PeerError) {
    tracing::warn!(vm = scope.vm, %error, "in doubt: the destination does not answer");
    std::thread::sleep(ASK_AGAIN);
}

/// Asks the other node whether it committed, once.
pub(super) fn ask_once(
    node: &Node,
    scope: &JournalScope,
    (time, meter): (Duration, &Arc<Meter>),
) -> Result<bool, PeerError> {
    let question = Control::OwnerQuery {
        migration: scope.migration.0,
        vm: scope.vm.clone(),
        epoch: scope.epoch + 1,
    };
    say(node, scope, &question, (time, meter), committed)
}

/// What a destination answers.
pub(super) const fn committed(answer: &Control) -> Option<bool> {
    match answer {
        Control::OwnerAnswer { committed } => Some(*committed),
        _ => None,
    }
}

/// Says one thing to the other node of a migration, on a new connection; what that answers.
pub(super) fn say<A>(
    node: &Node,
    scope: &JournalScope,
    words: &Control,
    (time, meter): (Duration, &Arc<Meter>),
    is_answer: impl Fn(&Control) -> Option<A>,
) -> Result<A, PeerError> {
    let connect = || {
        let way = Way::of_record(scope).map_err(std::io::Error::other)?;
        way.connect(node, &scope.peer_address, time)
    };
    peer::ask(connect, words, (time, meter), is_answer)
}
