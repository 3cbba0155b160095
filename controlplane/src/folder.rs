//! The state folder: one control plane at a time, files replaced whole.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

const LOCK_NAME: &str = "controlplane.lock";
const ID_NAME: &str = "node-id";

/// Why a state folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FolderError {
    /// Another control plane runs on it.
    #[error("{path}: in use by another dwcp-controlplane; stop it or choose another state folder")]
    InUse {
        /// The lock file.
        path: PathBuf,
    },
    /// A system call failed.
    #[error("{path}: {source}")]
    Io {
        /// The file or folder.
        path: PathBuf,
        /// The failure.
        source: std::io::Error,
    },
    /// A file holds something else than it should.
    #[error("{path}: {why}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        why: String,
    },
}

/// A state folder, locked for this process.
#[derive(Debug)]
pub(crate) struct StateFolder {
    path: PathBuf,
    _lock: Flock<File>,
}

impl StateFolder {
    /// Opens a state folder, made with mode 0700 when missing.
    pub(crate) fn open(path: &Path) -> Result<Self, FolderError> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(path)
            .map_err(io(path))?;
        let lock_path = path.join(LOCK_NAME);
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(&lock_path)
            .map_err(io(&lock_path))?;
        let lock =
            Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
                |(_, errno)| match errno {
                    nix::errno::Errno::EWOULDBLOCK => FolderError::InUse {
                        path: lock_path.clone(),
                    },
                    other => io(&lock_path)(other.into()),
                },
            )?;
        Ok(Self {
            path: path.to_owned(),
            _lock: lock,
        })
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// The node's id: made at the first start and kept.
    pub(crate) fn node_id(&self) -> Result<String, FolderError> {
        let path = self.path.join(ID_NAME);
        if let Some(text) = read(&path)? {
            let id = text.trim_end();
            let is_id = id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit());
            return if is_id {
                Ok(id.to_owned())
            } else {
                Err(FolderError::Content {
                    path,
                    why:
                        "not a node id of 32 hex digits; restore it, or remove the file to make a \
                          new one"
                            .to_owned(),
                })
            };
        }
        let id = format!("{:032x}", random_u128().map_err(io(&path))?);
        replace(&path, format!("{id}\n").as_bytes())?;
        Ok(id)
    }
}

/// 128 random bits.
pub(crate) fn random_u128() -> std::io::Result<u128> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(u128::from_le_bytes(bytes))
}

/// Text of a file, `None` when there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, FolderError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(io(path)(error)),
    }
}

/// Replaces a file, whole or not at all; durable when this returns.
pub(crate) fn replace(path: &Path, bytes: &[u8]) -> Result<(), FolderError> {
    let new = path.with_extension("new");
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let write = || {
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&new, path)?;
        File::open(folder)?.sync_all()
    };
    write().map_err(io(path))
}

fn io(path: &Path) -> impl Fn(std::io::Error) -> FolderError {
    let path = path.to_owned();
    move |source| FolderError::Io {
        path: path.clone(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_node_id_is_made_once_and_the_folder_is_used_once() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state");
        let folder = StateFolder::open(&path).unwrap();
        let id = folder.node_id().unwrap();
        assert_eq!(id.len(), 32);
        assert_eq!(folder.node_id().unwrap(), id);
        assert!(matches!(
            StateFolder::open(&path),
            Err(FolderError::InUse { .. })
        ));
        drop(folder);
        std::fs::write(path.join(ID_NAME), "half").unwrap();
        let error = StateFolder::open(&path).unwrap().node_id().unwrap_err();
        assert!(error.to_string().contains("not a node id"), "{error}");
    }
}
