//! Where the workers of a migration run.

use std::net::IpAddr;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use dwcp_api::TransferSettings;
use dwcp_numa::{PlannedWorker, Topology, TopologyError, WorkerWish};

use super::network_card::node_of_address;
use crate::engine::WorkerSettings;
use crate::path::Lanes;
use crate::ram::{RamLayout, RamNodes};
use crate::transport::{RdmaMemory, Stock};

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

/// One that finds the number of its streams by measurement has so many workers, unless others were asked
/// for: every one of them needs a stream that carries pages.
const WORKERS_WHEN_MEASURED: u16 = 4;

/// Workers of one migration over so many streams: as many as were asked for, or one per stream.
pub(super) fn worker_count(settings: &TransferSettings, streams: u16) -> usize {
    let asked = match settings.workers {
        0 if settings.measure_streams => WORKERS_WHEN_MEASURED,
        0 => streams,
        workers => workers,
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
        Err(error) => return Placement::anywhere(count, &error.to_string()),
    };
    if topology.nodes().len() < 2 {
        // There is nothing to find out.
        return place_on(&topology, settings.pin_workers, count, None, None);
    }
    let card = local.and_then(|local| node_of_address(&topology, local));
    let nodes = RamNodes::find(layout);
    place_on(
        &topology,
        settings.pin_workers,
        count,
        Some((layout, &nodes)),
        card,
    )
}

/// The part that asks nobody. `ram` is where guest RAM lies, on a machine of several nodes; `card` is
/// the node of the network card.
fn place_on(
    topology: &Topology,
    pin: bool,
    count: usize,
    ram: Option<(&RamLayout, &RamNodes)>,
    card: Option<usize>,
) -> Placement {
    let shares = ram.map(|(_, nodes)| nodes.shares()).unwrap_or_default();
    let plan = topology.plan_workers(&WorkerWish {
        count,
        ram: &shares,
        device_node: card,
    });
    if plan.workers.is_empty() {
        return Placement::anywhere(count, "no CPU is known to be ours");
    }
    let place = |worker: &PlannedWorker| WorkerPlace {
        cpu: pin.then_some(worker.cpu),
        node: worker.node.filter(|_| ram.is_some()),
    };
    Placement {
        workers: plan.workers.iter().map(place).collect(),
        lanes: ram.map(|(layout, nodes)| Arc::new(Lanes::by_node(layout, nodes))),
        why: ram.map(|_| format!("NUMA: {}", plan.why)),
    }
}

/// A stream's share of what may be under way on so many: never so little that all of it may stand where the
/// destination has yet to acknowledge it, which it does after [`ACK_BYTES_MIN`] at the least.
pub(super) fn stream_window(window_bytes: u64, streams: u16) -> u64 {
    (window_bytes / u64::from(streams.max(1))).max(2 * ACK_BYTES_MIN)
}

/// Least bytes of a stream between two acknowledgements.
pub(super) const ACK_BYTES_MIN: u64 = 64 * 1024;

/// What the workers of one end have in common, beside [`TransferSettings`].
pub(super) struct WorkersOf<'a> {
    pub(super) stock: &'a Stock,
    pub(super) sealed: bool,
    pub(super) rdma: Option<Arc<RdmaMemory>>,
    /// At the source: the destination knows shuffled pages.
    pub(super) shuffles: bool,
    pub(super) streams: u16,
    /// Bytes between acknowledgements of a stream; at the destination.
    pub(super) ack_bytes: u64,
}

impl Placement {
    /// How each worker is to run: the streams are shared out evenly.
    pub(super) fn worker_settings(
        &self,
        settings: &TransferSettings,
        of: &WorkersOf<'_>,
    ) -> Vec<WorkerSettings> {
        let count = self.workers.len();
        let in_all = usize::from(of.streams);
        let window = stream_window(settings.window_bytes, of.streams);
        let own = |index: usize| (in_all - index.min(in_all)).div_ceil(count) as u64;
        let worker = |(index, place): (usize, &WorkerPlace)| WorkerSettings {
            index,
            io: settings.io,
            send: settings.send,
            cpu: place.cpu,
            node: place.node,
            stock: of.stock.clone(),
            sealed: of.sealed,
            kernel_tls: settings.kernel_tls,
            shuffles: of.shuffles,
            rdma: of.rdma.clone(),
            streams: usize::from(of.streams).div_ceil(count),
            streams_in_all: of.streams.into(),
            window_bytes: window * own(index),
            // Few of them may have to carry all, where that is measured.
            stream_window_bytes: match settings.measure_streams {
                true => window * own(index),
                false => window,
            },
            ack_bytes: of.ack_bytes,
            busy_poll: Duration::from_micros(settings.busy_poll_us.into()),
        };
        self.workers.iter().enumerate().map(worker).collect()
    }

    /// Workers that run where the kernel puts them.
    fn anywhere(count: usize, because: &str) -> Self {
        Self {
            workers: vec![WorkerPlace::default(); count],
            lanes: None,
            why: Some(format!(
                "topology is unknown ({because}): workers are not pinned"
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ram::testing::ram;

    /// 8 cores on each of two nodes.
    const SERVER: &str = include_str!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../numa/tests/topologies/servers/supermicro-2x-xeon-e5-2650-2-nodes.xml"
    ));

    fn nodes_of(placement: &Placement) -> Vec<Option<usize>> {
        placement.workers.iter().map(|place| place.node).collect()
    }

    #[test]
    fn with_one_node_nothing_is_split_and_nothing_is_said() {
        let topology = Topology::from_synthetic("pack:1 [numa] core:4 pu:2").unwrap();
        let placement = place_on(&topology, true, 2, None, None);
        assert_eq!(nodes_of(&placement), [None, None]);
        let cpus: Vec<_> = placement.workers.iter().map(|place| place.cpu).collect();
        assert_eq!(cpus, [Some(0), Some(2)]);
        assert_eq!((placement.lanes, placement.why), (None, None));
    }

    #[test]
    fn with_two_nodes_workers_and_work_are_split_alike() {
        let topology = Topology::from_xml(SERVER).unwrap();
        let layout = ram(&[1024, 3072]);
        let nodes = RamNodes::of([(0, 0..1024, Some(1)), (1, 0..3072, Some(0))]);
        let placement = place_on(&topology, false, 4, Some((&layout, &nodes)), Some(1));
        assert_eq!(nodes_of(&placement), [Some(1), Some(0), Some(0), Some(0)]);
        assert!(placement.workers.iter().all(|place| place.cpu.is_none()));
        let lanes = placement.lanes.unwrap();
        assert_eq!(*lanes, Lanes::by_node(&layout, &nodes));
        let why = placement.why.unwrap();
        assert!(why.starts_with("NUMA: 4 of 4 workers"), "{why}");
        assert!(why.contains("1 near the network card on node 1"), "{why}");
    }

    #[test]
    fn there_are_workers_even_where_no_cpu_is_known() {
        let topology = Topology::from_xml(SERVER).unwrap().restricted_to(&[]);
        let placement = place_on(&topology, true, 3, None, None);
        assert_eq!(nodes_of(&placement), [None; 3]);
        assert!(placement.why.unwrap().contains("not pinned"));
    }

    /// Streams that all stand where nothing is acknowledged yet leave room for more.
    #[test]
    fn a_small_window_does_not_stand_still() {
        for streams in 1..=dwcp_api::STREAMS_MAX {
            for bytes in [1, 1 << 20, 128 << 20] {
                let window = stream_window(bytes, streams);
                let acked_after = (window / 4).max(ACK_BYTES_MIN);
                assert!(window > acked_after, "{streams} streams, {bytes} bytes");
                let in_all = window * u64::from(streams);
                assert!(
                    in_all <= bytes.max(4 << 20),
                    "{streams} streams, {bytes} bytes"
                );
            }
        }
    }
}
