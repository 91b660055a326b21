//! TLS as these connections have it: version 1.3 alone, hybrid key exchange first, nothing resumed,
//! nothing early.
//!
//! `aws-lc-rs` does the cryptography of TLS, because `ring` has no X25519MLKEM768 (RFC 10024).

use std::sync::Arc;

use attestation::connection::EndIdentity;
use cert_chain::Digest32;
use rustls::client::danger::ServerCertVerifier;
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, kx_group};
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{NoServerSessionStorage, ParsedCertificate};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, ServerConfig, version};
use rustls_pki_types::CertificateDer;

use crate::error::TlsFault;

/// The server's side of handshakes, with one certificate. A service whose certificate was renewed
/// makes another one for connections from then on; those that live keep theirs.
#[derive(Clone, Debug)]
pub struct ServerTls {
    pub(crate) config: Arc<ServerConfig>,
    pub(crate) identity: EndIdentity,
}

/// The client's side of handshakes.
#[derive(Clone, Debug)]
pub struct ClientTls {
    pub(crate) config: Arc<ClientConfig>,
    pub(crate) identity: Option<EndIdentity>,
}

/// Which key exchanges are offered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeyExchange {
    /// X25519MLKEM768, and elliptic curves for peers that do not have it.
    HybridFirst,
    /// X25519MLKEM768 alone.
    HybridOnly,
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

impl ServerTls {
    /// A server with this certificate and key, which lets these clients through the handshake.
    pub fn new(
        key: CertifiedKey,
        clients: Arc<dyn ClientCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        let identity = first_identity(&key.cert).map_err(TlsSetupError::Certificate)?;
        let mut config = ServerConfig::builder_with_provider(provider(key_exchange))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(TlsSetupError::Setup)?
            .with_client_cert_verifier(clients)
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.max_early_data_size = 0;
        Ok(Self {
            config: Arc::new(config),
            identity,
        })
    }
}

impl ClientTls {
    /// A client that has no identity in TLS.
    pub fn anonymous(
        servers: Arc<dyn ServerCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        let config = client_builder(servers, key_exchange)?.with_no_client_auth();
        Ok(Self::finish(config, None))
    }

    /// A client with this certificate and key.
    pub fn with_certificate(
        key: CertifiedKey,
        servers: Arc<dyn ServerCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Self, TlsSetupError> {
        let identity = first_identity(&key.cert).map_err(TlsSetupError::Certificate)?;
        let resolver: Arc<dyn ResolvesClientCert> = Arc::new(SingleCertAndKey::from(key));
        let config = client_builder(servers, key_exchange)?.with_client_cert_resolver(resolver);
        Ok(Self::finish(config, Some(identity)))
    }

    fn finish(mut config: ClientConfig, identity: Option<EndIdentity>) -> Self {
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Self {
            config: Arc::new(config),
            identity,
        }
    }
}

fn client_builder(
    servers: Arc<dyn ServerCertVerifier>,
    key_exchange: KeyExchange,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::client::WantsClientCert>, TlsSetupError> {
    Ok(ClientConfig::builder_with_provider(provider(key_exchange))
        .with_protocol_versions(&[&version::TLS13])
        .map_err(TlsSetupError::Setup)?
        .dangerous()
        .with_custom_certificate_verifier(servers))
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
