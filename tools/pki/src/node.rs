//! Certificates that the CA issues to nodes.

use std::net::IpAddr;
use std::path::PathBuf;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::authority::{Authority, BUNDLE};
use crate::certificate::read_facts;
use crate::files::{self, PkiError, Secrecy};
use crate::pair::Pair;
use crate::{CertificateFacts, names};

/// Clocks of two nodes may differ: a certificate is good since a little before it was made.
const CLOCKS_APART: Duration = Duration::hours(1);

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";
pub(crate) const NO_CERTIFICATE: &str = "`dwcp pki issue` makes one";

/// What a certificate is to say besides the node's name.
#[derive(Clone, Debug, Default)]
pub struct NodeOptions {
    /// Further DNS names.
    pub dns_names: Vec<String>,
    /// Addresses.
    pub addresses: Vec<IpAddr>,
    /// How long it is good, in seconds.
    pub seconds: i64,
    /// Replace what is there.
    pub force: bool,
}

/// A node's three files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeFiles {
    /// What it trusts.
    pub ca: PathBuf,
    /// Its certificate.
    pub certificate: PathBuf,
    /// Its key.
    pub key: PathBuf,
}

impl Authority {
    /// Files of a node, whether or not they are there.
    #[must_use]
    pub fn node_files(&self, node: &str) -> NodeFiles {
        let folder = self.nodes_folder().join(node);
        NodeFiles {
            ca: folder.join(BUNDLE),
            certificate: folder.join(CERTIFICATE),
            key: folder.join(KEY),
        }
    }

    pub(crate) fn node_pair(&self, node: &str) -> Pair {
        let NodeFiles {
            certificate, key, ..
        } = self.node_files(node);
        Pair { certificate, key }
    }

    /// Issues a certificate to a node, under a key of its own.
    ///
    /// # Errors
    /// [`PkiError::Exists`] unless `force` is set, [`PkiError::Name`], [`PkiError::OtherKey`].
    pub fn issue(&self, node: &str, options: &NodeOptions) -> Result<NodeFiles, PkiError> {
        names::check_node(node)?;
        for name in &options.dns_names {
            names::check_dns(name)?;
        }
        let _lock = self.lock()?;
        self.issue_locked(node, options)
    }

    fn issue_locked(&self, node: &str, options: &NodeOptions) -> Result<NodeFiles, PkiError> {
        let files = self.node_files(node);
        if !files.certificate.exists() {
            self.check_case(node)?;
        } else if !options.force {
            return Err(PkiError::Exists {
                path: files.certificate,
                hint: "`dwcp pki rotate` renews it; --force replaces it",
            });
        }
        let key = KeyPair::generate().map_err(make("key"))?;
        let params = params(node, options)?;
        let issuer = self.issuer()?;
        let certificate = params
            .signed_by(&key, &issuer)
            .map_err(make("certificate"))?;
        files::make_folder(&self.nodes_folder())?;
        files::make_folder(&self.nodes_folder().join(node))?;
        files::write(&files.ca, &self.bundle()?, Secrecy::Public)?;
        self.node_pair(node).replace(&key, &certificate.pem())?;
        Ok(files)
    }

    /// Names in certificates are compared without regard to case: `Web` could be `web`.
    fn check_case(&self, node: &str) -> Result<(), PkiError> {
        let is_other = |other: &String| other != node && other.eq_ignore_ascii_case(node);
        match self.nodes()?.into_iter().find(is_other) {
            None => Ok(()),
            Some(other) => Err(PkiError::Name {
                name: node.to_owned(),
                why: format!(
                    "differs from the node `{other}` by capital letters alone, and names in certificates \
                     are compared without regard to them: choose another name"
                ),
            }),
        }
    }

    /// What a node's certificate says.
    ///
    /// # Errors
    /// [`PkiError::Missing`], [`PkiError::Certificate`].
    pub fn node_facts(&self, node: &str) -> Result<CertificateFacts, PkiError> {
        let path = self.node_files(node).certificate;
        let text = files::read(&path, NO_CERTIFICATE)?;
        read_facts(&text)
            .map(|mut facts| facts.swap_remove(0))
            .map_err(|source| PkiError::Certificate { path, source })
    }

    /// Issues a new certificate, under a new key, that says what the node's old one says.
    ///
    /// # Errors
    /// As [`Self::issue`] and [`Self::node_facts`].
    pub fn renew(&self, node: &str, seconds: i64) -> Result<NodeFiles, PkiError> {
        names::check_node(node)?;
        let _lock = self.lock()?;
        let old = self.node_facts(node)?;
        let options = NodeOptions {
            dns_names: old.dns_names,
            addresses: old.addresses,
            seconds,
            force: true,
        };
        self.issue_locked(node, &options)
    }
}

fn params(node: &str, options: &NodeOptions) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node);
    let mut dns_names = vec![node];
    for name in &options.dns_names {
        if !dns_names
            .iter()
            .any(|known| known.eq_ignore_ascii_case(name))
        {
            dns_names.push(name);
        }
    }
    for name in dns_names {
        let ia5 = name.try_into().map_err(|error: rcgen::Error| {
            let why = format!("is no DNS name: {error}");
            PkiError::Name {
                name: name.to_owned(),
                why,
            }
        })?;
        params.subject_alt_names.push(SanType::DnsName(ia5));
    }
    let addresses = options.addresses.iter().copied().map(SanType::IpAddress);
    params.subject_alt_names.extend(addresses);
    let now = OffsetDateTime::now_utc();
    // One that has ended, for tests of what happens then, must still begin before it ends.
    let end = Duration::seconds(options.seconds);
    params.not_before = now + end.min(Duration::ZERO) - CLOCKS_APART;
    params.not_after = now + end;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    // A node is a client to one and a server to another.
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

pub(crate) fn make(what: &str) -> impl FnOnce(rcgen::Error) -> PkiError {
    let what = format!("cannot make a {what}");
    move |source| PkiError::Make { what, source }
}
