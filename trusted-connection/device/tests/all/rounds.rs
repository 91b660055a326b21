//! Connections that live on are attested anew, and end when they cannot be.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use attestation::evidence::CarriedCrls;
use attestation::fixture::event_log;
use attestation::{Durability, Evidence};
use attested_tls::{CloseReason, ConnectionError};
use cert_chain::Generation;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::timeout;
use trusted_connection::crl_files::CrlFiles;
use vrot_device::connection::{Change, changes};

use crate::support::{Machine, host_and_vm, meet};

const LONG: Duration = Duration::from_secs(60);

/// Results that live briefly, and long enough for a machine that is busy with other tests.
fn briefly(policy: &str) -> String {
    format!("[freshness]\nresult_lifetime_s = 4\n\n{policy}")
}

#[tokio::test]
async fn a_connection_is_attested_anew_while_it_lives_and_changes_are_told() {
    let (host, vm) = host_and_vm();
    let degraded = Arc::new(AtomicBool::new(false));
    let is_degraded = Arc::clone(&degraded);
    let machine = Machine::making(
        host,
        vm,
        Box::new(move |host, vm, nonce, binding| {
            let layer = vm.layer(host, nonce, binding);
            let mut leaf = host.leaf(vm, &layer);
            if is_degraded.load(Ordering::SeqCst) {
                leaf.durability = Durability::Degraded;
            }
            Evidence::new(layer, host.layer(&[leaf], 0))
        }),
    );
    let policy = briefly(&machine.policy_text());
    let policy = format!("[connection]\nverdict = \"warning\"\n\n{policy}");
    let (served, connected) = meet(&machine.service(), &machine.connector_with(&policy)).await;
    let (mut served, mut connected) = (served.unwrap(), connected.unwrap());
    degraded.store(true, Ordering::SeqCst);
    let found = async {
        loop {
            connected.appraisals.changed().await.unwrap();
            let later = connected.appraisals.borrow_and_update().clone().unwrap();
            let found = changes(&connected.appraisal, &later);
            if !found.is_empty() {
                break found;
            }
        }
    };
    let found = timeout(LONG, found).await.unwrap();
    assert!(found.contains(&Change::Degraded), "{found:?}");
    // Data pass as before.
    connected.stream.write_all(b"still here").await.unwrap();
    let mut read = [0; 10];
    served.stream.read_exact(&mut read).await.unwrap();
    assert_eq!(&read, b"still here");
}

#[tokio::test]
async fn a_vm_that_is_not_what_it_was_loses_its_connection_and_both_ends_hear_why() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let policy = briefly(&machine.policy_text());
    let (served, connected) = meet(&machine.service(), &machine.connector_with(&policy)).await;
    let (served, mut connected) = (served.unwrap(), connected.unwrap());
    machine.vm.lock().unwrap().log = event_log(&[(0, 0x8000_0008, b"other firmware")]);
    let mut rest = Vec::new();
    let broken = timeout(LONG, connected.stream.read_to_end(&mut rest)).await;
    assert!(broken.unwrap().is_err());
    let (one, other) = tokio::join!(served.stream.ended(), connected.stream.ended());
    let (one, other) = (one.unwrap_err(), other.unwrap_err());
    assert!(
        matches!(*one, ConnectionError::ClosedByPeer(CloseReason::Refused)),
        "{one:?}"
    );
    let text = printable::WithCauses(&*other).to_string();
    assert!(
        matches!(*other, ConnectionError::Refused(_)) && text.contains("pcr-unexpected"),
        "{text}"
    );
}

/// The list is replaced while the connection lives.
#[tokio::test]
async fn a_host_that_is_revoked_loses_its_connections_at_the_next_round() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let host = &machine.host;
    let list = tempfile::NamedTempFile::new().unwrap();
    let clean = host.revocation_list(1, 60, &[]);
    fs::write(list.path(), clean.to_pem()).unwrap();
    let lists = Arc::new(CrlFiles::open(&[list.path().to_owned()]).unwrap());
    let connector = machine.connector_with(&briefly(&machine.policy_text()));
    let connector = connector.with_crls(lists);
    let (served, connected) = meet(&machine.service(), &connector).await;
    let (_served, mut connected) = (served.unwrap(), connected.unwrap());
    let revoking = host.revocation_list(2, 60, &[&host.certificate]);
    fs::write(list.path(), revoking.to_pem()).unwrap();
    let mut rest = Vec::new();
    let broken = timeout(LONG, connected.stream.read_to_end(&mut rest)).await;
    assert!(broken.unwrap().is_err());
    let ended = connected.stream.ended().await.unwrap_err();
    let text = printable::WithCauses(&*ended).to_string();
    assert!(text.contains("revoked"), "{text}");
}

/// Its service carries the list that says so, and later, when somebody else rules it, an older one.
#[tokio::test]
async fn a_host_that_was_seen_revoked_does_not_come_back_with_an_older_list() {
    let (host, vm) = host_and_vm();
    let carried = Arc::new(AtomicU64::new(1));
    let number = Arc::clone(&carried);
    let machine = Machine::making(
        host,
        vm,
        Box::new(move |host, vm, nonce, binding| {
            let number = number.load(Ordering::SeqCst);
            let revoked = [&host.certificate[..]];
            let revoked = if number > 1 { &revoked[..] } else { &[] };
            let list = host.revocation_list(number, 60, revoked);
            let evidence = host.evidence(vm, nonce, binding);
            evidence.carrying(CarriedCrls::new([list.der().to_vec()]))
        }),
    );
    let demand = "\n[revocation]\nmax_crl_age_s = 86400\n";
    let connector = machine.connector_with(&(machine.policy_text() + demand));
    let service = machine.service();
    assert!(meet(&service, &connector).await.1.is_ok());
    for number in [2, 1] {
        carried.store(number, Ordering::SeqCst);
        let refused = meet(&service, &connector).await.1.err().unwrap();
        let text = printable::WithCauses(&refused).to_string();
        assert!(text.contains("revoked"), "{text}");
    }
    // Who has not seen it cannot know.
    let stranger = machine.connector_with(&(machine.policy_text() + demand));
    assert!(meet(&service, &stranger).await.1.is_ok());
}

#[test]
fn two_appraisals_show_together_what_neither_shows_alone() {
    let (mut host, mut vm) = host_and_vm();
    let policy = host.policy(&vm);
    let before = host.appraise(&vm, &policy);
    assert_eq!(changes(&before, &host.appraise(&vm, &policy)), []);
    vm.resets += 1;
    let after = host.appraise(&vm, &policy);
    assert_eq!(changes(&before, &after), [Change::VmReset]);
    host.resets += 1;
    let reset = host.appraise(&vm, &policy);
    assert_eq!(changes(&after, &reset), [Change::HostReset]);
    let restored = host.appraise(&host.restored(vm), &policy);
    assert_eq!(
        changes(&reset, &restored),
        [Change::Generation(Generation::new(1), Generation::new(2))]
    );
}
