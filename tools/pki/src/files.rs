//! Files of the CA: keys that nobody else may read, nothing overwritten by mistake, nothing half written.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::CertificateError;

/// What ends the names of files that are being written.
const PART: &str = "part";

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
    #[error("`{}` {why}", shown(name))]
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
        source: io::Error,
    },
    /// Making a key or a certificate.
    #[error("{what}: {source}")]
    Make {
        /// What.
        what: String,
        /// The failure.
        source: rcgen::Error,
    },
    /// A file that is no key.
    #[error("{} is no private key: {source}; put it back from a backup, or renew what it belongs to by `dwcp pki rotate`", path.display())]
    Key {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: rcgen::Error,
    },
    /// A key and a certificate that do not belong together.
    #[error("{} is not the key of {}: what it signs nobody would trust; put the right one back from a backup, or {mend}", key.display(), certificate.display())]
    OtherKey {
        /// The key.
        key: PathBuf,
        /// The certificate.
        certificate: PathBuf,
        /// What else to do.
        mend: String,
    },
    /// Another command is at work.
    #[error("{}: another command has been working on this CA for a while: let it end, or see by `fuser` which it is", path.display())]
    Busy {
        /// What it holds.
        path: PathBuf,
    },
    /// Nodes would be cut off.
    #[error("a CA before this one is still needed by {}: `dwcp pki rotate` these first", nodes.join(", "))]
    StillNeeded {
        /// Their names.
        nodes: Vec<String>,
    },
}

pub(crate) fn failed(path: &Path) -> impl FnOnce(io::Error) -> PkiError {
    let path = path.to_owned();
    move |source| PkiError::File { path, source }
}

/// A name as it can stand in a line.
fn shown(name: &str) -> String {
    let name: String = name.chars().take(80).collect();
    name.escape_debug().to_string()
}

/// Makes a folder of the user's own.
pub(crate) fn make_folder(path: &Path) -> Result<(), PkiError> {
    if path.is_dir() {
        return Ok(());
    }
    step()
        .and_then(|()| DirBuilder::new().recursive(true).mode(0o700).create(path))
        .map_err(failed(path))?;
    sync_folder_of(path)
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
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let part = path.with_extension(format!("{}-{number}.{PART}", process::id()));
    let written = write_part(&part, text, secrecy)
        .map_err(failed(&part))
        .and_then(|()| rename(&part, path));
    if written.is_err() {
        // It may hold a key. What a crash leaves, the next command removes.
        let _ = remove(&part);
    }
    written
}

fn write_part(part: &Path, text: &str, secrecy: Secrecy) -> io::Result<()> {
    let mode = match secrecy {
        Secrecy::Public => 0o644,
        Secrecy::Secret => 0o600,
    };
    step()?;
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(part)?;
    step()?;
    file.write_all(text.as_bytes())?;
    step()?;
    file.sync_all()
}

/// Gives a file another name, for good.
pub(crate) fn rename(from: &Path, to: &Path) -> Result<(), PkiError> {
    step()
        .and_then(|()| fs::rename(from, to))
        .map_err(failed(to))?;
    sync_folder_of(to)
}

pub(crate) fn remove(path: &Path) -> Result<(), PkiError> {
    step()
        .and_then(|()| fs::remove_file(path))
        .map_err(failed(path))
}

/// Removes what writers left that did not end.
pub(crate) fn remove_parts(folder: &Path) -> Result<(), PkiError> {
    for entry in fs::read_dir(folder).map_err(failed(folder))? {
        let path = entry.map_err(failed(folder))?.path();
        if path.extension().is_some_and(|extension| extension == PART) {
            remove(&path)?;
        }
    }
    Ok(())
}

fn sync_folder_of(path: &Path) -> Result<(), PkiError> {
    let folder = match path.parent() {
        None => return Ok(()),
        Some(folder) if folder.as_os_str().is_empty() => Path::new("."),
        Some(folder) => folder,
    };
    step()
        .and_then(|()| File::open(folder)?.sync_all())
        .map_err(failed(folder))
}

/// Tests stop a command before any step of its writing.
#[cfg(not(test))]
#[expect(clippy::unnecessary_wraps, reason = "in tests it may fail")]
const fn step() -> io::Result<()> {
    Ok(())
}

#[cfg(test)]
pub(crate) use stops::step;

#[cfg(test)]
pub(crate) mod stops {
    //! Where a command is stopped.

    use std::cell::Cell;
    use std::io;

    /// What happens at a step.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub(crate) enum Stop {
        /// Nothing.
        Never,
        /// One step fails, and those after it work: a disk that is full for a moment.
        Once(u32),
        /// From this step on none works: as if the process were killed there.
        From(u32),
    }

    thread_local! {
        static STOP: Cell<Stop> = const { Cell::new(Stop::Never) };
    }

    pub(crate) fn set(stop: Stop) {
        STOP.set(stop);
    }

    pub(crate) fn step() -> io::Result<()> {
        let (next, fails) = match STOP.get() {
            Stop::Never => (Stop::Never, false),
            Stop::Once(0) => (Stop::Never, true),
            Stop::Once(left) => (Stop::Once(left - 1), false),
            Stop::From(0) => (Stop::From(0), true),
            Stop::From(left) => (Stop::From(left - 1), false),
        };
        STOP.set(next);
        match fails {
            true => Err(io::Error::other("stopped by a test")),
            false => Ok(()),
        }
    }
}
