//! What hybrid key exchange costs: handshakes in memory, one after the other, with certificates as
//! services have them, below an issuer's root and a host's certificate.

use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use attested_tls::tls::{KeyExchange, provider};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::crypto::CryptoProvider;
use rustls::{
    ClientConfig, ClientConnection, NamedGroup, RootCertStore, ServerConfig, ServerConnection,
    version,
};
use rustls_pki_types::{PrivateKeyDer, ServerName};

use crate::bench::arguments::Arguments;
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// Handshakes of each kind.
const HANDSHAKES: u32 = 200;
const NAME: &str = "peer.example";

/// A handshake with X25519MLKEM768 beside one with X25519, both ends together, in turns.
pub(super) fn measure(report: &mut Report, arguments: &Arguments) -> Result<()> {
    let hybrid = Ends::with(NamedGroup::X25519MLKEM768)?;
    let plain = Ends::with(NamedGroup::X25519)?;
    let (mut ours, mut peers) = (Samples::default(), Samples::default());
    for _ in 0..arguments.writes.min(HANDSHAKES) {
        ours.add_us(hybrid.handshake()?);
        peers.add_us(plain.handshake()?);
    }
    report.beside(
        "tls_hybrid_cpu_ratio",
        ours.median()?,
        peers.median()?,
        "µs/handshake",
        ours.count(),
    );
    Ok(())
}

struct Ends {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
}

impl Ends {
    fn with(group: NamedGroup) -> Result<Self> {
        let all = provider(KeyExchange::HybridFirst);
        let mut kx_groups = all.kx_groups.clone();
        kx_groups.retain(|known| known.name() == group);
        let provider = Arc::new(CryptoProvider {
            kx_groups,
            ..(*all).clone()
        });
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let root_key = KeyPair::generate()?;
        let root = authority.self_signed(&root_key)?;
        let host_key = KeyPair::generate()?;
        let host = authority.signed_by(&host_key, &Issuer::from_params(&authority, &root_key))?;
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new([NAME.to_owned()])?
            .signed_by(&key, &Issuer::from_params(&authority, &host_key))?;
        let private = PrivateKeyDer::try_from(key.serialize_der())
            .ok()
            .context("a key")?;
        let mut roots = RootCertStore::empty();
        roots.add(root.into())?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?
            .with_no_client_auth()
            .with_single_cert(vec![certificate.into(), host.into()], private)?;
        server.send_tls13_tickets = 0;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&version::TLS13])?
            .with_root_certificates(roots)
            .with_no_client_auth();
        client.resumption = rustls::client::Resumption::disabled();
        Ok(Self {
            server: Arc::new(server),
            client: Arc::new(client),
        })
    }

    fn handshake(&self) -> Result<std::time::Duration> {
        let begin = Instant::now();
        let mut server = ServerConnection::new(Arc::clone(&self.server))?;
        let name = ServerName::try_from(NAME)?;
        let mut client = ClientConnection::new(Arc::clone(&self.client), name)?;
        while client.is_handshaking() || server.is_handshaking() {
            let mut bytes = Vec::new();
            client.write_tls(&mut bytes)?;
            let from_client = bytes.len();
            take(&bytes, |from| server.read_tls(from))?;
            server.process_new_packets()?;
            bytes.clear();
            server.write_tls(&mut bytes)?;
            ensure!(
                from_client + bytes.len() > 0,
                "the handshake does not go on"
            );
            take(&bytes, |from| client.read_tls(from))?;
            client.process_new_packets()?;
        }
        Ok(begin.elapsed())
    }
}

fn take(
    mut bytes: &[u8],
    mut read: impl FnMut(&mut &[u8]) -> std::io::Result<usize>,
) -> Result<()> {
    while !bytes.is_empty() {
        read(&mut bytes)?;
    }
    Ok(())
}
