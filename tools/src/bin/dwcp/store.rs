//! `dwcp store`: pages that the node keeps for VMs that come.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::time::Duration;

use dwcp_api::node::{Reply, Request};
use dwcp_api::{StoreEntry, StoreKind, StoreRequest, StoreState};
use indicatif::{ProgressBar, ProgressStyle};

use crate::context::Context;
use crate::failure::Failure;
use crate::show;

/// Between two questions to the node.
const PERIOD: Duration = Duration::from_millis(200);

const HELP: &str = "\
A VM that is moved to this node with `pages.reuse` (profiles hybrid and internet) is not sent the \
pages that the node has: in the RAM of VMs that left it, and in disk images that were added. Add the \
image that guests were installed from, on the node that they go to.

Examples:
  dwcp store add-image /srv/images/debian-12.raw
  dwcp store list
  dwcp store remove 3
  dwcp store remove /srv/images/debian-12.raw";

const ADD_HELP: &str = "\
Examples:
  dwcp store add-image /srv/images/debian-12.raw
  dwcp store add-image /srv/images/debian-12.qcow2 --no-wait --json";

const LIST_HELP: &str = "\
Examples:
  dwcp store list
  dwcp store list --json";

const REMOVE_HELP: &str = "\
Examples:
  dwcp store list
  dwcp store remove 3";

/// `dwcp store`.
#[derive(clap::Args, Debug)]
#[command(after_help = HELP)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand, Debug)]
enum Command {
    /// Index a disk image (raw, or qcow2 without compression), or index it anew. It stays where it is.
    #[command(after_help = ADD_HELP)]
    AddImage {
        /// The image, on this node; the data plane must be able to read it.
        file: PathBuf,
        /// Return at once; `dwcp store list` says how far it is.
        #[arg(long)]
        no_wait: bool,
    },
    /// All that the node keeps.
    #[command(after_help = LIST_HELP)]
    List,
    /// Remove an entry. A disk image itself stays.
    #[command(after_help = REMOVE_HELP)]
    Remove {
        /// Its number in the list, or the path of a disk image.
        entry: String,
    },
}

pub(crate) fn run(args: &Args, context: &mut Context) -> Result<(), Failure> {
    match &args.command {
        Command::AddImage { file, no_wait } => add_image(file, *no_wait, context),
        Command::List => {
            let entries = ask(StoreRequest::List, context)?;
            context.print(&entries, || overview(&entries))
        }
        Command::Remove { entry } => remove(entry, context),
    }
}

fn add_image(file: &Path, no_wait: bool, context: &mut Context) -> Result<(), Failure> {
    let path = file
        .canonicalize()
        .map_err(|error| Failure::NotFound(format!("{}: {error}", file.display())))?;
    let kind = StoreKind::Image { path: path.clone() };
    let mut entries = ask(StoreRequest::AddImage { path: path.clone() }, context)?;
    let bar = progress(context);
    let entry = loop {
        let entry = StoreEntry::newest(&entries, &kind).cloned();
        let entry = entry.ok_or_else(|| {
            Failure::NotFound(format!(
                "{}: removed from the store meanwhile",
                path.display()
            ))
        })?;
        match &entry.state {
            StoreState::Failed { reason } => {
                return Err(Failure::Other(anyhow::anyhow!("{reason}")));
            }
            StoreState::Indexing {
                done_bytes,
                total_bytes,
            } if !no_wait => {
                bar.set_length(*total_bytes);
                bar.set_position(*done_bytes);
            }
            _ => break entry,
        }
        std::thread::sleep(PERIOD);
        entries = ask(StoreRequest::List, context)?;
    };
    bar.finish_and_clear();
    context.print(&entry, || line(&entry))
}

fn remove(entry: &str, context: &mut Context) -> Result<(), Failure> {
    let Ok(number) = entry.parse() else {
        let path = std::path::absolute(entry).map_err(|error| Failure::Other(error.into()))?;
        // One that is gone is known by the name that it had.
        let path = path.canonicalize().unwrap_or(path);
        ask(StoreRequest::RemoveImage { path: path.clone() }, context)?;
        let done = serde_json::json!({"removed": path});
        return context.print(&done, || format!("{}: removed", path.display()));
    };
    ask(StoreRequest::Remove { number }, context)?;
    let done = serde_json::json!({"removed": number});
    context.print(&done, || format!("entry {number}: removed"))
}

fn progress(context: &Context) -> ProgressBar {
    if context.json || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{bar:40} {bytes}/{total_bytes} {bytes_per_sec}");
    let bar = ProgressBar::new(0);
    match style {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}

fn ask(request: StoreRequest, context: &mut Context) -> Result<Vec<StoreEntry>, Failure> {
    match context.node.ask(&Request::Store(request))? {
        Reply::Store(entries) => Ok(entries),
        other => Err(Failure::unexpected(&other)),
    }
}

fn line(entry: &StoreEntry) -> String {
    let what = name(entry);
    match &entry.state {
        StoreState::Ready if entry.pages == 0 => {
            format!("{what}: no page of it can be found again: is it empty, or compressed?")
        }
        StoreState::Ready => format!("{what}: {} different pages", entry.pages),
        state => format!("{what}: {}", in_words(state)),
    }
}

fn name(entry: &StoreEntry) -> String {
    match &entry.kind {
        StoreKind::Baseline { vm } => format!("RAM of {vm}"),
        StoreKind::Image { path } => path.display().to_string(),
        StoreKind::Arrival { vm } => format!("what RAM of {vm} was when it came"),
    }
}

fn in_words(state: &StoreState) -> String {
    match state {
        StoreState::Ready => "ready".to_owned(),
        StoreState::Indexing {
            done_bytes,
            total_bytes,
        } => format!(
            "{} of {} read",
            show::bytes(*done_bytes),
            show::bytes(*total_bytes)
        ),
        StoreState::Failed { reason } => reason.clone(),
    }
}

fn overview(entries: &[StoreEntry]) -> String {
    if entries.is_empty() {
        return "nothing is kept".to_owned();
    }
    show::table(
        ["entry", "what", "state", "different pages", "disk"],
        entries.iter().map(|entry| {
            let number = entry
                .number
                .map_or_else(|| "-".to_owned(), |n| n.to_string());
            let (pages, disk) = (entry.pages.to_string(), show::bytes(entry.disk_bytes));
            [number, name(entry), in_words(&entry.state), pages, disk]
        }),
    )
}
