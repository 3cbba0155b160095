//! Where the workers of a migration run.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use dwcp_api::TransferSettings;
use dwcp_numa::{PlannedWorker, Topology, TopologyError, WorkerWish};

use super::network_card::node_of_address;
use crate::path::Lanes;
use crate::ram::{RamLayout, RamNodes};

/// This machine. It is read once: to look at all of its devices takes longer than to move a small
/// guest (on a virtual machine, ten milliseconds and more).
pub(super) fn machine() -> &'static Result<Topology, TopologyError> {
    static MACHINE: OnceLock<Result<Topology, TopologyError>> = OnceLock::new();
    MACHINE.get_or_init(Topology::detect)
}

/// Where one worker runs.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct WorkerPlace {
    /// CPU to pin it to; `None` runs where the kernel puts it.
    pub(super) cpu: Option<usize>,
    /// Node of its buffers; `None` where there is only one.
    pub(super) node: Option<usize>,
}

/// Workers of one migration over so many streams: as many as were asked for, or one per stream.
pub(super) fn worker_count(settings: &TransferSettings, streams: u16) -> usize {
    let asked = if settings.workers == 0 {
        streams
    } else {
        settings.workers
    };
    usize::from(asked.min(streams)).max(1)
}

/// Where the workers of one migration run, and how they share its RAM.
#[derive(Debug, Default)]
pub(super) struct Placement {
    /// A place per worker.
    pub(super) workers: Vec<WorkerPlace>,
    /// The source's work, where it lies on several nodes.
    pub(super) lanes: Option<Arc<Lanes>>,
    /// Why so, where there was a choice; for a person to read.
    pub(super) why: Option<String>,
}

/// Places the workers of one migration: as many as were asked for, or one per stream up to the cores.
/// On a machine of several nodes they are near guest RAM, and near the network card that `local`, an
/// address of this node, is on.
pub(super) fn place(
    settings: &TransferSettings,
    streams: u16,
    layout: &RamLayout,
    local: Option<IpAddr>,
) -> Placement {
    let count = worker_count(settings, streams);
    let topology = match machine() {
        Ok(topology) => topology.restricted_to(&dwcp_numa::allowed_cpus()),
        Err(error) => {
            return Placement {
                workers: vec![WorkerPlace::default(); count],
                lanes: None,
                why: Some(format!(
                    "topology is unknown ({error}): workers are not pinned"
                )),
            };
        }
    };
    let several = topology.nodes().len() > 1;
    // With one node there is nothing to find out.
    let nodes = if several {
        RamNodes::find(layout)
    } else {
        RamNodes::default()
    };
    let device_node = local
        .filter(|_| several)
        .and_then(|local| node_of_address(&topology, local));
    let plan = topology.plan_workers(&WorkerWish {
        count,
        ram: &nodes.shares(),
        device_node,
    });
    let place = |worker: &PlannedWorker| WorkerPlace {
        cpu: settings.pin_workers.then_some(worker.cpu),
        node: worker.node.filter(|_| several),
    };
    Placement {
        workers: plan.workers.iter().map(place).collect(),
        lanes: several.then(|| Arc::new(Lanes::by_node(layout, &nodes))),
        why: several.then(|| format!("NUMA: {}", plan.why)),
    }
}
