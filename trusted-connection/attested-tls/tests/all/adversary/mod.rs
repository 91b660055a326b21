//! Attacks on attested connections. Each is carried out against this crate's ends, which it must not
//! get past; against ends that are written anew from `docs/connection.md`, which it must not get past
//! either; and against the same ends without the one defence that it is about, where it must succeed:
//! otherwise the attack would show nothing.

mod binding;
mod evidence;
mod handshake;
mod negotiation;
pub(crate) mod peer;

use std::cell::RefCell;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use attested_tls::tls::ServerTls;
use attested_tls::{Attester, ConnectionError, NoDemand, Unattested, accept, connect};
use rustls::sign::CertifiedKey;
use tokio::io::{DuplexStream, duplex};

use crate::support::{Issuer, NAME, Signer, Trusting, deadlines, name};
use peer::{Defences, Peer};

/// Longer than any deadline of an end.
const PATIENCE: Duration = Duration::from_secs(40);

/// Whose ends an attack is carried out against.
#[derive(Clone, Copy, Debug)]
enum Ends {
    /// Those of this crate.
    Ours,
    /// Those of [`peer`], with these defences.
    Written(Defences),
}

impl Ends {
    /// What their attesters bind evidence to.
    fn defences(self) -> Defences {
        match self {
            Self::Ours => Defences::ALL,
            Self::Written(defences) => defences,
        }
    }
}

/// An issuer, a service with its root of trust, and its TLS key.
struct Scene {
    issuer: Issuer,
    key: CertifiedKey,
    service: Arc<Signer>,
}

impl Scene {
    fn new() -> Result<Self> {
        let issuer = Issuer::new()?;
        let key = issuer.certified(NAME)?;
        let service = Signer::new()?;
        Ok(Self {
            issuer,
            key,
            service,
        })
    }

    fn server_tls(&self) -> Result<ServerTls> {
        self.issuer.server_with(self.key.clone())
    }

    /// A device that demands the service's evidence: whether it takes its peer for the service.
    async fn device(&self, ends: Ends, io: DuplexStream) -> Result<bool> {
        self.device_with(ends, io, Arc::new(Unattested)).await
    }

    /// The same, which attests itself.
    async fn attesting_device(&self, ends: Ends, io: DuplexStream) -> Result<bool> {
        self.device_with(ends, io, self.service.clone()).await
    }

    async fn device_with(
        &self,
        ends: Ends,
        io: DuplexStream,
        attester: Arc<dyn Attester>,
    ) -> Result<bool> {
        match ends {
            Ends::Ours => {
                let trusting = Trusting::new(&self.service);
                let tls = self.issuer.client()?;
                accepted(connect(io, &tls, name(), attester, trusting, deadlines()).await)
            }
            Ends::Written(defences) => {
                let peer = Peer::client(&self.issuer, io).await?;
                peer.demanding(defences, &self.service).await
            }
        }
    }

    /// The service, which attests itself to whoever connects, and demands nothing.
    async fn serve(&self, ends: Ends, io: DuplexStream) -> Result<()> {
        match ends {
            Ends::Ours => {
                let attester = self.service.clone();
                let attested =
                    accept(io, &self.server_tls()?, attester, NoDemand, deadlines()).await?;
                attested.stream.ended().await?;
                Ok(())
            }
            Ends::Written(defences) => {
                let peer = Peer::server(self.key.clone(), io).await?;
                peer.attesting(defences, &self.service).await
            }
        }
    }
}

/// Whether a peer was accepted; any other error than a refusal is one of the test.
fn accepted<T>(outcome: Result<T, ConnectionError>) -> Result<bool> {
    match outcome {
        Ok(_) => Ok(true),
        Err(ConnectionError::Refused(_)) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

/// What becomes of `victim` while the others do what they do, for as long as it takes.
async fn meanwhile<T>(
    victim: impl Future<Output = Result<T>>,
    others: impl Future<Output = Result<()>>,
) -> Result<T> {
    let done = RefCell::new(None);
    let others = async {
        let outcome = others.await;
        *done.borrow_mut() = Some(outcome);
        std::future::pending().await
    };
    let outcome = tokio::select! {
        outcome = victim => outcome,
        () = others => unreachable!("it is pending"),
        () = tokio::time::sleep(PATIENCE) => Err(anyhow::anyhow!("it waits without end")),
    };
    outcome.with_context(|| format!("beside: {:?}", done.borrow()))
}

/// The attack fails, and succeeds where the ends have these defences only.
async fn only_succeeds_with<F>(defences: Defences, attack: impl Fn(Ends) -> F) -> Result<()>
where
    F: Future<Output = Result<bool>>,
{
    for ends in [Ends::Ours, Ends::Written(Defences::ALL)] {
        ensure!(
            !attack(ends).await.with_context(|| format!("{ends:?}"))?,
            "it succeeds: {ends:?}"
        );
    }
    let weak = Ends::Written(defences);
    ensure!(
        attack(weak).await?,
        "it fails without the defence, too, so it shows nothing"
    );
    Ok(())
}

fn pipe() -> (DuplexStream, DuplexStream) {
    duplex(1 << 16)
}

/// Ends of this crate and ends that are written anew speak the same protocol.
#[tokio::test]
async fn both_kinds_of_ends_attest_themselves_to_each_other() -> Result<()> {
    let written = Ends::Written(Defences::ALL);
    for (device, service) in [
        (Ends::Ours, written),
        (written, Ends::Ours),
        (written, written),
    ] {
        let scene = Scene::new()?;
        let (near, far) = pipe();
        let accepted = meanwhile(scene.device(device, near), scene.serve(service, far)).await?;
        ensure!(accepted, "{device:?} does not accept {service:?}");
    }
    Ok(())
}
