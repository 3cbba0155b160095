//! Half-done migrations as an operator sees them, and what he decides about one (`dwcp recover`).
//!
//! A decision is carried out by whoever waits for the other node, in its own thread: between its last look at an
//! answer and the record of the decision nothing can come in.

use std::sync::Arc;
use std::sync::mpsc::{RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

use dwcp_api::{ApiError, ErrorCode, PhaseName, RecoverRequest, Recovery, Role, SettledOwner};
use dwcp_journal::{Live, RecordKind, Stage, Unfinished};
use dwcp_proto::Ending;
use dwcp_wire::SourceStands;

use super::doubt::{ASK_TIME, ask_once};
use super::handle::MigrationHandle;
use super::node::{JournalScope, Node};
use super::{recall, recovery};
use crate::vmm::{RunState, Vm, VmmError};

/// Longer than one question to another node, and a VMM that is told to run.
const SETTLE_TIME: Duration = Duration::from_secs(30);

/// An operator's decision, on its way to whoever waits for the other node.
#[derive(Debug)]
pub(super) struct Settlement {
    owner: SettledOwner,
    reply: SyncSender<Result<String, ApiError>>,
}

/// A decision that was carried out; it is answered when the migration has ended by it.
#[derive(Debug)]
pub(super) struct Settled {
    said: String,
    reply: SyncSender<Result<String, ApiError>>,
}

impl Settled {
    /// Whoever decided may have given up waiting.
    pub(super) fn answer(self) {
        let _ = self.reply.send(Ok(self.said));
    }
}

impl Node {
    /// Tells of half-done migrations, or does something about one.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`] when nothing of the VM is half done, [`ErrorCode::TooLate`] when there is nothing to
    /// decide, or the other node decides.
    pub fn recover(self: &Arc<Self>, request: &RecoverRequest) -> Result<Recovery, ApiError> {
        let (vm, said) = match request {
            RecoverRequest::List => (None, String::new()),
            RecoverRequest::Try { vm } => (Some(vm), self.try_now(vm)?),
            RecoverRequest::Settle { vm, owner, dry_run } => {
                (Some(vm), self.settle(vm, *owner, *dry_run)?)
            }
            RecoverRequest::Close { vm } => (Some(vm), self.close(vm)?),
        };
        let all = self.journal().state().half_done();
        let asked_for = |open: &&Unfinished| vm.is_none_or(|vm| open.vm == *vm);
        let half_done = all.iter().filter(asked_for);
        Ok(Recovery {
            said,
            half_done: half_done
                .map(|open| open.explain(&self.live(open)))
                .collect(),
        })
    }

    /// What is known of a half-done migration beside the journal.
    fn live(&self, open: &Unfinished) -> Live {
        let handle = self.migration(open.migration);
        let status = handle.as_ref().map(|handle| handle.status());
        let under_way = status.filter(|now| now.role == open.role && now.report.is_none());
        Live {
            is_up: true,
            phase: under_way.map(|now| now.phase),
            is_silent: self.is_silent(&open.vm, open.migration),
            trouble: handle.map_or_else(String::new, |handle| handle.trouble()),
        }
    }

    /// The newest half-done migration of a VM.
    fn half_done_of(&self, vm: &str) -> Result<Unfinished, ApiError> {
        let all = self.journal().state().half_done();
        let mut of_it = all.into_iter().rev();
        of_it
            .find(|open| open.vm == vm && (!open.superseded || open.stage == Stage::TakenBack))
            .ok_or_else(|| {
                let text = format!("no migration of VM {vm:.80} is half done at this node");
                ApiError::new(ErrorCode::NotFound, text).with_hint(
                    "`dwcp recover` lists those that are; `dwcp journal` says who owns it",
                )
            })
    }

    fn try_now(self: &Arc<Self>, vm: &str) -> Result<String, ApiError> {
        let open = self.half_done_of(vm)?;
        let live = self.live(&open);
        let peer = &open.peer_node;
        Ok(match (open.role, open.stage) {
            (Role::Source, Stage::TakenBack) => match recall::tell_once(self, &(&open).into()) {
                Ok(()) => format!("{peer} knows now that it is not the owner"),
                Err(error) => format!("{peer} does not know it yet: {error}"),
            },
            (Role::Source, Stage::Prepared | Stage::Serving)
                if matches!(
                    live.phase,
                    Some(PhaseName::InDoubt | PhaseName::PostcopyPaused)
                ) =>
            {
                self.ask_other(&open).map_or_else(
                    |error| format!("{peer} does not answer: {error}"),
                    |committed| answer_in_words(peer, committed),
                )
            }
            (Role::Destination, _) if live.phase == Some(PhaseName::PostcopyPaused) => {
                recall::ask_source(self, &(&open).into(), ASK_TIME).map_or_else(
                    |error| {
                        format!("{peer} does not say whether it has the missing pages: {error}")
                    },
                    |stands| stands_in_words(peer, stands),
                )
            }
            _ if live.phase.is_some() => "it is being carried out".to_owned(),
            _ if live.is_silent => "its VMM is being asked".to_owned(),
            (Role::Destination, Stage::Begun | Stage::Refused) => {
                match recovery::refuse(self, &open) {
                    Ok(()) => "what had come of it was discarded".to_owned(),
                    Err(error) => format!("what had come of it stays: {error}"),
                }
            }
            _ => recovery::try_again(self, &open),
        })
    }

    fn ask_other(&self, open: &Unfinished) -> Result<bool, String> {
        let answer = ask_once(self, &open.into(), (ASK_TIME, &Arc::default()));
        answer.map_err(|error| error.to_string())
    }

    fn settle(
        self: &Arc<Self>,
        vm: &str,
        owner: SettledOwner,
        dry_run: bool,
    ) -> Result<String, ApiError> {
        let open = self.half_done_of(vm)?;
        self.check_undecided(&open, owner)?;
        // Whoever can answer decides by its journal: a person might be wrong.
        let peer = &open.peer_node;
        let decides = match open.role {
            Role::Source => {
                let answer = self.ask_other(&open).ok();
                answer.map(|committed| answer_in_words(peer, committed))
            }
            Role::Destination => {
                let answer = recall::ask_source(self, &(&open).into(), ASK_TIME).ok();
                // A source that knows of nothing to serve ends no waiting.
                let decides = answer.filter(|stands| {
                    !matches!(stands, SourceStands::PagesLost | SourceStands::Given)
                });
                decides.map(|stands| stands_in_words(peer, stands))
            }
        };
        if let Some(words) = decides {
            let text = format!("VM {vm} is not an operator's to decide: {words}");
            return Err(ApiError::new(ErrorCode::TooLate, text)
                .with_hint(format!("`dwcp recover {vm}` waits for the end of it")));
        }
        if dry_run {
            return Ok(would_do(&open, owner));
        }
        if open.role == Role::Destination {
            return recall::give_up(self, &open);
        }
        let handle = self.migration(open.migration).ok_or_else(nobody_waits)?;
        let (reply, replied) = sync_channel(1);
        handle.settle(Settlement { owner, reply });
        replied.recv_timeout(SETTLE_TIME).map_err(|why| {
            // It may have ended by itself meanwhile.
            let is_left = handle.take_settlement().is_some();
            match why {
                RecvTimeoutError::Timeout if !is_left => not_heard_of(),
                _ => nobody_waits(),
            }
        })?
    }

    /// Refuses what is not an operator's to decide.
    fn check_undecided(&self, open: &Unfinished, owner: SettledOwner) -> Result<(), ApiError> {
        use SettledOwner::{Here, There};
        let (vm, peer) = (&open.vm, &open.peer_node);
        let phase = self.live(open).phase;
        let text = match (open.role, open.stage, phase, owner) {
            (Role::Source, Stage::Prepared, Some(PhaseName::InDoubt), _)
            | (Role::Source, Stage::Serving, Some(PhaseName::PostcopyPaused), There) => {
                return Ok(());
            }
            // Not one that has all of its pages, and only waits for the source's last word.
            (
                Role::Destination,
                Stage::Committed | Stage::Resumed,
                Some(PhaseName::PostcopyPaused | PhaseName::Handover),
                There,
            ) if open.fetching.is_some() => {
                return Ok(());
            }
            (Role::Source, Stage::Serving, _, Here) => format!(
                "VM {vm} runs at {peer} by that node's journal: what is here is older than its disks"
            ),
            (Role::Source, Stage::TakenBack, ..) => {
                format!("VM {vm} was taken back already: it is this node's")
            }
            (Role::Destination, Stage::Begun | Stage::Refused, _, Here) => format!(
                "VM {vm} was never handed over to this node: what has come of it is no guest"
            ),
            (Role::Destination, Stage::Committed | Stage::Resumed, _, Here) => {
                format!("VM {vm} is this node's by its own journal")
            }
            _ => format!("VM {vm} is not in doubt: there is nothing to decide"),
        };
        Err(ApiError::new(ErrorCode::TooLate, text)
            .with_hint(format!("`dwcp recover {vm}` says how it stands")))
    }

    fn close(&self, vm: &str) -> Result<String, ApiError> {
        let open = self.half_done_of(vm)?;
        let refused = |text: String| Err(ApiError::new(ErrorCode::TooLate, text));
        let is_untold = (open.role, open.stage) == (Role::Source, Stage::TakenBack);
        if !(open.failed || is_untold) || self.live(&open).phase.is_some() {
            return refused(format!("the migration of VM {vm} has not failed"));
        }
        let kind = match (open.role, open.stage) {
            // Its owner is in doubt by this journal: who knows better closes it.
            (Role::Source, Stage::Prepared) => match self.ask_other(&open) {
                Ok(true) => RecordKind::Committed,
                Ok(false) => RecordKind::Aborted {
                    reason: "not taken over; a person has looked after what is here".to_owned(),
                },
                Err(error) => {
                    return refused(format!("{} does not answer: {error}", open.peer_node));
                }
            },
            _ => RecordKind::LookedAfter,
        };
        let scope = JournalScope::from(&open);
        if is_untold && recall::tell_once(self, &scope).is_ok() && !open.failed {
            return Ok(format!(
                "{} knows now that it is not the owner",
                open.peer_node
            ));
        }
        let written = scope.write(self, kind);
        written.map_err(|error| ApiError::new(ErrorCode::System, error))?;
        let on = match is_untold {
            true => format!("; {} is told once a minute from now on", open.peer_node),
            false => String::new(),
        };
        Ok(format!("noted: a person has looked after VM {vm}{on}"))
    }
}

fn answer_in_words(peer: &str, committed: bool) -> String {
    if committed {
        format!("{peer} answers that it has taken the VM over")
    } else {
        format!(
            "{peer} answers that it has not taken the VM over, and never will by this migration"
        )
    }
}

fn stands_in_words(peer: &str, stands: SourceStands) -> String {
    match stands {
        SourceStands::Here => format!("{peer} answers that the VM is its own, by an operator"),
        SourceStands::InDoubt => format!("{peer} answers that it asks this node whose it is"),
        SourceStands::Serving => format!("{peer} answers that it has the missing pages"),
        SourceStands::PagesLost => format!(
            "{peer} answers that the missing pages are lost: its VMM is gone, and nobody has them"
        ),
        _ => format!("{peer} answers that it has given the VM away, and has no pages of it"),
    }
}

fn not_heard_of() -> ApiError {
    let text = "the decision was taken, and nothing was heard of it since";
    ApiError::new(ErrorCode::System, text).with_hint("`dwcp recover` says how it stands")
}

fn nobody_waits() -> ApiError {
    let text = "the migration ended, or its VMM hangs, before the decision was carried out";
    ApiError::new(ErrorCode::TooLate, text).with_hint("`dwcp recover` says how it stands")
}

fn would_do(open: &Unfinished, owner: SettledOwner) -> String {
    let (vm, peer) = (&open.vm, &open.peer_node);
    match (open.role, owner) {
        (Role::Source, SettledOwner::Here) => format!(
            "would note that VM {vm} is this node's at epoch {}, run its guest here, and tell {peer} \
             whenever it can be reached",
            JournalScope::from(open).epoch + 2
        ),
        (Role::Source, SettledOwner::There) => format!(
            "would note that VM {vm} is {peer}'s, and end its VMM here: this copy of the guest is lost"
        ),
        (Role::Destination, _) => format!(
            "would end the VMM of VM {vm} here: pages of it are missing, and nobody has them any more"
        ),
    }
}

impl Settlement {
    /// Carries it out. `None` when nothing was decided, and the other node is asked on.
    pub(super) fn carry_out(
        self,
        (node, handle): (&Arc<Node>, &MigrationHandle),
        scope: &JournalScope,
        vm: Result<&mut dyn Vm, VmmError>,
    ) -> Option<(Ending, String)> {
        let Self { owner, reply } = self;
        let decided = match owner {
            SettledOwner::Here => take_back(node, scope, vm),
            SettledOwner::There => give_away(node, scope, vm),
        };
        match decided {
            Ok((said, end)) => {
                handle.answer_at_end(Settled { said, reply });
                Some(end)
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                None
            }
        }
    }
}

type Decided = Result<(String, (Ending, String)), ApiError>;

/// The VM of a handover without an answer: it must stand.
fn standing<'a>(
    scope: &JournalScope,
    vm: Result<&'a mut dyn Vm, VmmError>,
) -> Result<&'a mut dyn Vm, ApiError> {
    let name = &scope.vm;
    let refused = |text: String| ApiError::new(ErrorCode::TooLate, text);
    let vm = vm.map_err(|error| super::vms::api_error(name, &error))?;
    let facts = vm.facts();
    let state = facts.map_err(|error| super::vms::api_error(name, &error))?;
    match state.state {
        RunState::Running => Err(refused(format!("the guest of VM {name} runs here already"))
            .with_hint(
                "somebody resumed it by hand: restart this data plane, which then notes that",
            )),
        RunState::Incoming => Err(refused(format!(
            "VM {name} is an empty place here: there is no guest that could run"
        ))),
        _ => Ok(vm),
    }
}

/// The record comes first: from then on no answer, and no restart, can give the guest away.
fn take_back(node: &Arc<Node>, scope: &JournalScope, vm: Result<&mut dyn Vm, VmmError>) -> Decided {
    let vm = standing(scope, vm)?;
    let reason = "taken back by an operator: the destination is gone for good".to_owned();
    let kind = RecordKind::TakenBack {
        reason: reason.clone(),
    };
    let written = scope.write(node, kind);
    written.map_err(|error| ApiError::new(ErrorCode::System, error))?;
    recall::tell(node, scope.clone());
    if let Err(error) = recovery::resume(vm) {
        let why = format!("{reason}, but it could not be resumed: {error}");
        let end = recovery::fail(node, scope, why);
        return Ok((end.1.clone(), end));
    }
    tracing::warn!(vm = scope.vm, reason, "the guest runs here");
    let said = format!(
        "the guest of VM {} runs here, at epoch {}",
        scope.vm,
        scope.epoch + 2
    );
    Ok((said, (Ending::Aborted, reason)))
}

fn give_away(node: &Arc<Node>, scope: &JournalScope, vm: Result<&mut dyn Vm, VmmError>) -> Decided {
    let vm = standing(scope, vm)?;
    let written = scope.write(node, RecordKind::Committed);
    written.map_err(|error| ApiError::new(ErrorCode::System, error))?;
    let reason = format!(
        "given up by an operator: the VM is {}'s, whatever became of it there",
        scope.peer_node
    );
    tracing::warn!(vm = scope.vm, reason);
    let ended = match vm.discard() {
        Ok(_) => "its VMM was ended here".to_owned(),
        Err(error) => format!("end its VMM here by hand: {error}"),
    };
    let said = format!("VM {} is {}'s now; {ended}", scope.vm, scope.peer_node);
    Ok((said, (Ending::Failed, reason)))
}
