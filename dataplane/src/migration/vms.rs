//! The VMs of a node: attached, listed, and held by one user at a time.

use std::collections::HashMap;

use dwcp_api::{
    ApiError, Attachment, ErrorCode, MigrationId, MigrationStatus, PhaseName, Role, RunResult,
    VmInfo,
};

use super::node::{Node, lock};
use crate::vmm::{self, VmFacts, VmmError, tracker};

/// All of a node's VMs by name.
#[derive(Debug, Default)]
pub(super) struct VmTable {
    attached: HashMap<String, VmEntry>,
    in_doubt: HashMap<String, Doubt>,
}

#[derive(Clone, Debug)]
struct VmEntry {
    attachment: Attachment,
    info: VmInfo,
    held: Held,
}

/// Who has a VM to himself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Held {
    Free,
    /// It is being looked at, for the first time or anew.
    Attaching,
    /// As before, and somebody wants it forgotten: it goes when the look ends, which nobody may share.
    Forgotten,
    Moving(MigrationId),
}

/// A name that nobody may use: whether its guest is this node's is asked of another node, and the
/// answer acts on the VM that had the name when the question arose.
#[derive(Clone, Debug)]
pub(super) struct Doubt {
    pub(super) migration: MigrationId,
    /// The node that is asked, for people; `None` when it is the VM's own VMM.
    pub(super) peer: Option<String>,
    pub(super) attachment: Option<Attachment>,
}

impl VmTable {
    /// Refuses a VM that somebody has to himself.
    fn check_free(&self, node: &Node, name: &str) -> Result<(), ApiError> {
        if let Some(doubt) = self.in_doubt.get(name) {
            return Err(match &doubt.peer {
                Some(peer) => is_in_doubt(name, doubt.migration, peer),
                None => is_silent(name, doubt.migration),
            });
        }
        match self.attached.get(name).map(|entry| entry.held) {
            None | Some(Held::Free) => Ok(()),
            Some(Held::Attaching | Held::Forgotten) => {
                let text = format!("VM {name} is being attached");
                Err(ApiError::new(ErrorCode::Busy, text).with_hint("try again"))
            }
            Some(Held::Moving(id)) => {
                let status = node.migration(id).map(|handle| handle.status());
                match status.filter(|status| status.phase == PhaseName::InDoubt) {
                    Some(status) => Err(is_in_doubt(name, id, &status.peer)),
                    None => Err(is_moving(name)),
                }
            }
        }
    }

    fn is_forgotten(&self, name: &str) -> bool {
        let entry = self.attached.get(name);
        entry.is_some_and(|entry| entry.held == Held::Forgotten)
    }

    fn release(&mut self, name: &str) {
        if let Some(entry) = self.attached.get_mut(name) {
            entry.held = Held::Free;
        }
    }
}

impl Node {
    /// Attaches a VM after checking that it can be moved.
    ///
    /// # Errors
    /// [`ErrorCode::VmUnsuitable`] with the argument to change, [`ErrorCode::Busy`].
    pub fn attach(&self, name: &str, attachment: Attachment) -> Result<VmInfo, ApiError> {
        let is_new = self.claim(name, &attachment)?;
        let probed = probe(name, &attachment);
        let mut vms = lock(&self.vms);
        if vms.is_forgotten(name) {
            vms.attached.remove(name);
            return Err(no_such_vm(name));
        }
        match probed {
            Ok(info) => {
                let entry = VmEntry {
                    attachment,
                    info: info.clone(),
                    held: Held::Free,
                };
                vms.attached.insert(name.to_owned(), entry);
                Ok(info)
            }
            Err(error) => {
                if is_new {
                    vms.attached.remove(name);
                } else {
                    vms.release(name);
                }
                Err(error)
            }
        }
    }

    /// Takes a name for attaching; whether it was not attached before.
    fn claim(&self, name: &str, attachment: &Attachment) -> Result<bool, ApiError> {
        let mut vms = lock(&self.vms);
        vms.check_free(self, name)?;
        if let Some(entry) = vms.attached.get_mut(name) {
            if entry.attachment != *attachment {
                let text = format!("VM {name} is attached already");
                return Err(ApiError::new(ErrorCode::Busy, text)
                    .with_hint(format!("`dwcp vm detach {name}` first")));
            }
            entry.held = Held::Attaching;
            return Ok(false);
        }
        let entry = VmEntry {
            attachment: attachment.clone(),
            info: unseen(name, attachment, "attaching"),
            held: Held::Attaching,
        };
        vms.attached.insert(name.to_owned(), entry);
        Ok(true)
    }

    /// Forgets a VM.
    ///
    /// # Errors
    /// [`ErrorCode::NotFound`], [`ErrorCode::Busy`].
    pub fn detach(&self, name: &str) -> Result<(), ApiError> {
        let mut vms = lock(&self.vms);
        if vms.is_forgotten(name) {
            return Err(no_such_vm(name));
        }
        // A VMM that does not answer must not keep its VM from being forgotten.
        if let Some(entry) = vms.attached.get_mut(name)
            && entry.held == Held::Attaching
        {
            entry.held = Held::Forgotten;
            return Ok(());
        }
        vms.check_free(self, name)?;
        match vms.attached.remove(name) {
            None => Err(no_such_vm(name)),
            Some(_) => Ok(()),
        }
    }

    /// All VMs, asked anew, but for those that somebody has to himself.
    #[must_use]
    pub fn list(&self) -> Vec<VmInfo> {
        let (entries, mut infos) = {
            let vms = lock(&self.vms);
            let entries: Vec<_> = vms.attached.values().cloned().collect();
            let doubts = vms.in_doubt.iter().filter_map(|(name, doubt)| {
                let attachment = doubt.attachment.as_ref()?;
                Some(unseen(name, attachment, "in doubt"))
            });
            (entries, doubts.collect::<Vec<_>>())
        };
        let free = entries.iter().filter(|entry| entry.held == Held::Free);
        let mut seen = self
            .looking
            .at(free.map(|entry| entry.info.clone()).collect(), look);
        let known = |entry: &VmEntry| entry.held != Held::Forgotten;
        infos.extend(entries.into_iter().filter(known).map(|entry| {
            let state = match entry.held {
                Held::Moving(id) if self.is_asked_for(id) => "in doubt",
                Held::Moving(_) => "moving",
                Held::Attaching | Held::Forgotten => "attaching",
                Held::Free => match seen.remove(&entry.info.name) {
                    Some(Ok(info)) => return info,
                    Some(Err(VmmError::Gone(_))) => "gone",
                    // Somebody else may have its monitor: it is there all the same.
                    Some(Err(_)) | None => "no answer",
                },
            };
            VmInfo {
                state: state.to_owned(),
                ..entry.info
            }
        }));
        infos.sort_by(|a, b| a.name.cmp(&b.name));
        infos
    }

    /// Whether its driver does not know who owns the VM.
    fn is_asked_for(&self, id: MigrationId) -> bool {
        let status = self.migration(id).map(|handle| handle.status());
        status.is_some_and(|status| status.phase == PhaseName::InDoubt)
    }

    /// Takes a VM for a migration: nobody else moves it meanwhile.
    pub(super) fn take_vm(&self, name: &str, id: MigrationId) -> Result<Attachment, ApiError> {
        let mut vms = lock(&self.vms);
        vms.check_free(self, name)?;
        let entry = vms.attached.get_mut(name).ok_or_else(|| no_such_vm(name))?;
        entry.held = Held::Moving(id);
        Ok(entry.attachment.clone())
    }

    /// Holds a VM for a migration that goes on after a restart; whether its VMM answers does not matter.
    pub(super) fn hold_moving(&self, name: &str, attachment: &Attachment, id: MigrationId) {
        let entry = VmEntry {
            attachment: attachment.clone(),
            info: unseen(name, attachment, "moving"),
            held: Held::Moving(id),
        };
        lock(&self.vms).attached.insert(name.to_owned(), entry);
    }

    /// Refuses a VM that could not be taken.
    pub(super) fn check_vm(&self, name: &str) -> Result<(), ApiError> {
        let vms = lock(&self.vms);
        vms.check_free(self, name)?;
        if vms.attached.contains_key(name) {
            return Ok(());
        }
        Err(no_such_vm(name))
    }

    pub(super) fn give_vm(&self, name: &str) {
        lock(&self.vms).release(name);
    }

    /// Keeps everybody from a name while a question about its guest is open.
    pub(super) fn hold_in_doubt(&self, name: &str, doubt: Doubt) {
        let mut vms = lock(&self.vms);
        vms.attached.remove(name);
        vms.in_doubt.insert(name.to_owned(), doubt);
    }

    /// Whether the VM's own VMM is asked for what its guest does.
    pub(super) fn is_silent(&self, name: &str, id: MigrationId) -> bool {
        let vms = lock(&self.vms);
        let doubt = vms.in_doubt.get(name);
        doubt.is_some_and(|doubt| doubt.migration == id && doubt.peer.is_none())
    }

    /// The VMM has answered and that was acted on, unless it raised a question to another node: that
    /// question has the name now, and ends the doubt.
    pub(super) fn end_silence(&self, name: &str) {
        let doubt = lock(&self.vms).in_doubt.get(name).cloned();
        if doubt.is_some_and(|doubt| doubt.peer.is_none()) {
            self.end_doubt(name);
        }
    }

    /// The question is answered and acted on: the VM is attached again, if it is still there.
    pub(super) fn end_doubt(&self, name: &str) {
        let doubt = lock(&self.vms).in_doubt.remove(name);
        if let Some(attachment) = doubt.and_then(|doubt| doubt.attachment)
            && let Err(error) = self.attach(name, attachment)
        {
            tracing::warn!(vm = name, %error, "not attached again");
        }
    }
}

fn no_such_vm(name: &str) -> ApiError {
    ApiError::new(
        ErrorCode::NotFound,
        format!("no VM {name} is attached to this node"),
    )
    .with_hint("`dwcp vm list` shows those that are")
}

pub(super) fn is_moving(name: &str) -> ApiError {
    ApiError::new(ErrorCode::Busy, format!("VM {name} is being moved"))
        .with_hint("`dwcp status` shows the migration, `dwcp cancel` ends it")
}

/// What only the VM's own VMM can say.
fn is_silent(name: &str, migration: MigrationId) -> ApiError {
    let text = format!(
        "VM {name} is in doubt: the data plane was restarted during migration {migration}, and its \
         VMM does not say what the guest does"
    );
    ApiError::new(ErrorCode::Busy, text).with_hint(
        "it is asked each second: end the other client of its monitor, or the VMM if it hangs",
    )
}

/// What only another node's journal can decide.
pub(super) fn is_in_doubt(name: &str, migration: MigrationId, peer: &str) -> ApiError {
    let text = format!(
        "VM {name} is in doubt: its handover to {peer} was sent (migration {migration}), and {peer} \
         has not said whether it took over"
    );
    ApiError::new(ErrorCode::Busy, text).with_hint(format!(
        "{peer} is asked each second: start its data plane with its state folder, or mend the \
         network; the answer ends the doubt"
    ))
}

/// Why a migration cannot be cancelled any more.
pub(super) fn too_late(status: &MigrationStatus) -> Option<ApiError> {
    let (id, vm) = (status.id, &status.vm);
    let owner = match status.role {
        Role::Source => status.peer.as_str(),
        Role::Destination => "this node",
    };
    if let Some(report) = &status.report {
        let ended = |what: &str| {
            let text = format!("migration {id} of VM {vm} has ended: {what}");
            ApiError::new(ErrorCode::TooLate, text)
        };
        return Some(match report.result {
            RunResult::Completed => ended(&format!("{owner} owns the VM"))
                .with_hint("to have it back, move it from there"),
            RunResult::Aborted => ended("the guest stayed at its source"),
            RunResult::DryRun => ended("it was a dry run"),
            RunResult::Failed => ended(&report.reason),
        });
    }
    match status.phase {
        PhaseName::InDoubt => Some(ApiError {
            code: ErrorCode::Peer,
            ..is_in_doubt(vm, id, &status.peer)
        }),
        PhaseName::Handover | PhaseName::Complete => {
            let text = format!(
                "VM {vm} cannot be taken back: its handover was sent (migration {id}), and only the \
                 journal of {owner} decides"
            );
            let refusal = ApiError::new(ErrorCode::TooLate, text);
            Some(refusal.with_hint(format!("`dwcp status {vm}` shows the end within moments")))
        }
        PhaseName::Postcopy | PhaseName::PostcopyPaused => {
            let text = format!("VM {vm} cannot be taken back: it runs at {owner} (migration {id})");
            let refusal = ApiError::new(ErrorCode::TooLate, text);
            Some(refusal.with_hint("once all of its pages are there, move it from there"))
        }
        _ => None,
    }
}

/// A VM that is not asked now.
fn unseen(name: &str, attachment: &Attachment, state: &str) -> VmInfo {
    VmInfo {
        name: name.to_owned(),
        attachment: attachment.clone(),
        state: state.to_owned(),
        ram_bytes: 0,
        tracker: String::new(),
        vmm: String::new(),
        note: String::new(),
    }
}

/// Asks a VM what it is, and tries which tracker it allows. It must be the caller's alone.
fn probe(name: &str, attachment: &Attachment) -> Result<VmInfo, ApiError> {
    let failed = |error| api_error(name, &error);
    let mut vm = vmm::open(attachment).map_err(failed)?;
    let facts = vm.facts().map_err(failed)?;
    let tracker = tracker::probe(&mut *vm, facts.pid).map_err(failed)?;
    Ok(info(name, attachment, facts, tracker))
}

/// Asks a VM what it is now; its tracker is the one found when it was attached.
fn look(known: &VmInfo) -> Result<VmInfo, VmmError> {
    let facts = vmm::open(&known.attachment)?.facts()?;
    Ok(info(&known.name, &known.attachment, facts, &known.tracker))
}

fn info(name: &str, attachment: &Attachment, facts: VmFacts, tracker: &str) -> VmInfo {
    VmInfo {
        ram_bytes: facts.ram.iter().map(|block| block.bytes).sum(),
        tracker: tracker.to_owned(),
        vmm: facts.vmm,
        ..unseen(name, attachment, facts.state.name())
    }
}

/// A VM's trouble as a refusal that a person can act on.
pub(super) fn api_error(name: &str, error: &VmmError) -> ApiError {
    let code = match error {
        VmmError::Unsuitable { .. } | VmmError::Ram(_) => ErrorCode::VmUnsuitable,
        VmmError::Gone(_) => ErrorCode::NotFound,
        _ => ErrorCode::System,
    };
    let refusal = ApiError::new(code, format!("VM {name}: {error}"));
    match error {
        VmmError::Unsuitable { hint, .. } => refusal.with_hint(hint),
        _ => refusal,
    }
}
