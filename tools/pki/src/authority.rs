//! A small private CA in a folder.

use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::CertificateFacts;
use crate::certificate::read_facts;
use crate::files::{self, PkiError, Secrecy};
use crate::node::make;

/// What nodes trust.
pub(crate) const BUNDLE: &str = "ca.pem";
const CA_KEY: &str = "ca-key.pem";
const NODES: &str = "nodes";
const NO_CA: &str = "`dwcp pki init FOLDER` begins a CA";

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

/// What is in a CA's folder.
#[derive(Clone, Debug, Serialize)]
pub struct Shown {
    /// Its folder.
    pub folder: PathBuf,
    /// What nodes trust, the newest first.
    pub trusted: Vec<CertificateFacts>,
    /// Nodes with a certificate.
    pub nodes: Vec<ShownNode>,
}

/// A node of a CA.
#[derive(Clone, Debug, Serialize)]
pub struct ShownNode {
    /// Its name.
    pub name: String,
    /// What its certificate says.
    pub certificate: CertificateFacts,
}

impl Authority {
    /// Begins a CA.
    ///
    /// # Errors
    /// [`PkiError::Exists`] unless `force` is set.
    pub fn init(folder: &Path, options: &AuthorityOptions) -> Result<Self, PkiError> {
        let authority = Self {
            folder: folder.to_owned(),
        };
        let key = authority.folder.join(CA_KEY);
        if key.exists() && !options.force {
            return Err(PkiError::Exists {
                path: key,
                hint: "`dwcp pki rotate --ca` renews a CA; --force ends this one: no node will trust \
                       its certificates",
            });
        }
        files::make_folder(&authority.folder)?;
        let certificate = authority.make(&options.name, options.seconds)?;
        files::write(
            &authority.folder.join(BUNDLE),
            &certificate,
            Secrecy::Public,
        )?;
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

    /// Makes a key, which replaces the one that is there, and its certificate.
    fn make(&self, name: &str, seconds: i64) -> Result<String, PkiError> {
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
        let path = self.folder.join(CA_KEY);
        files::write(&path, &key.serialize_pem(), Secrecy::Secret)?;
        Ok(certificate.pem())
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

    /// The newest CA and its key, to sign with.
    pub(crate) fn issuer(&self) -> Result<Issuer<'static, KeyPair>, PkiError> {
        let key = files::read(&self.folder.join(CA_KEY), NO_CA)?;
        let key = KeyPair::from_pem(&key).map_err(make("signature"))?;
        let bundle = self.bundle()?;
        Issuer::from_ca_cert_pem(newest(&bundle), key).map_err(make("signature"))
    }

    /// Replaces the CA by a new one of the same name. Nodes trust both until [`Self::drop_old`]; their
    /// certificates stay as they are.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn rotate(&self, seconds: i64) -> Result<(), PkiError> {
        let bundle = self.bundle()?;
        let subject = self.trusted()?.swap_remove(0).subject;
        let mut parts = subject.split(", ");
        let name = parts.find_map(|part| part.strip_prefix("CN="));
        let name = name.unwrap_or(&subject);
        let certificate = self.make(name, seconds)?;
        // A third would be one that no node needs.
        self.write_bundle(&format!("{certificate}{}", newest(&bundle)))
    }

    /// Ends the trust in the CA before this one.
    ///
    /// # Errors
    /// [`PkiError::StillNeeded`] when a node has a certificate of it.
    pub fn drop_old(&self) -> Result<(), PkiError> {
        let bundle = self.bundle()?;
        let newest_key = self.trusted()?.swap_remove(0).key_id;
        let mut needed = vec![];
        for node in self.nodes()? {
            if self.node_facts(&node)?.issuer_key_id != newest_key {
                needed.push(node);
            }
        }
        if !needed.is_empty() {
            return Err(PkiError::StillNeeded { nodes: needed });
        }
        self.write_bundle(newest(&bundle))
    }

    fn write_bundle(&self, text: &str) -> Result<(), PkiError> {
        files::write(&self.folder.join(BUNDLE), text, Secrecy::Public)?;
        for node in self.nodes()? {
            files::write(&self.node_files(&node).ca, text, Secrecy::Public)?;
        }
        Ok(())
    }

    /// Names of the nodes that have a certificate.
    ///
    /// # Errors
    /// [`PkiError::File`].
    pub fn nodes(&self) -> Result<Vec<String>, PkiError> {
        let folder = self.nodes_folder();
        if !folder.exists() {
            return Ok(vec![]);
        }
        let mut names = vec![];
        for entry in std::fs::read_dir(&folder).map_err(files::failed(&folder))? {
            let entry = entry.map_err(files::failed(&folder))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.retain(|name| self.node_files(name).certificate.exists());
        names.sort();
        Ok(names)
    }

    /// What is there.
    ///
    /// # Errors
    /// [`PkiError`].
    pub fn show(&self) -> Result<Shown, PkiError> {
        let nodes = self.nodes()?.into_iter().map(|name| {
            let certificate = self.node_facts(&name)?;
            Ok(ShownNode { name, certificate })
        });
        Ok(Shown {
            folder: self.folder.clone(),
            trusted: self.trusted()?,
            nodes: nodes.collect::<Result<_, PkiError>>()?,
        })
    }
}

/// The first certificate of a PEM text.
fn newest(bundle: &str) -> &str {
    let end = bundle.find(END_OF_BLOCK).map(|at| at + END_OF_BLOCK.len());
    let first = end.and_then(|end| bundle.get(..end)).unwrap_or(bundle);
    // With its newline, so that two can be put together.
    let newline = bundle[first.len()..].starts_with('\n');
    &bundle[..first.len() + usize::from(newline)]
}
