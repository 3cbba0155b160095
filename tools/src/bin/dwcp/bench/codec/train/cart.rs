//! A decision tree that costs least: every sample says what each effort would cost it.
//!
//! Grown from the root by the split that saves most (Breiman et al., "Classification and Regression Trees", 1984, with
//! a cost for each class of each sample in place of the class). The same samples give the same tree.

use dwcp_dataplane::path::{FEATURES, Features, NODES_MAX, Node, Tree};

use super::super::intervals::EFFORTS;

/// One sample.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub(super) features: Features,
    /// What each effort costs, weighted.
    pub(super) costs: [f64; EFFORTS],
}

/// How large a tree gets.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Splits above a leaf.
    pub(super) depth: u32,
    /// Samples of a leaf.
    pub(super) leaf: usize,
    /// What a split saves.
    pub(super) gain: f64,
    /// Features that no split is by, a bit each.
    pub(super) without: u32,
}

struct Split {
    feature: usize,
    at_most: f32,
    cost: f64,
}

/// Grows a tree.
pub(super) fn grow(samples: &[Sample], limits: &Limits) -> anyhow::Result<Tree> {
    anyhow::ensure!(!samples.is_empty(), "there is nothing to learn from");
    let mut nodes = vec![];
    let mut samples: Vec<_> = samples.iter().collect();
    grow_node(&mut nodes, &mut samples, limits.depth, limits);
    anyhow::ensure!(
        nodes.len() <= NODES_MAX,
        "{} nodes, where {NODES_MAX} is the most: a smaller --depth or a larger --leaf is needed",
        nodes.len()
    );
    Ok(Tree::new(nodes)?)
}

/// Appends the node of these samples, and all below it. Returns its index.
fn grow_node(nodes: &mut Vec<Node>, samples: &mut [&Sample], depth: u32, limits: &Limits) -> usize {
    let at = nodes.len();
    let (effort, cost) = cheapest(&sum(samples));
    nodes.push(Node::Take(effort));
    if depth == 0 || at >= NODES_MAX {
        return at;
    }
    let Some(split) = best_split(samples, limits).filter(|split| cost - split.cost > limits.gain)
    else {
        return at;
    };
    // Stable, so that the order of the samples is all that it depends on.
    samples.sort_by_key(|sample| sample.features[split.feature] > split.at_most);
    let middle = samples.partition_point(|sample| sample.features[split.feature] <= split.at_most);
    let (low, high) = samples.split_at_mut(middle);
    let then = grow_node(nodes, low, depth - 1, limits);
    let otherwise = grow_node(nodes, high, depth - 1, limits);
    // Both do the same where neither half found a split worth it.
    if let (Node::Take(a), Node::Take(b)) = (nodes[then], nodes[otherwise])
        && a == b
    {
        nodes.truncate(at + 1);
        nodes[at] = Node::Take(a);
        return at;
    }
    nodes[at] = Node::Split {
        feature: split.feature as u8,
        at_most: split.at_most,
        then: then.min(usize::from(u8::MAX)) as u8,
        otherwise: otherwise.min(usize::from(u8::MAX)) as u8,
    };
    at
}

fn best_split(samples: &mut [&Sample], limits: &Limits) -> Option<Split> {
    let all = sum(samples);
    let mut best: Option<Split> = None;
    let features = (0..FEATURES.len()).filter(|feature| limits.without >> feature & 1 == 0);
    for feature in features {
        samples.sort_by(|a, b| a.features[feature].total_cmp(&b.features[feature]));
        let mut low = [0.0; EFFORTS];
        for at in 1..samples.len() {
            add(&mut low, &samples[at - 1].costs);
            let (below, above) = (
                samples[at - 1].features[feature],
                samples[at].features[feature],
            );
            if below == above || at < limits.leaf || samples.len() - at < limits.leaf {
                continue;
            }
            let high: [f64; EFFORTS] = std::array::from_fn(|effort| all[effort] - low[effort]);
            let cost = cheapest(&low).1 + cheapest(&high).1;
            if best.as_ref().is_none_or(|best| cost < best.cost) {
                best = Some(Split {
                    feature,
                    at_most: between(below, above),
                    cost,
                });
            }
        }
    }
    best
}

/// A number that is not below the first, and below the second.
fn between(below: f32, above: f32) -> f32 {
    let middle = below + (above - below) / 2.0;
    if middle < above { middle } else { below }
}

fn sum(samples: &[&Sample]) -> [f64; EFFORTS] {
    let mut sum = [0.0; EFFORTS];
    for sample in samples {
        add(&mut sum, &sample.costs);
    }
    sum
}

fn add(sum: &mut [f64; EFFORTS], costs: &[f64; EFFORTS]) {
    for (sum, cost) in sum.iter_mut().zip(costs) {
        *sum += cost;
    }
}

/// The effort that costs least, and its cost; the first of equals.
fn cheapest(costs: &[f64; EFFORTS]) -> (u8, f64) {
    let mut best = 0;
    for at in 1..EFFORTS {
        if costs[at] < costs[best] {
            best = at;
        }
    }
    (best as u8, costs[best])
}
