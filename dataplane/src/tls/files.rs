//! A node's certificate, key and CA: files that are read again when they change, so that a rotation needs
//! no restart.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

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
    read: Mutex<(Stamp, Arc<Identity>)>,
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
        Ok(Self {
            files,
            name: name.to_owned(),
            read: Mutex::new((stamp, identity)),
        })
    }

    /// The identity now. While the files do not fit together, as in the middle of a rotation, it is the
    /// one before.
    #[must_use]
    pub fn identity(&self) -> Arc<Identity> {
        let mut read = self.read.lock().unwrap_or_else(PoisonError::into_inner);
        let stamp = self.files.stamp();
        if stamp != read.0 {
            read.0 = stamp;
            match self.files.read(&self.name) {
                Ok(identity) => {
                    tracing::info!("certificate, key and CA were read again");
                    read.1 = Arc::new(identity);
                }
                Err(error) => tracing::warn!(%error, "the certificate stays the one before"),
            }
        }
        Arc::clone(&read.1)
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
