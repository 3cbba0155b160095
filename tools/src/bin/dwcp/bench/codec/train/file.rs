//! A tree as a file: Rust that the data plane compiles in, or JSON to be tried.

use std::fmt::Write;
use std::path::Path;

use anyhow::Context as _;
use dwcp_dataplane::path::{Effort, FEATURES, Node, Tree};
use serde::{Deserialize, Serialize};

/// What a tree was grown on.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct About {
    pub(super) records: Vec<String>,
    pub(super) intervals: usize,
    /// When the last of them was recorded.
    pub(super) date: String,
}

#[derive(Debug, Serialize, Deserialize)]
struct FileTree {
    about: About,
    features: Vec<String>,
    nodes: Vec<Node>,
}

/// Writes it, as the name ends.
pub(super) fn write(path: &Path, tree: &Tree, about: &About) -> anyhow::Result<()> {
    let text = match path.extension().is_some_and(|kind| kind == "rs") {
        true => rust(tree, about),
        false => json(tree, about)?,
    };
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

fn json(tree: &Tree, about: &About) -> anyhow::Result<String> {
    let file = FileTree {
        about: about.clone(),
        features: FEATURES.map(str::to_owned).into(),
        nodes: tree.nodes().to_vec(),
    };
    Ok(serde_json::to_string_pretty(&file)? + "\n")
}

/// Reads JSON.
pub(in super::super) fn read(path: &Path) -> anyhow::Result<Tree> {
    let words = || path.display().to_string();
    let text = std::fs::read_to_string(path).with_context(words)?;
    parse(&text).with_context(words)
}

pub(super) fn parse(text: &str) -> anyhow::Result<Tree> {
    let what = "not a tree of `dwcp bench codec train --out FILE.json`";
    let file: FileTree = serde_json::from_str(text).context(what)?;
    anyhow::ensure!(
        file.features == FEATURES,
        "it has the features {:?}, this release {FEATURES:?}",
        file.features
    );
    Ok(Tree::new(file.nodes)?)
}

/// As rustfmt leaves it.
pub(super) fn rust(tree: &Tree, about: &About) -> String {
    let nodes = tree.nodes();
    let mut out = format!(
        "//! Made by `dwcp bench codec train` of {} intervals, recorded until {}: not to be edited.\n\n\
         use super::Node;\n\n#[rustfmt::skip]\npub(super) const TRAINED_ON: [&str; {}] = [\n",
        about.intervals,
        about.date,
        about.records.len()
    );
    for record in &about.records {
        let _ = writeln!(out, "    {record:?},");
    }
    let _ = write!(
        out,
        "];\n\nconst fn split(feature: u8, at_most: f32, then: u8, otherwise: u8) -> Node {{\n    Node::Split {{\n\
         \x20       feature,\n        at_most,\n        then,\n        otherwise,\n    }}\n}}\n\n\
         #[rustfmt::skip]\npub(super) const NODES: [Node; {}] = [\n",
        nodes.len()
    );
    for (at, node) in nodes.iter().enumerate() {
        let _ = match *node {
            Node::Take(effort) => {
                let name = Effort::ALL[usize::from(effort)];
                writeln!(out, "    Node::Take({effort}), // {at}: {name}")
            }
            Node::Split {
                feature,
                at_most,
                then,
                otherwise,
            } => {
                let name = FEATURES[usize::from(feature)];
                writeln!(
                    out,
                    "    split({feature}, {at_most:?}, {then}, {otherwise}), // {at}: {name}"
                )
            }
        };
    }
    out + "];\n"
}
