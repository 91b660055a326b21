//! Attacks on the connection between a device and a service, and what they come to where the defence
//! that meets them is taken out.
//!
//! An attack has succeeded when the attacker reads what a device sends. Each one fails against the
//! device as it is, and against [`Weakened`] with nothing taken out; and it succeeds once the one
//! defence is gone, so it is that defence which met it, and the test can tell.

mod keys;
mod relays;
mod standing;
mod weakened;

use attestation::Policy;
use attested_tls::{AttestedStream, NoDemand, accept};
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use vrot_device::Connector;

use crate::support::{Machine, Service, address, deadlines};
use weakened::{Weakened, Without};

/// A device, as an attacker sees it.
trait Victim {
    async fn connect(&self, transport: DuplexStream) -> Option<AttestedStream>;
}

impl Victim for Connector {
    async fn connect(&self, transport: DuplexStream) -> Option<AttestedStream> {
        let attested = self.attest(transport, &address()).await;
        attested.ok().map(|attested| attested.stream)
    }
}

/// Both ends of a connection whose device believes it to be good.
async fn deceived(
    attacker: &Service,
    device: &impl Victim,
) -> Option<(AttestedStream, AttestedStream)> {
    let (theirs, ours) = duplex(64 * 1024);
    let attester = Arc::clone(&attacker.attester);
    let (accepted, connected) = tokio::join!(
        accept(theirs, &attacker.tls, attester, NoDemand, deadlines()),
        device.connect(ours),
    );
    Some((accepted.ok()?.stream, connected?))
}

const SECRET: &[u8] = b"what is meant for the genuine service alone";

/// Whether a device's data pass to the attacker's end.
async fn passes(attacker: &mut AttestedStream, device: &mut AttestedStream) -> bool {
    let mut stolen = vec![0; SECRET.len()];
    device.write_all(SECRET).await.is_ok()
        && attacker.read_exact(&mut stolen).await.is_ok()
        && stolen == SECRET
}

/// Whether the attacker gets what the device sends.
async fn is_robbed(attacker: &Service, device: &impl Victim) -> bool {
    match deceived(attacker, device).await {
        Some((mut theirs, mut ours)) => passes(&mut theirs, &mut ours).await,
        None => false,
    }
}

/// The attack fails against devices that mean `genuine`, and succeeds where a defence is taken out.
async fn assert_it_takes(attacker: &Service, genuine: &Machine, without: Without) {
    let policy = || -> Policy { (genuine.host.read_policy(&genuine.policy_text())).unwrap() };
    assert!(
        !is_robbed(attacker, &genuine.connector()).await,
        "the attack succeeds"
    );
    assert!(
        !is_robbed(attacker, &Weakened::new(policy(), Without::nothing())).await,
        "the attack succeeds with all defences in their places"
    );
    assert!(
        is_robbed(attacker, &Weakened::new(policy(), without)).await,
        "it is not this defence that meets the attack"
    );
}

/// Otherwise no attack would be one.
#[tokio::test]
async fn an_honest_service_gets_the_data_of_every_device_here() {
    let (host, vm) = crate::support::host_and_vm();
    let genuine = Machine::new(host, vm);
    let policy = (genuine.host.read_policy(&genuine.policy_text())).unwrap();
    assert!(is_robbed(&genuine.service(), &genuine.connector()).await);
    let same = Weakened::new(policy, Without::nothing());
    assert!(is_robbed(&genuine.service(), &same).await);
}
