//! TLS as these connections have it: version 1.3 alone, hybrid key exchange first, nothing resumed,
//! nothing early.
//!
//! `aws-lc-rs` does the cryptography of TLS, because `ring` has no X25519MLKEM768 (RFC 10024).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use attestation::connection::{EndIdentity, TlsParameters};
use cert_chain::Digest32;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate, ResolvesServerCert};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{
    CipherSuite, ClientConfig, NamedGroup, ProtocolVersion, ServerConfig, SignatureScheme, version,
};
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;

use crate::error::TlsFault;

/// The server's side of handshakes, with one certificate. A service whose certificate was renewed
/// makes another one for connections from then on; those that live keep theirs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) identity: EndIdentity,
    pub(crate) turns: Option<Arc<Semaphore>>,
}

/// The client's side of handshakes.
#[derive(Clone, Debug)]
pub struct ClientTls {
    config: Arc<ClientConfig>,
    /// What it shows to servers that ask for it.
    key: Option<(Arc<CertifiedKey>, EndIdentity)>,
}

/// A client's certificate in one handshake: it is shown if the server asks for one.
#[derive(Debug)]
pub(crate) struct Showing {
    key: Arc<CertifiedKey>,
    identity: EndIdentity,
    shown: AtomicBool,
}

/// Which key exchanges are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519MLKEM768, and elliptic curves for peers that do not have it.
    HybridFirst,
    /// X25519MLKEM768 alone.
    HybridOnly,
}

/// The parameters of a connection by the names of the IANA registries, for people and logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParameterNames {
    /// Version of the protocol.
    pub version: String,
    /// Cipher suite.
    pub suite: String,
    /// Named group of the key exchange.
    pub group: String,
}

/// Why no TLS can be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsSetupError {
    /// The certificate cannot be read.
    #[error("the certificate for TLS cannot be used: {0}")]
    Certificate(TlsFault),
    /// The library refuses.
    #[error("TLS cannot be set up")]
    Setup(#[source] rustls::Error),
}

/// The cryptography of these connections.
pub fn provider(key_exchange: KeyExchange) -> Arc<CryptoProvider> {
    let kx_groups = match key_exchange {
        KeyExchange::HybridFirst => vec![
            kx_group::X25519MLKEM768,
            kx_group::X25519,
            kx_group::SECP256R1,
        ],
        KeyExchange::HybridOnly => vec![kx_group::X25519MLKEM768],
    };
    Arc::new(CryptoProvider {
        kx_groups,
        ..aws_lc_rs::default_provider()
    })
}

/// The server's side of handshakes, with whatever certificate is resolved.
pub fn server_config(
    clients: Arc<dyn ClientCertVerifier>,
    key: Arc<dyn ResolvesServerCert>,
    key_exchange: KeyExchange,
) -> Result<ServerConfig, TlsSetupError> {
    let mut config = ServerConfig::builder_with_provider(provider(key_exchange))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsSetupError::Setup)?
        .with_client_cert_verifier(clients)
        .with_cert_resolver(key);
    config.send_tls13_tickets = 0;
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.max_early_data_size = 0;
    Ok(config)
}

impl ParameterNames {
    /// The names of these parameters; one without a name is told by its number.
    pub fn of(parameters: &TlsParameters) -> Self {
        Self {
            version: match ProtocolVersion::from(parameters.version) {
                ProtocolVersion::TLSv1_3 => "TLS 1.3".to_owned(),
                other => format!("{other:?}"),
            },
            // The library tells the suites of TLS 1.3 by another beginning than the registry.
            suite: format!("{:?}", CipherSuite::from(parameters.suite)).replace("TLS13_", "TLS_"),
            group: format!("{:?}", NamedGroup::from(parameters.group)),
        }
    }
}

impl std::fmt::Display for ParameterNames {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}, {}, {}", self.version, self.suite, self.group)
    }
}

/// Whether the keys of a connection come from a hybrid key exchange, which a quantum computer that
/// breaks elliptic curves does not undo.
pub fn is_hybrid(parameters: &TlsParameters) -> bool {
    NamedGroup::from(parameters.group) == NamedGroup::X25519MLKEM768
}

impl ServerTls {
    /// A server with this certificate and key, which lets these clients through the handshake.
    pub fn new(
        key: CertifiedKey,
        clients: Arc<dyn ClientCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        let identity = first_identity(&key.cert).map_err(TlsSetupError::Certificate)?;
        let key = Arc::new(SingleCertAndKey::from(key));
        Ok(Self {
            config: Arc::new(server_config(clients, key, key_exchange)?),
            identity,
            turns: None,
        })
    }

    /// Has each step of a handshake wait for a permit: for keys whose signatures hold a thread, of which
    /// there are not many. The time that a handshake waits is part of what its deadline allows.
    pub fn at_a_time(mut self, handshakes: Arc<Semaphore>) -> Self {
        self.turns = Some(handshakes);
        self
    }
}

impl ClientTls {
    /// A client that has no identity in TLS.
    pub fn anonymous(
        servers: Arc<dyn ServerCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        Self::new(None, servers, key_exchange)
    }

    /// A client with this certificate and key.
    pub fn with_certificate(
        key: CertifiedKey,
        servers: Arc<dyn ServerCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        let identity = first_identity(&key.cert).map_err(TlsSetupError::Certificate)?;
        Self::new(Some((Arc::new(key), identity)), servers, key_exchange)
    }

    fn new(
        key: Option<(Arc<CertifiedKey>, EndIdentity)>,
        servers: Arc<dyn ServerCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        let mut config = ClientConfig::builder_with_provider(provider(key_exchange))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsSetupError::Setup)?
            .dangerous()
            .with_custom_certificate_verifier(servers)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(Self {
            config: Arc::new(config),
            key,
        })
    }

    /// For one connection: its handshake, and what was shown in it, once that is done.
    pub(crate) fn of_a_connection(&self) -> (Arc<ClientConfig>, Option<Arc<Showing>>) {
        let Some((key, identity)) = &self.key else {
            return (Arc::clone(&self.config), None);
        };
        let showing = Arc::new(Showing {
            key: Arc::clone(key),
            identity: *identity,
            shown: AtomicBool::new(false),
        });
        let mut config = ClientConfig::clone(&self.config);
        config.client_auth_cert_resolver = Arc::clone(&showing) as Arc<dyn ResolvesClientCert>;
        (Arc::new(config), Some(showing))
    }
}

impl Showing {
    /// The identity that the server has seen, if it asked for one.
    pub(crate) fn identity(&self) -> Option<EndIdentity> {
        (self.shown.load(Ordering::Acquire)).then_some(self.identity)
    }
}

impl ResolvesClientCert for Showing {
    fn resolve(&self, _: &[&[u8]], schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        // Without a scheme in common the library shows no certificate either.
        self.key.key.choose_scheme(schemes)?;
        self.shown.store(true, Ordering::Release);
        Some(Arc::clone(&self.key))
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Digests of the first certificate and its key.
pub(crate) fn first_identity(certificates: &[CertificateDer<'_>]) -> Result<EndIdentity, TlsFault> {
    let own = certificates.first().ok_or(TlsFault::NoCertificate)?;
    let parsed = ParsedCertificate::try_from(own).map_err(|_| TlsFault::Certificate)?;
    Ok(EndIdentity {
        key: Digest32::of(parsed.subject_public_key_info().as_ref()),
        certificate: Digest32::of(own),
    })
}
