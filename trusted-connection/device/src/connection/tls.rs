//! Which servers get through the handshake: those with the certificate of a vRoT's TLS key below an
//! issuer that the policy trusts. That it is the right VM, on the right host, in the right state,
//! evidence says afterwards.

use std::sync::Arc;

use attested_tls::tls::{KeyExchange, provider};
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::{ProfileError, TlsCertificate};
use cert_chain::{HostName, TrustAnchors};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::ParsedCertificate;
use rustls::{
    CertificateError, DigitallySignedStruct, Error, OtherError, PeerIncompatible, RootCertStore,
    SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

/// Lets servers through whose certificate is one of a vRoT's TLS key and leads to one of some roots.
/// Alone it says which VM the certificate is for, and nothing about its state.
#[derive(Debug)]
pub struct BelowTheIssuer {
    roots: TrustAnchors,
    /// The name that a certificate must be for. Without it none is compared: how a server was reached
    /// says nothing about which VM it is.
    name: Option<ServerName<'static>>,
    provider: Arc<CryptoProvider>,
}

impl BelowTheIssuer {
    /// Accepts what leads to these roots, and is for this name if there is one.
    pub fn new(
        roots: &TrustAnchors,
        name: Option<ServerName<'static>>,
        exchange: KeyExchange,
    ) -> Self {
        Self {
            roots: roots.clone(),
            name,
            provider: provider(exchange),
        }
    }
}

/// The certificate of a vRoT's TLS key, and the host that certified it.
pub(super) fn read(
    own: &CertificateDer<'_>,
    issuers: &[CertificateDer<'_>],
) -> Result<(TlsCertificate, HostName), ProfileError> {
    let [host] = issuers else {
        return Err(ProfileError::Names {
            field: "chain (its own certificate, then its host's)",
        });
    };
    let host = HostCertificate::read(host)?;
    let certificate = TlsCertificate::read(own, host.host())?;
    Ok((certificate, host.host().clone()))
}

impl ServerCertVerifier for BelowTheIssuer {
    fn verify_server_cert(
        &self,
        own: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        // Before anything costs time: two certificates, and short ones. And that the first is for servers
        // in so many words: one that names no purpose passes for every one.
        read(own, intermediates).map_err(|error| {
            Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(error))))
        })?;
        let certificate = ParsedCertificate::try_from(own)?;
        let roots = RootCertStore {
            roots: self.roots.valid_at(now),
        };
        let algorithms = self.roots.signature_algorithms();
        verify_server_cert_signed_by_trust_anchor(
            &certificate,
            &roots,
            intermediates,
            now,
            &algorithms.each_ref().map(|algorithm| algorithm as _),
        )?;
        if let Some(name) = &self.name {
            verify_server_name(&certificate, name)?;
        }
        Ok(ServerCertVerified::assertion())
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
        verify_tls13_signature(
            message,
            own,
            signature,
            &self.provider.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        // What a vRoT's TLS key signs with, and nothing else.
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
