//! A chooser that was learned from recordings: a small decision tree over what the rule sees, too.
//!
//! It is asked once an interval, takes no memory and walks down at most [`NODES_MAX`] nodes. Trees are
//! grown by `dwcp bench codec train`; the one compiled in stands in `learned/table.rs`, with what it was
//! grown on. Decision: `docs/adr/0028-a-learned-codec-chooser-is-shadowed.md`.

mod table;

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use super::EFFORTS;
use super::interval::Interval;

/// What a learned chooser sees of an interval, in this order.
///
/// | name | what |
/// |---|---|
/// | `effort` | the one in use, from the least to the most |
/// | `waits` | part of the time that the worker waited for room |
/// | `encodes` | part of the time that it encoded |
/// | `rate` | bytes per second that it sent, log2 |
/// | `shrinks` | how many times smaller pages got, log2 |
/// | `costs` | what encoding takes over what was foretold, log2 |
/// | `data` | how much pages shrink over what was foretold, in logarithms |
/// | `short` | 1 over a path within a site |
/// | `known` | 1 once the link was seen |
/// | `link` | bytes per second that the link is taken for, log2 |
/// | `load` | the worker's time for a byte of pages at level 1 over the link's, log2 |
/// | `left` | bytes per second that have left for certain while it never waited, log2 |
/// | `limited` | 1 where the link was the limit, at a steady rate |
/// | `rule` | what the rule takes |
pub const FEATURES: [&str; FEATURE_COUNT] = [
    "effort", "waits", "encodes", "rate", "shrinks", "costs", "data", "short", "known", "link",
    "load", "left", "limited", "rule",
];

const FEATURE_COUNT: usize = 14;

/// Values of [`FEATURES`].
pub type Features = [f32; FEATURE_COUNT];

/// Where the rule's choice stands in them.
const RULE: usize = FEATURE_COUNT - 1;

/// A tree has no more.
pub const NODES_MAX: usize = 256;

/// A logarithm of nothing, or of something without bound, ends here.
const LOG_MAX: f64 = 40.0;

/// A part of a tree. The first is the root, and those that a split names stand behind it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Node {
    /// Take the effort at this index of `Effort::ALL`.
    Take(u8),
    /// Go on with one of two nodes.
    Split {
        /// Index in [`FEATURES`].
        feature: u8,
        /// With `then` up to this, with `otherwise` above it.
        at_most: f32,
        /// Index of a node.
        then: u8,
        /// Index of a node.
        otherwise: u8,
    },
}

/// Why some nodes are no tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// There are none, or too many.
    #[error("a tree has 1 to {NODES_MAX} nodes, not {0}")]
    Size(usize),
    /// It names an effort, a feature or a node that there is not, or a node before itself.
    #[error("node {0} names what is not there")]
    Node(usize),
}

/// A learned chooser.
#[derive(Clone, Debug, PartialEq)]
pub struct Tree {
    nodes: Cow<'static, [Node]>,
}

impl Tree {
    /// The one that is compiled in.
    #[must_use]
    pub const fn compiled() -> Self {
        Self {
            nodes: Cow::Borrowed(&table::NODES),
        }
    }

    /// The records in `benches/records` that [`Self::compiled`] was grown on.
    pub const TRAINED_ON: &'static [&'static str] = &table::TRAINED_ON;

    /// A tree of these nodes.
    ///
    /// # Errors
    /// [`TreeError`] where a walk might not end at an effort.
    pub fn new(nodes: Vec<Node>) -> Result<Self, TreeError> {
        check(&nodes)?;
        Ok(Self {
            nodes: Cow::Owned(nodes),
        })
    }

    /// All of it.
    #[must_use]
    pub fn nodes(&self) -> &[Node] {
        &self.nodes
    }

    /// Index of an effort in `Effort::ALL`.
    #[must_use]
    pub fn choose(&self, features: &Features) -> usize {
        let mut at = 0;
        loop {
            match self.nodes[at] {
                Node::Take(effort) => return usize::from(effort),
                Node::Split {
                    feature,
                    at_most,
                    then,
                    otherwise,
                } => {
                    let is_then = features[usize::from(feature)] <= at_most;
                    at = usize::from(if is_then { then } else { otherwise });
                }
            }
        }
    }
}

/// Every walk goes forward to an effort.
fn check(nodes: &[Node]) -> Result<(), TreeError> {
    if nodes.is_empty() || nodes.len() > NODES_MAX {
        return Err(TreeError::Size(nodes.len()));
    }
    for (at, node) in nodes.iter().enumerate() {
        let is_ahead = |node: u8| (at + 1..nodes.len()).contains(&usize::from(node));
        let is_sound = match *node {
            Node::Take(effort) => usize::from(effort) < EFFORTS.len(),
            Node::Split {
                feature,
                at_most,
                then,
                otherwise,
            } => {
                let is_feature = usize::from(feature) < FEATURE_COUNT && at_most.is_finite();
                is_feature && is_ahead(then) && is_ahead(otherwise)
            }
        };
        if !is_sound {
            return Err(TreeError::Node(at));
        }
    }
    Ok(())
}

/// What the chooser knows besides the interval.
#[derive(Clone, Copy, Debug)]
pub(super) struct Known {
    pub(super) at: usize,
    /// Of the model: times the costs, and times what pages shrink.
    pub(super) costs: f64,
    pub(super) data: f64,
    /// Level 1's time for a byte of pages, and what it makes of the byte.
    pub(super) busy_s: f64,
    pub(super) sent: f64,
    pub(super) is_short_path: bool,
    pub(super) is_link_seen: bool,
    /// Bytes per second.
    pub(super) link: f64,
    /// The same, that left for certain.
    pub(super) left: f64,
    pub(super) is_limited: bool,
}

/// All features but what the rule takes.
pub(super) fn features(interval: &Interval, known: &Known) -> Features {
    let flag = |is: bool| f64::from(u8::from(is));
    let shrinks = interval.page_bytes / interval.wire_bytes;
    [
        known.at as f64,
        interval.waited_s / interval.seconds,
        interval.encoded_s / interval.seconds,
        log2(interval.rate()),
        log2(shrinks),
        log2(known.costs),
        known.data,
        flag(known.is_short_path),
        flag(known.is_link_seen),
        log2(known.link),
        log2(known.busy_s * known.link / known.sent),
        log2(known.left.max(1.0)),
        flag(known.is_limited),
        0.0,
    ]
    .map(|value| value as f32)
}

/// Notes what the rule takes.
pub(super) const fn set_rule(features: &mut Features, at: usize) {
    features[RULE] = at as f32;
}

fn log2(value: f64) -> f64 {
    value.log2().clamp(-LOG_MAX, LOG_MAX)
}

#[cfg(test)]
mod tests;
