//! What every command is given: the node, and where output goes.

use std::io::Write;
use std::path::Path;

use dwcp_tools::NodeClient;
use serde::Serialize;

use crate::failure::Failure;

/// The node and the output of a command.
#[derive(Debug)]
pub(crate) struct Context {
    /// The node; connected when first asked.
    pub(crate) node: NodeClient,
    /// Print JSON.
    pub(crate) json: bool,
}

impl Context {
    pub(crate) fn new(socket: &Path, json: bool) -> Self {
        Self {
            node: NodeClient::new(socket),
            json,
        }
    }

    /// Prints the value as JSON, or the text, whichever was asked for.
    pub(crate) fn print<T: Serialize>(
        &self,
        value: &T,
        text: impl FnOnce() -> String,
    ) -> Result<(), Failure> {
        let output = if self.json {
            serde_json::to_string_pretty(value).map_err(Failure::other)?
        } else {
            text()
        };
        print_text(&output)
    }
}

/// Prints a text and a newline. A reader that closed the pipe is no failure.
pub(crate) fn print_text(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    let written = writeln!(out, "{}", text.trim_end_matches('\n')).and_then(|()| out.flush());
    match written {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => Err(Failure::other(error)),
        _ => Ok(()),
    }
}
