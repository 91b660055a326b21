//! Genuine evidence in a place for which it was not made.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use attested_tls::{ConnectionError, Unattested, accept, connect};
use tokio::io::DuplexStream;

use super::peer::{Defences, Frame, Peer, Request, SERVER};
use super::{Ends, Scene, accepted, meanwhile, only_succeeds_with, pipe};
use crate::support::{Trusting, deadlines, name};

const NO_EXPORTER: Defences = Defences {
    exporter: false,
    ..Defences::ALL
};
const NO_ROLE: Defences = Defences {
    role: false,
    ..Defences::ALL
};

/// It terminates TLS with the service's stolen key, and has the service answer each request on a
/// connection of its own.
#[tokio::test]
async fn a_relay_with_the_services_tls_key_needs_the_exporter_to_be_missing() -> Result<()> {
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (victim_end, relay_end) = pipe();
        let (upstream_end, service_end) = pipe();
        let relay = async {
            let mut victim = Peer::server(scene.key.clone(), relay_end).await?;
            let mut upstream = Peer::client(&scene.issuer, upstream_end).await?;
            upstream.greet(true).await?;
            victim.greet(false).await?;
            let request = victim.request().await?;
            upstream.send(Frame::Request(request.clone())).await?;
            let evidence = upstream.answer().await?;
            victim.send_evidence(&request, evidence).await?;
            victim.until_closed().await;
            anyhow::Ok(())
        };
        let others = async { tokio::try_join!(relay, scene.serve(ends, service_end)).map(drop) };
        meanwhile(scene.device(ends, victim_end), others).await
    }
    only_succeeds_with(NO_EXPORTER, attack).await
}

/// A device opens two connections at once, and the service's evidence of the first is shown on the
/// second. A device that uses one nonce for both has the exporter alone to tell them apart.
#[tokio::test]
async fn evidence_of_a_concurrent_connection_needs_the_exporter_to_be_missing() -> Result<()> {
    async fn device(ends: Ends, scene: &Scene, io: [DuplexStream; 2]) -> Result<bool> {
        let [first, second] = io;
        match ends {
            Ends::Ours => {
                let tls = scene.issuer.client()?;
                let trusting = || Trusting::new(&scene.service);
                let open = |io| {
                    connect(
                        io,
                        &tls,
                        name(),
                        Arc::new(Unattested),
                        trusting(),
                        deadlines(),
                    )
                };
                let (first, second) = tokio::join!(open(first), open(second));
                first.context("the first connection is honest")?;
                accepted(second)
            }
            Ends::Written(defences) => {
                let request = Request {
                    sequence: 1,
                    nonce: vec![7; 32],
                    named: None,
                };
                let ask = async |io| {
                    let peer = Peer::client(&scene.issuer, io).await?;
                    peer.asking(request.clone(), defences, &scene.service).await
                };
                let ((_, first), (_, second)) = tokio::try_join!(ask(first), ask(second))?;
                anyhow::ensure!(first, "the first connection is honest");
                Ok(second)
            }
        }
    }
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (one, one_end) = pipe();
        let (two, two_end) = pipe();
        let attacker = async {
            let key = || scene.key.clone();
            let ends_of_both =
                tokio::try_join!(Peer::server(key(), one_end), Peer::server(key(), two_end));
            let (mut one, mut two) = ends_of_both?;
            one.greet(false).await?;
            two.greet(false).await?;
            let (request, other) = (one.request().await?, two.request().await?);
            let evidence = one.evidence(ends.defences(), &scene.service, &request)?;
            one.send_evidence(&request, evidence.clone()).await?;
            two.send_evidence(&other, evidence).await?;
            tokio::join!(one.until_closed(), two.until_closed());
            Ok(())
        };
        meanwhile(device(ends, &scene, [one, two]), attacker).await
    }
    only_succeeds_with(NO_EXPORTER, attack).await
}

/// Another protocol on the same connection has its statements signed over the exporter that many
/// protocols share (RFC 9266).
#[tokio::test]
async fn a_statement_for_another_protocol_needs_the_label_to_be_shared() -> Result<()> {
    const SHARED: Defences = Defences {
        label: "EXPORTER-Channel-Binding",
        ..Defences::ALL
    };
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (victim_end, attacker_end) = pipe();
        let attacker = async {
            let mut victim = Peer::server(scene.key.clone(), attacker_end).await?;
            victim.greet(false).await?;
            let request = victim.request().await?;
            let statement = victim.evidence(SHARED, &scene.service, &request)?;
            victim.send_evidence(&request, statement).await?;
            victim.until_closed().await;
            Ok(())
        };
        meanwhile(scene.device(ends, victim_end), attacker).await
    }
    only_succeeds_with(SHARED, attack).await
}

/// Asks for the victim's own evidence with the victim's own nonce, and shows it as its own.
async fn reflect(mut victim: Peer) -> Result<()> {
    victim.greet(true).await?;
    let request = victim.request().await?;
    victim.send(Frame::Request(request.clone())).await?;
    let evidence = victim.answer().await?;
    victim.send_evidence(&request, evidence).await?;
    victim.until_closed().await;
    Ok(())
}

/// Both ends have the same root of trust here.
#[tokio::test]
async fn a_server_that_reflects_its_clients_evidence_needs_the_role_to_be_missing() -> Result<()> {
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (victim_end, attacker_end) = pipe();
        let attacker =
            async { reflect(Peer::server(scene.key.clone(), attacker_end).await?).await };
        meanwhile(scene.attesting_device(ends, victim_end), attacker).await
    }
    only_succeeds_with(NO_ROLE, attack).await
}

#[tokio::test]
async fn a_client_that_shows_the_servers_evidence_needs_the_role_to_be_missing() -> Result<()> {
    async fn victim(ends: Ends, scene: &Scene, io: DuplexStream) -> Result<bool> {
        match ends {
            Ends::Ours => {
                let trusting = Trusting::new(&scene.service);
                let tls = scene.server_tls()?;
                accepted(accept(io, &tls, scene.service.clone(), trusting, deadlines()).await)
            }
            Ends::Written(defences) => {
                let peer = Peer::server(scene.key.clone(), io).await?;
                peer.demanding(defences, &scene.service).await
            }
        }
    }
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (victim_end, attacker_end) = pipe();
        let attacker = async { reflect(Peer::client(&scene.issuer, attacker_end).await?).await };
        meanwhile(victim(ends, &scene, victim_end), attacker).await
    }
    only_succeeds_with(NO_ROLE, attack).await
}

/// A machine that was genuine when the connection was made answers the next request with what it
/// answered the first.
#[tokio::test]
async fn a_replay_within_a_connection_needs_the_request_to_be_missing() -> Result<()> {
    const NO_REQUEST: Defences = Defences {
        request: false,
        ..Defences::ALL
    };
    /// Whether the second round is accepted, too.
    async fn device(ends: Ends, scene: &Scene, io: DuplexStream) -> Result<bool> {
        match ends {
            Ends::Ours => {
                let trusting = Trusting::lasting(&scene.service, Duration::from_secs(2));
                let tls = scene.issuer.client()?;
                let attester = Arc::new(Unattested);
                let mut open = connect(io, &tls, name(), attester, trusting, deadlines()).await?;
                open.appraisals.borrow_and_update();
                tokio::select! {
                    broken = open.stream.broken() => match &*broken {
                        ConnectionError::Refused(_) => Ok(false),
                        other => bail!("{other:?}"),
                    },
                    changed = open.appraisals.changed() => Ok(changed.is_ok()),
                }
            }
            Ends::Written(defences) => {
                let mut peer = Peer::client(&scene.issuer, io).await?;
                let mut is_accepted = false;
                for sequence in 1..=2 {
                    let nonce = vec![u8::try_from(sequence)?; 32];
                    let named = None;
                    let request = Request {
                        sequence,
                        nonce,
                        named,
                    };
                    (peer, is_accepted) = peer.asking(request, defences, &scene.service).await?;
                    anyhow::ensure!(is_accepted || sequence == 2, "the first round is honest");
                }
                Ok(is_accepted)
            }
        }
    }
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (victim_end, attacker_end) = pipe();
        let attacker = async {
            let mut victim = Peer::server(scene.key.clone(), attacker_end).await?;
            victim.greet(false).await?;
            let request = victim.request().await?;
            let evidence = victim.evidence(ends.defences(), &scene.service, &request)?;
            victim.send_evidence(&request, evidence.clone()).await?;
            let Frame::Accepted { .. } = victim.receive().await? else {
                bail!("the first round is honest");
            };
            let request = victim.request().await?;
            victim.send_evidence(&request, evidence).await?;
            victim.until_closed().await;
            Ok(())
        };
        meanwhile(device(ends, &scene, victim_end), attacker).await
    }
    only_succeeds_with(NO_REQUEST, attack).await
}

/// A relay has the service bind its evidence to the relay's own connection with the victim. The victim
/// has all its defences.
#[tokio::test]
async fn a_binding_named_in_a_request_needs_an_attester_that_takes_it() -> Result<()> {
    const ORACLE: Defences = Defences {
        no_oracle: false,
        ..Defences::ALL
    };
    async fn attack(ends: Ends) -> Result<bool> {
        let scene = Scene::new()?;
        let (victim_end, relay_end) = pipe();
        let (upstream_end, service_end) = pipe();
        let relay = async {
            let mut victim = Peer::server(scene.key.clone(), relay_end).await?;
            let mut upstream = Peer::client(&scene.issuer, upstream_end).await?;
            upstream.greet(true).await?;
            victim.greet(false).await?;
            let request = victim.request().await?;
            let (_, binding) = victim.binding(Defences::ALL, SERVER, &request)?;
            let attestation::Binding::Connection(value) = binding else {
                bail!("{binding:?}");
            };
            let named = Some(*value.as_bytes());
            let asked = Request {
                named,
                ..request.clone()
            };
            upstream.send(Frame::Request(asked)).await?;
            // An honest service closes the connection, and there is nothing to show.
            let evidence = upstream.answer().await.unwrap_or_default();
            victim.send_evidence(&request, evidence).await?;
            victim.until_closed().await;
            anyhow::Ok(())
        };
        let service = async {
            let _ = scene.serve(ends, service_end).await;
            Ok(())
        };
        let others = async { tokio::try_join!(relay, service).map(drop) };
        meanwhile(scene.device(Ends::Ours, victim_end), others).await
    }
    only_succeeds_with(ORACLE, attack).await
}
