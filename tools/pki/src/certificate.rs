//! What a certificate says: whom it names, and until when it is good.

use std::net::IpAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use serde::Serialize;
use x509_parser::prelude::{
    AuthorityKeyIdentifier, FromDer, GeneralName, ParsedExtension, X509Certificate,
};

/// Why bytes are no certificate.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CertificateError {
    /// Not PEM, or a block of it is cut.
    #[error("not PEM: {0}")]
    Pem(String),
    /// PEM without a certificate.
    #[error("no certificate in it")]
    Empty,
    /// Not X.509.
    #[error("not a certificate: {0}")]
    X509(String),
}

/// A day, as certificates count it.
pub const SECONDS_PER_DAY: i64 = 24 * 60 * 60;

/// What a certificate says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct CertificateFacts {
    /// Whose it is, as text.
    pub subject: String,
    /// Who signed it.
    pub issuer: String,
    /// DNS names in it; the first one is the node's in a certificate of ours.
    pub dns_names: Vec<String>,
    /// Addresses in it.
    pub addresses: Vec<IpAddr>,
    /// Good from, seconds since 1970.
    pub not_before: i64,
    /// Good until, seconds since 1970.
    pub not_after: i64,
    /// May sign others.
    pub is_ca: bool,
    /// Names its key, hex.
    pub key_id: Option<String>,
    /// Names the key that signed it, hex.
    pub issuer_key_id: Option<String>,
}

impl CertificateFacts {
    /// Reads one certificate.
    ///
    /// # Errors
    /// [`CertificateError::X509`].
    pub fn from_der(der: &[u8]) -> Result<Self, CertificateError> {
        let wrong = |error: String| CertificateError::X509(error);
        let parsed = parsed(der)?;
        let names = parsed.subject_alternative_name();
        let names = names.map_err(|error| wrong(error.to_string()))?;
        let names = names.map_or(&[][..], |extension| &extension.value.general_names);
        let mut facts = Self {
            subject: parsed.subject().to_string(),
            issuer: parsed.issuer().to_string(),
            dns_names: vec![],
            addresses: vec![],
            not_before: parsed.validity().not_before.timestamp(),
            not_after: parsed.validity().not_after.timestamp(),
            is_ca: parsed.is_ca(),
            key_id: None,
            issuer_key_id: None,
        };
        for extension in parsed.extensions() {
            match extension.parsed_extension() {
                ParsedExtension::SubjectKeyIdentifier(key) => facts.key_id = Some(hex(key.0)),
                ParsedExtension::AuthorityKeyIdentifier(AuthorityKeyIdentifier {
                    key_identifier: Some(key),
                    ..
                }) => facts.issuer_key_id = Some(hex(key.0)),
                _ => {}
            }
        }
        for name in names {
            match name {
                GeneralName::DNSName(name) => facts.dns_names.push((*name).to_owned()),
                GeneralName::IPAddress(bytes) => facts.addresses.extend(address(bytes)),
                _ => {}
            }
        }
        Ok(facts)
    }

    /// Whole days until it ends; negative once it has.
    #[must_use]
    pub fn days_left(&self) -> i64 {
        self.seconds_left().div_euclid(SECONDS_PER_DAY)
    }

    /// Seconds until it ends; negative once it has.
    #[must_use]
    pub fn seconds_left(&self) -> i64 {
        self.not_after - now()
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    if let Ok(bytes) = <[u8; 4]>::try_from(bytes) {
        return Some(bytes.into());
    }
    <[u8; 16]>::try_from(bytes).ok().map(Into::into)
}

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| {
            i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
        })
}

/// What the certificates in a PEM text say, in their order.
///
/// # Errors
/// [`CertificateError`]; a text without one is [`CertificateError::Empty`].
pub fn read_facts(pem: &str) -> Result<Vec<CertificateFacts>, CertificateError> {
    let facts = CertificateDer::pem_slice_iter(pem.as_bytes())
        .map(|der| {
            let der = der.map_err(|error| CertificateError::Pem(error.to_string()))?;
            CertificateFacts::from_der(&der)
        })
        .collect::<Result<Vec<_>, _>>()?;
    if facts.is_empty() {
        return Err(CertificateError::Empty);
    }
    Ok(facts)
}

/// The first certificate of a PEM text, as bytes.
#[cfg(feature = "issue")]
fn first(pem: &str) -> Result<CertificateDer<'static>, CertificateError> {
    match CertificateDer::pem_slice_iter(pem.as_bytes()).next() {
        Some(der) => der.map_err(|error| CertificateError::Pem(error.to_string())),
        None => Err(CertificateError::Empty),
    }
}

fn parsed(der: &[u8]) -> Result<X509Certificate<'_>, CertificateError> {
    let parsed = X509Certificate::from_der(der);
    let (_, parsed) = parsed.map_err(|error| CertificateError::X509(error.to_string()))?;
    Ok(parsed)
}

/// The public key in the first certificate of a PEM text.
#[cfg(feature = "issue")]
pub(crate) fn public_key(pem: &str) -> Result<Vec<u8>, CertificateError> {
    let der = first(pem)?;
    let certificate = parsed(&der)?;
    Ok(certificate.public_key().subject_public_key.data.to_vec())
}

/// Its common name, as it was given: in [`CertificateFacts::subject`] a comma may be of the name.
#[cfg(feature = "issue")]
pub(crate) fn common_name(pem: &str) -> Result<Option<String>, CertificateError> {
    let der = first(pem)?;
    let certificate = parsed(&der)?;
    let name = certificate.subject().iter_common_name().next();
    Ok(name.and_then(|name| name.as_str().ok()).map(str::to_owned))
}

/// Whether the key of one of these CAs signed the first certificate of a PEM text.
#[cfg(feature = "issue")]
pub(crate) fn is_signed_by_one_of(pem: &str, cas: &str) -> Result<bool, CertificateError> {
    let der = first(pem)?;
    let certificate = parsed(&der)?;
    for ca in CertificateDer::pem_slice_iter(cas.as_bytes()) {
        let ca = ca.map_err(|error| CertificateError::Pem(error.to_string()))?;
        let ca = parsed(&ca)?;
        let is_named = ca.subject().as_raw() == certificate.issuer().as_raw();
        if is_named && certificate.verify_signature(Some(ca.public_key())).is_ok() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// The day of a moment, UTC: `2027-03-01`.
#[must_use]
pub fn date_of(seconds: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(seconds)
        .map_or_else(|_| seconds.to_string(), |at| at.date().to_string())
}
