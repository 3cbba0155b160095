//! A migration without an end, explained to a person. Pure.

use dwcp_api::{HalfDone, HalfDoneState, PhaseName, Role};

use crate::{RecordKind, Stage, Unfinished};

/// What is known beside the journal.
#[derive(Clone, Debug, Default)]
pub struct Live {
    /// The data plane runs.
    pub is_up: bool,
    /// Phase of the driver, or the question, that is at it.
    pub phase: Option<PhaseName>,
    /// The VM's own VMM does not say what its guest does.
    pub is_silent: bool,
    /// Why the other node has not answered; empty where it was not asked.
    pub trouble: String,
}

impl Unfinished {
    /// What a person is told of it.
    #[must_use]
    pub fn explain(&self, live: &Live) -> HalfDone {
        let state = self.half_done_state(live);
        let down = "nothing: the data plane is down".to_owned();
        let why = match &self.last.kind {
            RecordKind::Failed { reason } if live.trouble.is_empty() => reason.clone(),
            _ => live.trouble.clone(),
        };
        HalfDone {
            vm: self.vm.clone(),
            migration: self.migration,
            role: self.role,
            state,
            reached: self.reached().to_owned(),
            peer: self.last.peer(),
            since_ms: self.last.wall_ms,
            guest: self.guest(state),
            doing: if live.is_up { self.doing(state) } else { down },
            why,
            advice: if live.is_up || state == HalfDoneState::Failed {
                self.advice(state)
            } else {
                "start dwcp-dataplane on this node, with the same state folder: it finishes what \
                 can be finished"
                    .to_owned()
            },
        }
    }

    fn half_done_state(&self, live: &Live) -> HalfDoneState {
        use HalfDoneState::{CutOff, Failed, InDoubt, Silent, Stuck, Superseded, UnderWay, Untold};
        match (self.stage, live.phase) {
            (Stage::TakenBack, _) if !self.failed => Untold,
            _ if self.superseded => Superseded,
            (_, Some(PhaseName::InDoubt)) => InDoubt,
            (_, Some(PhaseName::PostcopyPaused)) => CutOff,
            (_, Some(_)) => UnderWay,
            _ if live.is_silent => Silent,
            _ if self.failed => Failed,
            // Nobody asks: what was answered could not be written yet.
            (Stage::Prepared, None) if !live.is_up => InDoubt,
            _ => Stuck,
        }
    }

    const fn reached(&self) -> &'static str {
        match (self.role, self.stage) {
            (_, Stage::Begun) => "begun",
            (_, Stage::Prepared) => "handover sent",
            (_, Stage::Serving) => "handed over, pages needed from here",
            (_, Stage::TakenBack) => "taken back",
            (Role::Source, Stage::Committed | Stage::Resumed) => "handed over",
            (Role::Destination, Stage::Committed) => "taken over, not yet running",
            (Role::Destination, Stage::Resumed) if self.fetching.is_some() => {
                "taken over, pages missing"
            }
            (Role::Destination, Stage::Resumed) => "taken over",
            (_, Stage::Refused) => "refused",
            (_, Stage::Aborted | Stage::Yielded) => "given up",
        }
    }

    fn guest(&self, state: HalfDoneState) -> String {
        let peer = &self.peer_node;
        match (self.role, self.stage) {
            _ if state == HalfDoneState::Superseded => {
                "a newer migration of this VM says".to_owned()
            }
            (Role::Source, Stage::Begun | Stage::TakenBack) => "this node's".to_owned(),
            (Role::Source, Stage::Prepared) if state == HalfDoneState::UnderWay => {
                format!("this node's until {peer} has taken over")
            }
            (Role::Source, Stage::Prepared) => {
                format!("stands here, and may run at {peer}")
            }
            (Role::Source, Stage::Serving) => {
                format!("runs at {peer}, a part of its memory is here")
            }
            (Role::Source, _) => format!("{peer}'s"),
            (Role::Destination, Stage::Committed | Stage::Resumed) => match self.fetching {
                Some(_) => format!("runs here, a part of its memory is at {peer}"),
                None => "this node's".to_owned(),
            },
            (Role::Destination, _) => format!("{peer}'s; what came of it here is no guest"),
        }
    }

    fn doing(&self, state: HalfDoneState) -> String {
        let peer = &self.peer_node;
        match (state, self.role) {
            (HalfDoneState::UnderWay, _) => "it is being carried out".to_owned(),
            (HalfDoneState::InDoubt, _) => format!("{peer} is asked each second whose it is"),
            (HalfDoneState::CutOff, Role::Destination) => {
                format!("the guest waits for pages until {peer} connects again; then it goes on")
            }
            (HalfDoneState::CutOff, Role::Source) => {
                format!("{peer} is connected to until that succeeds; then it goes on")
            }
            (HalfDoneState::Silent, _) => "its VMM is asked each second".to_owned(),
            (HalfDoneState::Untold | HalfDoneState::Failed, _)
                if self.stage == Stage::TakenBack =>
            {
                format!("{peer} is told each second that it is not the owner")
            }
            (HalfDoneState::Stuck, Role::Destination) => format!(
                "what was loaded is ended when {peer} asks, or when the data plane is started anew"
            ),
            (HalfDoneState::Stuck, Role::Source) => {
                "its end is written as soon as the journal takes it".to_owned()
            }
            (HalfDoneState::Superseded, _) => "its record is closed when it can be".to_owned(),
            _ => "nothing".to_owned(),
        }
    }

    fn advice(&self, state: HalfDoneState) -> String {
        let (vm, peer) = (&self.vm, &self.peer_node);
        match (state, self.role) {
            (HalfDoneState::UnderWay, _)
                if self.stage == Stage::Serving || self.fetching.is_some() =>
            {
                format!("wait; `dwcp status {vm}` shows how many pages are missing")
            }
            (HalfDoneState::UnderWay, _) => {
                format!(
                    "wait; `dwcp status {vm}` shows it, `dwcp cancel {vm}` ends it while it can"
                )
            }
            (HalfDoneState::InDoubt, _) => format!(
                "start the data plane of {peer} with its state folder, or mend the network: its \
                 answer ends the doubt. Only if {peer}, or its state folder, is gone for good, and \
                 can never run the guest: `dwcp recover {vm} --owner here --the-other-node-is-gone`"
            ),
            (HalfDoneState::CutOff, Role::Destination) => format!(
                "mend the network, or start the data plane of {peer}; `dwcp recover {vm}` asks it. If \
                 {peer}, or the VM's VMM there, is gone for good, the guest is lost as by a power \
                 cut: `dwcp recover {vm} --owner there --the-other-node-is-gone` ends it here, then \
                 start it from its disks"
            ),
            (HalfDoneState::CutOff, Role::Source) => format!(
                "mend the network, or start the data plane of {peer}. If {peer} is gone for good, \
                 the guest is lost as by a power cut: \
                 `dwcp recover {vm} --owner there --the-other-node-is-gone`, then start it from its \
                 disks"
            ),
            (HalfDoneState::Silent, _) => {
                "end the other client of its monitor, or the VMM if it hangs".to_owned()
            }
            (HalfDoneState::Untold, _) => {
                format!(
                    "start the data plane of {peer}, or keep the VM's disks out of its reach: it ends when {peer} \
                     hears it. If it never does, `dwcp recover {vm} --looked-after`: it is told all the same, \
                     each minute, and not shown any more"
                )
            }
            (HalfDoneState::Stuck, _) => format!("`dwcp recover {vm}` tries it now"),
            (HalfDoneState::Failed, Role::Source) if self.stage == Stage::Serving => format!(
                "the guest is {peer}'s, and may wait there for pages that are gone: \
                 `dwcp recover {vm}` there says so, and there \
                 `dwcp recover {vm} --owner there --the-other-node-is-gone` ends it. Start it from \
                 its disks, once; then `dwcp recover {vm} --looked-after` at both"
            ),
            (HalfDoneState::Failed, Role::Source) => format!(
                "see why. If its VMM is gone: start the VM from its disks. Then \
                 `dwcp recover {vm} --looked-after`"
            ),
            (HalfDoneState::Failed, Role::Destination) => format!(
                "see why, and what {peer} says (`dwcp recover` there): what it has is older than \
                 the disks. Start the VM from its disks, then `dwcp recover {vm} --looked-after`"
            ),
            _ => "nothing".to_owned(),
        }
    }
}

#[cfg(test)]
mod tests {
    use dwcp_api::{Attachment, MigrationId};

    use super::*;
    use crate::{Record, State};

    fn record(sequence: u64, role: Role, kind: RecordKind) -> Record {
        Record {
            sequence,
            migration: MigrationId(7),
            vm: "web".into(),
            role,
            peer_node: "b".into(),
            peer_address: "192.0.2.2:7440".into(),
            tls: false,
            epoch: kind.epochs_ahead(),
            wall_ms: 5,
            kind,
        }
    }

    fn told(role: Role, kinds: &[RecordKind], live: &Live) -> Option<HalfDone> {
        let begin = RecordKind::Begin {
            attachment: Attachment::Process {
                socket: "/s".into(),
            },
        };
        let all = [&[begin][..], kinds].concat();
        let records: Vec<_> = (1..)
            .zip(all)
            .map(|(at, kind)| record(at, role, kind))
            .collect();
        let half_done = State::from_records(&records).half_done();
        assert!(half_done.len() <= 1);
        half_done.first().map(|open| open.explain(live))
    }

    fn live(phase: Option<PhaseName>) -> Live {
        Live {
            is_up: true,
            phase,
            ..Live::default()
        }
    }

    #[test]
    fn who_is_at_it_and_the_journal_say_how_it_stands() {
        use HalfDoneState::{CutOff, Failed, InDoubt, Silent, Stuck, UnderWay, Untold};
        let reason = || "test".to_owned();
        let (source, destination) = (Role::Source, Role::Destination);
        let prepared = [RecordKind::Prepared];
        let serving = [RecordKind::PreparedPostcopy, RecordKind::Serving];
        let serving_failed = [
            RecordKind::PreparedPostcopy,
            RecordKind::Serving,
            RecordKind::Failed { reason: reason() },
        ];
        let taken_back = [
            RecordKind::Prepared,
            RecordKind::TakenBack { reason: reason() },
        ];
        let failed = [
            RecordKind::Committed,
            RecordKind::Failed { reason: reason() },
        ];
        let silent = Live {
            is_silent: true,
            ..live(None)
        };
        for (state, role, kinds, live) in [
            (UnderWay, source, &[][..], live(Some(PhaseName::Precopy))),
            (Stuck, source, &[], live(None)),
            (Silent, source, &[], silent),
            (UnderWay, source, &prepared, live(Some(PhaseName::Handover))),
            (InDoubt, source, &prepared, live(Some(PhaseName::InDoubt))),
            (InDoubt, source, &prepared, Live::default()),
            (Stuck, source, &prepared, live(None)),
            (
                CutOff,
                source,
                &serving,
                live(Some(PhaseName::PostcopyPaused)),
            ),
            (Untold, source, &taken_back, live(None)),
            (Stuck, destination, &[RecordKind::Refused], live(None)),
            (Failed, source, &serving_failed, live(None)),
            (
                CutOff,
                destination,
                &[RecordKind::Committed],
                live(Some(PhaseName::PostcopyPaused)),
            ),
            (Failed, destination, &failed, live(None)),
        ] {
            let told = told(role, kinds, &live).unwrap();
            assert_eq!(told.state, state, "{role:?} {kinds:?} {live:?}");
            assert_eq!(
                (told.peer.as_str(), told.since_ms),
                ("b (192.0.2.2:7440)", 5)
            );
            assert!(!told.guest.is_empty() && !told.doing.is_empty() && !told.advice.is_empty());
        }
    }

    /// It is this node's guest since it was taken back: that it does not run is not undone by an answer.
    #[test]
    fn a_failure_after_it_was_taken_back_stands_when_the_other_node_knows() {
        let reason = || "its VMM is gone".to_owned();
        let mut kinds = vec![
            RecordKind::Prepared,
            RecordKind::TakenBack { reason: reason() },
            RecordKind::Failed { reason: reason() },
        ];
        let told_of = |kinds: &[RecordKind]| told(Role::Source, kinds, &live(None));
        let before = told_of(&kinds).unwrap();
        assert_eq!(before.state, HalfDoneState::Failed);
        assert!(before.doing.contains("is told"), "{}", before.doing);
        kinds.push(RecordKind::Told);
        let after = told_of(&kinds).unwrap();
        assert_eq!(after.state, HalfDoneState::Failed);
        kinds.push(RecordKind::LookedAfter);
        assert_eq!(told_of(&kinds), None);
    }

    #[test]
    fn what_has_ended_is_not_told() {
        let reason = || "test".to_owned();
        for (role, kinds) in [
            (
                Role::Source,
                &[RecordKind::Prepared, RecordKind::Committed][..],
            ),
            (
                Role::Source,
                &[
                    RecordKind::Prepared,
                    RecordKind::TakenBack { reason: reason() },
                    RecordKind::Told,
                ],
            ),
            // The other node still is.
            (
                Role::Source,
                &[
                    RecordKind::Prepared,
                    RecordKind::TakenBack { reason: reason() },
                    RecordKind::LookedAfter,
                ],
            ),
            (
                Role::Destination,
                &[
                    RecordKind::Committed,
                    RecordKind::Resumed,
                    RecordKind::Yielded,
                ],
            ),
            (
                Role::Destination,
                &[
                    RecordKind::Committed,
                    RecordKind::Failed { reason: reason() },
                    RecordKind::LookedAfter,
                ],
            ),
        ] {
            assert_eq!(told(role, kinds, &live(None)), None, "{role:?} {kinds:?}");
        }
    }
}
