//! What evidence is refused for: each lie has its own reason.

use attestation::evidence::{EvidenceError, MAX_EVIDENCE};
use attestation::fixture::{
    ATTESTATION, Host, TLS, Vm, event_log, nonce, now, quote, sign, signing_area,
};
use attestation::merkle::{Tree, leaf_hash};
use attestation::qualifying::{host_qualifying_data, vm_qualifying_data};
use attestation::{
    BOOT_PCRS, Binding, BootRecord, EventLog, Evidence, HostLeaf, KeyStatement, Layer, Nonce,
    Purpose, Refusal, VerifiedEvidence,
};
use cert_chain::{
    Digest32, Generation, HashAlgorithm, ObjectAttributes, PublicArea, TpmName, VmId, VrotId,
};

use crate::scene::{anchors, code_of, host_and_vm, verify_at};

#[test]
fn honest_evidence_is_verified() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), Binding::None);
    let decoded = Evidence::from_cbor(&evidence.to_cbor()).unwrap();
    let verified = verify_at(&host, &decoded, now()).unwrap();
    assert_eq!(verified.leaf().vm, vm.vm);
    assert_eq!(verified.chain().host().label(), "host-1");
}

#[test]
fn evidence_for_another_nonce_is_refused() {
    let (host, vm) = host_and_vm();
    let old = Nonce::new([1; 32]).unwrap();
    assert_eq!(
        code_of(&host, &host.evidence(&vm, &old, Binding::None)),
        "nonce"
    );
    // Writing the new nonce over the old does not help: the quote was made over the old one.
    let mut evidence = host.evidence(&vm, &old, Binding::None);
    evidence.vm.nonce = nonce();
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

#[test]
fn evidence_for_another_purpose_is_refused() {
    let (host, vm) = host_and_vm();
    let binding = Binding::Connection(Digest32::of(b"another"));
    let mut evidence = host.evidence(&vm, &nonce(), binding.clone());
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert_eq!(refusal.code(), "binding");
    let text = format!("the evidence is for {binding}, but was asked for a challenge alone");
    assert_eq!(refusal.to_string(), text);
    evidence.vm.binding = Binding::None;
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

#[test]
fn pcrs_that_the_log_does_not_account_for_are_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    // The vIK quotes other PCRs than the log leads to, with correct qualifying data.
    let other = attestation::fixture::pcrs(&event_log(&[(4, 0x8000_0003, b"rootkit")]), &BOOT_PCRS);
    let honest = attestation::fixture::pcrs(&vm.log, &BOOT_PCRS);
    let differing: Vec<u8> = (honest.iter().zip(other.iter()))
        .filter(|(honest, other)| honest != other)
        .map(|((pcr, _), _)| pcr)
        .collect();
    assert!(!differing.is_empty());
    let attest = quote(
        &other,
        &vm_qualifying_data(
            &evidence.vm.request_root().unwrap(),
            evidence.vm.tree_size,
            &evidence.vm.boot,
        ),
    );
    evidence.vm.signature = sign(&vm.key, &attest);
    evidence.vm.attest = attest.into();
    // Without the values of which it is, or with others.
    let leaf = host.leaf(&vm, &evidence.vm);
    evidence.host = host.layer(std::slice::from_ref(&leaf), 0);
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(refusal, Refusal::PcrValues(Layer::Vm)),
        "{refusal:?}"
    );
    evidence.vm.pcr_values = Vec::new().into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(refusal, Refusal::PcrValues(Layer::Vm)),
        "{refusal:?}"
    );

    evidence.vm.pcr_values = other.to_bytes().into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(
            &refusal,
            Refusal::EventLogReplay {
                layer: Layer::Vm,
                pcrs,
                ..
            } if *pcrs == differing
        ),
        "{refusal:?}"
    );
    let said = refusal.explanation();
    assert!(said.contains(&format!("PCR {}", differing[0])), "{said}");

    // And so does the host IK.
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let attest = quote(
        &other,
        &host_qualifying_data(
            &evidence.host.root,
            evidence.host.tree_size,
            &host.public.name(),
            &evidence.host.event_log_digest,
        ),
    );
    evidence.host.signature = sign(&host.key, &attest);
    evidence.host.attest = attest.into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(refusal, Refusal::PcrValues(Layer::Host)),
        "{refusal:?}"
    );
    evidence.host.pcr_values = other.to_bytes().into();
    let refusal = verify_at(&host, &evidence, now()).unwrap_err();
    assert!(
        matches!(
            &refusal,
            Refusal::EventLogReplay {
                layer: Layer::Host,
                pcrs,
                ..
            } if !pcrs.is_empty()
        ),
        "{refusal:?}"
    );
}

#[test]
fn an_altered_log_is_refused_in_both_layers() {
    let (host, vm) = host_and_vm();
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    let altered = event_log(&[(0, 0x8000_0008, b"other firmware")]);

    let mut evidence = honest.clone();
    evidence.vm.boot = BootRecord::Log {
        digest: Digest32::of(&vm.log),
        log: altered.clone().into(),
    };
    assert_eq!(code_of(&host, &evidence), "event-log-altered");
    evidence.vm.boot = BootRecord::of_log(altered.clone());
    assert_eq!(code_of(&host, &evidence), "qualifying-data");

    let mut evidence = honest;
    evidence.host.event_log = altered.clone().into();
    assert_eq!(code_of(&host, &evidence), "event-log-altered");
    evidence.host.event_log_digest = Digest32::of(&altered);
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

#[test]
fn an_altered_leaf_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.host.leaf[40] ^= 1;
    assert_eq!(code_of(&host, &evidence), "inclusion");
}

#[test]
fn a_leaf_that_contradicts_the_certificate_in_any_field_is_refused() {
    let (host, vm) = host_and_vm();
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    type Lie = fn(&mut HostLeaf);
    let lies: [(&str, Lie); 5] = [
        ("VM", |leaf| leaf.vm = VmId::random()),
        ("vRoT", |leaf| leaf.vrot = VrotId::random()),
        ("tenant", |leaf| leaf.tenant = "umbrella".parse().unwrap()),
        ("generation", |leaf| leaf.generation = Generation::new(2)),
        ("identity key", |leaf| {
            let other = [&[0x00, 0x0b], [7; 32].as_slice()].concat();
            leaf.vik = TpmName::from_bytes(&other).unwrap();
        }),
    ];
    for (field, lie) in lies {
        let mut leaf = host.leaf(&vm, &honest.vm);
        lie(&mut leaf);
        let lying = Evidence::new(honest.vm.clone(), host.layer(&[leaf], 0));
        let refusal = verify_at(&host, &lying, now()).unwrap_err();
        assert_eq!(refusal.code(), "leaf-mismatch");
        assert!(
            matches!(refusal, Refusal::LeafMismatch(named) if named == field),
            "{field}: {refusal}"
        );
    }
}

#[test]
fn a_path_from_another_tree_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let other = host.evidence(&host.vm(), &nonce(), Binding::None);
    evidence.host.path = other.host.path.clone();
    assert_eq!(code_of(&host, &evidence), "inclusion");
    // With the other tree's root as well, the host's signature is over another root.
    let mut leaf = host.leaf(&vm, &evidence.vm);
    leaf.salt = Digest32::of(b"another tree");
    let forged = host.layer(&[leaf], 0);
    evidence.host.root = forged.root;
    evidence.host.path = forged.path;
    evidence.host.leaf = forged.leaf;
    evidence.host.index = 0;
    evidence.host.tree_size = 1;
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.host.path.pop();
    assert_eq!(code_of(&host, &evidence), "inclusion-path");
}

#[test]
fn a_vm_of_one_host_with_the_host_layer_of_another_is_refused() {
    let (host_a, vm) = host_and_vm();
    let host_b = Host::under(host_a.issuer_again(), "host-2");
    let mut evidence = host_a.evidence(&vm, &nonce(), Binding::None);
    let leaf = host_b.leaf(&vm, &evidence.vm);
    evidence.host = host_b.layer(&[leaf], 0);
    assert_eq!(code_of(&host_a, &evidence), "host-mismatch");
}

#[test]
fn a_host_layer_for_another_quote_of_the_same_vm_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let earlier = host.evidence(&vm, &Nonce::new([1; 32]).unwrap(), Binding::None);
    evidence.host = earlier.host;
    assert_eq!(code_of(&host, &evidence), "request");
}

/// Both asked at the same time, for the same nonce, and are in one tree.
#[test]
fn the_host_layer_of_a_neighbour_is_refused() {
    let (host, vm) = host_and_vm();
    let neighbour = host.vm();
    let ours = vm.layer(&host, &nonce(), Binding::None);
    let theirs = neighbour.layer(&host, &nonce(), Binding::None);
    let leaves = [host.leaf(&vm, &ours), host.leaf(&neighbour, &theirs)];
    let composed = Evidence::new(ours.clone(), host.layer(&leaves, 1));
    assert_eq!(code_of(&host, &composed), "request");
    let honest = Evidence::new(ours, host.layer(&leaves, 0));
    assert!(verify_at(&host, &honest, now()).is_ok());
}

#[test]
fn a_leaf_in_another_form_than_its_own_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &evidence.vm).encode();
    leaf.push(0);
    let mut layer = host.layer_over(&Tree::new(vec![leaf_hash(&leaf)]).unwrap(), 0);
    layer.leaf = leaf.into();
    evidence.host = layer;
    assert_eq!(code_of(&host, &evidence), "leaf-malformed");
}

#[test]
fn a_signed_statement_that_is_no_quote_is_refused() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    let pcrs = attestation::fixture::pcrs(&vm.log, &BOOT_PCRS);
    let mut attest = quote(&pcrs, &Digest32::of(b"x"));
    attest[0] = 0x30;
    evidence.vm.signature = sign(&vm.key, &attest);
    evidence.vm.attest = attest.into();
    assert_eq!(code_of(&host, &evidence), "quote");
}

#[test]
fn no_changed_byte_goes_unseen() {
    let (host, vm) = host_and_vm();
    let anchors = anchors(&host);
    let connection = Purpose::Connection {
        binding: connection(),
        key: Digest32::of(&spki(&signing_area(&vm.tls_key, TLS))),
    };
    let without_log = Vm {
        has_log: false,
        ..host.vm()
    };
    for (vm, purpose) in [
        (&vm, Purpose::Challenge),
        (&vm, connection),
        (&without_log, Purpose::Challenge),
    ] {
        let evidence = host.evidence(vm, &nonce(), purpose.binding().clone());
        let evidence = evidence.to_cbor();
        for position in 0..evidence.len() {
            for flip in [0x01, 0x80, 0xff] {
                let mut changed = evidence.clone();
                changed[position] ^= flip;
                if let Ok(decoded) = Evidence::from_cbor(&changed) {
                    let verified = decoded.verify(&nonce(), &purpose, &anchors, now());
                    assert!(
                        verified.is_err(),
                        "byte {position} changed by {flip:#x} was not seen"
                    );
                }
            }
        }
    }
}

/// Of an ECDSA signature (r, s), (r, n − s) is another form. It can replace nothing that somebody
/// else signed over, and changes nothing about what is proven.
#[test]
fn the_other_form_of_the_hosts_signature_proves_the_same_and_that_of_the_vms_is_refused() {
    let (host, vm) = host_and_vm();
    let honest = host.evidence(&vm, &nonce(), Binding::None);
    let mut evidence = honest.clone();
    evidence.vm.signature = other_form(&evidence.vm.signature).into();
    assert_eq!(code_of(&host, &evidence), "request");
    let mut evidence = honest.clone();
    evidence.host.signature = other_form(&evidence.host.signature).into();
    assert_ne!(evidence, honest);
    let verified = verify_at(&host, &evidence, now()).unwrap();
    assert_eq!(verified.leaf().vm, vm.vm);
}

/// (r, n − s), where n is the order of P-256 (SEC 2 §2.4.2).
fn other_form(signature: &[u8]) -> Vec<u8> {
    const ORDER: [u8; 32] = [
        0xff, 0xff, 0xff, 0xff, 0x00, 0x00, 0x00, 0x00, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff,
        0xff, 0xbc, 0xe6, 0xfa, 0xad, 0xa7, 0x17, 0x9e, 0x84, 0xf3, 0xb9, 0xca, 0xc2, 0xfc, 0x63,
        0x25, 0x51,
    ];
    let mut other = signature.to_vec();
    let scalar = signature.len() - ORDER.len();
    let mut borrow = false;
    for (place, n) in ORDER.iter().enumerate().rev() {
        let (difference, under) = n.overflowing_sub(other[scalar + place]);
        let (difference, again) = difference.overflowing_sub(u8::from(borrow));
        other[scalar + place] = difference;
        borrow = under || again;
    }
    other
}

#[test]
fn truncated_extended_and_oversized_evidence_is_refused() {
    let (host, vm) = host_and_vm();
    let bytes = host.evidence(&vm, &nonce(), Binding::None).to_cbor();
    for length in 0..bytes.len() {
        assert!(Evidence::from_cbor(&bytes[..length]).is_err());
    }
    assert!(Evidence::from_cbor(&[bytes.as_slice(), &[0]].concat()).is_err());
    assert!(Evidence::from_cbor(&vec![0; MAX_EVIDENCE + 1]).is_err());
}

#[test]
fn the_fixture_quotes_what_it_logs() {
    let (_, vm) = host_and_vm();
    let log = EventLog::parse(&vm.log).unwrap();
    let pcrs = attestation::fixture::pcrs(&vm.log, &BOOT_PCRS);
    assert_eq!(pcrs.len(), BOOT_PCRS.len());
    let replay = log.replay();
    let bank = replay.bank(HashAlgorithm::Sha256).unwrap();
    assert_eq!(bank.value(4).unwrap(), pcrs.get(4).unwrap());
}

/// Evidence of one end of a connection that was authenticated with this key.
fn for_connection(
    host: &Host,
    evidence: &Evidence,
    key: &[u8],
) -> Result<VerifiedEvidence, Refusal> {
    let purpose = Purpose::Connection {
        binding: connection(),
        key: Digest32::of(key),
    };
    evidence.verify(&nonce(), &purpose, &anchors(host), now())
}

fn connection() -> Binding {
    Binding::Connection(Digest32::of(b"this connection"))
}

fn spki(public: &[u8]) -> Vec<u8> {
    PublicArea::parse(public).unwrap().subject_public_key_info()
}

#[test]
fn a_connection_is_of_the_vm_whose_tpm_has_its_key() {
    let (host, vm) = host_and_vm();
    let evidence = host.evidence(&vm, &nonce(), connection());
    let evidence = Evidence::from_cbor(&evidence.to_cbor()).unwrap();
    let key = spki(&signing_area(&vm.tls_key, TLS));
    assert!(for_connection(&host, &evidence, &key).is_ok());
    // A middlebox that has a key of its own, and forwards all else.
    let other = spki(&signing_area(&vm.key, TLS));
    let refusal = for_connection(&host, &evidence, &other).unwrap_err();
    assert_eq!(refusal.code(), "tls-key-mismatch");
    // The same for a challenge in the clear, and the other way round.
    assert_eq!(code_of(&host, &evidence), "binding");
    let challenge = host.evidence(&vm, &nonce(), Binding::None);
    let refusal = for_connection(&host, &challenge, &key).unwrap_err();
    assert_eq!(refusal.code(), "binding");
}

#[test]
fn a_connection_key_that_is_not_shown_to_live_in_the_vms_tpm_alone_is_refused() {
    let (host, vm) = host_and_vm();
    let neighbour = host.vm();
    let without =
        |attribute: ObjectAttributes| ObjectAttributes::from_bits(TLS.bits() & !attribute.bits());
    let area = |attributes| signing_area(&vm.tls_key, attributes);
    let altered = KeyStatement {
        public: signing_area(&neighbour.tls_key, TLS).into(),
        ..vm.tls_key_statement()
    };
    let quoted = KeyStatement {
        attest: host.evidence(&vm, &nonce(), connection()).vm.attest,
        signature: host.evidence(&vm, &nonce(), connection()).vm.signature,
        ..vm.tls_key_statement()
    };
    let cases = [
        (
            "imported",
            vm.statement_about(area(without(ObjectAttributes::SENSITIVE_DATA_ORIGIN))),
        ),
        (
            "movable",
            vm.statement_about(area(without(ObjectAttributes::FIXED_TPM))),
        ),
        (
            "of a movable parent",
            vm.statement_about(area(without(ObjectAttributes::FIXED_PARENT))),
        ),
        (
            "no signing key",
            vm.statement_about(area(without(ObjectAttributes::SIGN))),
        ),
        ("an attestation key", vm.statement_about(area(ATTESTATION))),
        ("of another TPM", neighbour.tls_key_statement()),
        ("not the certified one", altered),
        ("quoted instead of certified", quoted),
    ];
    for (case, statement) in cases {
        let key = spki(&statement.public);
        let layer = vm.layer_with(&host, &nonce(), connection(), Some(statement));
        let leaf = host.leaf(&vm, &layer);
        let evidence = Evidence::new(layer, host.layer(&[leaf], 0));
        let refusal = for_connection(&host, &evidence, &key).unwrap_err();
        assert!(
            matches!(refusal.code(), "tls-key" | "quote"),
            "{case}: {refusal:?}"
        );
    }
    let layer = vm.layer_with(&host, &nonce(), connection(), None);
    let leaf = host.leaf(&vm, &layer);
    let evidence = Evidence::new(layer, host.layer(&[leaf], 0));
    let key = spki(&signing_area(&vm.tls_key, TLS));
    let refusal = for_connection(&host, &evidence, &key).unwrap_err();
    assert_eq!(refusal.code(), "tls-key-missing");
}

#[test]
fn another_request_under_the_same_quote_is_not_this_one() {
    let (host, vm) = host_and_vm();
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.vm.index = 0;
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
    evidence.vm.index = 3;
    assert_eq!(code_of(&host, &evidence), "request-path");
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.vm.path.pop();
    assert_eq!(code_of(&host, &evidence), "request-path");
    let mut evidence = host.evidence(&vm, &nonce(), Binding::None);
    evidence.vm.salt = Digest32::of(b"left");
    assert_eq!(code_of(&host, &evidence), "qualifying-data");
}

/// One byte each, and sixteen or more in memory: what may be long in evidence is bytes.
#[test]
fn evidence_whose_parts_would_have_many_times_its_bytes_is_not_decoded() {
    let refused = |bytes: &[u8]| Evidence::from_cbor(bytes).unwrap_err();
    // An unknown field of arrays that have no end.
    let open = [&[0xa3, 0, 3, 9, 0x82][..], &[0x9f; 100_000]].concat();
    let refusal = refused(&open);
    assert!(
        matches!(refusal, EvidenceError::NotDeterministic),
        "{refusal}"
    );
    // As many certificates as there is room for, each of no bytes; and revocation lists.
    let many = [&[0x9a, 0, 1, 0, 0][..], &[0x40; 0x1_0000]].concat();
    let host = Host::new("host-1");
    let bytes = host.evidence(&host.vm(), &nonce(), Binding::None).to_cbor();
    // { 0: 3, 1: { … } …
    let chain = [&bytes[..4], &[0xa1, 7], &many].concat();
    let lists = [&[0xa2, 0, 3, 3][..], &many].concat();
    for bytes in [chain, lists] {
        let refusal = refused(&bytes).to_string();
        assert!(refusal.contains("more than 64 elements"), "{refusal}");
    }
}
