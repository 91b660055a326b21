//! Somebody between a device and a service.

use std::sync::Arc;

use attestation::{Binding, Nonce};
use attested_tls::{Attester, Demand, EvidenceFuture};
use tokio::sync::watch;

use super::weakened::{Weakened, Without};
use super::{assert_it_takes, is_robbed};
use crate::support::{Machine, Service, host_and_vm, meet, neighbour};

/// Answers with evidence of a genuine machine, which that gives to whoever asks: for the nonce that the
/// device asks for, and bound to what the attacker's own way to that machine can have it bound to.
struct Relaying {
    genuine: Arc<Machine>,
    bound_to: Binding,
}

impl Attester for Relaying {
    fn evidence(&self, demand: &Demand, nonce: Nonce, _: Binding) -> EvidenceFuture {
        (self.genuine).evidence(demand, nonce, self.bound_to.clone())
    }
}

fn relaying(genuine: &Arc<Machine>, bound_to: Binding) -> Arc<dyn Attester> {
    Arc::new(Relaying {
        genuine: Arc::clone(genuine),
        bound_to,
    })
}

/// The attacker rules a VM on the genuine one's host. That has a TLS key with a certificate under the
/// same issuer, and the genuine VM answers challenges in the clear, the attacker's too.
#[tokio::test]
async fn a_relay_through_another_vm_of_the_same_host() {
    let (host, vm) = host_and_vm();
    let genuine = Machine::new(host, vm);
    let attacker = Service {
        attester: relaying(&genuine, Binding::None),
        ..genuine.sibling().service()
    };
    assert_it_takes(&attacker, &genuine, Without::any_tie_to_the_connection()).await;
}

#[tokio::test]
async fn a_relay_through_another_host() {
    let (host, vm) = host_and_vm();
    let (elsewhere, other) = neighbour(&host);
    let genuine = Machine::new(host, vm);
    let attacker = Service {
        attester: relaying(&genuine, Binding::None),
        ..Machine::new(elsewhere, other).service()
    };
    assert_it_takes(&attacker, &genuine, Without::any_tie_to_the_connection()).await;
}

/// The middlebox even has the genuine service's TLS key, and a connection of its own to that service,
/// which attests itself on it and takes the device's nonce for the middlebox's.
#[tokio::test]
async fn a_middlebox_that_terminates_tls_with_the_services_own_key() {
    let (host, vm) = host_and_vm();
    let genuine = Machine::new(host, vm);
    let (served, upstream) = meet(&genuine.service(), &genuine.connector()).await;
    let _upstream = (served.unwrap(), upstream.unwrap());
    let bound_to = (genuine.made.lock().unwrap().last())
        .map(|made| made.vm.binding.clone())
        .unwrap();
    assert!(matches!(bound_to, Binding::Connection(_)));
    let attacker = Service {
        attester: relaying(&genuine, bound_to),
        ..genuine.service()
    };
    assert_it_takes(&attacker, &genuine, Without::the_binding()).await;
}

/// Everything is genuine; it is another VM that booted the same, and one that somebody else uses.
#[tokio::test]
async fn a_diversion_to_an_identical_machine() {
    let (host, vm) = host_and_vm();
    let pinned = format!("vm = \"{}\"\n", vm.vm);
    let genuine = Machine::new(host, vm);
    let attacker = genuine.sibling().service();
    assert!(!is_robbed(&attacker, &genuine.connector()).await);
    let policy = genuine.policy_text();
    assert!(policy.contains(&pinned));
    let whichever = genuine.connector_with(&policy.replace(&pinned, ""));
    assert!(is_robbed(&attacker, &whichever).await);
}

/// Gives each of two devices the evidence that was made for the other.
struct Swapping {
    genuine: Arc<Machine>,
    asked: watch::Sender<Vec<(Nonce, Binding)>>,
}

impl Attester for Swapping {
    fn evidence(&self, demand: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        let (genuine, demand) = (Arc::clone(&self.genuine), demand.clone());
        let mut asked = self.asked.subscribe();
        self.asked
            .send_modify(|asked| asked.push((nonce.clone(), binding)));
        Box::pin(async move {
            let both = asked.wait_for(|asked| asked.len() == 2).await;
            let other = both.ok().and_then(|both| {
                let mut others = both.iter().filter(|(of, _)| *of != nonce);
                others.next().cloned()
            });
            let (nonce, binding) = other.unwrap();
            genuine.evidence(&demand, nonce, binding).await
        })
    }
}

/// Both are genuine, of the same VM, and as fresh as evidence can be.
#[tokio::test]
async fn evidence_of_another_connection_at_the_same_time() {
    let (host, vm) = host_and_vm();
    let genuine = Machine::new(host, vm);
    let attacker = || Service {
        attester: Arc::new(Swapping {
            genuine: Arc::clone(&genuine),
            asked: watch::Sender::default(),
        }),
        ..genuine.service()
    };
    let policy = || (genuine.host.read_policy(&genuine.policy_text())).unwrap();
    let at_once = attacker();
    let (connector, same) = (genuine.connector(), genuine.connector());
    let robbed = tokio::join!(is_robbed(&at_once, &connector), is_robbed(&at_once, &same));
    assert_eq!(robbed, (false, false));
    for (without, expected) in [
        (Without::nothing as fn() -> Without, false),
        (Without::its_own_request, true),
    ] {
        let at_once = attacker();
        let one = Weakened::new(policy(), without());
        let other = Weakened::new(policy(), without());
        let robbed = tokio::join!(is_robbed(&at_once, &one), is_robbed(&at_once, &other));
        assert_eq!(robbed, (expected, expected));
    }
}
