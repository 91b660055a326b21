//! Connections to hosts: TLS 1.3 with the tenant's certificate, to a server whose certificate is for the
//! host's name and leads to a trusted root by certificates that no list revokes.

use std::fmt;
use std::sync::Arc;

use attested_tls::tls::{KeyExchange, provider};
use cert_chain::TrustAnchors;
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::{ClientConfig, RootCertStore, version};
use rustls_pki_types::{CertificateRevocationListDer, ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use trusted_connection::crl_files::CrlFiles;

use crate::error::HostError;

/// What connections need. Revocation lists are read anew when they change.
pub(crate) struct Tls {
    key: CertifiedKey,
    roots: TrustAnchors,
    crls: CrlFiles,
}

impl Tls {
    pub(crate) fn new(key: CertifiedKey, roots: TrustAnchors, crls: CrlFiles) -> Self {
        Self { key, roots, crls }
    }

    /// Connects to a server that must be called `name`.
    pub(crate) async fn connect(
        &self,
        address: &str,
        name: &ServerName<'static>,
    ) -> Result<TlsStream<TcpStream>, HostError> {
        let config = Arc::new(self.config()?);
        let stream = TcpStream::connect(address).await;
        let stream = stream.map_err(|source| HostError::Unreachable {
            address: address.to_owned(),
            source,
        })?;
        stream.set_nodelay(true).ok();
        let connecting = TlsConnector::from(config).connect(name.clone(), stream);
        connecting.await.map_err(HostError::of_handshake)
    }

    /// As of now: roots end, and lists are replaced.
    fn config(&self) -> Result<ClientConfig, HostError> {
        let unusable = |error: &dyn fmt::Display| HostError::Setup(error.to_string());
        let provider = provider(KeyExchange::HybridFirst);
        let roots = RootCertStore {
            roots: self.roots.valid_at(UnixTime::now()),
        };
        let mut servers =
            WebPkiServerVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider));
        let mut lists = self.crls.lists();
        if !lists.is_empty() {
            // Of two lists of one issuer the first one counts.
            lists.sort_by(|one, other| other.number().cmp(one.number()));
            let lists = lists.iter();
            let ders = lists.map(|list| CertificateRevocationListDer::from(list.der().to_vec()));
            // A host makes no list of its own: its certificate for TLS is one of a day.
            servers = servers.with_crls(ders).allow_unknown_revocation_status();
        }
        let servers = servers.build().map_err(|error| unusable(&error))?;
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| unusable(&error))?
            .with_webpki_verifier(servers)
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        config.resumption = Resumption::disabled();
        config.enable_early_data = false;
        Ok(config)
    }
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls")
            .field("roots", &self.roots)
            .finish_non_exhaustive()
    }
}
