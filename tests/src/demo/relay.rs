//! A relay between a device and a service: a genuine VM of the same host, in the hands of an attacker.
//!
//! It passes challenges in the clear on to the service. TLS it terminates with its own vRoT's key, whose
//! certificate the host's issuer stands behind, and as evidence it shows what the service answers to
//! a challenge with the device's nonce.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use attestation::{Binding, Nonce};
use attested_tls::tls::KeyExchange;
use attested_tls::{Attester, Demand, EvidenceFuture, NoDemand, NoEvidence};
use connection_proxy::{Limits, Stop, serve};
use rustls::server::WebPkiClientVerifier;
use tokio::io::copy_bidirectional;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::task::spawn_blocking;
use vrot_device::challenge;
use vrot_service::attester::TpmAddress;
use vrot_service::devices::Told;
use vrot_service::proxy::Proxy;
use vrot_service::tls_identity::TlsIdentity;
use vrot_service::tls_key::TpmTlsKey;

use super::stage::Stage;
use crate::proxied_vm::ProxiedVm;

/// A running relay.
pub(super) struct Relay {
    /// Where it passes challenges on.
    pub(super) challenges: SocketAddr,
    /// Where it terminates TLS.
    pub(super) attested: SocketAddr,
    _runtime: Runtime,
}

/// Shows the evidence of another VM.
struct OthersEvidence {
    challenges: SocketAddr,
}

const LIMITS: Limits = Limits {
    connections: 16,
    of_a_peer: 16,
};

impl Relay {
    /// Starts a relay to a service that answers challenges and takes connections there.
    pub(super) fn start(
        stage: &Stage,
        challenges: SocketAddr,
        attested: SocketAddr,
    ) -> Result<Self> {
        let vm = ProxiedVm::boot(&stage.host, &stage.run.join("relay"))?;
        let tpm: TpmAddress = vm.bare.tpm().parse()?;
        let runtime = Runtime::new().context("no threads can be started")?;
        let (challenges, attested) = runtime.block_on(async {
            let passing = pass_on(challenges).await?;
            let terminating = terminate(&tpm, challenges, attested).await?;
            anyhow::Ok((passing, terminating))
        })?;
        Ok(Self {
            challenges,
            attested,
            _runtime: runtime,
        })
    }
}

/// Passes everything on.
async fn pass_on(to: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let listen = listener.local_addr()?;
    tokio::spawn(async move {
        while let Ok((mut device, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut service = TcpStream::connect(to).await?;
                copy_bidirectional(&mut device, &mut service).await
            });
        }
    });
    Ok(listen)
}

/// Takes connections as the service would, but with the key of another vRoT.
async fn terminate(
    tpm: &TpmAddress,
    challenges: SocketAddr,
    forward: SocketAddr,
) -> Result<SocketAddr> {
    let identity = TlsIdentity::wait_for(
        TpmTlsKey::open(tpm)?,
        WebPkiClientVerifier::no_client_auth(),
        KeyExchange::HybridFirst,
    )
    .await?;
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let listen = listener.local_addr()?;
    let proxy = Proxy {
        identity,
        attester: Arc::new(OthersEvidence { challenges }),
        demands: Box::new(|| NoDemand),
        told: |()| Told::any(),
        forward: forward.to_string().parse()?,
        tells_who: false,
    };
    tokio::spawn(async move {
        serve(
            listener,
            LIMITS,
            &Stop::after(Duration::ZERO),
            Arc::new(proxy),
        )
        .await;
    });
    Ok(listen)
}

impl Attester for OthersEvidence {
    fn evidence(&self, _: &Demand, nonce: Nonce, _: Binding) -> EvidenceFuture {
        let service = self.challenges.to_string();
        Box::pin(async move {
            let asked = spawn_blocking(move || challenge(&service, &nonce)).await;
            asked.ok().and_then(Result::ok).ok_or(NoEvidence::Tpm)
        })
    }
}
