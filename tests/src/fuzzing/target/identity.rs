//! An identity tree in software: issuer, host, vRoT. Seeds for what reads certificates and keys.

use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::profile::vik::VIK_LIFETIME;
use cert_chain::{
    AttestationKey, Digest32, Generation, HostIkSpec, HostName, Issuer, ObjectAttributes,
    PublicArea, TpmName, TrustAnchors, Validity, VikChain, VikSpec, VmId, VrotId,
    issue_vik_certificate,
};
use rcgen::{KeyPair, PublicKeyData};
use rustls_pki_types::UnixTime;

/// The tree's certificates and one key's public area.
#[derive(Debug)]
pub(super) struct Identity {
    pub(super) anchors: TrustAnchors,
    pub(super) roots: String,
    pub(super) chain: VikChain,
    pub(super) vik: Vec<u8>,
}

impl Identity {
    pub(super) fn create() -> Result<Self> {
        let issuer = Issuer::create("demo.example".parse()?, valid_for(YEAR * 10)?)?;
        let host_key = KeyPair::generate()?;
        let host = issuer.certify_host(&HostIkSpec {
            host: HostName::new("host-1", issuer.domain())?,
            ik: attestation_key(&host_key)?,
            ek: name_of(b"ek")?,
            policy_key: name_of(b"policy key")?,
            validity: valid_for(YEAR)?,
        })?;
        let vik_key = KeyPair::generate()?;
        let vik = issue_vik_certificate(
            &VikSpec {
                vm: VmId::random(),
                vrot: VrotId::random(),
                tenant: "demo".parse()?,
                generation: Generation::new(1),
                manager: Digest32::of(b"manager"),
                backend: Digest32::of(b"backend"),
                vik: attestation_key(&vik_key)?,
                validity: valid_for(VIK_LIFETIME)?,
            },
            &host_key,
            &host,
        )?;
        let roots = issuer.certificate_pem();
        Ok(Self {
            anchors: TrustAnchors::from_pem(&roots)?,
            roots,
            chain: VikChain::from_der_list(&[vik, host])?,
            vik: public_area(&vik_key)?,
        })
    }
}

/// The time at which all of it is valid: 2026-06-01T00:00:00Z.
pub(super) fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(1_780_272_000))
}

const YEAR: Duration = Duration::from_secs(366 * 24 * 60 * 60);

fn valid_for(lifetime: Duration) -> Result<Validity> {
    Ok(Validity::starting(now(), lifetime)?)
}

fn attestation_key(key: &KeyPair) -> Result<AttestationKey> {
    Ok(PublicArea::parse(&public_area(key)?)?.try_into()?)
}

/// `TPMT_PUBLIC` of a restricted P-256 key that signs with ECDSA and SHA-256.
fn public_area(key: &KeyPair) -> Result<Vec<u8>> {
    let attributes = ObjectAttributes::FIXED_TPM
        .with(ObjectAttributes::FIXED_PARENT)
        .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
        .with(ObjectAttributes::RESTRICTED)
        .with(ObjectAttributes::SIGN);
    let point = key.der_bytes();
    let x = point.get(1..33).context("an uncompressed point")?;
    let y = point.get(33..65).context("an uncompressed point")?;
    Ok([
        &[0x00, 0x23, 0x00, 0x0b], // TPM_ALG_ECC, name algorithm SHA-256
        &attributes.bits().to_be_bytes()[..],
        &[0x00, 0x00],             // no policy
        &[0x00, 0x10],             // symmetric: null
        &[0x00, 0x18, 0x00, 0x0b], // ECDSA with SHA-256
        &[0x00, 0x03, 0x00, 0x10], // P-256, no key derivation
        &[0x00, 0x20],
        x,
        &[0x00, 0x20],
        y,
    ]
    .concat())
}

fn name_of(bytes: &[u8]) -> Result<TpmName> {
    let name = [&[0x00, 0x0b], Digest32::of(bytes).as_bytes().as_slice()].concat();
    Ok(TpmName::from_bytes(&name)?)
}
