//! Where the workers run. Pure: a topology and a wish in, a plan with its reasons out.

use std::cmp::Reverse;
use std::fmt::Write;

use crate::topology::{Core, Topology};

/// What is to be placed, and what it should be near to.
#[derive(Clone, Copy, Debug, Default)]
pub struct WorkerWish<'a> {
    /// Workers, at most.
    pub count: usize,
    /// The memory they read and write, by node, in the order in which the nodes first appear in it.
    /// Empty when it is unknown.
    pub ram: &'a [NodeShare],
    /// The node of the network card, when it is known.
    pub device_node: Option<usize>,
}

/// Memory on one node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct NodeShare {
    /// The node.
    pub node: usize,
    /// How much.
    pub bytes: u64,
}

/// One worker's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannedWorker {
    /// The CPU to pin it to.
    pub cpu: usize,
    /// The node to take its memory from.
    pub node: Option<usize>,
}

/// Places for workers, and the reasons.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerPlan {
    /// A place per worker; never two on one core. Workers near the first memory come first: two
    /// machines that hold the same memory in the same shares number their workers alike.
    pub workers: Vec<PlannedWorker>,
    /// Why these, and why not more: for a person to read.
    pub why: String,
}

impl Topology {
    /// Chooses places for up to `wish.count` workers.
    ///
    /// | rule, in order | reason |
    /// |---|---|
    /// | one CPU per core, the first hardware thread | two page kernels on one core share its units |
    /// | never more than cores | a worker that shares a core stalls its ring |
    /// | workers by node in proportion to the memory there | every byte of it is read by a worker |
    /// | where that is a tie, or the memory unknown: near the network card | its rings are there |
    /// | a node without cores left: the same socket, then by node | the next nearest; a node is filled before the next is opened |
    pub fn plan_workers(&self, wish: &WorkerWish<'_>) -> WorkerPlan {
        let count = wish.count.min(self.cores().len());
        let device = wish.device_node.filter(|node| self.node(*node).is_some());
        let mut free: Vec<&Core> = self.cores().iter().collect();
        let mut workers = vec![];
        let mut crowded = None;
        for (node, quota) in self.quotas(count, wish.ram, device) {
            let before = workers.len();
            take(&mut free, &mut workers, before + quota, |core| {
                self.is_near(core, node).then_some(Some(node))
            });
            if workers.len() < before + quota {
                crowded = crowded.or(Some(node));
            }
        }
        let near = crowded.or(device);
        let package = near.and_then(|node| self.package_of_node(node));
        free.sort_by_key(|core| {
            let elsewhere = near.is_some() && core.node != near;
            let other_package = package.is_some() && core.package != package;
            (elsewhere, other_package, core.node.unwrap_or(usize::MAX))
        });
        take(&mut free, &mut workers, count, |core| Some(core.node));
        let why = self.explain(wish, device, &workers);
        WorkerPlan { workers, why }
    }

    /// Workers for each node that holds memory: by the largest remainder, so that they add up.
    fn quotas(
        &self,
        count: usize,
        ram: &[NodeShare],
        device: Option<usize>,
    ) -> Vec<(usize, usize)> {
        let shares = || ram.iter().filter(|share| self.node(share.node).is_some());
        let total: u128 = shares().map(|share| u128::from(share.bytes)).sum();
        if total == 0 {
            return vec![];
        }
        let exact = |share: &NodeShare| count as u128 * u128::from(share.bytes);
        let mut quotas: Vec<(usize, usize)> = shares()
            .map(|share| (share.node, (exact(share) / total) as usize))
            .collect();
        let given: usize = quotas.iter().map(|(_, workers)| workers).sum();
        let mut order: Vec<(usize, u128)> = shares()
            .map(|share| exact(share) % total)
            .enumerate()
            .collect();
        order.sort_by_key(|&(index, remainder)| {
            (Reverse(remainder), Some(quotas[index].0) != device)
        });
        for (index, _) in order.into_iter().take(count - given) {
            quotas[index].1 += 1;
        }
        quotas
    }

    /// Whether a node is a core's own, or another kind of memory as near to it.
    fn is_near(&self, core: &Core, node: usize) -> bool {
        let beside = || {
            self.node(node)
                .is_some_and(|node| core.cpus.first().is_some_and(|cpu| node.cpus.contains(cpu)))
        };
        core.node == Some(node) || beside()
    }

    fn package_of_node(&self, node: usize) -> Option<usize> {
        let mut cores = self.cores().iter();
        cores.find(|core| self.is_near(core, node))?.package
    }

    fn explain(
        &self,
        wish: &WorkerWish<'_>,
        device: Option<usize>,
        workers: &[PlannedWorker],
    ) -> String {
        let count = wish.count;
        let mut why = format!("{} of {count} workers, one per core", workers.len());
        let mut add = |text: std::fmt::Arguments<'_>| why.write_fmt(text).expect(INFALLIBLE);
        if workers.len() < count {
            add(format_args!(
                "; there are only {} cores",
                self.cores().len()
            ));
        }
        let on = |node: usize| {
            workers
                .iter()
                .filter(|worker| worker.node == Some(node))
                .count()
        };
        for share in wish.ram {
            let (node, mib) = (share.node, share.bytes >> 20);
            add(format_args!(
                "; {} on node {node}, which holds {mib} MiB",
                on(node)
            ));
        }
        match (wish.device_node, device) {
            (Some(node), Some(_)) => {
                add(format_args!(
                    "; {} near the network card on node {node}",
                    on(node)
                ));
            }
            (Some(node), None) => {
                add(format_args!(
                    "; the network card's node {node} does not exist"
                ));
            }
            (None, _) if wish.ram.is_empty() => {
                add(format_args!("; nothing to be near to, filled by node"));
            }
            (None, _) => {}
        }
        if self.cores().iter().any(|core| core.cpus.len() > 1) {
            why.push_str("; second hardware threads are left to others");
        }
        why
    }
}

/// Moves cores from `free` to `workers` until there are `until`. `fits` says whether one fits, and near
/// which node its worker is then.
fn take(
    free: &mut Vec<&Core>,
    workers: &mut Vec<PlannedWorker>,
    until: usize,
    fits: impl Fn(&Core) -> Option<Option<usize>>,
) {
    free.retain(|core| {
        let Some(&cpu) = core.cpus.first() else {
            return false;
        };
        let fit = fits(core).filter(|_| workers.len() < until);
        workers.extend(fit.map(|node| PlannedWorker { cpu, node }));
        fit.is_none()
    });
}

const INFALLIBLE: &str = "writing to a String cannot fail";
