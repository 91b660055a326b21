//! Our formats as other libraries read them: `evidence.cddl` describes the evidence that the code
//! makes, and nothing that the code refuses; results are EATs.

use anyhow::{Context, Result, anyhow, ensure};
use attestation::device::appraise_device;
use attestation::device::fixture::FixtureDevice;
use attestation::evidence::CarriedCrls;
use attestation::fixture::{Host, NOW, event_log, launch, nonce, now};
use attestation::{
    Anchoring, Binding, CutOff, Durability, Evidence, LaunchMeasurement, Nonce, Purpose, StateLoss,
    TpmTransport,
};
use cert_chain::Digest32;
use serde_json::Value;
use signed_data::SignedData;
use signed_data::stream::BatchInput;
use vrot_tests::format_judge::{described, understood_ear};

const DESCRIPTION: &str = include_str!("../../../attestation/evidence.cddl");

fn check(description: &str, bytes: &[u8]) -> Result<()> {
    described(description, bytes)?.map_err(|fault| anyhow!(fault))
}

/// The description with another of its rules at the top: the first rule is what is validated.
fn description_of(rule: &str) -> String {
    format!("start = {rule}\n\n{DESCRIPTION}")
}

fn every_binding() -> [Binding; 4] {
    let digest = Digest32::of(b"what the evidence is for");
    [
        Binding::None,
        Binding::Connection(digest),
        Binding::Node(digest),
        Binding::SignedData,
    ]
}

fn every_kind() -> Vec<Evidence> {
    let host = Host::new("host-1");
    let vm = host.vm();
    let mut kinds: Vec<Evidence> = every_binding()
        .into_iter()
        .map(|binding| host.evidence(&vm, &nonce(), binding))
        .collect();
    // A tree of one leaf, of a measured VM with no endorsement keys.
    let layer = vm.layer(&host, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &layer);
    leaf.launch = LaunchMeasurement::Measured(launch());
    leaf.transport = TpmTransport::VirtioTpm;
    leaf.eks.clear();
    leaf.durability = Durability::Degraded;
    leaf.anchoring = Anchoring::Strict;
    leaf.cut_off = CutOff::Possible {
        batch: u64::MAX,
        time: 1_700_000_000,
        window_s: 600,
    };
    leaf.state_loss = StateLoss::Possible {
        batch: u64::MAX,
        time: 1_700_000_000,
    };
    kinds.push(Evidence::new(layer, host.layer(&[leaf], 0)));
    let list = |number| {
        host.revocation_list(number, 0, &[&host.certificate])
            .der()
            .to_vec()
    };
    let lists = CarriedCrls::new((0..4).map(list));
    kinds.push(host.evidence(&vm, &nonce(), Binding::None).carrying(lists));
    kinds
}

#[test]
fn all_evidence_is_as_described() -> Result<()> {
    let device = FixtureDevice::under(Host::new("host-1").issuer, "meter-12");
    for binding in every_binding() {
        let evidence = device.evidence(&nonce(), binding).to_cbor();
        check(&description_of("device-evidence"), &evidence)?;
    }
    for evidence in every_kind() {
        check(DESCRIPTION, &evidence.to_cbor())?;
        check(&description_of("host-layer"), &evidence.host.to_cbor())?;
        check(&description_of("host-leaf"), &evidence.host.leaf)?;
    }
    Ok(())
}

/// The rules in `docs/connection.md`, with one of them at the top.
fn rules_of_connections(start: &str) -> String {
    const PAGE: &str = include_str!("../../../docs/connection.md");
    let blocks = PAGE.split("```cddl\n").skip(1);
    let rules: Vec<_> = blocks
        .filter_map(|block| block.split("```").next())
        .collect();
    format!("start = {start}\n\n{}", rules.join("\n"))
}

#[test]
fn messages_and_bindings_of_connections_are_as_the_page_about_them_says() -> Result<()> {
    const MESSAGES: &str =
        include_str!("../../../trusted-connection/attested-tls/tests/messages_v1.txt");
    const BINDINGS: &str =
        include_str!("../../../attestation/tests/all/data/connection_binding_v1.json");
    let rules = rules_of_connections("message");
    for line in MESSAGES.lines() {
        let (message, what) = line.split_once(' ').context("a message and what it is")?;
        let message = hex::decode(message)?;
        check(&rules, &message).with_context(|| what.to_owned())?;
        // Of another kind, it is none.
        let mut other = message;
        *other.get_mut(1).context("the kind")? ^= 3;
        ensure!(
            described(&rules, &other)?.is_err(),
            "{what} of another kind"
        );
    }
    for value in serde_json::from_str::<Vec<Value>>(BINDINGS)? {
        for (rule, field) in [
            ("exporter-context", "exporter_context"),
            ("connection-binding-data", "connection_binding_data"),
        ] {
            let bytes = hex::decode(value[field].as_str().context(field)?)?;
            check(&rules_of_connections(rule), &bytes)?;
        }
        for (part, rule, field) in [
            ("vm", "vm-request-leaf", "vm_request_leaf"),
            ("vm", "tls-key", "tls_key"),
            ("vm", "vm-quote-data", "vm_quote_data"),
            ("device", "device-quote-data", "device_quote_data"),
        ] {
            if let Some(bytes) = value[part][field].as_str() {
                check(&description_of(rule), &hex::decode(bytes)?)?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_persons_confirmation_is_as_described() -> Result<()> {
    const RULES: &str = include_str!("../../../attestation/confirmation/confirmation.cddl");
    let confirmation =
        include_bytes!("../../../attestation/confirmation/tests/all/golden/confirmation-v1.cbor");
    check(RULES, confirmation)?;
    for (what, from, to) in [
        ("another answer", "confirmed", "consented"),
        ("another kind", "confirmation v1", "confirmation v2"),
        (
            "another content type",
            "confirmation+cbor",
            "confirmation+json",
        ),
    ] {
        let from = from.as_bytes();
        let at = confirmation
            .windows(from.len())
            .position(|part| part == from);
        let at = at.with_context(|| format!("{what}: it is not there"))?;
        let (before, rest) = confirmation.split_at(at);
        let after = rest.get(from.len()..).context("what follows")?;
        let changed = [before, to.as_bytes(), after].concat();
        assert!(described(RULES, &changed)?.is_err(), "{what} is described");
    }
    Ok(())
}

/// The description says no less than the code: each departure that the code refuses when it
/// decodes is also outside the description.
#[test]
fn what_the_code_refuses_is_not_as_described() -> Result<()> {
    let evidence = every_kind().into_iter().next().context("evidence")?;
    let bytes = evidence.to_cbor();
    let with = |position: usize, value: u8| -> Result<Vec<u8>> {
        let mut changed = bytes.clone();
        *changed.get_mut(position).context("position")? = value;
        Ok(changed)
    };
    // { 0: 3, 1: { 1: nonce (32 bytes), 2: [0, []], …
    let layout = [0xa3, 0x00, 0x03, 0x01, 0xac, 0x01, 0x58, 0x20];
    assert!(bytes.starts_with(&layout));
    const BINDING: usize = 8 + 32 + 1;
    assert_eq!(
        bytes.get(BINDING..BINDING + 3),
        Some([0x82, 0, 0x80].as_slice())
    );
    for (what, changed) in [
        ("another version", with(2, 1)?),
        ("another key at the top", with(1, 3)?),
        ("another key in a layer", with(5, 15)?),
        ("text for a nonce", with(6, 0x78)?),
        ("an unknown binding", with(BINDING + 1, 4)?),
        ("a binding that lacks its digest", with(BINDING + 1, 1)?),
    ] {
        assert!(Evidence::from_cbor(&changed).is_err(), "{what} was decoded");
        assert!(
            described(DESCRIPTION, &changed)?.is_err(),
            "{what} is described"
        );
    }
    let five_lists = CarriedCrls::new(vec![vec![0x30]; 5]);
    let mut empty_array = bytes.clone();
    *empty_array.first_mut().context("a map")? += 1;
    empty_array.extend([0x03, 0x80]);
    for changed in [evidence.clone().carrying(five_lists).to_cbor(), empty_array] {
        assert!(Evidence::from_cbor(&changed).is_err());
        assert!(described(DESCRIPTION, &changed)?.is_err());
    }
    // The rules that are checked on their own are the ones meant, and a leaf is looked into.
    assert!(described(&description_of("host-leaf"), &evidence.host.to_cbor())?.is_err());
    let mut hollow = evidence;
    hollow.host.leaf = vec![0xa0].into();
    assert!(described(DESCRIPTION, &hollow.to_cbor())?.is_err());
    Ok(())
}

#[test]
fn results_about_devices_are_ears_to_another_library() -> Result<()> {
    let mut device = FixtureDevice::under(Host::new("host-1").issuer, "meter-12");
    let policy = device.policy();
    for verdict in ["affirming", "contraindicated"] {
        let evidence = device.evidence(&nonce(), Binding::None);
        let anchors = policy.anchors().context("the policy's issuers")?;
        let verified = evidence.verify(&nonce(), &Binding::None, anchors, now())?;
        let result = appraise_device(verified, &policy).to_json();
        assert_eq!(result["ear_status"], verdict);
        check_ear(&result, NOW)?;
        device.log = event_log(&[(4, 0x8000_0003, b"another boot loader")]);
    }
    Ok(())
}

/// Of each claim that the draft knows, the reader understands what was said.
fn check_ear(json: &Value, at: u64) -> Result<()> {
    let mut claims = json.clone();
    let map = claims.as_object_mut().context("an object")?;
    for ours in ["verdict", "reasons", "refusal"] {
        map.remove(ours);
    }
    assert_eq!(understood_ear(json, at)?, claims);
    Ok(())
}

#[test]
fn results_of_every_verdict_are_ears_to_another_library() -> Result<()> {
    let host = Host::new("host-1");
    let mut vm = host.vm();
    let policy = host.policy(&vm);
    let affirming = host.appraise(&vm, &policy).to_json();
    assert_eq!(affirming["ear_status"], "affirming");
    check_ear(&affirming, NOW)?;

    vm.log = event_log(&[(4, 0x8000_0003, b"another boot loader")]);
    let contraindicated = host.appraise(&vm, &policy).to_json();
    assert_eq!(contraindicated["ear_status"], "contraindicated");
    check_ear(&contraindicated, NOW)?;

    let fresh = Nonce::new([1; 32])?;
    let refusal = host
        .evidence(&vm, &nonce(), Binding::None)
        .verify(&fresh, &Purpose::Challenge, policy.anchors(), now())
        .err()
        .context("evidence for another nonce is refused")?;
    check_ear(&refusal.to_json(&policy, &fresh, now()), NOW)?;

    // The reader looks at what it reads: a tier that there is not, or a whole that is better than
    // its parts, is no EAR.
    let mut better = contraindicated.clone();
    better["ear_status"] = "affirming".into();
    let mut unknown = contraindicated;
    unknown["ear_status"] = "splendid".into();
    for wrong in [better, unknown] {
        assert!(understood_ear(&wrong, NOW).is_err(), "{wrong:#}");
    }
    Ok(())
}

#[test]
fn signed_data_are_as_described_and_what_departs_is_not() -> Result<()> {
    const DESCRIPTION: &str = include_str!("../../../attestation/signed-data/signed-data.cddl");
    const GOLDEN: [&[u8]; 3] = [
        include_bytes!("../../../attestation/signed-data/tests/golden/vm_attached_v1.cbor"),
        include_bytes!("../../../attestation/signed-data/tests/golden/vm_hash_evidence_v2.cbor"),
        include_bytes!("../../../attestation/signed-data/tests/golden/device_evidence_v2.cbor"),
    ];
    for bytes in GOLDEN {
        check(DESCRIPTION, bytes)?;
        // A VM with three certificates or none, where it has two; a device likewise.
        let header = [0x3a, 0x00, 0x01, 0x11, 0x70];
        let at =
            (bytes.windows(6)).position(|part| part.starts_with(&header) && part[5] & 0xe0 == 0x80);
        let mut changed = bytes.to_vec();
        *changed
            .get_mut(at.context("the certificates")? + 5)
            .context("an array")? = 0x83;
        assert!(SignedData::from_cbor(&changed).is_err());
        assert!(described(DESCRIPTION, &changed)?.is_err());
    }
    Ok(())
}

#[test]
fn batches_of_a_stream_single_readings_and_positions_are_as_described() -> Result<()> {
    const DESCRIPTION: &str = include_str!("../../../attestation/signed-data/signed-data.cddl");
    const STREAM: &[u8] =
        include_bytes!("../../../attestation/signed-data/tests/golden/stream_v1.cbor");
    const READING: &[u8] =
        include_bytes!("../../../attestation/signed-data/tests/golden/proven_reading_v1.cbor");
    const POSITION: &[u8] =
        include_bytes!("../../../attestation/signed-data/tests/golden/stream_position_v1.cbor");
    let beginning_with = |rule: &str| format!("start = {rule}\n\n{DESCRIPTION}");
    let batches = BatchInput::new(STREAM).collect::<Result<Vec<_>, _>>()?;
    ensure!(batches.len() == 4);
    for batch in batches {
        check(&beginning_with("batch"), &batch.to_cbor())?;
        check(&beginning_with("stream-item"), &batch.to_stream())?;
        let statement = batch.unverified_statement().to_cbor();
        check(&beginning_with("batch-statement"), &statement)?;
        // A reading more than an array of two.
        let mut changed = batch.to_cbor();
        let at = changed.iter().rposition(|byte| *byte == 0x82);
        *changed
            .get_mut(at.context("a reading")?)
            .context("a byte")? = 0x83;
        assert!(described(&beginning_with("batch"), &changed)?.is_err());
    }
    check(&beginning_with("proven-reading"), READING)?;
    check(&beginning_with("stream-position"), POSITION)
}
