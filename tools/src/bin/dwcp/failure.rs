//! How a command ends badly: an exit code and words, or JSON.

use std::process::ExitCode;

use dwcp_api::node::Reply;
use dwcp_api::{ApiError, ErrorCode, MigrationReport, RunResult, in_words};
use dwcp_controlplane::config::{ConfigError, ConfigErrors};
use dwcp_controlplane::profile::ProfileError;
use serde_json::json;

/// Why a command did not do what it was asked.
#[derive(Debug)]
pub(crate) enum Failure {
    /// A daemon refused.
    Api(ApiError),
    /// A configuration has faults.
    Profile(Box<ProfileError>),
    /// The arguments make no sense together.
    Usage(String),
    /// Something that was named does not exist.
    NotFound(String),
    /// The migration ended otherwise than completed; it was reported already.
    Ended {
        /// How.
        result: RunResult,
        /// The other node never accepted it.
        refused: bool,
    },
    /// A program that was run ended with this code.
    Exit(u8),
    /// Anything else.
    Other(anyhow::Error),
}

impl From<ApiError> for Failure {
    fn from(error: ApiError) -> Self {
        Self::Api(error)
    }
}

impl From<ProfileError> for Failure {
    fn from(error: ProfileError) -> Self {
        Self::Profile(Box::new(error))
    }
}

impl From<ConfigErrors> for Failure {
    fn from(errors: ConfigErrors) -> Self {
        ProfileError::from(errors).into()
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Other(error)
    }
}

impl Failure {
    /// A migration that ended otherwise than completed.
    pub(crate) const fn ended(report: &MigrationReport) -> Self {
        Self::Ended {
            result: report.result,
            refused: report.refused,
        }
    }

    /// Any other error.
    pub(crate) fn other(error: impl Into<anyhow::Error>) -> Self {
        Self::Other(error.into())
    }

    /// A reply that fits no request made.
    pub(crate) fn unexpected(reply: &Reply) -> Self {
        let text = format!("{reply:?}");
        let kind = text.split(['(', ' ', '{']).next().unwrap_or_default();
        Self::Other(anyhow::anyhow!(
            "the node answered with `{kind}`: install the same release of daemons and tools"
        ))
    }

    /// Says on standard error (or as JSON on standard output) what is wrong; gives the exit code.
    pub(crate) fn report(&self, as_json: bool) -> ExitCode {
        if as_json {
            if let Some(value) = self.json() {
                println!("{value:#}");
            }
        } else {
            self.say();
        }
        ExitCode::from(self.code())
    }

    fn say(&self) {
        match self {
            Self::Api(error) => {
                eprintln!("dwcp: {}", error.message);
                if let Some(hint) = &error.hint {
                    eprintln!("  hint: {hint}");
                }
            }
            Self::Profile(error) => eprint!("{}", graphical(error)),
            Self::Usage(text) | Self::NotFound(text) => eprintln!("dwcp: {text}"),
            Self::Other(error) => eprintln!("dwcp: {}", in_words(error.as_ref())),
            Self::Ended { .. } | Self::Exit(_) => {}
        }
    }

    /// What is wrong, in one line.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Api(error) => error.to_string(),
            Self::Profile(error) => error.to_string(),
            Self::Usage(text) | Self::NotFound(text) => text.clone(),
            Self::Other(error) => in_words(error.as_ref()),
            Self::Ended { result, .. } => crate::show::result(*result),
            Self::Exit(code) => format!("exit code {code}"),
        }
    }

    fn json(&self) -> Option<serde_json::Value> {
        let (message, hint) = match self {
            Self::Api(error) => (error.message.clone(), error.hint.clone()),
            Self::Profile(error) => {
                let faults: Vec<_> = faults(error).iter().map(fault_json).collect();
                let message = error.to_string();
                return Some(json!({"error": {
                    "exit_code": self.code(), "message": message, "hint": null, "faults": faults,
                }}));
            }
            Self::Usage(text) | Self::NotFound(text) => (text.clone(), None),
            Self::Other(error) => (in_words(error.as_ref()), None),
            Self::Ended { .. } | Self::Exit(_) => return None,
        };
        Some(json!({"error": {"exit_code": self.code(), "message": message, "hint": hint}}))
    }

    fn code(&self) -> u8 {
        match self {
            Self::Api(error) => match error.code {
                ErrorCode::BadRequest => 2,
                ErrorCode::NotFound => 3,
                ErrorCode::Peer => 4,
                ErrorCode::PlaneDown => 5,
                ErrorCode::VmUnsuitable => 6,
                _ => 1,
            },
            Self::NotFound(_) => 3,
            Self::Profile(error) if matches!(**error, ProfileError::NotFound { .. }) => 3,
            Self::Profile(_) | Self::Usage(_) => 2,
            Self::Ended { result, refused } => match result {
                RunResult::Completed | RunResult::DryRun => 0,
                RunResult::Aborted if *refused => 4,
                RunResult::Aborted => 7,
                RunResult::Failed => 1,
            },
            Self::Exit(code) => *code,
            Self::Other(_) => 1,
        }
    }
}

fn faults(error: &ProfileError) -> &[ConfigError] {
    match error {
        ProfileError::Faults(errors) => &errors.faults,
        _ => &[],
    }
}

fn fault_json(fault: &ConfigError) -> serde_json::Value {
    json!({
        "file": fault.file(), "line": fault.line(), "column": fault.column(),
        "text": fault.text(), "message": fault.message, "hint": fault.hint,
    })
}

/// Every fault with its line shown and underlined.
fn graphical(error: &ProfileError) -> String {
    let handler = miette::MietteHandlerOpts::new().build();
    let show = |diagnostic: &dyn miette::Diagnostic| {
        struct Shown<'a>(&'a miette::MietteHandler, &'a dyn miette::Diagnostic);
        impl std::fmt::Debug for Shown<'_> {
            fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                miette::ReportHandler::debug(self.0, self.1, f)
            }
        }
        format!("{:?}\n", Shown(&handler, diagnostic))
    };
    match faults(error) {
        [] => show(error),
        faults => faults.iter().map(|fault| show(fault)).collect(),
    }
}
