//! Topologies that this machine does not have, and the plans made for them.

use std::path::Path;

use dwcp_numa::{DeviceKind, PlannedWorker, Topology, WorkerPlan, WorkerWish};

const TWO_SOCKETS: &str = include_str!("topologies/two-sockets-nic.xml");
const ONE_NODE: &str = include_str!("topologies/one-node.xml");

/// Workers near a device, the memory unknown.
fn plan(topology: &Topology, count: usize, device_node: Option<usize>) -> WorkerPlan {
    topology.plan_workers(&WorkerWish {
        count,
        ram: &[],
        device_node,
    })
}

fn cpus(plan: &WorkerPlan) -> Vec<usize> {
    plan.workers.iter().map(|worker| worker.cpu).collect()
}

#[test]
fn two_sockets_show_nodes_cores_and_siblings() {
    let topology = Topology::from_xml(TWO_SOCKETS).unwrap();
    let nodes = topology.nodes();
    assert_eq!(nodes.len(), 2);
    assert_eq!((nodes[1].index, nodes[1].memory_bytes), (1, 64 << 30));
    assert_eq!(nodes[1].cpus, (8..16).collect::<Vec<_>>());
    assert_eq!(topology.cores().len(), 8);
    assert_eq!(topology.core_of_cpu(3).unwrap().cpus, [2, 3]);
    assert_eq!(
        (topology.node_of_cpu(7), topology.node_of_cpu(8)),
        (Some(0), Some(1))
    );
    assert_eq!(topology.node_of_cpu(16), None);
}

#[test]
fn devices_are_found_by_name_and_by_bus_address() {
    let topology = Topology::from_xml(TWO_SOCKETS).unwrap();
    for name in ["ens1f0", "mlx5_0", "0000:81:00.0"] {
        assert_eq!(topology.node_of_device(name), Some(1), "{name}");
    }
    assert_eq!(topology.node_of_device("eth7"), None);
    let kinds: Vec<DeviceKind> = topology
        .devices()
        .iter()
        .map(|device| device.kind)
        .collect();
    assert_eq!(
        kinds,
        [DeviceKind::Pci, DeviceKind::Network, DeviceKind::Rdma]
    );
}

#[test]
fn workers_go_to_the_node_of_the_device_one_per_core() {
    let topology = Topology::from_xml(TWO_SOCKETS).unwrap();
    let plan = plan(&topology, 3, topology.node_of_device("ens1f0"));
    assert_eq!(cpus(&plan), [8, 10, 12]);
    assert_eq!(
        plan.workers[0],
        PlannedWorker {
            cpu: 8,
            node: Some(1)
        }
    );
    assert!(
        plan.why.contains("3 near the network card on node 1"),
        "{}",
        plan.why
    );
}

#[test]
fn workers_spill_to_the_other_node_and_stop_at_the_number_of_cores() {
    let topology = Topology::from_xml(TWO_SOCKETS).unwrap();
    let plan = plan(&topology, 20, Some(1));
    assert_eq!(cpus(&plan), [8, 10, 12, 14, 0, 2, 4, 6]);
    assert!(plan.why.contains("8 of 20 workers"), "{}", plan.why);
    assert!(plan.why.contains("only 8 cores"), "{}", plan.why);
    assert!(
        plan.why.contains("4 near the network card on node 1"),
        "{}",
        plan.why
    );
}

#[test]
fn the_same_socket_comes_before_the_other_one() {
    let topology = Topology::from_synthetic("pack:2 group:2 [numa] core:2 pu:1").unwrap();
    assert_eq!(topology.nodes().len(), 4);
    assert_eq!(cpus(&plan(&topology, 8, Some(3))), [6, 7, 4, 5, 0, 1, 2, 3]);
}

#[test]
fn without_a_preference_a_node_is_filled_before_the_next() {
    let topology = Topology::from_synthetic("pack:2 [numa] core:2 pu:2").unwrap();
    let plan = plan(&topology, 3, None);
    assert_eq!(cpus(&plan), [0, 2, 4]);
    assert!(plan.why.contains("nothing to be near to"), "{}", plan.why);
}

#[test]
fn a_node_that_does_not_exist_is_said_and_not_obeyed() {
    let topology = Topology::from_xml(ONE_NODE).unwrap();
    let plan = plan(&topology, 2, Some(9));
    assert_eq!(cpus(&plan), [0, 1]);
    assert!(
        plan.why
            .contains("the network card's node 9 does not exist"),
        "{}",
        plan.why
    );
}

#[test]
fn no_workers_is_a_plan_too() {
    assert!(
        plan(&Topology::from_xml(ONE_NODE).unwrap(), 0, None)
            .workers
            .is_empty()
    );
}

#[test]
fn restriction_keeps_memory_and_drops_cores() {
    let topology = Topology::from_xml(TWO_SOCKETS)
        .unwrap()
        .restricted_to(&[3, 9]);
    assert_eq!((topology.nodes().len(), topology.cores().len()), (2, 2));
    assert_eq!(cpus(&plan(&topology, 8, Some(1))), [9, 3]);
}

#[test]
fn a_file_and_its_text_give_the_same_topology() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/topologies/one-node.xml");
    let from_file = Topology::from_xml_file(&path).unwrap();
    assert_eq!(from_file, Topology::from_xml(ONE_NODE).unwrap());
}

#[test]
fn nonsense_is_an_error_with_its_origin() {
    let error = Topology::from_synthetic("cheese:3").unwrap_err();
    assert!(error.to_string().contains("cheese:3"), "{error}");
    assert!(Topology::from_xml_file(Path::new("/nonexistent.xml")).is_err());
}

#[test]
fn this_machine_has_a_node_and_a_core_for_a_worker() {
    let topology = Topology::detect().unwrap();
    assert!(!topology.nodes().is_empty());
    let allowed = dwcp_numa::allowed_cpus();
    let plan = plan(&topology.restricted_to(&allowed), 1, None);
    assert!(allowed.contains(&plan.workers[0].cpu), "{plan:?}");
}
