//! How a command ends badly: an exit code and words, or JSON.

use std::ffi::OsString;
use std::process::ExitCode;

use dwcp_wan::link::LinkError;
use dwcp_wan::trace::TraceError;
use nix::libc;
use serde_json::json;

use crate::output;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// About a link.
    Link(LinkError),
    /// The arguments make no sense.
    Usage(String),
    /// A signal ended it; the link is down.
    Signal(u8),
    /// The command that was to run does not start.
    Command {
        /// Which.
        program: String,
        /// Why.
        error: std::io::Error,
    },
    /// Anything else.
    Other(String),
}

impl From<LinkError> for Failure {
    fn from(error: LinkError) -> Self {
        Self::Link(error)
    }
}

impl From<TraceError> for Failure {
    fn from(error: TraceError) -> Self {
        Self::Usage(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::Other(error.to_string())
    }
}

impl Failure {
    fn code(&self) -> u8 {
        match self {
            Self::Link(LinkError::Needs(_) | LinkError::Denied { .. }) => 4,
            Self::Link(LinkError::NotFound(_)) => 3,
            Self::Usage(_) => 2,
            Self::Signal(number) => 128 + *number,
            Self::Command { error, .. } => code_of_start(error),
            Self::Link(_) | Self::Other(_) => 1,
        }
    }

    fn text(&self) -> String {
        match self {
            Self::Link(error) => error.to_string(),
            Self::Usage(text) | Self::Other(text) => text.clone(),
            Self::Command { program, error } => {
                format!("`{program}` cannot be run: {error}; the link is down")
            }
            Self::Signal(number) => format!("ended by signal {number}; the link is down"),
        }
    }

    /// Says on standard error (or as JSON on standard output) what is wrong; gives the exit code.
    pub(crate) fn report(&self, as_json: bool) -> ExitCode {
        if as_json {
            let error = json!({"exit_code": self.code(), "message": self.text()});
            // Where nobody reads, there is nobody to tell.
            let _ = output::print(true, &json!({ "error": error }), String::new);
        } else {
            eprintln!("dwcp-wan: {}", self.text());
        }
        ExitCode::from(self.code())
    }
}

/// As shells have it, so that a script need not tell whether a link was around its command.
fn code_of_start(error: &std::io::Error) -> u8 {
    match error.raw_os_error() {
        Some(libc::ENOENT | libc::ENOTDIR) => 127,
        Some(libc::EACCES | libc::EPERM | libc::ENOEXEC | libc::EISDIR | libc::ETXTBSY) => 126,
        _ => 1,
    }
}

/// Arguments that clap refuses; help and version, which are none, are printed and end the program.
pub(crate) fn refused(error: &clap::Error, arguments: &[OsString]) -> ExitCode {
    // What stands behind `--` is another program's.
    let mut own = arguments.iter().take_while(|argument| *argument != "--");
    if error.use_stderr() && own.any(|argument| argument == "--json") {
        let text = error.render().to_string();
        let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
        return Failure::Usage(text.trim_start_matches("error: ").to_owned()).report(true);
    }
    error.exit()
}
