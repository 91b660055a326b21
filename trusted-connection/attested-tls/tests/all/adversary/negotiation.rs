//! What comes in the place of an attestation, or between it and the first data.

use std::future::Future;
use std::sync::Arc;

use anyhow::{Result, bail, ensure};
use attested_tls::{ConnectionError, ProtocolError, Unattested, connect};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream};

use super::peer::{Defences, Frame, Peer, Request};
use super::{Scene, meanwhile, pipe};
use crate::support::{Trusting, deadlines, name};

const QUESTION: &[u8] = b"question";

/// The device under attack.
#[derive(Clone, Copy, Debug)]
enum Device {
    /// This crate's.
    Ours,
    /// Written anew, by the rules.
    Careful,
    /// Written anew: it goes on without evidence, and takes the end of a connection for that of its data.
    Careless,
}

impl Device {
    /// What the service answers to a question, once it attested itself; `None` if there is none that may be relied on.
    async fn ask(self, scene: &Scene, io: DuplexStream) -> Result<Option<Vec<u8>>> {
        let is_careless = match self {
            Self::Ours => return ask_with_ours(scene, io).await,
            Self::Careful => false,
            Self::Careless => true,
        };
        let mut peer = Peer::client(&scene.issuer, io).await?;
        peer.greet(true).await?;
        let request = Request {
            sequence: 1,
            nonce: vec![7; 32],
            named: None,
        };
        peer.send(Frame::Request(request.clone())).await?;
        let (mut is_attested, mut answer) = (is_careless, Vec::new());
        loop {
            match peer.receive().await {
                Ok(Frame::Answer { evidence, sequence }) => {
                    let defences = Defences::ALL;
                    is_attested =
                        peer.is_evidence(defences, &scene.service, &request, &evidence)?;
                    ensure!(is_attested, "the evidence is genuine");
                    peer.send(Frame::Accepted { sequence }).await?;
                    peer.send(Frame::Data(QUESTION.to_vec())).await?;
                }
                Ok(Frame::Data(data)) if is_attested => answer.extend(data),
                Ok(Frame::End) if is_attested => return Ok(Some(answer)),
                Ok(_) => return Ok(None),
                Err(_) => return Ok(is_careless.then_some(answer)),
            }
        }
    }
}

async fn ask_with_ours(scene: &Scene, io: DuplexStream) -> Result<Option<Vec<u8>>> {
    let (tls, trusting) = (scene.issuer.client()?, Trusting::new(&scene.service));
    let open = connect(
        io,
        &tls,
        name(),
        Arc::new(Unattested),
        trusting,
        deadlines(),
    )
    .await;
    let mut open = match open {
        Ok(open) => open,
        Err(ConnectionError::Protocol(ProtocolError::EarlyData)) => return Ok(None),
        Err(error) => return Err(error.into()),
    };
    open.stream.write_all(QUESTION).await?;
    open.stream.flush().await?;
    let mut answer = Vec::new();
    if open.stream.read_to_end(&mut answer).await.is_ok() {
        return Ok(Some(answer));
    }
    let error = open.stream.ended().await.err();
    ensure!(
        matches!(
            error.as_deref(),
            Some(ConnectionError::Protocol(ProtocolError::Truncated))
        ),
        "{error:?}"
    );
    Ok(None)
}

/// The device gets `expected` if it is careless, and nothing that it may rely on otherwise.
async fn only_the_careless_get<F>(
    expected: &[u8],
    attack: impl Fn(Peer, Arc<Scene>) -> F,
) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    for device in [Device::Ours, Device::Careful, Device::Careless] {
        let scene = Arc::new(Scene::new()?);
        let (victim_end, attacker_end) = pipe();
        let attacker = async {
            attack(
                Peer::server(scene.key.clone(), attacker_end).await?,
                scene.clone(),
            )
            .await
        };
        let got = meanwhile(device.ask(&scene, victim_end), attacker).await?;
        let expected = matches!(device, Device::Careless).then_some(expected);
        ensure!(got.as_deref() == expected, "{device:?} got {got:?}");
    }
    Ok(())
}

/// It demands nothing, says nothing of evidence, and begins with the application.
#[tokio::test]
async fn a_peer_that_skips_the_attestation_needs_a_device_that_lets_it() -> Result<()> {
    only_the_careless_get(b"answer", |mut victim, _| async move {
        victim.greet(false).await?;
        victim.send(Frame::Data(b"answer".to_vec())).await?;
        victim.send(Frame::End).await?;
        victim.until_closed().await;
        Ok(())
    })
    .await
}

/// As an empty answer that a device takes for one of the service.
#[tokio::test]
async fn an_end_of_data_in_the_place_of_evidence_needs_a_device_that_takes_it() -> Result<()> {
    only_the_careless_get(b"", |mut victim, _| async move {
        victim.greet(false).await?;
        victim.send(Frame::End).await?;
        victim.until_closed().await;
        Ok(())
    })
    .await
}

/// The connection is cut where the evidence is accepted and no data came yet: no device may take that
/// for an empty answer.
#[tokio::test]
async fn a_half_close_before_the_first_data_needs_a_device_that_takes_it_for_their_end()
-> Result<()> {
    only_the_careless_get(b"", |mut victim, scene| async move {
        victim.greet(false).await?;
        let request = victim.request().await?;
        let evidence = victim.evidence(Defences::ALL, &scene.service, &request)?;
        victim.send_evidence(&request, evidence).await?;
        let Frame::Accepted { .. } = victim.receive().await? else {
            bail!("the evidence is genuine");
        };
        assert_eq!(victim.receive().await?, Frame::Data(QUESTION.to_vec()));
        // TLS says that nothing more comes; the protocol above it did not.
        victim.stream.shutdown().await?;
        victim.until_closed().await;
        Ok(())
    })
    .await
}
