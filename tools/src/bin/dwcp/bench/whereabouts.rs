//! Where a guest is after something was done to its migration, and whether its memory is whole there.

use std::fmt::Write;
use std::time::{Duration, Instant};

use dwcp_api::node::{Reply, Request};
use dwcp_api::{HalfDoneState, RecoverRequest};
use dwcp_tools::lab::{Lab, LabNode};
use serde::Serialize;

use crate::failure::Failure;

/// Where the guest was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Where {
    Source,
    Destination,
    /// Its VMM was killed after the commit: the journals say that the destination owns it.
    DiedAtDestination,
    Both,
    Neither,
}

/// How it was found.
#[derive(Clone, Debug)]
pub(crate) struct Found {
    pub(crate) at: Where,
    /// What is wrong with its memory.
    pub(crate) memory: Option<String>,
    /// What the journals say.
    pub(crate) journals: String,
}

impl Found {
    /// Exactly one copy runs, and is whole; or it died with its own VMM.
    pub(crate) const fn is_good(&self) -> bool {
        match self.at {
            Where::Source | Where::Destination => self.memory.is_none(),
            Where::DiedAtDestination => true,
            Where::Both | Where::Neither => false,
        }
    }

    const fn at(at: Where, journals: String) -> Self {
        Self {
            at,
            memory: None,
            journals,
        }
    }
}

/// Waits until the guest runs on one side and nothing is under way any more. `vmm_killed` says that the
/// destination's VMM may be gone with the guest.
pub(crate) fn find(lab: &mut Lab, vmm_killed: bool, time: Duration) -> Result<Found, Failure> {
    let deadline = Instant::now() + time;
    let last = loop {
        let last = running(lab);
        if last == (true, true) {
            return Ok(Found::at(Where::Both, journals(lab)));
        }
        let over = is_over(&mut lab.a) && is_over(&mut lab.b);
        if (over && last != (false, false)) || Instant::now() >= deadline {
            break last;
        }
        if over && vmm_killed && owned_there(&mut lab.b) {
            return Ok(Found::at(Where::DiedAtDestination, journals(lab)));
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    let (at, verdict) = match last {
        (true, false) => (Where::Source, lab.guest.verify_at_source()),
        (false, true) => (Where::Destination, lab.guest.verify_at_destination()),
        _ => return Ok(Found::at(Where::Neither, journals(lab))),
    };
    // It must not start on the other side while it looks at its memory.
    if running(lab) == (true, true) {
        return Ok(Found::at(Where::Both, journals(lab)));
    }
    Ok(Found {
        at,
        memory: verdict.map_err(Failure::other)?.err(),
        journals: journals(lab),
    })
}

/// Whether it runs at the source, and at the destination. The sides are asked one after the other: a guest that
/// was moved between the questions runs at one only.
fn running(lab: &mut Lab) -> (bool, bool) {
    match lab.guest.running() {
        (true, true) => lab.guest.running(),
        one => one,
    }
}

/// Whether nothing of a node will change by itself any more.
fn is_over(node: &mut LabNode) -> bool {
    use HalfDoneState::{CutOff, InDoubt, Silent, UnderWay};
    match node.ask(&Request::Recover(RecoverRequest::List)) {
        Ok(Reply::Recovery(recovery)) => {
            let mut half_done = recovery.half_done.iter();
            recovery.said.is_empty()
                && !half_done.any(|open| matches!(open.state, CutOff | InDoubt | Silent | UnderWay))
        }
        _ => false,
    }
}

fn owned_there(node: &mut LabNode) -> bool {
    match node.ask(&Request::Ownership) {
        Ok(Reply::Ownership(list)) => list.iter().any(|vm| vm.vm == "guest" && vm.owner == "here"),
        _ => false,
    }
}

fn journals(lab: &mut Lab) -> String {
    let mut out = String::new();
    for node in [&mut lab.a, &mut lab.b] {
        if let Ok(Reply::Ownership(list)) = node.ask(&Request::Ownership) {
            for vm in list.into_iter().filter(|vm| vm.vm == "guest") {
                let _ = write!(out, "[epoch {} {}: {}] ", vm.epoch, vm.owner, vm.note);
            }
        }
    }
    out
}
