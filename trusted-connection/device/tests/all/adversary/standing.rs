//! Evidence that was good once, results that have ended, and machines that nobody means.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use attestation::evidence::CarriedCrls;
use attestation::fixture::{Host, event_log};
use attestation::{Binding, Nonce};
use attested_tls::{Attester, Demand, EvidenceFuture, NoEvidence};
use rustls_pki_types::UnixTime;
use tokio::time::sleep;
use trusted_connection::crl_files::CrlFiles;

use super::weakened::{Weakened, Without};
use super::{assert_it_takes, deceived, is_robbed, passes};
use crate::support::{Machine, Service, host_and_vm, issuer_of, meet, neighbour, two_days_ago};

/// Evidence of a boot that was good, recorded before the VM booted something else.
#[tokio::test]
async fn stale_evidence_of_a_vm_that_has_booted_something_else_since() {
    let (host, vm) = host_and_vm();
    let genuine = Machine::new(host, vm);
    let (served, connected) = meet(&genuine.service(), &genuine.connector()).await;
    let _earlier = (served.unwrap(), connected.unwrap());
    let recorded = genuine.made.lock().unwrap().remove(0);
    struct Replaying(Vec<u8>);
    impl Attester for Replaying {
        fn evidence(&self, _: &Demand, _: Nonce, _: Binding) -> EvidenceFuture {
            Box::pin(std::future::ready(Ok(self.0.clone())))
        }
    }
    let attacker = Service {
        attester: Arc::new(Replaying(recorded.to_cbor())),
        ..genuine.service()
    };
    assert_it_takes(&attacker, &genuine, Without::its_own_request()).await;
}

/// The host may not renew the vRoT's certificate any more, and goes on with the old one.
#[tokio::test]
async fn evidence_under_certificates_that_have_expired() {
    let mut host = Host::made_at(two_days_ago(), "host-1");
    let vm = host.vm();
    // That of the TLS key is not what this is about.
    host.made_at = UnixTime::now();
    let attacker = Machine::new(host, vm);
    let service = attacker.service();
    assert_it_takes(&service, &attacker, Without::a_clock(two_days_ago())).await;
}

/// The VM attests itself once; then an attacker takes it over, and there is no evidence any more.
#[tokio::test]
async fn a_result_that_has_ended() {
    struct Once(Arc<Machine>, AtomicUsize);
    impl Attester for Once {
        fn evidence(&self, demand: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
            match self.1.fetch_add(1, Ordering::SeqCst) {
                0 => self.0.evidence(demand, nonce, binding),
                _ => Box::pin(std::future::ready(Err(NoEvidence::Host))),
            }
        }
    }
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let brief = machine.policy_text() + "\n[freshness]\nresult_lifetime_s = 2\n";
    let attacker = || Service {
        attester: Arc::new(Once(Arc::clone(&machine), AtomicUsize::new(0))),
        ..machine.service()
    };
    let policy = || machine.host.read_policy(&brief).unwrap();
    // Longer than a result lives, on a machine that may be slow.
    let later = Duration::from_secs(4);

    let connector = machine.connector_with(&brief);
    let (mut theirs, mut ours) = deceived(&attacker(), &connector).await.unwrap();
    sleep(later).await;
    assert!(!passes(&mut theirs, &mut ours).await);

    let as_it_is = Weakened::new(policy(), Without::nothing());
    let (mut theirs, mut ours) = deceived(&attacker(), &as_it_is).await.unwrap();
    sleep(later).await;
    assert!(!passes(&mut theirs, &mut ours).await);

    let credulous = Weakened::new(policy(), Without::an_end_of_results());
    let (mut theirs, mut ours) = deceived(&attacker(), &credulous).await.unwrap();
    sleep(later).await;
    assert!(passes(&mut theirs, &mut ours).await);
}

/// Whoever rules a genuine host chooses the ids of its VMs and what they boot.
#[tokio::test]
async fn a_genuine_host_that_nobody_named() {
    let (host, vm) = host_and_vm();
    let (elsewhere, other) = neighbour(&host);
    let policy = host
        .policy_text(&vm)
        .replace(&vm.vm.to_string(), &other.vm.to_string());
    let attacker = Machine::new(elsewhere, other);
    assert!(!is_robbed(&attacker.service(), &attacker.connector_with(&policy)).await);
    let whichever = policy.replace(
        "hosts = [\"host-1.demo.example\"]",
        "hosts = [\"host-1.demo.example\", \"host-2.demo.example\"]",
    );
    assert_ne!(policy, whichever);
    assert!(is_robbed(&attacker.service(), &attacker.connector_with(&whichever)).await);
}

/// A host of the same issuer in which somebody else's firmware runs.
#[tokio::test]
async fn a_host_that_booted_something_else() {
    let (host, vm) = host_and_vm();
    let policy = host.policy_text(&vm);
    let mut taken_over = Host::under_at(UnixTime::now(), issuer_of(&host), "host-1");
    taken_over.log = event_log(&[(0, 0x8000_0008, b"somebody else's firmware")]);
    let mut vm = taken_over.vm();
    vm.log = host.vm().log;
    let policy = policy.replace(&vm_line(&policy), &format!("vm = \"{}\"", vm.vm));
    let attacker = Machine::new(taken_over, vm);
    assert!(!is_robbed(&attacker.service(), &attacker.connector_with(&policy)).await);
    // Whatever the host booted will do.
    let whatever = attacker.policy_text();
    assert!(is_robbed(&attacker.service(), &attacker.connector_with(&whatever)).await);
}

fn vm_line(policy: &str) -> String {
    let line = policy.lines().find(|line| line.starts_with("vm = "));
    line.unwrap().to_owned()
}

/// A copy of the VM from before its vRoT was restored with sanction.
#[tokio::test]
async fn an_identity_that_has_been_replaced() {
    let (host, vm) = host_and_vm();
    let attacker = Machine::new(host, vm);
    let any = attacker.policy_text();
    let newer = any.replace("[expect]\n", "[expect]\nmin_generation = 2\n");
    assert!(!is_robbed(&attacker.service(), &attacker.connector_with(&newer)).await);
    assert!(is_robbed(&attacker.service(), &attacker.connector_with(&any)).await);
}

/// The issuer has revoked the host, whose keys somebody else may have. Nobody but the device's own list
/// says so: the attacker carries none.
#[tokio::test]
async fn a_host_that_was_revoked() {
    let (host, vm) = host_and_vm();
    let attacker = Machine::new(host, vm);
    let revoking = attacker
        .host
        .revocation_list(1, 60, &[&attacker.host.certificate]);
    let list = tempfile::NamedTempFile::new().unwrap();
    fs::write(list.path(), revoking.to_pem()).unwrap();
    let lists = CrlFiles::open(&[list.path().to_owned()]).unwrap();
    let informed = attacker.connector().with_crls(Arc::new(lists));
    assert!(!is_robbed(&attacker.service(), &informed).await);
    assert!(is_robbed(&attacker.service(), &attacker.connector()).await);
}

/// The device has no list of its own and depends on what evidence carries: nothing, or what the issuer
/// said before it revoked the host.
#[tokio::test]
async fn a_revocation_list_that_is_withheld_or_too_old() {
    const DAY: u64 = 86_400;
    for age_s in [None, Some(3 * DAY)] {
        let (host, vm) = host_and_vm();
        let attacker = Machine::making(
            host,
            vm,
            Box::new(move |host, vm, nonce, binding| {
                let evidence = host.evidence(vm, nonce, binding);
                let lists = age_s.map(|age_s| host.revocation_list(1, age_s, &[]));
                let lists = lists.map(|list| list.der().to_vec());
                evidence.carrying(CarriedCrls::new(lists))
            }),
        );
        let any = attacker.policy_text();
        let demanding = |max_age_s: u64| {
            let demand = format!("\n[revocation]\nmax_crl_age_s = {max_age_s}\n");
            attacker.connector_with(&(any.clone() + &demand))
        };
        let service = attacker.service();
        assert!(!is_robbed(&service, &demanding(DAY)).await);
        let undemanding = match age_s {
            None => attacker.connector(),
            Some(_) => demanding(7 * DAY),
        };
        assert!(is_robbed(&service, &undemanding).await);
    }
}
