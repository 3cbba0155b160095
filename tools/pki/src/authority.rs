//! A small private CA in a folder.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use time::{Duration, OffsetDateTime};

use crate::certificate::{common_name, read_facts};
use crate::files::{self, PkiError, Secrecy};
use crate::lock::{self, Lock};
use crate::node::make;
use crate::pair::Pair;
use crate::{CertificateFacts, names};

/// What nodes trust.
pub(crate) const BUNDLE: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const NODES: &str = "nodes";
const NO_CA: &str = "`dwcp pki init FOLDER` begins a CA";
const NO_KEY: &str = "put it back from a backup, or begin a new CA beside those that nodes trust by \
                      `dwcp pki rotate FOLDER --ca`";

const END_OF_BLOCK: &str = "-----END CERTIFICATE-----";

/// What a CA is to be like.
#[derive(Clone, Debug)]
pub struct AuthorityOptions {
    /// Its name, for people.
    pub name: String,
    /// How long it is good, in seconds.
    pub seconds: i64,
    /// Replace what is there.
    pub force: bool,
}

/// A CA's folder.
#[derive(Clone, Debug)]
pub struct Authority {
    folder: PathBuf,
}

impl Authority {
    /// Begins a CA.
    ///
    /// # Errors
    /// [`PkiError::Exists`] unless `force` is set, [`PkiError::Name`].
    pub fn init(folder: &Path, options: &AuthorityOptions) -> Result<Self, PkiError> {
        names::check_ca(&options.name)?;
        let authority = Self {
            folder: folder.to_owned(),
        };
        files::make_folder(&authority.folder)?;
        let _lock = lock::lock(&authority.folder)?;
        if !options.force {
            authority.settle()?;
            let Pair { certificate, key } = authority.ca_pair();
            if let Some(path) = [key, certificate].into_iter().find(|path| path.exists()) {
                return Err(PkiError::Exists {
                    path,
                    hint: "`dwcp pki rotate --ca` renews a CA; --force ends this one: no node will trust \
                           its certificates",
                });
            }
        }
        let (key, certificate) = make_ca(&options.name, options.seconds)?;
        authority.ca_pair().replace(&key, &certificate)?;
        authority.spread()?;
        Ok(authority)
    }

    /// A CA that is there.
    ///
    /// # Errors
    /// [`PkiError::Missing`].
    pub fn open(folder: &Path) -> Result<Self, PkiError> {
        let authority = Self {
            folder: folder.to_owned(),
        };
        authority.trusted()?;
        Ok(authority)
    }

    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(crate) fn ca_pair(&self) -> Pair {
        Pair {
            certificate: self.folder.join(BUNDLE),
            key: self.folder.join(CA_KEY),
        }
    }

    /// Keeps others off, and ends what a command began that was interrupted.
    pub(crate) fn lock(&self) -> Result<Lock, PkiError> {
        let lock = lock::lock(&self.folder)?;
        self.settle()?;
        Ok(lock)
    }

    fn settle(&self) -> Result<(), PkiError> {
        files::remove_parts(&self.folder)?;
        self.ca_pair().settle()?;
        for node in self.node_folders()? {
            files::remove_parts(&self.nodes_folder().join(&node))?;
            self.node_pair(&node).settle()?;
        }
        match self.folder.join(BUNDLE).exists() {
            true => self.spread(),
            false => Ok(()),
        }
    }

    /// Gives each node what nodes trust.
    fn spread(&self) -> Result<(), PkiError> {
        let bundle = self.bundle()?;
        for node in self.nodes()? {
            let path = self.node_files(&node).ca;
            if std::fs::read_to_string(&path).ok().as_ref() != Some(&bundle) {
                files::write(&path, &bundle, Secrecy::Public)?;
            }
        }
        Ok(())
    }

    pub(crate) fn nodes_folder(&self) -> PathBuf {
        self.folder.join(NODES)
    }

    /// The PEM text of what nodes trust.
    pub(crate) fn bundle(&self) -> Result<String, PkiError> {
        files::read(&self.folder.join(BUNDLE), NO_CA)
    }

    /// What nodes trust, the newest first.
    ///
    /// # Errors
    /// [`PkiError::Missing`], [`PkiError::Certificate`].
    pub fn trusted(&self) -> Result<Vec<CertificateFacts>, PkiError> {
        read_facts(&self.bundle()?).map_err(|source| PkiError::Certificate {
            path: self.folder.join(BUNDLE),
            source,
        })
    }

    /// The newest CA's key; one that is another's is refused.
    pub(crate) fn ca_key(&self) -> Result<KeyPair, PkiError> {
        let folder = self.folder.display();
        let mend = format!(
            "`dwcp pki rotate {folder} --ca` begins a new CA beside those that nodes trust"
        );
        self.ca_pair().read_key(NO_KEY, &mend)
    }

    /// The newest CA and its key, to sign with.
    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let bundle = self.bundle()?;
        Issuer::from_ca_cert_pem(newest(&bundle), self.ca_key()?).map_err(make("signature"))
    }

    /// Replaces the CA by a new one of the same name. Nodes trust those before it as well until
    /// [`Self::drop_old`], however many they are; their certificates stay as they are. It does not take the
    /// key of the CA before: it is the way out where that is lost.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn rotate(&self, seconds: i64) -> Result<(), PkiError> {
        let _lock = self.lock()?;
        let bundle = self.bundle()?;
        let wrong = |source| PkiError::Certificate {
            path: self.folder.join(BUNDLE),
            source,
        };
        let name = common_name(&bundle).map_err(wrong)?;
        let (key, certificate) = make_ca(&name.unwrap_or_else(|| "DWCP".to_owned()), seconds)?;
        self.ca_pair()
            .replace(&key, &format!("{certificate}{bundle}"))?;
        self.spread()
    }

    /// Ends the trust in the CAs before this one.
    ///
    /// # Errors
    /// [`PkiError::StillNeeded`] when a node has a certificate of one of them.
    pub fn drop_old(&self) -> Result<(), PkiError> {
        let _lock = self.lock()?;
        let trusted: Vec<_> = self.trusted()?.into_iter().map(|ca| ca.key_id).collect();
        let mut needed = vec![];
        for node in self.nodes()? {
            let issuer = self.node_facts(&node)?.issuer_key_id;
            // What is of none of them loses nothing; what does not say whose it is may be of any.
            let is_old = issuer.is_none() || trusted[1..].contains(&issuer);
            if is_old && issuer != trusted[0] {
                needed.push(node);
            }
        }
        if !needed.is_empty() {
            return Err(PkiError::StillNeeded { nodes: needed });
        }
        let bundle = self.bundle()?;
        let path = self.folder.join(BUNDLE);
        files::write(&path, newest(&bundle), Secrecy::Public)?;
        self.spread()
    }

    /// Names of the nodes that have a certificate.
    ///
    /// # Errors
    /// [`PkiError::File`].
    pub fn nodes(&self) -> Result<Vec<String>, PkiError> {
        let mut names = self.node_folders()?;
        names.retain(|name| self.node_files(name).certificate.exists());
        Ok(names)
    }

    fn node_folders(&self) -> Result<Vec<String>, PkiError> {
        let folder = self.nodes_folder();
        if !folder.exists() {
            return Ok(vec![]);
        }
        let mut names = vec![];
        for entry in std::fs::read_dir(&folder).map_err(files::failed(&folder))? {
            let entry = entry.map_err(files::failed(&folder))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| folder.join(name).is_dir());
        names.sort();
        Ok(names)
    }
}

/// A key, and the certificate of a CA of it.
fn make_ca(name: &str, seconds: i64) -> Result<(KeyPair, String), PkiError> {
    let key = KeyPair::generate().map_err(make("key"))?;
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    // Two CAs of one name are told apart: otherwise a certificate of the other looks forged.
    let key_id = params.key_identifier(&key);
    let key_id: String = key_id.iter().take(4).map(|b| format!("{b:02x}")).collect();
    params
        .distinguished_name
        .push(DnType::OrganizationalUnitName, key_id);
    let moment = OffsetDateTime::now_utc();
    params.not_before = moment - Duration::hours(1);
    params.not_after = moment + Duration::seconds(seconds);
    // It signs nodes and no other CA.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key).map_err(make("CA"))?;
    Ok((key, certificate.pem()))
}

/// The first certificate of a PEM text.
fn newest(bundle: &str) -> &str {
    let end = bundle.find(END_OF_BLOCK).map(|at| at + END_OF_BLOCK.len());
    let first = end.and_then(|end| bundle.get(..end)).unwrap_or(bundle);
    // With its newline, so that two can be put together.
    let newline = bundle[first.len()..].starts_with('\n');
    &bundle[..first.len() + usize::from(newline)]
}
