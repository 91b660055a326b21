//! TLS as it is spoken here: version 1.3 alone, the key exchanges of attested connections, nothing
//! resumed, nothing early, and a client that shows a tenant's certificate.

use std::sync::Arc;

use attested_tls::tls::{KeyExchange, TlsSetupError, provider, server_config};
use cert_chain::RevocationError;
use cert_chain::path::ChainError;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    PeerIncompatible, ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::authorities::Authorities;
use crate::server_key::ServerKey;

/// Lets clients with a tenant's certificate through the handshake.
#[derive(Debug)]
struct TenantsOnly {
    authorities: Arc<Authorities>,
    provider: Arc<CryptoProvider>,
}

/// The host's end of handshakes.
pub(crate) fn config(
    authorities: &Arc<Authorities>,
    key: &Arc<ServerKey>,
) -> Result<Arc<ServerConfig>, TlsSetupError> {
    let clients = Arc::new(TenantsOnly {
        authorities: Arc::clone(authorities),
        provider: provider(KeyExchange::HybridFirst),
    });
    let mut config = server_config(
        clients,
        Arc::<ServerKey>::clone(key),
        KeyExchange::HybridFirst,
    )?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

impl ClientCertVerifier for TenantsOnly {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // Whom a host trusts is nobody's business who is not known yet.
        &[]
    }

    fn verify_client_cert(
        &self,
        own: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        match self.authorities.verify(own) {
            Ok(_) => Ok(ClientCertVerified::assertion()),
            Err(error) => Err(Error::InvalidCertificate(refusal(error))),
        }
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::PeerIncompatible(
            PeerIncompatible::ServerDoesNotSupportTls12Or13,
        ))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        own: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, own, signature, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        (self.provider.signature_verification_algorithms).supported_schemes()
    }
}

/// What the client's end is told (RFC 8446 §6.2): it knows its own certificate.
fn refusal(error: ChainError) -> CertificateError {
    match error {
        ChainError::Expired { .. } => CertificateError::Expired,
        ChainError::NotYetValid { .. } => CertificateError::NotValidYet,
        ChainError::OtherIssuer => CertificateError::UnknownIssuer,
        ChainError::Revocation(RevocationError::Revoked { .. }) => CertificateError::Revoked,
        other => CertificateError::Other(OtherError(Arc::new(other))),
    }
}
