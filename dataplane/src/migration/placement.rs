//! Where the workers of a migration run.

use std::sync::OnceLock;

use dwcp_api::TransferSettings;
use dwcp_numa::{Topology, TopologyError};

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

/// Places for the workers of one migration: as many as were asked for, or one per stream up to the
/// cores, near each other.
pub(super) fn plan_workers(
    settings: &TransferSettings,
    streams: u16,
) -> (Vec<WorkerPlace>, Option<String>) {
    let count = worker_count(settings, streams);
    let topology = match machine() {
        Ok(topology) => topology.restricted_to(&dwcp_numa::allowed_cpus()),
        Err(error) => {
            let note = format!("topology is unknown ({error}): workers are not pinned");
            return (vec![WorkerPlace::default(); count], Some(note));
        }
    };
    let several = topology.nodes().len() > 1;
    let place = |worker: &dwcp_numa::PlannedWorker| WorkerPlace {
        cpu: settings.pin_workers.then_some(worker.cpu),
        node: several.then_some(worker.node).flatten(),
    };
    (
        topology
            .plan_workers(count, None)
            .workers
            .iter()
            .map(place)
            .collect(),
        None,
    )
}
