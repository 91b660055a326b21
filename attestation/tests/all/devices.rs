//! Evidence of devices: what is accepted, and what is refused and why.

use attestation::device::fixture::FixtureDevice;
use attestation::device::{
    DeviceEvidence, DeviceIdentity, DevicePolicy, appraise_device, appraise_software_key,
};
use attestation::fixture::{Host, NOW, event_log, nonce, now};
use attestation::policy::PolicyError;
use attestation::refusal::Device;
use attestation::{
    Binding, BootRecord, Nonce, Refusal, Verdict, host_qualifying_data, vm_qualifying_data,
    vm_request_leaf,
};
use cert_chain::{Digest32, TrustAnchors, VerifiedClientCertificate};
use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
};

fn device() -> FixtureDevice {
    FixtureDevice::under(Host::new("host-1").issuer, "plant-7/meter-12")
}

fn connection() -> Binding {
    Binding::Connection(Digest32::of(b"this connection"))
}

fn refusal(evidence: &DeviceEvidence, policy: &DevicePolicy) -> Refusal<Device> {
    let anchors = policy.anchors().unwrap();
    let verified = evidence.verify(&nonce(), &connection(), anchors, now());
    verified.unwrap_err()
}

fn codes(device: &FixtureDevice, policy: &DevicePolicy) -> (Verdict, Vec<&'static str>) {
    let evidence = device.evidence(&nonce(), connection());
    let verified = evidence
        .verify(&nonce(), &connection(), policy.anchors().unwrap(), now())
        .unwrap();
    let result = appraise_device(verified, policy);
    assert_eq!(result.is_accepted(), result.verdict() == Verdict::Affirming);
    let reasons = result.layer().reasons().iter();
    (
        result.verdict(),
        reasons.map(|reason| reason.code).collect(),
    )
}

#[test]
fn a_device_that_booted_as_it_should_is_accepted_for_the_policy_s_time() {
    let device = device();
    let policy = device.policy();
    let bytes = device.evidence(&nonce(), connection()).to_cbor();
    let evidence = DeviceEvidence::from_cbor(&bytes).unwrap();
    let verified = evidence
        .verify(&nonce(), &connection(), policy.anchors().unwrap(), now())
        .unwrap();
    let result = appraise_device(verified, &policy);
    assert!(result.is_accepted());
    assert_eq!(result.verdict(), Verdict::Affirming);
    assert_eq!(result.name(), "spiffe://demo.example/plant-7/meter-12");
    assert!(matches!(result.identity(), DeviceIdentity::Attested(_)));
    assert_eq!(result.expires_at().as_secs(), NOW + 300);
    let json = result.to_json();
    assert_eq!(json["verdict"], "affirming");
    let claims = &json["submods"]["device"]["ear_attester_claims"];
    assert_eq!(claims["root-of-trust"], "TPM");
}

#[test]
fn a_policy_accepts_groups_and_no_device_outside_them() {
    let device = device();
    let with = |devices: &str| {
        let text = device.policy_text();
        let text = text.replace("\"spiffe://demo.example/plant-7/meter-12\"", devices);
        device.read_policy(&text)
    };
    for (devices, accepted) in [
        ("\"spiffe://demo.example/plant-7/*\"", true),
        ("\"spiffe://demo.example/*\"", true),
        (
            "\"spiffe://demo.example/other\", \"spiffe://demo.example/plant-7/meter-12\"",
            true,
        ),
        ("\"spiffe://demo.example/plant-7/meter-1\"", false),
        ("\"spiffe://demo.example/plant-7\"", false),
        ("\"spiffe://demo.example/plant/*\"", false),
        ("\"spiffe://demo.example/plant-7/meter-12/*\"", false),
        ("\"spiffe://demo/*\"", false),
    ] {
        let policy = with(devices).unwrap();
        let (verdict, codes) = codes(&device, &policy);
        assert_eq!(verdict == Verdict::Affirming, accepted, "{devices}");
        assert_eq!(codes == ["device-unexpected"], !accepted, "{devices}");
    }
    for devices in [
        "\"*\"",
        "\"spiffe://*\"",
        "\"spiffe://demo.example/*/a\"",
        "\"\"",
        "\"a\\u202eb\"",
    ] {
        assert!(
            matches!(with(devices), Err(PolicyError::Toml(_))),
            "{devices}"
        );
    }
    assert!(matches!(with(""), Err(PolicyError::NoDevices)));
    // A host's name, say.
    assert!(matches!(
        with("\"host-1.demo.example\""),
        Err(PolicyError::DeviceName { .. })
    ));
}

#[test]
fn a_device_that_booted_something_else_is_named_with_what_differs() {
    let mut device = device();
    let policy = device.policy();
    device.log = event_log(&[
        (0, 0x8000_0008, b"device firmware"),
        (4, 0x8000_0003, b"another boot loader"),
    ]);
    let (verdict, reasons) = codes(&device, &policy);
    assert_eq!(verdict, Verdict::Contraindicated);
    assert!(reasons.contains(&"pcr-unexpected"), "{reasons:?}");
    // Leaving the PCR out is no way around it.
    device.quoted.retain(|pcr| *pcr != 4);
    let (verdict, reasons) = codes(&device, &policy);
    assert_eq!(verdict, Verdict::Contraindicated);
    assert!(reasons.contains(&"pcr-not-quoted"), "{reasons:?}");
}

#[test]
fn an_answer_to_another_challenge_or_for_another_connection_is_refused() {
    let device = device();
    let policy = device.policy();
    let other = Nonce::new([1; 32]).unwrap();
    let old = device.evidence(&other, connection());
    assert!(matches!(refusal(&old, &policy), Refusal::Nonce));
    let elsewhere = Binding::Connection(Digest32::of(b"another connection"));
    for binding in [elsewhere, Binding::None] {
        let relayed = device.evidence(&nonce(), binding);
        assert!(matches!(
            refusal(&relayed, &policy),
            Refusal::Binding { .. }
        ));
        // Written into the evidence alone, and not into what the TPM signed.
        let mut relabelled = relayed;
        relabelled.quote.binding = connection();
        assert!(matches!(
            refusal(&relabelled, &policy),
            Refusal::QualifyingData(Device)
        ));
    }
    let mut renewed = old;
    renewed.quote.nonce = nonce();
    assert!(matches!(
        refusal(&renewed, &policy),
        Refusal::QualifyingData(Device)
    ));
}

/// One TPM could be a host's and a device's: what it signed as the one counts for nothing as the other.
#[test]
fn a_quote_for_another_purpose_is_none_of_a_device() {
    let device = device();
    let policy = device.policy();
    let log = Digest32::of(&device.log);
    let leaf = vm_request_leaf(&log, &nonce(), &connection(), None);
    for qualifying in [
        host_qualifying_data(&leaf, 1, &device.public.name(), &log),
        vm_qualifying_data(&leaf, 1, &BootRecord::of_log(device.log.clone())),
    ] {
        let evidence = device.evidence_over(&nonce(), connection(), &qualifying);
        assert!(matches!(
            refusal(&evidence, &policy),
            Refusal::QualifyingData(Device)
        ));
    }
}

#[test]
fn evidence_of_one_device_does_not_pass_as_that_of_another() {
    let host = Host::new("host-1");
    let ours = FixtureDevice::under(host.issuer_again(), "plant-7/meter-12");
    let theirs = FixtureDevice::under(host.issuer, "plant-7/meter-13");
    let policy = ours.policy();
    let (verdict, reasons) = codes(&theirs, &policy);
    assert_eq!(verdict, Verdict::Contraindicated);
    assert_eq!(reasons, ["device-unexpected"]);
    let mut composed = theirs.evidence(&nonce(), connection());
    composed.quote.certificate = ours.certificate.to_vec().into();
    assert!(matches!(
        refusal(&composed, &policy),
        Refusal::KeyMismatch(Device)
    ));
    composed.quote.ik_public = ours.public.public_area().as_bytes().to_vec().into();
    assert!(matches!(
        refusal(&composed, &policy),
        Refusal::Quote { layer: Device, .. }
    ));
}

#[test]
fn a_host_is_no_device() {
    let host = Host::new("host-1");
    let mut device = FixtureDevice::under(host.issuer_again(), "plant-7/meter-12");
    let policy = device.policy();
    device.certificate = host.certificate;
    device.public = host.public;
    device.key = host.key;
    let evidence = device.evidence(&nonce(), connection());
    assert!(matches!(refusal(&evidence, &policy), Refusal::Chain(_)));
}

#[test]
fn no_changed_byte_of_a_device_s_evidence_goes_unseen() {
    let device = device();
    let policy = device.policy();
    let genuine = device.evidence(&nonce(), connection());
    let bytes = genuine.to_cbor();
    for position in 0..bytes.len() {
        let mut changed = bytes.clone();
        changed[position] ^= 1;
        let Ok(evidence) = DeviceEvidence::from_cbor(&changed) else {
            continue;
        };
        let verified = evidence.verify(&nonce(), &connection(), policy.anchors().unwrap(), now());
        assert!(verified.is_err(), "byte {position}");
    }
    for length in 0..bytes.len() {
        assert!(DeviceEvidence::from_cbor(&bytes[..length]).is_err());
    }
}

/// An authority for TLS clients, and a certificate of one.
fn client(name: &str, purpose: ExtendedKeyUsagePurpose) -> (String, Vec<Vec<u8>>) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let mut params = CertificateParams::new([name.to_owned()]).unwrap();
    params.extended_key_usages = vec![purpose];
    let own = params
        .signed_by(&KeyPair::generate().unwrap(), &*issuer)
        .unwrap();
    (issuer.pem(), vec![own.der().to_vec()])
}

fn exemption(devices: &str) -> String {
    format!(
        "[exempt_software_keys]\nroots = \"meters.pem\"\ndevices = [{devices}]\nreason = \"no TPM in \
         series 3\"\n"
    )
}

#[test]
fn a_software_key_is_accepted_by_a_policy_that_exempts_it_and_the_verdict_says_so() {
    let (roots, chain) = client("meter-3.example.org", ExtendedKeyUsagePurpose::ClientAuth);
    let text = exemption("\"meter-3.example.org\"");
    let policy = DevicePolicy::parse(&text, |_| Ok(roots.clone())).unwrap();
    let anchors = policy.software_keys().unwrap().anchors();
    let verified = VerifiedClientCertificate::verify(&chain, anchors, now()).unwrap();
    let result = appraise_software_key(verified.clone(), &policy, &nonce(), now());
    assert!(result.is_accepted());
    assert_eq!(result.verdict(), Verdict::Warning);
    let reason = &result.layer().reasons()[0];
    assert_eq!(reason.code, "software-key-exempted");
    assert!(reason.text.contains("no root of trust"), "{}", reason.text);
    assert!(
        reason.text.ends_with("no TPM in series 3"),
        "{}",
        reason.text
    );
    let claims = &result.to_json()["submods"]["device"]["ear_attester_claims"];
    assert_eq!(claims["root-of-trust"], "none");

    // By no other policy.
    let policy = device().policy();
    let result = appraise_software_key(verified.clone(), &policy, &nonce(), now());
    assert!(!result.is_accepted());
    assert_eq!(result.layer().reasons()[0].code, "software-key");
    let text = exemption("\"meter-4.example.org\"");
    let policy = DevicePolicy::parse(&text, |_| Ok(roots.clone())).unwrap();
    let result = appraise_software_key(verified, &policy, &nonce(), now());
    assert!(!result.is_accepted());
    assert_eq!(result.layer().reasons()[0].code, "device-unexpected");
}

#[test]
fn a_certificate_that_is_no_client_s_or_another_authority_s_shows_nobody() {
    let (roots, server) = client("meter-3.example.org", ExtendedKeyUsagePurpose::ServerAuth);
    let anchors = TrustAnchors::from_pem(&roots).unwrap();
    assert!(VerifiedClientCertificate::verify(&server, &anchors, now()).is_err());
    let (_, others) = client("meter-3.example.org", ExtendedKeyUsagePurpose::ClientAuth);
    assert!(VerifiedClientCertificate::verify(&others, &anchors, now()).is_err());
    assert!(VerifiedClientCertificate::verify::<Vec<u8>>(&[], &anchors, now()).is_err());
}

#[test]
fn an_exemption_without_a_reason_or_half_a_policy_is_none() {
    let device = device();
    let exempting = |reason: &str| {
        let text = exemption("\"a.example\"").replace("no TPM in series 3", reason);
        device.read_policy(&text)
    };
    for reason in ["", "  ", &"r".repeat(257), "a\\u0007b"] {
        assert!(matches!(
            exempting(reason),
            Err(PolicyError::ExemptionReason)
        ));
    }
    let text = exemption("\"a.example\"");
    let unexplained = text.replace("reason = \"no TPM in series 3\"\n", "");
    assert!(matches!(
        device.read_policy(&unexplained),
        Err(PolicyError::Toml(_))
    ));
    assert!(matches!(
        device.read_policy(""),
        Err(PolicyError::NoDevices)
    ));
    let half = "[trust]\nroots = \"roots.pem\"\n";
    assert!(matches!(
        device.read_policy(half),
        Err(PolicyError::IncompleteDevices)
    ));
    let short = device.policy_text() + "\n[freshness]\nresult_lifetime_s = 1\n";
    assert!(matches!(
        device.read_policy(&short),
        Err(PolicyError::Lifetime { found: 1, .. })
    ));
    let unexpected = device
        .policy_text()
        .replace("[expect]", "[expect]\nany = true");
    assert!(matches!(
        device.read_policy(&unexpected),
        Err(PolicyError::Toml(_))
    ));
    let (head, _) = device
        .policy_text()
        .split_once("[device.reference]")
        .map(|(a, b)| (a.to_owned(), b.to_owned()))
        .unwrap();
    let no_reference = format!("{head}[device.reference]\n");
    assert!(matches!(
        device.read_policy(&no_reference),
        Err(PolicyError::NoReferenceValues { layer: "device" })
    ));
}
