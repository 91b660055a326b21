//! What passes on one connection: through both attesting proxies, and through two that only speak TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use attested_tls::tls::{KeyExchange, provider};
use connection_proxy::{Stop, join, prepare};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::{ClientConfig, RootCertStore, ServerConfig, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy_bidirectional};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use vrot_device::Connector;

use super::service::{Service, echo};
use crate::bench::arguments::Arguments;
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// For each second of a window. Everything passes twice: the service sends it back.
const MIB: usize = 16;
const CHUNK: usize = 64 * 1024;
const NAME: &str = "peer.example";

/// Both ways in turns.
pub(super) fn measure(
    report: &mut Report,
    runtime: &Runtime,
    arguments: &Arguments,
    service: &Service,
    device: &Connector,
) -> Result<()> {
    let mib = MIB * usize::try_from(arguments.window_s)?;
    let (mut ours, mut peers) = (Samples::default(), Samples::default());
    runtime.block_on(async {
        let attested = attesting_proxy(device.clone(), service).await?;
        let plain = plain_proxies(echo().await?).await?;
        for _ in 0..arguments.rounds {
            ours.add(rate(attested, mib).await?);
            peers.add(rate(plain, mib).await?);
        }
        anyhow::Ok(())
    })?;
    report.beside(
        "attested_stream_mib_per_s",
        ours.median()?,
        peers.median()?,
        "MiB/s",
        ours.count(),
    );
    report.spread(&ours)
}

/// Sends so much and reads it back.
async fn rate(proxy: SocketAddr, mib: usize) -> Result<f64> {
    let stream = TcpStream::connect(proxy).await?;
    stream.set_nodelay(true)?;
    let (mut read, mut write) = stream.into_split();
    let chunks = mib * 1024 * 1024 / CHUNK;
    let begin = Instant::now();
    let writing = tokio::spawn(async move {
        let chunk = vec![7; CHUNK];
        for _ in 0..chunks {
            write.write_all(&chunk).await?;
        }
        write.shutdown().await
    });
    let mut buffer = vec![0; CHUNK];
    let mut received = 0;
    loop {
        match read.read(&mut buffer).await? {
            0 => break,
            length => received += length,
        }
    }
    let took = begin.elapsed();
    writing.await??;
    anyhow::ensure!(received == chunks * CHUNK, "{received} bytes came back");
    Ok(f64::from(u32::try_from(mib)?) / took.as_secs_f64())
}

/// The device's end of the attested way.
async fn attesting_proxy(device: Connector, service: &Service) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let service = service.attested.clone();
    let stop = Stop::after(Duration::ZERO);
    tokio::spawn(async move {
        while let Ok((local, _)) = listener.accept().await {
            let (device, service, stop) = (device.clone(), service.clone(), stop.clone());
            tokio::spawn(async move {
                prepare(&local)?;
                let connected = device.connect(&service).await?;
                join(connected.stream, local, &stop).await;
                anyhow::Ok(())
            });
        }
    });
    Ok(address)
}

/// Two proxies with the same TLS between them, and nothing else.
async fn plain_proxies(service: SocketAddr) -> Result<SocketAddr> {
    let (server, client) = tls()?;
    let behind = TcpListener::bind("127.0.0.1:0").await?;
    let between = behind.local_addr()?;
    let acceptor = TlsAcceptor::from(Arc::new(server));
    tokio::spawn(async move {
        while let Ok((stream, _)) = behind.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                prepare(&stream)?;
                let mut tls = acceptor.accept(stream).await?;
                let mut plain = TcpStream::connect(service).await?;
                prepare(&plain)?;
                copy_bidirectional(&mut tls, &mut plain).await
            });
        }
    });
    let before = TcpListener::bind("127.0.0.1:0").await?;
    let address = before.local_addr()?;
    let connector = TlsConnector::from(Arc::new(client));
    let name = ServerName::try_from(NAME)?;
    tokio::spawn(async move {
        while let Ok((mut local, _)) = before.accept().await {
            let (connector, name) = (connector.clone(), name.clone());
            tokio::spawn(async move {
                prepare(&local)?;
                let stream = TcpStream::connect(between).await?;
                prepare(&stream)?;
                let mut tls = connector.connect(name, stream).await?;
                copy_bidirectional(&mut local, &mut tls).await
            });
        }
    });
    Ok(address)
}

/// A server and a client that know each other by a certificate of their own.
fn tls() -> Result<(ServerConfig, ClientConfig)> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate()?)?;
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([NAME.to_owned()])?.signed_by(&key, &*issuer)?;
    let chain: Vec<CertificateDer<'static>> = vec![certificate.into()];
    let private = PrivateKeyDer::try_from(key.serialize_der())
        .ok()
        .context("a key")?;
    let provider = || provider(KeyExchange::HybridFirst);
    let server = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_no_client_auth()
        .with_single_cert(chain, private)?;
    let mut roots = RootCertStore::empty();
    roots.add(issuer.der().clone())?;
    let client = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&version::TLS13])?
        .with_root_certificates(roots)
        .with_no_client_auth();
    Ok((server, client))
}
