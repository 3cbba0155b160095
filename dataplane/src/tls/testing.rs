//! Identities and streams for tests.

use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::time::Duration;

use dwcp_pki::{Authority, AuthorityOptions, NodeOptions, SECONDS_PER_DAY};
use rustls::crypto::CryptoProvider;
use rustls::{CipherSuiteCommon, SupportedCipherSuite, Tls13CipherSuite};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};

use super::{DataStream, Identity, TlsFiles, accept, connect};

/// Files of the node `b`, good for `seconds`, of a CA that begins in `folder`.
pub(super) fn issue(folder: &Path, seconds: i64) -> TlsFiles {
    let options = AuthorityOptions {
        name: "test".into(),
        seconds: SECONDS_PER_DAY,
        force: false,
    };
    let options_of_node = NodeOptions {
        seconds,
        ..NodeOptions::default()
    };
    let authority = Authority::init(folder, &options).unwrap();
    let files = authority.issue("b", &options_of_node).unwrap();
    TlsFiles {
        ca: files.ca,
        certificate: files.certificate,
        key: files.key,
    }
}

/// The node `b`, which is here both sides at once.
pub(crate) fn identity(provider: CryptoProvider) -> Identity {
    let folder = tempfile::tempdir().unwrap();
    let files = issue(folder.path(), SECONDS_PER_DAY);
    let trusted = CertificateDer::from_pem_file(files.ca).unwrap();
    let own = CertificateDer::from_pem_file(files.certificate).unwrap();
    let key = PrivateKeyDer::from_pem_file(files.key).unwrap();
    Identity::with_provider(vec![trusted], vec![own], key, provider).unwrap()
}

/// All suites, which must renew their keys after so many records.
pub(crate) fn with_limit(records: u64) -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    for suite in &mut provider.cipher_suites {
        let SupportedCipherSuite::Tls13(known) = *suite;
        let common = CipherSuiteCommon {
            suite: known.common.suite,
            hash_provider: known.common.hash_provider,
            confidentiality_limit: records,
        };
        let limited = Tls13CipherSuite { common, ..*known };
        *suite = SupportedCipherSuite::Tls13(Box::leak(Box::new(limited)));
    }
    provider
}

/// The provider with one suite alone: the one at `index` of those that it prefers.
pub(crate) fn only(index: usize) -> CryptoProvider {
    let mut provider = rustls::crypto::aws_lc_rs::default_provider();
    provider.cipher_suites = vec![provider.cipher_suites[index]];
    provider
}

/// Both ends of a connection.
pub(crate) fn sockets() -> [TcpStream; 2] {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
    [one, listener.accept().unwrap().0]
}

/// A client's and a server's end of a data stream whose handshake is done.
pub(crate) fn streams(identity: &Identity) -> [DataStream; 2] {
    const TIME: Duration = Duration::from_secs(10);
    let [one, other] = sockets();
    let name = ServerName::try_from("b").unwrap();
    let ends = std::thread::scope(|scope| {
        let server = scope.spawn(|| accept(identity, other, TIME).unwrap());
        let client = connect(identity, one, &name, TIME).unwrap();
        [client, server.join().unwrap()]
    });
    ends.map(|end| end.into_data_stream().unwrap())
}
