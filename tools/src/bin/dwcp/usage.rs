//! Arguments that clap refuses, told as every other failure is.

use std::ffi::OsString;

use dwcp_api::{ApiError, ErrorCode};

use crate::failure::Failure;

/// Whether JSON is asked for. What stands behind `--` is another program's.
pub(crate) fn wants_json(arguments: &[OsString]) -> bool {
    let mut own = arguments.iter().take_while(|argument| *argument != "--");
    own.any(|argument| argument == "--json")
}

/// The refusal; help and version, which are none, are printed and end the program.
pub(crate) fn refused(error: &clap::Error) -> Failure {
    if !error.use_stderr() {
        error.exit();
    }
    let text = error.render().to_string();
    let mut paragraphs = text.split("\n\n").map(one_line);
    let message = paragraphs.next().unwrap_or_default();
    let message = message.trim_start_matches("error: ");
    let hint = paragraphs.collect::<Vec<_>>().join("; ");
    let refusal = ApiError::new(ErrorCode::BadRequest, message);
    refusal.with_hint(hint).into()
}

fn one_line(text: &str) -> String {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.collect::<Vec<_>>().join(" ")
}
