//! A host with a VM, what is made of its evidence, and why.

use attestation::fixture::{Host, Vm, nonce, now};
use attestation::{AttestationResult, Evidence, Layer, Purpose, Refusal, VerifiedEvidence};
use cert_chain::TrustAnchors;
use rustls_pki_types::UnixTime;

pub(crate) fn host_and_vm() -> (Host, Vm) {
    let host = Host::new("host-1");
    let vm = host.vm();
    (host, vm)
}

pub(crate) fn anchors(host: &Host) -> TrustAnchors {
    TrustAnchors::from_pem(&host.issuer.certificate_pem()).unwrap()
}

pub(crate) fn verify_at(
    host: &Host,
    evidence: &Evidence,
    at: UnixTime,
) -> Result<VerifiedEvidence, Refusal> {
    evidence.verify(&nonce(), &Purpose::Challenge, &anchors(host), at)
}

pub(crate) fn code_of(host: &Host, evidence: &Evidence) -> &'static str {
    verify_at(host, evidence, now()).unwrap_err().code()
}

pub(crate) fn reasons(result: &AttestationResult, layer: Layer) -> Vec<&'static str> {
    let reasons = result.layer(layer).reasons().iter();
    reasons.map(|reason| reason.code).collect()
}
