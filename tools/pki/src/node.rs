//! Certificates that the CA issues to nodes.

use std::net::IpAddr;
use std::path::PathBuf;

use rcgen::{
    CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
};
use rustls_pki_types::DnsName;
use serde::Serialize;
use time::{Duration, OffsetDateTime};

use crate::CertificateFacts;
use crate::authority::{Authority, BUNDLE};
use crate::certificate::read_facts;
use crate::files::{self, PkiError, Secrecy};

/// Clocks of two nodes may differ: a certificate is good since a little before it was made.
const CLOCKS_APART: Duration = Duration::hours(1);

const CERTIFICATE: &str = "certificate.pem";
const KEY: &str = "key.pem";

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

    /// Issues a certificate to a node, under a key of its own.
    ///
    /// # Errors
    /// [`PkiError::Exists`] unless `force` is set, [`PkiError::Name`].
    pub fn issue(&self, node: &str, options: &NodeOptions) -> Result<NodeFiles, PkiError> {
        check_node_name(node)?;
        let files = self.node_files(node);
        if files.certificate.exists() && !options.force {
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
        files::make_folder(&self.nodes_folder().join(node))?;
        files::write(&files.ca, &self.bundle()?, Secrecy::Public)?;
        files::write(&files.key, &key.serialize_pem(), Secrecy::Secret)?;
        files::write(&files.certificate, &certificate.pem(), Secrecy::Public)?;
        Ok(files)
    }

    /// What a node's certificate says.
    ///
    /// # Errors
    /// [`PkiError::Missing`], [`PkiError::Certificate`].
    pub fn node_facts(&self, node: &str) -> Result<CertificateFacts, PkiError> {
        let path = self.node_files(node).certificate;
        let text = files::read(&path, "`dwcp pki issue` makes one")?;
        read_facts(&text)
            .map(|mut facts| facts.swap_remove(0))
            .map_err(|source| PkiError::Certificate { path, source })
    }

    /// Issues a new certificate, under a new key, that says what the node's old one says.
    ///
    /// # Errors
    /// As [`Self::issue`] and [`Self::node_facts`].
    pub fn renew(&self, node: &str, seconds: i64) -> Result<NodeFiles, PkiError> {
        let old = self.node_facts(node)?;
        let options = NodeOptions {
            dns_names: old.dns_names.into_iter().filter(|n| n != node).collect(),
            addresses: old.addresses,
            seconds,
            force: true,
        };
        self.issue(node, &options)
    }
}

/// A node's name becomes the name in its certificate: it must be one of the DNS, too.
fn check_node_name(node: &str) -> Result<(), PkiError> {
    let refused = |why: String| PkiError::Name {
        name: node.to_owned(),
        why,
    };
    if !dwcp_api::is_name(node) {
        return Err(refused(format!(
            "cannot name a node: {}",
            dwcp_api::NAME_RULE
        )));
    }
    DnsName::try_from(node).map(drop).map_err(|_| {
        refused(
            "can name a node, but not in a certificate: there a name is words of letters, digits, \
             `-` and `_`, joined by single dots, the last one not a number"
                .to_owned(),
        )
    })
}

fn params(node: &str, options: &NodeOptions) -> Result<CertificateParams, PkiError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, node);
    for name in std::iter::once(node).chain(options.dns_names.iter().map(String::as_str)) {
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
