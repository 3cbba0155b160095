//! `dwcp config`: check, explain, show. Needs no node.

use std::path::{Path, PathBuf};

use dwcp_api::{ApiError, ErrorCode};
use dwcp_controlplane::config::{self, Key, NodeConfig};
use dwcp_controlplane::profile;
use serde_json::{Value, json};

use crate::context::{Context, print_text};
use crate::failure::Failure;
use crate::show;

const HELP: &str = "Examples:
  dwcp config check my-profile.toml
  dwcp config explain switchover.downtime_limit
  dwcp config show internet > my-profile.toml";

const CHECK_HELP: &str = "\
Examples:
  dwcp config check my-profile.toml
  dwcp config check /etc/dwcp/node.toml --json";

const EXPLAIN_HELP: &str = "\
Examples:
  dwcp config explain
  dwcp config explain switchover.downtime_limit
  dwcp config explain transfer.window --json";

const SHOW_HELP: &str = "\
Examples:
  dwcp config show internet > my-profile.toml
  dwcp config show ./my-profile.toml --set transfer.streams=8
  dwcp config show datacenter --json";

/// `dwcp config`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Check a profile or a node's file: every fault with line, column and a hint.
    #[command(after_help = CHECK_HELP)]
    Check {
        /// The file.
        file: PathBuf,
    },
    /// Explain a key; without one, list all.
    #[command(after_help = EXPLAIN_HELP)]
    Explain {
        /// Key, for example transfer.window.
        key: Option<String>,
    },
    /// Show a profile with every key filled in.
    #[command(after_help = SHOW_HELP)]
    Show {
        /// Built-in name or file.
        profile: String,
        /// Change a key: KEY=VALUE; may be given again.
        #[arg(long = "set", value_name = "KEY=VALUE")]
        changes: Vec<String>,
    },
    /// Print docs/CONFIG.md.
    #[command(hide = true)]
    Document,
}

pub(crate) fn run(args: &Args, context: &Context) -> Result<(), Failure> {
    match &args.command {
        Command::Check { file } => check(file, context),
        Command::Explain { key: Some(key) } => explain(key, context),
        Command::Explain { key: None } => list(context),
        Command::Show { profile, changes } => {
            let settings = profile::load(profile)?;
            let settings = profile::with_changes(&settings, changes.iter().map(String::as_str))?;
            context.print(&settings, || profile::to_toml(&settings))
        }
        Command::Document => print_text(&profile::markdown()),
    }
}

fn check(file: &Path, context: &Context) -> Result<(), Failure> {
    let name = file.display().to_string();
    let text = config::read(file).map_err(|unreadable| {
        ApiError::new(ErrorCode::BadRequest, unreadable.message).with_hint(unreadable.hint)
    })?;
    let kind = if is_node_file(&text) {
        NodeConfig::parse(&name, &text)?;
        "node"
    } else {
        profile::parse(&name, &text)?;
        "profile"
    };
    let good = json!({"file": name, "kind": kind, "faults": []});
    context.print(&good, || format!("{name}: good {kind} file"))
}

/// A node's file has a section that no profile has.
fn is_node_file(text: &str) -> bool {
    let sections = ["[node]", "[peers]", "node.", "peers."];
    text.lines().any(|line| {
        sections
            .iter()
            .any(|section| line.trim_start().starts_with(section))
    })
}

fn all_keys() -> impl Iterator<Item = &'static Key> + Clone {
    profile::keys().iter().chain(config::keys())
}

fn explain(name: &str, context: &Context) -> Result<(), Failure> {
    let exact = all_keys().find(|key| key.name == name);
    let short = || all_keys().find(|key| key.name.rsplit('.').next() == Some(name));
    let Some(key) = exact.or_else(short) else {
        let hint = config::nearest_key(name, all_keys()).map_or_else(
            || "`dwcp config explain` lists all".to_owned(),
            |near| format!("did you mean `{near}`?"),
        );
        return Err(Failure::NotFound(format!("no key `{name}`: {hint}")));
    };
    context.print(&as_json(key), || profile::explain(key))
}

fn list(context: &Context) -> Result<(), Failure> {
    let values: Vec<_> = all_keys().map(as_json).collect();
    context.print(&values, || {
        show::table(
            ["key", "type", "range", "datacenter", "hybrid", "internet"],
            all_keys().map(|key| {
                let default = |profile| profile::default_text(key, profile).unwrap_or_default();
                [
                    key.name.to_owned(),
                    key.kind.type_name().to_owned(),
                    key.kind.range(),
                    default("datacenter"),
                    default("hybrid"),
                    default("internet"),
                ]
            }),
        )
    })
}

fn as_json(key: &Key) -> Value {
    let defaults: serde_json::Map<_, _> = profile::built_in_names()
        .filter_map(|name| Some((name.to_owned(), profile::default_text(key, name)?.into())))
        .collect();
    json!({
        "key": key.name, "type": key.kind.type_name(), "unit": key.kind.unit(),
        "range": key.kind.range(), "reload": key.reload.describe(), "doc": key.doc,
        "defaults": defaults,
    })
}
