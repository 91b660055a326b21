//! Peers that speak TLS and then do as they like: bounded memory, bounded time, a defined end.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use attestation::{Binding, Nonce};
use attested_tls::{
    Appraisal, Attested, AttestedStream, Attester, ConnectionError, Deadlines, Demand,
    EvidenceFuture, EvidenceRefused, Format, NoDemand, Peer, ProtocolError, Stage, Unattested,
    Verifier, accept,
};
use cert_chain::Digest32;
use rustls::ClientConfig;
use rustls::client::Resumption;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::support::{Issuer, Signer, Trusting, deadlines, name};

type Raw = TlsStream<DuplexStream>;

/// `{0: 1, 1: [0, []]}`: a hello without a demand, as the last part of a message.
const HELLO: &[u8] = &[4, 0, 10, 0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 0, 0x80];

fn client_config(issuer: &Issuer, resumption: Resumption) -> Result<Arc<ClientConfig>> {
    let mut config = ClientConfig::builder_with_provider(attested_tls::tls::provider(
        attested_tls::tls::KeyExchange::HybridFirst,
    ))
    .with_safe_default_protocol_versions()?
    .dangerous()
    .with_custom_certificate_verifier(issuer.server_verifier()?)
    .with_no_client_auth();
    config.resumption = resumption;
    Ok(Arc::new(config))
}

/// A raw client whose handshake is done.
async fn handshaken(issuer: &Issuer, io: DuplexStream) -> Result<Raw> {
    let connector = TlsConnector::from(client_config(issuer, Resumption::disabled())?);
    Ok(connector.connect(name(), io).await?)
}

/// A server of ours that demands evidence, beside a raw TLS client that sends these bytes.
async fn against(bytes: &[u8], deadlines: Deadlines) -> Result<(ConnectionError, Vec<u8>)> {
    let issuer = Issuer::new()?;
    let signer = Signer::new()?;
    let (ours, theirs) = duplex(1 << 20);
    let server_tls = issuer.server()?;
    let raw = async {
        let mut stream = handshaken(&issuer, theirs).await?;
        stream.write_all(bytes).await?;
        stream.flush().await?;
        let mut received = Vec::new();
        let _ = stream.read_to_end(&mut received).await;
        anyhow::Ok(received)
    };
    let serving = accept(
        ours,
        &server_tls,
        signer.clone(),
        Trusting::new(&signer),
        deadlines,
    );
    let (served, received) = tokio::join!(serving, raw);
    let error = served.err().context("a stream was made")?;
    Ok((error, received?))
}

fn frame(kind: u8, body: &[u8]) -> Vec<u8> {
    let length = u16::try_from(body.len()).unwrap_or(u16::MAX);
    [&[kind], length.to_be_bytes().as_slice(), body].concat()
}

#[tokio::test]
async fn whatever_has_no_place_before_the_attestation_closes_the_connection_with_a_reason()
-> Result<()> {
    let cases: [(&str, Vec<u8>); 11] = [
        ("data at once", frame(0, b"GET / HTTP/1.1")),
        ("data behind a hello", [HELLO, &frame(0, b"data")].concat()),
        ("the end of data", [HELLO, &frame(1, &[])].concat()),
        ("two hellos", [HELLO, HELLO].concat()),
        (
            "an acceptance of nothing",
            [
                HELLO,
                &frame(4, &[0x82, 3, 0x81, 0xa2, 1, 1, 2, 0x19, 1, 0]),
            ]
            .concat(),
        ),
        (
            "a request without a demand",
            [
                HELLO.to_vec(),
                frame(
                    4,
                    &[&[0x82, 1, 0x81, 0xa2, 1, 1, 2, 0x50][..], &[7; 16]].concat(),
                ),
            ]
            .concat(),
        ),
        ("no CBOR", frame(4, &[0xff; 40])),
        (
            "another version",
            frame(4, &[0x82, 0, 0x81, 0xa2, 0, 9, 1, 0x82, 0, 0x80]),
        ),
        ("a frame of no kind", frame(9, b"x")),
        ("a frame that is too long", vec![0, 0xff, 0xff]),
        ("a window of nothing", [HELLO, &frame(2, &[0; 4])].concat()),
    ];
    for (case, bytes) in cases {
        let (error, received) = against(&bytes, deadlines()).await?;
        assert!(
            matches!(error, ConnectionError::Protocol(_)),
            "{case}: {error:?}"
        );
        // The last frame is a close with the reason "protocol".
        assert!(received.ends_with(&[5, 0, 1, 2]), "{case}: {received:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_peer_that_says_nothing_is_given_up_at_each_stage() -> Result<()> {
    let short = Deadlines {
        attestation: Duration::from_millis(300),
        ..deadlines()
    };
    for bytes in [&[][..], HELLO, &HELLO[..5]] {
        let (error, received) = against(bytes, short).await?;
        assert!(matches!(error, ConnectionError::TooSlow(_)), "{error:?}");
        assert!(received.ends_with(&[5, 0, 1, 6]), "{received:?}");
    }
    // Not even a handshake.
    let issuer = Issuer::new()?;
    let (ours, _theirs) = duplex(1024);
    let handshake = Deadlines {
        handshake: Duration::from_millis(200),
        ..deadlines()
    };
    let server_tls = issuer.server()?;
    let served = accept(ours, &server_tls, Arc::new(Unattested), NoDemand, handshake).await;
    assert!(
        matches!(served, Err(ConnectionError::TooSlow(_))),
        "{served:?}"
    );
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_cut_is_not_taken_for_one_that_ended() -> Result<()> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(1 << 16);
    let server_tls = issuer.server()?;
    let raw = async {
        let mut stream = handshaken(&issuer, theirs).await?;
        stream.write_all(HELLO).await?;
        stream.write_all(&frame(0, b"half a mess")).await?;
        stream.shutdown().await?;
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        anyhow::Ok(())
    };
    let serving = async {
        let Attested { mut stream, .. } = accept(
            ours,
            &server_tls,
            Arc::new(Unattested),
            NoDemand,
            deadlines(),
        )
        .await?;
        let mut received = Vec::new();
        let outcome = stream.read_to_end(&mut received).await;
        anyhow::Ok((received, outcome))
    };
    let (served, raw) = tokio::join!(serving, raw);
    raw?;
    let (received, outcome) = served?;
    assert_eq!(received, b"half a mess");
    let error = outcome.err().context("it was taken for an end")?;
    assert!(
        error.to_string().contains("does not keep to the protocol"),
        "{error}"
    );
    Ok(())
}

#[tokio::test]
async fn more_data_than_the_window_allows_closes_the_connection() -> Result<()> {
    let error = after_the_attestation(frame(0, &[7; 10_000]), 40).await?;
    assert!(matches!(error, ProtocolError::Window), "{error:?}");
    Ok(())
}

#[tokio::test]
async fn an_end_that_demands_nothing_takes_no_long_message() -> Result<()> {
    let error = after_the_attestation(frame(3, &[7; 100]), 6).await?;
    assert!(
        matches!(error, ProtocolError::MessageTooLong { limit: 512 }),
        "{error:?}"
    );
    Ok(())
}

/// What a server says of a client that sends so many of these bytes on an open connection.
async fn after_the_attestation(excess: Vec<u8>, count: usize) -> Result<ProtocolError> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(1 << 20);
    let server_tls = issuer.server()?;
    let raw = async {
        let mut stream = handshaken(&issuer, theirs).await?;
        stream.write_all(HELLO).await?;
        for _ in 0..count {
            if stream.write_all(&excess).await.is_err() {
                break;
            }
        }
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest).await;
        anyhow::Ok(())
    };
    let serving = async {
        let attested = accept(
            ours,
            &server_tls,
            Arc::new(Unattested),
            NoDemand,
            deadlines(),
        )
        .await?;
        anyhow::Ok(attested.stream.ended().await)
    };
    let (served, raw) = tokio::join!(serving, raw);
    raw?;
    match served?.err().context("it was taken")?.as_ref() {
        ConnectionError::Protocol(error) => Ok(error.clone()),
        other => Err(anyhow::anyhow!("{other:?}")),
    }
}

/// A client that would resume gets nothing to resume with.
#[tokio::test]
async fn no_ticket_is_given_and_nothing_is_resumed() -> Result<()> {
    let issuer = Issuer::new()?;
    let server_tls = issuer.server()?;
    let config = client_config(&issuer, Resumption::in_memory_sessions(16))?;
    for round in 0..3 {
        let (ours, theirs) = duplex(1 << 16);
        let raw = async {
            let mut stream: Raw = TlsConnector::from(config.clone())
                .connect(name(), theirs)
                .await?;
            stream.write_all(HELLO).await?;
            // Reading takes in whatever tickets there are.
            let mut hello = [0; 13];
            stream.read_exact(&mut hello).await?;
            let kind = stream.get_ref().1.handshake_kind();
            let tickets = stream.get_ref().1.tls13_tickets_received();
            anyhow::Ok((kind, tickets))
        };
        let serving = accept(
            ours,
            &server_tls,
            Arc::new(Unattested),
            NoDemand,
            deadlines(),
        );
        let (served, raw) = tokio::join!(serving, raw);
        served?;
        let (kind, tickets) = raw?;
        assert_eq!(
            (kind, tickets),
            (Some(rustls::HandshakeKind::Full), 0),
            "round {round}"
        );
    }
    Ok(())
}

/// `{0: 1, 1: [1, [[1], policy]]}`: a hello that demands evidence.
fn demanding_hello() -> Vec<u8> {
    let hello = [
        0x82, 0, 0x81, 0xa2, 0, 1, 1, 0x82, 1, 0x82, 0x81, 1, 0x58, 32,
    ];
    frame(4, &[&hello[..], &[7; 32]].concat())
}

/// Asks for evidence.
fn request(sequence: u8) -> Vec<u8> {
    let request = [0x82, 1, 0x81, 0xa2, 1, sequence, 2, 0x50];
    frame(4, &[&request[..], &[7; 16]].concat())
}

/// Makes so many bytes and counts how often.
struct Large {
    bytes: usize,
    made: AtomicUsize,
}

impl Attester for Large {
    fn evidence(&self, _: &Demand, _: Nonce, _: Binding) -> EvidenceFuture {
        self.made.fetch_add(1, Ordering::SeqCst);
        Box::pin(std::future::ready(Ok(vec![7; self.bytes])))
    }
}

/// What becomes of a server with large evidence beside a client that asks for it and then does this.
async fn asked_by<F: Future<Output = Result<()>>>(
    deadlines: Deadlines,
    client: impl FnOnce(Raw) -> F,
) -> Result<(ConnectionError, usize)> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(16 * 1024);
    let large = Arc::new(Large {
        bytes: 2_000_000,
        made: AtomicUsize::new(0),
    });
    let server_tls = issuer.server()?;
    let raw = async {
        let mut stream = handshaken(&issuer, theirs).await?;
        stream.write_all(&demanding_hello()).await?;
        stream.write_all(&request(1)).await?;
        stream.flush().await?;
        client(stream).await
    };
    let serving = accept(ours, &server_tls, large.clone(), NoDemand, deadlines);
    let served = tokio::select! {
        served = serving => served,
        // It never ends before the server does.
        never = async { raw.await?; std::future::pending::<Result<()>>().await } => bail!("{never:?}"),
    };
    let error = served.err().context("a stream was made")?;
    Ok((error, large.made.load(Ordering::SeqCst)))
}

#[tokio::test]
async fn a_peer_that_asks_again_and_takes_no_answer_gets_no_second_one() -> Result<()> {
    let deadlines = Deadlines {
        attestation: Duration::from_secs(5),
        ..deadlines()
    };
    let (error, made) = asked_by(deadlines, async |mut stream| {
        // Longer than requests have to be apart.
        sleep(Duration::from_millis(700)).await;
        stream.write_all(&request(2)).await?;
        stream.flush().await?;
        // The connection stays open, and nothing is read.
        std::future::pending().await
    })
    .await?;
    assert!(
        matches!(
            error,
            ConnectionError::Protocol(ProtocolError::OutOfTurn(_))
        ),
        "{error:?}"
    );
    assert_eq!(made, 1);
    Ok(())
}

#[tokio::test]
async fn an_answer_has_one_deadline_however_many_parts_of_it_are_taken_in_time() -> Result<()> {
    let deadlines = Deadlines {
        attestation: Duration::from_secs(5),
        sending: Duration::from_secs(1),
        ..deadlines()
    };
    let (error, _) = asked_by(deadlines, async |mut stream| {
        let mut part = vec![0; 16 * 1024];
        loop {
            stream.read_exact(&mut part).await?;
            sleep(Duration::from_millis(100)).await;
        }
    })
    .await?;
    assert!(
        matches!(error, ConnectionError::TooSlow(Stage::Sending)),
        "{error:?}"
    );
    Ok(())
}

/// Demands this format and accepts nothing.
struct Bounded(Format);

impl Verifier for Bounded {
    type Result = ();

    fn demand(&self) -> Demand {
        Demand::Evidence {
            formats: vec![self.0],
            policy: Digest32::new([0; 32]),
        }
    }

    fn appraise(
        &self,
        _: &[u8],
        _: &Nonce,
        _: &Binding,
        _: &Peer,
    ) -> Result<Appraisal<()>, EvidenceRefused> {
        Err(EvidenceRefused {
            reason: "nothing is accepted here".to_owned(),
        })
    }
}

/// What becomes of a server that demands this beside a client that sends these bytes, and the last frame
/// that the client gets.
async fn shown(demanding: &Arc<Bounded>, bytes: Vec<u8>) -> Result<(ConnectionError, Vec<u8>)> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(4 * 1024);
    let server_tls = issuer.server()?;
    let deadlines = Deadlines {
        attestation: Duration::from_secs(5),
        ..deadlines()
    };
    let serving = accept(
        ours,
        &server_tls,
        Arc::new(Unattested),
        demanding.clone(),
        deadlines,
    );
    let raw = async {
        let mut stream = handshaken(&issuer, theirs).await?;
        let (mut read, mut write) = tokio::io::split(&mut stream);
        let mut received = Vec::new();
        let (_, _) = tokio::join!(
            async {
                write.write_all(&bytes).await?;
                write.flush().await
            },
            read.read_to_end(&mut received)
        );
        anyhow::Ok(received.split_off(received.len().saturating_sub(4)))
    };
    let (served, received) = tokio::join!(serving, raw);
    Ok((served.err().context("a stream was made")?, received?))
}

#[tokio::test]
async fn an_answer_is_no_longer_than_what_was_demanded_and_comes_behind_a_hello() -> Result<()> {
    let part = frame(3, &[7; 600]);
    let cases = [
        (Format::ClientCertificate, [HELLO, &part].concat()),
        (Format::Vrot, part.clone()),
        (Format::Device, part.clone()),
    ];
    for (format, bytes) in cases {
        let demanding = Arc::new(Bounded(format));
        let (error, last) = shown(&demanding, bytes).await?;
        assert!(
            matches!(
                error,
                ConnectionError::Protocol(ProtocolError::MessageTooLong { limit: 512 })
            ),
            "{format:?}: {error:?}"
        );
        assert_eq!(last, [5, 0, 1, 2]);
    }
    Ok(())
}

/// A server's stream on which so much was written that no more goes, and its peer, which reads nothing.
async fn stuck(deadlines: Deadlines) -> Result<(AttestedStream, Raw)> {
    let issuer = Issuer::new()?;
    let (ours, theirs) = duplex(16 * 1024);
    let server_tls = issuer.server()?;
    let attester = Arc::new(Unattested);
    let (served, raw) = tokio::join!(
        accept(ours, &server_tls, attester, NoDemand, deadlines),
        async {
            let mut stream = handshaken(&issuer, theirs).await?;
            stream.write_all(HELLO).await?;
            stream.flush().await?;
            anyhow::Ok(stream)
        }
    );
    let mut stream = served?.stream;
    let more = &[0; 10_000];
    while let Ok(written) = timeout(Duration::from_millis(100), stream.write(more)).await {
        written?;
    }
    Ok((stream, raw?))
}

#[tokio::test]
async fn a_stream_that_is_given_up_is_cleared_away_soon_although_its_peer_takes_nothing()
-> Result<()> {
    let deadlines = Deadlines {
        sending: Duration::from_secs(60),
        ..deadlines()
    };
    let (stream, _peer) = stuck(deadlines).await?;
    timeout(Duration::from_secs(15), stream.give_up()).await?;
    Ok(())
}

#[tokio::test]
async fn no_close_frame_stands_within_another_frame() -> Result<()> {
    let deadlines = Deadlines {
        sending: Duration::from_millis(500),
        ..deadlines()
    };
    let (stream, mut peer) = stuck(deadlines).await?;
    let error = tokio::join!(stream.ended(), async {
        // The server has given up sending, and says so if it can.
        sleep(Duration::from_millis(800)).await;
        let mut received = Vec::new();
        let _ = peer.read_to_end(&mut received).await;
        assert!(!received.ends_with(&[5, 0, 1, 6]), "within a frame");
    });
    assert!(
        matches!(
            error.0.err().as_deref(),
            Some(ConnectionError::TooSlow(Stage::Sending))
        ),
        "another error"
    );
    Ok(())
}
