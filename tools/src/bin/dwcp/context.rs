//! What every command is given: the node, and where output goes.

use std::cell::Cell;
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
    has_printed: Cell<bool>,
}

impl Context {
    pub(crate) fn new(socket: &Path, json: bool) -> Self {
        Self {
            node: NodeClient::new(socket),
            json,
            has_printed: Cell::new(false),
        }
    }

    /// Whether a failure goes to standard output as JSON: there is one value there, and a command that has
    /// printed its result may fail by it.
    pub(crate) fn fails_as_json(&self) -> bool {
        self.json && !self.has_printed.get()
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
        self.has_printed.set(true);
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn standard_output_has_one_json_value() {
        for json in [true, false] {
            let context = Context::new(Path::new("/nowhere"), json);
            assert_eq!(context.fails_as_json(), json);
            context.print(&1, String::new).unwrap();
            assert!(!context.fails_as_json());
        }
    }
}
