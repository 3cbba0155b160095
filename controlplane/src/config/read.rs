//! The text of a configuration file, or words about why there is none.

use std::io::ErrorKind;
use std::path::Path;

/// Why a file cannot be read, for the person who named it.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error("{message}")]
pub struct Unreadable {
    /// What is wrong.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Reads a file.
///
/// # Errors
/// [`Unreadable`].
pub fn read(path: &Path) -> Result<String, Unreadable> {
    let error = match std::fs::read_to_string(path) {
        Ok(text) => return Ok(text),
        Err(error) => error,
    };
    let (why, hint) = match error.kind() {
        ErrorKind::NotFound => (
            "there is no such file".to_owned(),
            "give the path of a TOML file; `dwcp config show datacenter` prints one to begin with",
        ),
        ErrorKind::IsADirectory => (
            "is a folder, not a file".to_owned(),
            "give the path of the TOML file in it",
        ),
        ErrorKind::PermissionDenied => (
            "may not be read by this user".to_owned(),
            "become the user who may, or change the file's mode",
        ),
        ErrorKind::InvalidData => (
            "is not UTF-8 text".to_owned(),
            "give the path of a TOML file",
        ),
        _ => (error.to_string(), "give the path of a TOML file"),
    };
    Err(Unreadable {
        message: format!("{}: {why}", path.display()),
        hint: hint.to_owned(),
    })
}
