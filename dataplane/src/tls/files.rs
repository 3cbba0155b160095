//! A node's certificate, key and CA: files that are read again when they change, so that a rotation needs
//! no restart.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::{Identity, TlsError};

/// Where they are, in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsFiles {
    /// CAs whose certificates are trusted.
    pub ca: PathBuf,
    /// This node's certificate, and those between it and the CA.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

/// Tells whether a file is another one: when it was written, how long it is, which one it is.
type Stamp = [Option<(i64, i64, u64, u64)>; 3];

/// A node's identity as its files have it now.
#[derive(Debug)]
pub struct TlsNode {
    files: TlsFiles,
    name: String,
    read: Mutex<Read>,
}

/// What was read.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    identity: Arc<Identity>,
    /// Why it is not of the files as they are now.
    fault: Option<TlsError>,
}

impl TlsNode {
    /// Reads the files of the node `name`.
    ///
    /// # Errors
    /// [`TlsError`] names the file, and what is wrong with it.
    pub fn new(files: TlsFiles, name: &str) -> Result<Self, TlsError> {
        // Before reading: what is written meanwhile is then seen as a change.
        let stamp = files.stamp();
        let identity = Arc::new(files.read(name)?);
        let node = Self {
            files,
            name: name.to_owned(),
            read: Mutex::new(Read {
                stamp,
                identity,
                fault: None,
            }),
        };
        for doubt in node.doubts() {
            tracing::warn!(doubt, "certificate");
        }
        Ok(node)
    }

    /// The identity now. While the files do not fit together, as in the middle of a rotation, it is the
    /// one before.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        Arc::clone(&self.read().identity)
    }

    /// Reads the files again if they are others.
    fn read(&self) -> MutexGuard<'_, Read> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != read.stamp {
            read.stamp = stamp;
            match self.files.read(&self.name) {
                Ok(identity) => {
                    tracing::info!("certificate, key and CA were read again");
                    (read.identity, read.fault) = (Arc::new(identity), None);
                }
                Err(error) => {
                    tracing::warn!(%error, "the certificate stays the one before");
                    read.fault = Some(error);
                }
            }
        }
        read
    }

    /// What an operator should know of the files, as they are now; a line each.
    #[must_use]
    pub fn doubts(&self) -> Vec<String> {
        let mut doubts = vec![];
        let read = self.read();
        if let Some(error) = &read.fault {
            doubts.push(format!(
                "{error}; what was read before is used until a restart"
            ));
        }
        if !read.identity.is_trusted_by_itself() {
            let ca = self.files.ca.display();
            doubts.push(format!(
                "it is not of a CA in {ca}: nodes with these refuse it"
            ));
        }
        // Bits of the file's mode, see inode(7).
        let mode = fs::metadata(&self.files.key).map_or(0, |about| about.mode());
        if mode & 0o077 != 0 {
            let path = self.files.key.display();
            doubts.push(format!("{path} may be read by others: chmod 600"));
        }
        doubts
    }
}

impl TlsFiles {
    fn stamp(&self) -> Stamp {
        [&self.ca, &self.certificate, &self.key].map(|path| {
            let data = fs::metadata(path).ok()?;
            Some((data.mtime(), data.mtime_nsec(), data.len(), data.ino()))
        })
    }

    fn read(&self, name: &str) -> Result<Identity, TlsError> {
        let trusted = certificates(&self.ca)?;
        let certificate = certificates(&self.certificate)?;
        let key =
            PrivateKeyDer::from_pem_slice(&bytes(&self.key)?).map_err(|error| TlsError::File {
                path: self.key.clone(),
                why: format!("no key in it: {error}"),
            })?;
        let identity = Identity::new(trusted, certificate, key)?;
        let names = &identity.facts().dns_names;
        if names.iter().any(|known| known.eq_ignore_ascii_case(name)) {
            return Ok(identity);
        }
        Err(TlsError::File {
            path: self.certificate.clone(),
            why: format!(
                "it names {}, and this node is `{name}`: `dwcp pki issue` makes one for it",
                if names.is_empty() {
                    "nobody".into()
                } else {
                    names.join(", ")
                }
            ),
        })
    }
}

fn bytes(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| TlsError::File {
        path: path.to_owned(),
        why: format!("it cannot be read: {error}"),
    })
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::File {
        path: path.to_owned(),
        why,
    };
    let found = CertificateDer::pem_slice_iter(&bytes(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| wrong(format!("not PEM: {error}")))?;
    if found.is_empty() {
        return Err(wrong("no certificate in it".into()));
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use dwcp_pki::SECONDS_PER_DAY;

    use super::*;
    use crate::tls::testing::issue;

    fn doubts(files: &TlsFiles) -> String {
        TlsNode::new(files.clone(), "b")
            .unwrap()
            .doubts()
            .join("; ")
    }

    #[test]
    fn files_that_are_not_as_they_should_be_are_told_of() {
        let folder = tempfile::tempdir().unwrap();
        let files = issue(&folder.path().join("one"), SECONDS_PER_DAY);
        let node = TlsNode::new(files.clone(), "b").unwrap();
        assert_eq!(node.doubts(), Vec::<String>::new());
        fs::set_permissions(&files.key, PermissionsExt::from_mode(0o644)).unwrap();
        assert!(doubts(&files).contains("chmod 600"));
        let other = issue(&folder.path().join("other"), SECONDS_PER_DAY);
        let mixed = TlsFiles {
            ca: other.ca.clone(),
            ..files.clone()
        };
        assert!(doubts(&mixed).contains("not of a CA in"));
        fs::remove_file(&files.certificate).unwrap();
        assert!(node.doubts()[0].contains("until a restart"));
        // That it has ended is said elsewhere.
        assert_eq!(doubts(&issue(&folder.path().join("old"), -60)), "");
    }
}
