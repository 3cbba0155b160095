//! What a command says on standard output: text or JSON.

use std::io::{self, ErrorKind, Write};

use serde::Serialize;

use crate::failure::Failure;

/// Says one of both.
pub(crate) fn print(
    json: bool,
    value: &impl Serialize,
    text: impl FnOnce() -> String,
) -> Result<(), Failure> {
    let said = match json {
        true => serde_json::to_string_pretty(value).map_err(io::Error::from)?,
        false => text(),
    };
    match writeln!(io::stdout(), "{}", said.trim_end()) {
        // Whoever reads has read enough, as in `dwcp-wan show | head -1`.
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error.into()),
        _ => Ok(()),
    }
}
