//! Who owns a VM, in words.

use dwcp_api::{Role, node::Ownership};

use crate::RecordKind;
use crate::state::{Owner, Vm};

impl Vm {
    pub(crate) fn ownership(&self) -> Ownership {
        let owner = match self.owner {
            Owner::Here => "here",
            Owner::Away => "away",
            Owner::InDoubt => "in-doubt",
        };
        Ownership {
            vm: self.last.vm.clone(),
            epoch: self.epoch,
            owner: owner.to_owned(),
            peer: self.last.peer_node.clone(),
            migration: self.last.migration,
            note: self.note(),
        }
    }

    fn note(&self) -> String {
        let (peer, name) = (self.last.peer(), &self.last.peer_node);
        match (self.last.role, &self.last.kind, self.owner) {
            (_, RecordKind::Failed { reason }, _) => format!("needs a look: {reason}"),
            (_, RecordKind::LookedAfter, _) => {
                "it failed, and a person has looked after it".to_owned()
            }
            (Role::Source, RecordKind::Begin { .. }, _) => {
                format!("being moved to {peer}; owned here until the handover")
            }
            (Role::Source, RecordKind::Aborted { reason }, Owner::Here) => {
                if let Some(found) = reason.strip_prefix("dry run: ") {
                    return format!("dry run to {peer}: {found}");
                }
                format!("the move to {peer} was given up, the guest stayed here: {reason}")
            }
            (Role::Source, _, Owner::InDoubt) => format!(
                "handover sent to {peer}, its answer is not known; the guest stays paused here \
                 until {name} says whether it took over"
            ),
            (Role::Source, RecordKind::TakenBack { reason }, Owner::Here) => {
                format!("taken back from {peer}, which does not know it yet: {reason}")
            }
            (Role::Source, RecordKind::Told, Owner::Here) => {
                format!("taken back from {peer} by an operator")
            }
            (Role::Source, RecordKind::Serving, _) => format!(
                "handed over to {peer}, which still fetches pages from here: do not end its VMM"
            ),
            (Role::Source, _, Owner::Away) => format!("handed over to {peer}"),
            (Role::Destination, RecordKind::Committed, _) => {
                format!("taken over from {peer}; not yet running")
            }
            (Role::Destination, RecordKind::Resumed | RecordKind::Whole, _) => {
                format!("taken over from {peer}")
            }
            (Role::Destination, RecordKind::Yielded, _) => {
                format!("taken back by the operator of {peer}; what was here was ended")
            }
            (Role::Destination, RecordKind::Begin { .. } | RecordKind::Fetching { .. }, _) => {
                format!("arriving from {peer}; not owned here until the handover")
            }
            (Role::Destination, RecordKind::Refused | RecordKind::Aborted { .. }, _) => {
                format!("a move from {peer} was given up before the handover")
            }
            _ => format!("an older migration with {peer} was settled"),
        }
    }
}
