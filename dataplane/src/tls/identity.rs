//! What rustls needs to be a client and a server with a node's certificate.

use std::sync::Arc;

use dwcp_pki::CertificateFacts;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{Resumption, Tls12Resumption, WebPkiServerVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{ServerSessionMemoryCache, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};

use super::TlsError;
use super::tickets::{TICKETS, Tickets};

/// Tells DWCP from all else that a CA's certificates may be used for.
const PROTOCOL: &[u8] = b"dwcp/1";

/// Sessions that a server remembers: those of a few migrations at once.
const SESSIONS_KEPT: usize = 64 * TICKETS;

/// A node's certificate, key and CA, ready for use.
#[derive(Debug)]
pub struct Identity {
    pub(super) client: Arc<ClientConfig>,
    pub(super) server: Arc<ServerConfig>,
    servers: Arc<WebPkiServerVerifier>,
    clients: Arc<dyn ClientCertVerifier>,
    chain: Vec<CertificateDer<'static>>,
    facts: CertificateFacts,
}

impl Identity {
    /// Puts the parts together.
    ///
    /// # Errors
    /// [`TlsError::Identity`] when they do not fit together.
    pub fn new(
        trusted: Vec<CertificateDer<'static>>,
        certificate: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
    ) -> Result<Self, TlsError> {
        let provider = rustls::crypto::aws_lc_rs::default_provider();
        Self::with_provider(trusted, certificate, key, provider)
    }

    pub(super) fn with_provider(
        trusted: Vec<CertificateDer<'static>>,
        certificate: Vec<CertificateDer<'static>>,
        key: PrivateKeyDer<'static>,
        provider: CryptoProvider,
    ) -> Result<Self, TlsError> {
        let unfit = |what: &str, error: &dyn std::fmt::Display| {
            TlsError::Identity(format!("{what} cannot be used: {error}"))
        };
        let own = certificate
            .first()
            .ok_or_else(|| TlsError::Identity("there is no certificate".into()))?;
        let facts =
            CertificateFacts::from_der(own).map_err(|error| unfit("the certificate", &error))?;
        // The first random number of a process gathers entropy for 60 ms: now, and not in the first handshake.
        let random = provider.secure_random.fill(&mut [0; 32]);
        random.map_err(|_| TlsError::Identity("there is no source of random numbers".into()))?;
        let provider = Arc::new(provider);
        let mut roots = RootCertStore::empty();
        for ca in trusted {
            roots.add(ca).map_err(|error| unfit("the CA", &error))?;
        }
        let roots = Arc::new(roots);
        let servers =
            WebPkiServerVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
                .build()
                .map_err(|error| unfit("the CA", &error))?;
        let clients = WebPkiClientVerifier::builder_with_provider(roots, Arc::clone(&provider))
            .build()
            .map_err(|error| unfit("the CA", &error))?;
        let pair = "the certificate and the key";
        let mut client = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unfit("TLS 1.3", &error))?
            .with_webpki_verifier(Arc::clone(&servers))
            .with_client_auth_cert(certificate.clone(), key.clone_key())
            .map_err(|error| unfit(pair, &error))?;
        client.alpn_protocols = vec![PROTOCOL.to_vec()];
        // For the kernel: `KernelStream::hand_over`.
        client.enable_secret_extraction = true;
        client.resumption = Resumption::store(Arc::new(Tickets::default()))
            .tls12_resumption(Tls12Resumption::Disabled);
        let mut server = ServerConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])
            .map_err(|error| unfit("TLS 1.3", &error))?
            .with_client_cert_verifier(Arc::clone(&clients))
            .with_single_cert(certificate.clone(), key)
            .map_err(|error| unfit(pair, &error))?;
        server.alpn_protocols = vec![PROTOCOL.to_vec()];
        server.enable_secret_extraction = true;
        server.session_storage = ServerSessionMemoryCache::new(SESSIONS_KEPT);
        server.send_tls13_tickets = TICKETS;
        // Data before the handshake is done could be replayed.
        server.max_early_data_size = 0;
        Ok(Self {
            client: Arc::new(client),
            server: Arc::new(server),
            servers,
            clients,
            chain: certificate,
            facts,
        })
    }

    /// What this node's certificate says.
    #[must_use]
    pub const fn facts(&self) -> &CertificateFacts {
        &self.facts
    }

    /// Whether a node with the same CA takes this one's certificate, but for its time.
    pub(super) fn is_trusted_by_itself(&self) -> bool {
        use rustls::CertificateError::{Expired, ExpiredContext};
        match self.check_client(&self.chain) {
            Ok(()) => true,
            Err(TlsError::Handshake(rustls::Error::InvalidCertificate(why))) => {
                matches!(why, Expired | ExpiredContext { .. })
            }
            Err(_) => false,
        }
    }

    /// A resumed session stands on a certificate that was looked at earlier: it may have expired since.
    pub(super) fn check_server(
        &self,
        chain: &[CertificateDer<'_>],
        name: &ServerName<'_>,
    ) -> Result<(), TlsError> {
        let (own, rest) = split(chain)?;
        self.servers
            .verify_server_cert(own, rest, name, &[], UnixTime::now())
            .map(drop)
            .map_err(TlsError::Handshake)
    }

    /// The same of a client.
    pub(super) fn check_client(&self, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        let (own, rest) = split(chain)?;
        self.clients
            .verify_client_cert(own, rest, UnixTime::now())
            .map(drop)
            .map_err(TlsError::Handshake)
    }
}

fn split<'a, 'b>(
    chain: &'a [CertificateDer<'b>],
) -> Result<(&'a CertificateDer<'b>, &'a [CertificateDer<'b>]), TlsError> {
    chain
        .split_first()
        .ok_or(TlsError::Handshake(rustls::Error::NoCertificatesPresented))
}
