//! A certificate and its key: two files that change together.
//!
//! The new key is written beside the old one, then the certificate is replaced, then the new key takes its
//! place. The certificate decides: a crash before it is replaced leaves the pair as it was, and after it the
//! key that waits is the right one. [`Pair::settle`] ends either.

use std::path::{Path, PathBuf};

use rcgen::{KeyPair, PublicKeyData};

use crate::certificate::public_key;
use crate::files::{self, PkiError, Secrecy};

/// Where a certificate and its key are.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) certificate: PathBuf,
    pub(crate) key: PathBuf,
}

impl Pair {
    /// The key that waits for its certificate.
    fn next(&self) -> PathBuf {
        self.key.with_extension("next.pem")
    }

    /// Replaces both. `certificates` begins with the key's.
    pub(crate) fn replace(&self, key: &KeyPair, certificates: &str) -> Result<(), PkiError> {
        let next = self.next();
        files::write(&next, &key.serialize_pem(), Secrecy::Secret)?;
        let replaced = files::write(&self.certificate, certificates, Secrecy::Public)
            .and_then(|()| files::rename(&next, &self.key));
        if replaced.is_err() {
            // The first error is the one to tell; what this leaves is settled by the next command.
            let _ = self.settle();
        }
        replaced
    }

    /// Ends a replacement that was interrupted.
    pub(crate) fn settle(&self) -> Result<(), PkiError> {
        let next = self.next();
        if !next.exists() {
            return Ok(());
        }
        let is_waited_for = self.certificate.exists() && self.waiting()?.is_some();
        match is_waited_for {
            true => files::rename(&next, &self.key),
            // Its certificate was never seen by anybody.
            false => files::remove(&next),
        }
    }

    /// The key, which is the certificate's: the one that waits, where a replacement was interrupted.
    pub(crate) fn read_key(&self, hint: &'static str, mend: &str) -> Result<KeyPair, PkiError> {
        let key = read_key(&self.key, hint)?;
        if self.is_of_certificate(&key)? {
            return Ok(key);
        }
        if let Some(key) = self.waiting()? {
            return Ok(key);
        }
        Err(PkiError::OtherKey {
            key: self.key.clone(),
            certificate: self.certificate.clone(),
            mend: mend.to_owned(),
        })
    }

    /// The key that waits, if the certificate is its own.
    fn waiting(&self) -> Result<Option<KeyPair>, PkiError> {
        let key = match read_key(&self.next(), "") {
            // A text that is no key is nobody's.
            Err(PkiError::Missing { .. } | PkiError::Key { .. }) => return Ok(None),
            key => key?,
        };
        Ok(self.is_of_certificate(&key)?.then_some(key))
    }

    fn is_of_certificate(&self, key: &KeyPair) -> Result<bool, PkiError> {
        let text = files::read(&self.certificate, "")?;
        let public = public_key(&text).map_err(|source| PkiError::Certificate {
            path: self.certificate.clone(),
            source,
        })?;
        Ok(public == key.der_bytes())
    }
}

fn read_key(path: &Path, hint: &'static str) -> Result<KeyPair, PkiError> {
    let text = files::read(path, hint)?;
    KeyPair::from_pem(&text).map_err(|source| PkiError::Key {
        path: path.to_owned(),
        source,
    })
}
