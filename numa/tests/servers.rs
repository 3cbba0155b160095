//! Plans for real servers, and for any memory on them.

use std::collections::HashSet;

use dwcp_numa::{NodeShare, Topology, WorkerPlan, WorkerWish};
use proptest::prelude::*;

macro_rules! server {
    ($name:literal) => {
        include_str!(concat!("topologies/servers/", $name, ".xml"))
    };
}

const HP: &str = server!("hp-sl390s-2x-xeon-2-nodes");
const SUPERMICRO: &str = server!("supermicro-2x-xeon-e5-2650-2-nodes");
const DELL: &str = server!("dell-r740-2x-xeon-gold-6230-4-nodes");
const HUAWEI: &str = server!("huawei-2x-kunpeng-920-4-nodes");
const AMD: &str = server!("amd-4x-opteron-6276-8-nodes");

fn read(xml: &str) -> Topology {
    Topology::from_xml(xml).unwrap()
}

fn shares(ram: &[(usize, u64)]) -> Vec<NodeShare> {
    ram.iter()
        .map(|&(node, bytes)| NodeShare { node, bytes })
        .collect()
}

fn plan(
    topology: &Topology,
    count: usize,
    ram: &[(usize, u64)],
    device_node: Option<usize>,
) -> WorkerPlan {
    topology.plan_workers(&WorkerWish {
        count,
        ram: &shares(ram),
        device_node,
    })
}

/// Node of each worker, in order.
fn nodes(plan: &WorkerPlan) -> Vec<usize> {
    plan.workers
        .iter()
        .map(|worker| worker.node.expect("every core of these has a node"))
        .collect()
}

#[test]
fn servers_are_read_as_they_were_built() {
    for (xml, node_count, cores, threads, packages) in [
        (HP, 2, 12, 2, 2),
        (SUPERMICRO, 2, 16, 2, 2),
        (DELL, 4, 40, 2, 2),
        (HUAWEI, 4, 128, 1, 2),
        (AMD, 8, 64, 1, 4),
    ] {
        let topology = read(xml);
        assert_eq!(topology.nodes().len(), node_count);
        assert_eq!(topology.cores().len(), cores);
        assert!(topology.cores().iter().all(|core| {
            core.cpus.len() == threads && core.node.is_some() && core.package.is_some()
        }));
        let found: HashSet<_> = topology.cores().iter().map(|core| core.package).collect();
        assert_eq!(found.len(), packages);
    }
}

#[test]
fn network_cards_are_found_on_their_socket() {
    for (xml, names, node) in [
        (HP, ["eth0", "ib0", "mlx4_0", "0000:05:00.0"], 0),
        (SUPERMICRO, ["eth1", "ib0", "mlx5_0", "0000:81:00.0"], 1),
    ] {
        let topology = read(xml);
        for name in names {
            assert_eq!(topology.node_of_device(name), Some(node), "{name}");
        }
    }
}

#[test]
fn workers_go_where_the_memory_is_and_not_where_the_card_is() {
    let topology = read(SUPERMICRO);
    let card = topology.node_of_device("eth0");
    let plan = plan(&topology, 4, &[(0, 8 << 30)], card);
    assert_eq!(nodes(&plan), [0, 0, 0, 0]);
    assert!(
        plan.why.contains("4 on node 0, which holds 8192 MiB"),
        "{}",
        plan.why
    );
    assert!(
        plan.why.contains("0 near the network card on node 1"),
        "{}",
        plan.why
    );
}

#[test]
fn unknown_memory_leaves_the_card_to_decide() {
    for xml in [HP, SUPERMICRO] {
        let topology = read(xml);
        let card = topology.node_of_device("ib0");
        let plan = plan(&topology, 4, &[], card);
        assert_eq!(nodes(&plan), [card.unwrap(); 4]);
    }
}

#[test]
fn a_tie_goes_to_the_card() {
    for card in [0, 1] {
        let plan = plan(&read(HP), 3, &[(0, 4), (1, 4)], Some(card));
        let near = nodes(&plan).iter().filter(|node| **node == card).count();
        assert_eq!(near, 2, "{}", plan.why);
    }
}

#[test]
fn workers_are_in_proportion_and_in_the_order_of_the_memory() {
    let topology = read(HUAWEI);
    let both = plan(&topology, 4, &[(3, 6 << 30), (1, 2 << 30)], None);
    assert_eq!(nodes(&both), [3, 3, 3, 1]);
    let all = plan(&topology, 8, &[(2, 1), (0, 1), (1, 1), (3, 1)], None);
    assert_eq!(nodes(&all), [2, 2, 0, 0, 1, 1, 3, 3]);
    // Fewer workers than nodes: those with the most memory have them.
    let few = plan(&topology, 2, &[(0, 1), (1, 5), (2, 1), (3, 4)], None);
    assert_eq!(nodes(&few), [1, 3]);
}

#[test]
fn a_full_node_spills_to_its_own_socket_first() {
    let topology = read(AMD);
    // Nodes 4 and 5 share a socket, of 8 cores each.
    let plan = plan(&topology, 12, &[(5, 1 << 30)], None);
    assert_eq!(nodes(&plan), [[5; 8].as_slice(), &[4; 4]].concat());
}

#[test]
fn sockets_count_and_not_neighbouring_numbers() {
    // Nodes 0 and 2 are on one socket, 1 and 3 on the other, of 10 cores each.
    let plan = plan(&read(DELL), 14, &[(0, 1 << 30)], None);
    assert_eq!(nodes(&plan), [[0; 10].as_slice(), &[2; 4]].concat());
}

#[test]
fn memory_of_another_kind_is_near_the_cores_beside_it() {
    let machine = "pack:2 [numa(memory=64GB)] [numa(memory=8GB)] core:2 pu:1";
    let topology = Topology::from_synthetic(machine).unwrap();
    let own: Vec<_> = topology
        .cores()
        .iter()
        .map(|core| core.node.unwrap())
        .collect();
    assert_eq!(own, [0, 0, 2, 2], "ordinary memory is a core's own");
    let plan = plan(&topology, 3, &[(3, 1 << 30)], None);
    let cpus: Vec<_> = plan.workers.iter().map(|worker| worker.cpu).collect();
    assert_eq!((cpus, nodes(&plan)), (vec![2, 3, 0], vec![3, 3, 0]));
}

#[test]
fn memory_on_a_node_that_is_not_there_counts_for_nothing() {
    let plan = plan(&read(HP), 2, &[(7, 1 << 40), (1, 1 << 20)], None);
    assert_eq!(nodes(&plan), [1, 1]);
}

#[test]
fn only_allowed_cpus_are_taken() {
    let topology = read(SUPERMICRO);
    let node_1 = topology.node(1).unwrap().cpus.clone();
    let restricted = topology.restricted_to(&node_1);
    let plan = plan(&restricted, 4, &[(0, 1 << 30)], None);
    assert_eq!(
        nodes(&plan),
        [1; 4],
        "its memory is on a node that it may not run on"
    );
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]
    #[test]
    fn whatever_the_memory_no_core_has_two_workers_and_no_node_is_cheated(
        server in 0usize..5,
        count in 0usize..40,
        ram in prop::collection::vec((0usize..9, 0u64..(1 << 40)), 0..9),
        device in prop::option::of(0usize..9),
    ) {
        let topology = read([HP, SUPERMICRO, DELL, HUAWEI, AMD][server]);
        // A node is named once.
        let mut named = HashSet::new();
        let ram: Vec<_> = ram.into_iter().filter(|(node, _)| named.insert(*node)).collect();
        let plan = plan(&topology, count, &ram, device);
        prop_assert_eq!(plan.workers.len(), count.min(topology.cores().len()));
        let mut cores = HashSet::new();
        for worker in &plan.workers {
            let core = topology.core_of_cpu(worker.cpu).unwrap();
            prop_assert_eq!(core.cpus[0], worker.cpu);
            prop_assert_eq!(core.node, worker.node);
            prop_assert!(cores.insert(core.cpus.clone()), "two workers on one core");
        }
        let known = ram.iter().filter(|(node, _)| topology.node(*node).is_some());
        let total: u128 = known.clone().map(|(_, bytes)| u128::from(*bytes)).sum();
        let workers = plan.workers.len() as u128;
        for &(node, bytes) in known {
            let cores = topology.cores().iter().filter(|core| core.node == Some(node)).count();
            let fair = (workers * u128::from(bytes)).checked_div(total).unwrap_or(0);
            let on = plan.workers.iter().filter(|worker| worker.node == Some(node)).count();
            prop_assert!(on >= cores.min(fair as usize), "{on} of {fair} on {node}: {}", plan.why);
        }
    }
}
