//! What went wrong, in the words of an operator: what the other side did, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use dwcp_pki::date_of;
use rustls::{AlertDescription, CertificateError, Error, PeerIncompatible};

/// Why there is no TLS, or no more.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsError {
    /// A file of this node.
    #[error("{}: {why}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// The certificate and the key, or the name.
    #[error("{0}")]
    Identity(String),
    /// The two sides do not come to terms.
    #[error("{}", handshake_words(.0))]
    Handshake(Error),
    /// They did, and then something came that is none.
    #[error("{}", record_words(.0))]
    Record(Error),
    /// A peer that is no node of that name.
    #[error("{0}")]
    Name(String),
    /// It ended too early.
    #[error("the other side closed the connection in the TLS handshake")]
    Closed,
    /// It went silent, or somebody holds bytes back.
    #[error("no TLS handshake within {} ms", .0.as_millis())]
    TooLong(Duration),
    /// The end did not come from the other node.
    #[error("the connection ended without the other side's word: it broke, or was cut")]
    Cut,
    /// A ticket, or a key update, in more than one record.
    #[error("a message of TLS itself came in pieces: that is no node of ours")]
    Pieces,
    /// A message of TLS itself that nobody asked for, where the kernel opens records.
    #[error("a message of TLS itself that was not asked for: that is no node of ours")]
    Unasked,
    /// What came at a socket of the kernel's cannot be a record.
    #[error("what came is no TLS record: the kernel says {0}")]
    NoRecord(#[source] io::Error),
    /// A key of the kernel's has sealed as many records as it may, or nearly.
    #[error(
        "{0} records are sealed with this stream's key, near its limit: another stream has another key"
    )]
    KeyUsed(u64),
    /// The peer goes on with a new key, and the kernel cannot.
    #[error(
        "the other side renewed its key, which the kernel here does not follow: another stream will"
    )]
    KeyRenewed,
    /// What was wrong with it was said before.
    #[error("TLS broke on this connection")]
    Broken,
    /// This end has said that nothing more will come.
    #[error("this end of the TLS connection was ended")]
    Ended,
    /// A record does not fit; a bug.
    #[error("a TLS record of {0} bytes has no room")]
    NoRoom(usize),
    /// The socket.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl TlsError {
    /// Whether the connection broke, whoever the other side is.
    #[must_use]
    pub const fn is_loss(&self) -> bool {
        matches!(
            self,
            Self::Closed | Self::TooLong(_) | Self::Cut | Self::Io(_)
        )
    }
}

impl From<TlsError> for io::Error {
    fn from(error: TlsError) -> Self {
        match error {
            TlsError::Io(error) => error,
            TlsError::Closed | TlsError::Cut => Self::new(io::ErrorKind::UnexpectedEof, error),
            other => Self::new(io::ErrorKind::InvalidData, other),
        }
    }
}

const RENEW: &str = "`dwcp pki rotate` renews it";

fn handshake_words(error: &Error) -> String {
    match error {
        Error::InvalidCertificate(why) => certificate_words(why),
        Error::NoCertificatesPresented => {
            "the other side shows no certificate: both nodes need one".into()
        }
        Error::PeerIncompatible(
            PeerIncompatible::SupportedVersionsExtensionRequired
            | PeerIncompatible::ServerTlsVersionIsDisabledByOurConfig
            | PeerIncompatible::ServerDoesNotSupportTls12Or13
            | PeerIncompatible::Tls12NotOfferedOrEnabled
            | PeerIncompatible::Tls12NotOffered,
        )
        | Error::AlertReceived(AlertDescription::ProtocolVersion) => {
            "the other side does not speak TLS 1.3, and nothing older is taken".into()
        }
        Error::NoApplicationProtocol
        | Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "the other side speaks TLS, but not to move VMs".into()
        }
        Error::DecryptError | Error::AlertReceived(AlertDescription::BadRecordMac) => {
            "the TLS handshake does not decrypt: it was replayed, or changed on its way".into()
        }
        Error::InvalidMessage(_) | Error::InappropriateMessage { .. } => {
            format!("the other side does not speak TLS: {error}")
        }
        other => alert_words(other),
    }
}

fn record_words(error: &Error) -> String {
    match error {
        Error::DecryptError | Error::AlertReceived(AlertDescription::BadRecordMac) => {
            "a TLS record does not decrypt: it was changed, lost or repeated on its way".into()
        }
        Error::InvalidMessage(_) => format!("what came is no TLS record: {error}"),
        other => alert_words(other),
    }
}

/// A server looks at the client's certificate after the client's handshake is done: its answer comes as
/// an alert, perhaps in the place of the first record.
fn alert_words(error: &Error) -> String {
    match error {
        Error::AlertReceived(alert) => match alert {
            AlertDescription::UnknownCA => {
                "the other node does not trust the CA of this node's certificate".into()
            }
            AlertDescription::DecryptError => {
                "the other node trusts another CA of the name in this node's certificate".into()
            }
            AlertDescription::CertificateExpired => {
                format!("the other node finds this node's certificate expired: {RENEW}")
            }
            AlertDescription::CertificateRequired => {
                "the other node demands a certificate, and this node showed none".into()
            }
            AlertDescription::BadCertificate
            | AlertDescription::CertificateUnknown
            | AlertDescription::CertificateRevoked
            | AlertDescription::UnsupportedCertificate => format!(
                "the other node refuses this node's certificate ({alert:?}); its log says why"
            ),
            AlertDescription::AccessDenied => {
                "the other node takes no TLS: it was started without --tls-certificate".into()
            }
            other => format!("the other node ended TLS: {other:?}"),
        },
        other => format!("TLS: {other}"),
    }
}

fn certificate_words(error: &CertificateError) -> String {
    let seconds = |time: &rustls_pki_types::UnixTime| {
        date_of(i64::try_from(time.as_secs()).unwrap_or(i64::MAX))
    };
    match error {
        CertificateError::UnknownIssuer => {
            "the other node's certificate is not of a CA that this node trusts (--tls-ca)".into()
        }
        CertificateError::ExpiredContext { not_after, .. } => format!(
            "the other node's certificate expired on {}: {RENEW}",
            seconds(not_after)
        ),
        CertificateError::Expired => {
            format!("the other node's certificate has expired: {RENEW}")
        }
        CertificateError::NotValidYetContext { not_before, .. } => format!(
            "the other node's certificate is good from {} on: do the nodes' clocks agree?",
            seconds(not_before)
        ),
        CertificateError::NotValidForNameContext {
            expected,
            presented,
        } => format!(
            "the certificate at that address does not name `{}` but {}: is it another node?",
            expected.to_str(),
            names_in_words(presented)
        ),
        CertificateError::NotValidForName => {
            "the certificate at that address names another node".into()
        }
        CertificateError::BadSignature => {
            "the other node's certificate was not signed by the CA of that name that this node trusts, \
             or the node has not its key"
                .into()
        }
        other => format!("the other node's certificate: {other}"),
    }
}

/// rustls presents names as `DnsName("node-a")`.
fn names_in_words(presented: &[String]) -> String {
    let inner = |name: &String| {
        let quoted = name.split('"').nth(1);
        quoted.map_or_else(|| name.clone(), |name| format!("`{name}`"))
    };
    match presented {
        [] => "nobody".to_owned(),
        names => names.iter().map(inner).collect::<Vec<_>>().join(", "),
    }
}
