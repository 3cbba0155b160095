//! Files of the CA: keys that nobody else may read, nothing overwritten by mistake, nothing half written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::CertificateError;

/// Why the CA did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PkiError {
    /// It is there already.
    #[error("{} exists already: {hint}", path.display())]
    Exists {
        /// What.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// It is not there.
    #[error("{} is missing: {hint}", path.display())]
    Missing {
        /// What.
        path: PathBuf,
        /// What to do.
        hint: &'static str,
    },
    /// A name that no certificate can carry.
    #[error("`{name:.80}` {why}")]
    Name {
        /// The name.
        name: String,
        /// Why not.
        why: String,
    },
    /// A file that is not what it should be.
    #[error("{}: {source}", path.display())]
    Certificate {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: CertificateError,
    },
    /// A file or folder.
    #[error("{}: {source}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// Making a key or a certificate.
    #[error("{what}: {source}")]
    Make {
        /// What.
        what: String,
        /// The failure.
        source: rcgen::Error,
    },
    /// Nodes would be cut off.
    #[error("the CA before this one is still needed by {}: `dwcp pki rotate` these first", nodes.join(", "))]
    StillNeeded {
        /// Their names.
        nodes: Vec<String>,
    },
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(std::io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { path, source }
}

/// Makes a folder of the user's own.
pub(crate) fn make_folder(path: &Path) -> Result<(), PkiError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(path)
        .map_err(failed(path))
}

pub(crate) fn read(path: &Path, hint: &'static str) -> Result<String, PkiError> {
    fs::read_to_string(path).map_err(|error| match error.kind() {
        ErrorKind::NotFound => PkiError::Missing {
            path: path.to_owned(),
            hint,
        },
        _ => failed(path)(error),
    })
}

/// Who may read it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Secrecy {
    Public,
    Secret,
}

/// Writes a file whole or not at all: readers see the old or the new text.
pub(crate) fn write(path: &Path, text: &str, secrecy: Secrecy) -> Result<(), PkiError> {
    let mode = match secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    let part = path.with_extension("part");
    // One that a crash left behind may have another mode.
    let _ = fs::remove_file(&part);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&part)
        .map_err(failed(&part))?;
    file.write_all(text.as_bytes()).map_err(failed(&part))?;
    file.sync_all().map_err(failed(&part))?;
    fs::rename(&part, path).map_err(failed(path))?;
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    File::open(folder)
        .and_then(|folder| folder.sync_all())
        .map_err(failed(folder))
}
