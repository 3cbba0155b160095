//! The kernel's word on where pages lie, on this machine, whatever it has.

use dwcp_numa::{Arena, ArenaOptions, Topology, node_of_policy, nodes_of_pages, prefer_node};

const PAGE: usize = 4096;

/// An arena of `pages` base pages.
fn arena(pages: usize, prefault: bool) -> Arena {
    let options = ArenaOptions {
        huge_tlb: false,
        transparent_huge: false,
        prefault,
    };
    Arena::new(pages * PAGE, None, options).unwrap()
}

fn addresses(arena: &mut Arena) -> Vec<usize> {
    let start = arena.as_mut_ptr() as usize;
    (0..arena.len() / PAGE)
        .map(|page| start + page * PAGE)
        .collect()
}

#[test]
fn pages_that_are_there_have_a_node_and_others_have_none() {
    let mut arena = arena(3000, false);
    let all = addresses(&mut arena);
    assert!(nodes_of_pages(&all).unwrap().iter().all(Option::is_none));
    for page in (0..3000).step_by(3) {
        arena.as_mut_slice()[page * PAGE] = 1;
    }
    let known: Vec<usize> = Topology::detect()
        .unwrap()
        .nodes()
        .iter()
        .map(|node| node.index)
        .collect();
    // More than are asked about in one call.
    for (page, node) in nodes_of_pages(&all).unwrap().into_iter().enumerate() {
        assert_eq!(node.is_some(), page % 3 == 0, "page {page}");
        assert!(
            node.is_none_or(|node| known.contains(&node)),
            "page {page} on {node:?}"
        );
    }
}

#[test]
fn addresses_where_nothing_is_mapped_have_no_node() {
    let mut arena = arena(1, true);
    let page = addresses(&mut arena)[0];
    let nodes = nodes_of_pages(&[0, page, usize::MAX & !(PAGE - 1)]).unwrap();
    assert_eq!((nodes[0], nodes[1].is_some(), nodes[2]), (None, true, None));
    assert!(node_of_policy(0).is_err());
    assert_eq!(nodes_of_pages(&[]).unwrap(), []);
}

#[test]
fn a_policy_names_its_node() {
    let mut arena = arena(4, false);
    let all = addresses(&mut arena);
    assert_eq!(node_of_policy(all[2]).unwrap(), None);
    let node = Topology::detect().unwrap().nodes()[0].index;
    prefer_node(all[2], 2 * PAGE, node).unwrap();
    let nodes: Vec<_> = all
        .iter()
        .map(|page| node_of_policy(*page).unwrap())
        .collect();
    assert_eq!(nodes, [None, None, Some(node), Some(node)]);
}

#[test]
fn what_cannot_be_preferred_is_an_error() {
    let mut arena = arena(1, false);
    let page = addresses(&mut arena)[0];
    assert!(prefer_node(page, PAGE, 5000).is_err(), "no such node");
    assert!(prefer_node(page, PAGE, 1023).is_err(), "not online");
    assert!(prefer_node(0, PAGE, 0).is_err(), "nothing is mapped there");
}
