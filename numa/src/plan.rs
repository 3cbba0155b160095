//! Where the workers run. Pure: a topology and a wish in, a plan with its reasons out.

use std::fmt::Write;

use crate::topology::{Core, Topology};

/// One worker's place.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PlannedWorker {
    /// The CPU to pin it to.
    pub cpu: usize,
    /// The node to take its memory from.
    pub node: Option<usize>,
}

/// Places for workers, best first, and the reasons.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WorkerPlan {
    /// A place per worker; never two on one core.
    pub workers: Vec<PlannedWorker>,
    /// Why these, and why not more: for a person to read.
    pub why: String,
}

impl Topology {
    /// Chooses places for up to `count` workers.
    ///
    /// | rule, in order | reason |
    /// |---|---|
    /// | one CPU per core, the first hardware thread | two page kernels on one core share its units |
    /// | never more than cores | a worker that shares a core stalls its ring |
    /// | the cores of `prefer_node` first | its device and its memory are there |
    /// | then cores of the same socket, then by node | a node is filled before the next is opened |
    pub fn plan_workers(&self, count: usize, prefer_node: Option<usize>) -> WorkerPlan {
        let preferred = prefer_node.filter(|index| self.node(*index).is_some());
        let package = preferred.and_then(|node| self.package_of_node(node));
        let mut order: Vec<&Core> = self.cores().iter().collect();
        order.sort_by_key(|core| {
            let elsewhere = preferred.is_some() && core.node != preferred;
            let other_package = package.is_some() && core.package != package;
            (elsewhere, other_package, core.node.unwrap_or(usize::MAX))
        });
        let places = order.iter().take(count).filter_map(|core| {
            Some(PlannedWorker {
                cpu: *core.cpus.first()?,
                node: core.node,
            })
        });
        let workers: Vec<PlannedWorker> = places.collect();
        let why = self.explain(count, prefer_node, preferred, &workers);
        WorkerPlan { workers, why }
    }

    fn package_of_node(&self, node: usize) -> Option<usize> {
        self.cores()
            .iter()
            .find(|core| core.node == Some(node))?
            .package
    }

    fn explain(
        &self,
        count: usize,
        wanted_node: Option<usize>,
        preferred: Option<usize>,
        workers: &[PlannedWorker],
    ) -> String {
        let mut why = format!("{} of {count} workers, one per core", workers.len());
        if workers.len() < count {
            write!(why, "; there are only {} cores", self.cores().len()).expect(INFALLIBLE);
        }
        match (wanted_node, preferred) {
            (Some(node), Some(_)) => {
                let near = workers
                    .iter()
                    .filter(|worker| worker.node == Some(node))
                    .count();
                write!(why, "; {near} on the preferred node {node}").expect(INFALLIBLE);
                if near < workers.len() {
                    write!(why, ", which has no more cores").expect(INFALLIBLE);
                }
            }
            (Some(node), None) => {
                write!(why, "; the preferred node {node} does not exist").expect(INFALLIBLE);
            }
            (None, _) => why.push_str("; no preferred node, filled by node"),
        }
        if self.cores().iter().any(|core| core.cpus.len() > 1) {
            why.push_str("; second hardware threads are left to others");
        }
        why
    }
}

const INFALLIBLE: &str = "writing to a String cannot fail";
