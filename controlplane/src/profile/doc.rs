//! The table of keys as text: for `dwcp config explain` and for `docs/CONFIG.md`.

use super::{built_in_names, default_text, keys};
use crate::config::{self, Key};

/// One key explained, for a terminal.
#[must_use]
pub fn explain(key: &Key) -> String {
    let mut text = format!("{}\n\n{}\n\n", key.name, wrap(key.doc, 80));
    for (name, value) in facts(key) {
        text.push_str(&format!("  {name:<10} {value}\n"));
    }
    text
}

fn facts(key: &Key) -> Vec<(&'static str, String)> {
    let mut facts = vec![
        ("type", key.kind.type_name().to_owned()),
        ("unit", key.kind.unit()),
        ("range", key.kind.range()),
        ("reload", key.reload.describe().to_owned()),
    ];
    facts.extend(built_in_names().filter_map(|name| Some((name, default_text(key, name)?))));
    facts
}

fn wrap(text: &str, width: usize) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let line = lines.len() - 1;
        if !lines[line].is_empty() && lines[line].len() + 1 + word.len() > width {
            lines.push(word.to_owned());
        } else {
            if !lines[line].is_empty() {
                lines[line].push(' ');
            }
            lines[line].push_str(word);
        }
    }
    lines.join("\n")
}

/// `docs/CONFIG.md`, whole.
#[must_use]
pub fn markdown() -> String {
    let mut text = String::from(HEAD);
    text.push_str("\n## Keys of a profile\n");
    let mut section = "";
    for key in keys() {
        let own = key.name.rsplit_once('.').map_or("", |(section, _)| section);
        if own != section {
            text.push_str(&format!("\n### [{own}]\n"));
            section = own;
        }
        text.push_str(&entry(key));
    }
    text.push_str(NODE);
    for key in config::keys() {
        text.push_str(&entry(key));
    }
    text
}

fn entry(key: &Key) -> String {
    let mut text = format!("\n#### `{}`\n\n{}\n\n", key.name, wrap(key.doc, 100));
    let facts = facts(key);
    let names: Vec<_> = facts.iter().map(|(name, _)| *name).collect();
    let values: Vec<_> = facts.iter().map(|(_, value)| value.as_str()).collect();
    text.push_str(&format!(
        "| {} |\n|{}\n",
        names.join(" | "),
        "---|".repeat(names.len())
    ));
    text.push_str(&format!("| {} |\n", values.join(" | ")));
    text
}

const HEAD: &str = "# Configuration

*Made by `dwcp config document` from the table that the parser uses; a test compares them.*

Two kinds of TOML files: profiles say how a migration moves, the node's file says who the node is.
Unknown keys are errors. Sizes and times are text with a unit; whole numbers only.

    dwcp config check FILE          every fault, with line, column and a hint
    dwcp config explain KEY         one key of these pages
    dwcp config show PROFILE        a profile with every key filled in
    dwcp migrate VM --to NODE --profile FILE --set transfer.streams=4

A profile file names its `mode` and the keys that differ from the built-in profile of that mode:

    mode = \"internet\"
    [transfer]
    streams = 8
    [switchover]
    downtime_limit = \"2s\"
";

const NODE: &str = "
## Keys of a node's file

Read by `dwcp-controlplane --config FILE`; its flags come before the file.

    [node]
    name = \"a\"
    state_folder = \"/var/lib/dwcp\"
    default_profile = \"datacenter\"
    [peers]
    b = \"192.0.2.2:7440\"
";
