//! An attested connection beside a plain one: how the one ends, the other does.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use attested_tls::tls::{KeyExchange, ServerTls, provider};
use attested_tls::{AttestedStream, Deadlines, NoDemand, Unattested, accept};
use connection_proxy::{Ending, Stop, join};
use rcgen::{CertificateParams, KeyPair};
use rustls::client::WebPkiServerVerifier;
use rustls::server::NoClientAuth;
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::{PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

const NAME: &str = "service.example";
/// `{0: 1, 1: [0, []]}`: a hello without a demand.
const HELLO: &[u8] = &[4, 0, 10, 0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 0, 0x80];
/// No more data.
const END: &[u8] = &[1, 0, 0];
/// Both ends have sent all data.
const DONE: &[u8] = &[5, 0, 1, 0];

/// A server's attested stream, and a client that speaks the protocol by hand.
async fn attested() -> Result<(AttestedStream, TlsStream<DuplexStream>)> {
    let key = KeyPair::generate()?;
    let certificate = CertificateParams::new([NAME.to_owned()])?.self_signed(&key)?;
    let private = PrivateKeyDer::try_from(key.serialize_der()).map_err(anyhow::Error::msg)?;
    let mut roots = RootCertStore::empty();
    roots.add(certificate.der().clone())?;
    let provider = provider(KeyExchange::HybridFirst);
    let certified = CertifiedKey::from_der(vec![certificate.into()], private, &provider)?;
    let server = ServerTls::new(certified, Arc::new(NoClientAuth), KeyExchange::HybridFirst)?;
    let servers = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(servers.build()?)
        .with_no_client_auth();
    let (ours, theirs) = duplex(64 * 1024);
    let attester = Arc::new(Unattested);
    let (served, peer) = tokio::join!(
        accept(ours, &server, attester, NoDemand, Deadlines::default()),
        async {
            let connector = TlsConnector::from(Arc::new(client));
            let name = ServerName::try_from(NAME)?;
            let mut stream = connector.connect(name, theirs).await?;
            stream.write_all(HELLO).await?;
            stream.flush().await?;
            anyhow::Ok(stream)
        }
    );
    Ok((served?.stream, peer?))
}

/// Both directions come to their end, and then the peer says this and is gone: what the proxy makes of it.
async fn ended_with(farewell: &[u8]) -> Result<Ending> {
    let (stream, mut peer) = attested().await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let mut program = TcpStream::connect(listener.local_addr()?).await?;
    let plain = listener.accept().await?.0;
    let joining = tokio::spawn(async move {
        let stop = Stop::after(Duration::from_secs(60));
        join(stream, plain, &stop).await
    });
    program.write_all(b"all there is").await?;
    program.shutdown().await?;
    peer.write_all(END).await?;
    peer.flush().await?;
    let mut received = Vec::new();
    while !received.ends_with(END) {
        received.push(peer.read_u8().await?);
    }
    assert_eq!(program.read(&mut [0]).await?, 0);
    peer.write_all(farewell).await?;
    peer.shutdown().await?;
    Ok(joining.await?.ending)
}

#[tokio::test]
async fn what_ended_in_both_directions_is_complete_only_with_the_peers_farewell() -> Result<()> {
    let ending = ended_with(DONE).await?;
    assert!(matches!(ending, Ending::Complete), "{ending:?}");
    let ending = ended_with(&[]).await?;
    assert!(matches!(ending, Ending::Attested(_)), "{ending:?}");
    Ok(())
}
