//! A tenant's end of TLS as rustls has it, for what curl does not do.

use std::fs;
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::sys::socket::{setsockopt, sockopt};
use rustls::client::ResolvesClientCert;
use rustls::crypto::aws_lc_rs;
use rustls::sign::CertifiedKey;
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, SignatureScheme, StreamOwned, version,
};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};

use super::DOMAIN;
use super::tenant::Tenant;

/// A connection on which anything can be written.
pub(crate) struct TlsClient(StreamOwned<ClientConnection, TcpStream>);

/// A certificate that is shown whatever the key that signs the handshake.
#[derive(Debug)]
struct Shown(Arc<CertifiedKey>);

/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(60);

impl TlsClient {
    /// Shows this tenant's certificate, and signs with the key in a file. The handshake begins with the
    /// first bytes that are written.
    pub(crate) fn with_key(tenant: &Tenant, key: &str) -> Result<Self> {
        let provider = aws_lc_rs::default_provider();
        let key = PrivateKeyDer::from_pem_file(key)?;
        let key = provider.key_provider.load_private_key(key)?;
        let own = CertificateDer::from_pem_file(tenant.certificate())?;
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(&fs::read(tenant.root())?)?)?;
        let shown = Arc::new(CertifiedKey::new(vec![own], key));
        let config = ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_client_cert_resolver(Arc::new(Shown(shown)));
        let name = format!("host-1.{DOMAIN}").try_into()?;
        let stream = TcpStream::connect(tenant.address())?;
        stream.set_read_timeout(Some(PATIENCE))?;
        // Little is taken that is not read.
        setsockopt(&stream, sockopt::RcvBuf, &4096)?;
        let session = ClientConnection::new(Arc::new(config), name)?;
        Ok(Self(StreamOwned::new(session, stream)))
    }

    /// The tenant's own.
    pub(crate) fn of(tenant: &Tenant) -> Result<Self> {
        Self::with_key(tenant, tenant.key())
    }

    /// Writes all of it.
    pub(crate) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)?;
        self.0.flush()
    }

    /// The status of the answer.
    pub(crate) fn status(&mut self) -> Result<u16> {
        let mut line = Vec::new();
        while !line.ends_with(b"\r\n") {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            line.extend(byte);
        }
        let line = String::from_utf8(line)?;
        Ok(line.split(' ').nth(1).context("no status")?.parse()?)
    }

    /// What the other end says to this, if that is an alert of TLS.
    pub(crate) fn alert(&mut self, bytes: &[u8]) -> Option<rustls::Error> {
        let answer = self.write(bytes).and_then(|()| self.0.read(&mut [0]));
        let error = answer.err()?.into_inner()?;
        error.downcast::<rustls::Error>().ok().map(|error| *error)
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0))
    }

    fn has_certs(&self) -> bool {
        true
    }
}
