//! `evidence.cddl` describes the evidence that the code makes, and nothing that the code refuses.

use anyhow::{Context, Result, anyhow};
use attestation::fixture::{Host, nonce};
use attestation::{Anchoring, Binding, CutOff, Durability, Evidence, LaunchMeasurement, StateLoss};
use cddl::validate_cbor_from_slice;
use cert_chain::Digest32;

const DESCRIPTION: &str = include_str!("../../evidence.cddl");

fn check(description: &str, bytes: &[u8]) -> Result<()> {
    validate_cbor_from_slice(description, bytes, None).map_err(|error| anyhow!("{error}"))
}

/// The description with another of its rules at the top: the first rule is what is validated.
fn description_of(rule: &str) -> String {
    format!("start = {rule}\n\n{DESCRIPTION}")
}

fn every_kind() -> Vec<Evidence> {
    let host = Host::new("host-1");
    let vm = host.vm();
    let digest = Digest32::of(b"what the evidence is for");
    let mut kinds: Vec<Evidence> = [
        Binding::None,
        Binding::TlsExporter(digest),
        Binding::Key(digest),
        Binding::Document(digest),
    ]
    .into_iter()
    .map(|binding| host.evidence(&vm, &nonce(), binding))
    .collect();
    // A tree of one leaf, of a measured VM with no endorsement keys.
    let layer = vm.layer(&host, &nonce(), Binding::None);
    let mut leaf = host.leaf(&vm, &layer);
    leaf.launch = LaunchMeasurement::Measured(digest);
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
    kinds
}

#[test]
fn all_evidence_is_as_described() -> Result<()> {
    for evidence in every_kind() {
        check(DESCRIPTION, &evidence.to_cbor())?;
        check(&description_of("host-layer"), &evidence.host.to_cbor())?;
        check(&description_of("host-leaf"), &evidence.host.leaf)?;
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
    // { 0: 2, 1: { 1: nonce (32 bytes), 2: [0, []], …
    let layout = [0xa3, 0x00, 0x02, 0x01, 0xa9, 0x01, 0x58, 0x20];
    assert!(bytes.starts_with(&layout));
    const BINDING: usize = 8 + 32 + 1;
    assert_eq!(
        bytes.get(BINDING..BINDING + 3),
        Some([0x82, 0, 0x80].as_slice())
    );
    for (what, changed) in [
        ("another version", with(2, 1)?),
        ("another key at the top", with(1, 3)?),
        ("another key in a layer", with(5, 10)?),
        ("text for a nonce", with(6, 0x78)?),
        ("an unknown binding", with(BINDING + 1, 4)?),
        ("a binding that lacks its digest", with(BINDING + 1, 1)?),
    ] {
        assert!(Evidence::from_cbor(&changed).is_err(), "{what} was decoded");
        assert!(check(DESCRIPTION, &changed).is_err(), "{what} is described");
    }
    // The rules that are checked on their own are the ones meant, and a leaf is looked into.
    assert!(check(&description_of("host-leaf"), &evidence.host.to_cbor()).is_err());
    let mut hollow = evidence;
    hollow.host.leaf = vec![0xa0].into();
    assert!(check(DESCRIPTION, &hollow.to_cbor()).is_err());
    Ok(())
}
