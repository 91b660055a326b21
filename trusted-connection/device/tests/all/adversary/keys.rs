//! Keys and bindings in the place of others.

use std::sync::Arc;

use attestation::fixture::signing_area;
use attestation::{Binding, Evidence};
use cert_chain::{ObjectAttributes, VmId};
use rcgen::{KeyPair, SanType};

use super::assert_it_takes;
use super::weakened::Without;
use crate::support::{Machine, host_and_vm};

/// Somebody had a key of their own certified under the VM's name, and can have the VM's attester make
/// evidence for their connection; but they have not the key in the vRoT.
#[tokio::test]
async fn a_key_that_was_put_in_the_place_of_the_vrots() {
    let (host, vm) = host_and_vm();
    let genuine = Machine::new(host, vm);
    let own = KeyPair::generate().unwrap();
    let attacker = genuine.service_with(genuine.certify(&own, |_| {}), &own);
    assert_it_takes(&attacker, &genuine, Without::the_key_of_the_handshake()).await;
}

/// The VM's root user imported a TLS key into the vRoT, whose copy is elsewhere, and had it certified
/// by the vIK and the host like the one that was made there.
#[tokio::test]
async fn a_tls_key_that_was_imported_into_the_vrot() {
    let (host, vm) = host_and_vm();
    let policy = host.policy_text(&vm);
    let attacker = Machine::making(
        host,
        vm,
        Box::new(|host, vm, nonce, binding| {
            let imported = signing_area(&vm.tls_key, ObjectAttributes::SIGN);
            let statement = vm.statement_about(imported);
            let layer = vm.layer_with(host, nonce, binding, Some(statement));
            let leaf = host.leaf(vm, &layer);
            Evidence::new(layer, host.layer(&[leaf], 0))
        }),
    );
    assert_eq!(attacker.policy_text(), policy);
    let service = attacker.service();
    assert_it_takes(&service, &attacker, Without::attributes_of_the_key()).await;
}

/// Evidence without a binding, with the statement about the TLS key that a connection's evidence has:
/// what an attester signs that answers challenges in the clear.
fn unbound(
    host: &attestation::fixture::Host,
    vm: &attestation::fixture::Vm,
    nonce: &attestation::Nonce,
) -> Evidence {
    let statement = Some(vm.tls_key_statement());
    let layer = vm.layer_with(host, nonce, Binding::None, statement);
    let leaf = host.leaf(vm, &layer);
    Evidence::new(layer, host.layer(&[leaf], 0))
}

/// The evidence has the right binding written beside the quote, which was made without it.
#[tokio::test]
async fn a_binding_beside_the_quote_instead_of_in_it() {
    let (host, vm) = host_and_vm();
    let attacker = Machine::making(
        host,
        vm,
        Box::new(|host, vm, nonce, binding| {
            let mut evidence = unbound(host, vm, nonce);
            evidence.vm.binding = binding;
            evidence
        }),
    );
    let service = attacker.service();
    assert_it_takes(&service, &attacker, Without::a_binding_in_the_quote()).await;
}

#[tokio::test]
async fn an_empty_binding() {
    let (host, vm) = host_and_vm();
    let attacker = Machine::making(
        host,
        vm,
        Box::new(|host, vm, nonce, _| unbound(host, vm, nonce)),
    );
    let service = attacker.service();
    assert_it_takes(&service, &attacker, Without::a_binding_that_must_be_there()).await;
}

/// The VM's own key with a certificate that calls it another VM: whoever decides by the certificate
/// alone, as any TLS client does, takes it for that one.
#[tokio::test]
async fn a_certificate_with_another_vms_name() {
    let (host, vm) = host_and_vm();
    let genuine = Machine::new(host, vm);
    let key = genuine.tls_key();
    let chain = genuine.certify(&key, |params| {
        let other = format!("urn:uuid:{}", VmId::random());
        params.subject_alt_names[0] = SanType::URI(other.try_into().unwrap());
    });
    let attacker = Arc::clone(&genuine).service_with(chain, &key);
    assert_it_takes(&attacker, &genuine, Without::names()).await;
}
