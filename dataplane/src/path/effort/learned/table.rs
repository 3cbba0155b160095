//! Made by `dwcp bench codec train` of 2698 intervals, recorded until 2026-11-30: not to be edited.

use super::Node;

#[rustfmt::skip]
pub(super) const TRAINED_ON: [&str; 4] = [
    "codec-intervals-random-2026-11-30.jsonl",
    "codec-intervals-compiler-2026-11-30.jsonl",
    "codec-intervals-idle-2026-11-30.jsonl",
    "codec-intervals-database-filling-2026-11-30.jsonl",
];

const fn split(feature: u8, at_most: f32, then: u8, otherwise: u8) -> Node {
    Node::Split {
        feature,
        at_most,
        then,
        otherwise,
    }
}

#[rustfmt::skip]
pub(super) const NODES: [Node; 27] = [
    split(9, 26.89735, 1, 14), // 0: link
    split(9, 24.13458, 2, 5), // 1: link
    split(6, 1.5992751, 3, 4), // 2: data
    Node::Take(5), // 3: zstd 3 far
    Node::Take(3), // 4: zstd 2
    split(10, -1.219207, 6, 9), // 5: load
    split(5, -0.66367805, 7, 8), // 6: costs
    Node::Take(2), // 7: zstd 1
    Node::Take(3), // 8: zstd 2
    split(9, 25.524641, 10, 13), // 9: link
    split(4, 1.9956481, 11, 12), // 10: shrinks
    Node::Take(2), // 11: zstd 1
    Node::Take(3), // 12: zstd 2
    Node::Take(1), // 13: zstd -3
    split(11, 25.400974, 15, 26), // 14: left
    split(3, 28.263186, 16, 23), // 15: rate
    split(9, 26.897352, 17, 20), // 16: link
    split(4, 1.5228903, 18, 19), // 17: shrinks
    Node::Take(2), // 18: zstd 1
    Node::Take(0), // 19: raw
    split(1, 0.8590163, 21, 22), // 20: waits
    Node::Take(1), // 21: zstd -3
    Node::Take(2), // 22: zstd 1
    split(10, 1.7270297, 24, 25), // 23: load
    Node::Take(2), // 24: zstd 1
    Node::Take(0), // 25: raw
    Node::Take(0), // 26: raw
];
