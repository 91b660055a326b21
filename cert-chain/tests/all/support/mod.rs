//! A whole identity tree in software: issuer, host, vRoT.

#![allow(dead_code, reason = "every test program uses another part")]
#![allow(
    clippy::allow_attributes,
    reason = "`expect` fails where everything is used"
)]
pub(crate) mod swtpm;

use std::time::Duration;

use cert_chain::enrolment::Request;
use cert_chain::policy::{HOST_POLICY_REF, authorize_digest};
use cert_chain::profile::vik::VIK_LIFETIME;
use cert_chain::{
    AttestationKey, Digest32, EndorsementKey, Generation, HostIkSpec, HostName, Issuer,
    ObjectAttributes, PublicArea, TpmName, TrustAnchors, Validity, VikChain, VikSpec, VmId, VrotId,
    issue_vrot_certificate,
};
use rcgen::{KeyPair, PublicKeyData};
use rsa::traits::PublicKeyParts;
use rustls_pki_types::{CertificateDer, UnixTime};

/// 2026-06-01T00:00:00Z
pub(crate) const NOW: u64 = 1_780_272_000;
pub(crate) const DAY: u64 = 24 * 60 * 60;

pub(crate) fn at(seconds: u64) -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(seconds))
}

pub(crate) fn now() -> UnixTime {
    at(NOW)
}

pub(crate) fn years(count: u64) -> Validity {
    Validity::starting(now(), Duration::from_secs(count * 366 * DAY)).unwrap()
}

/// What a TPM sets for a restricted signing key of its own.
pub(crate) const ATTESTATION: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .with(ObjectAttributes::FIXED_PARENT)
    .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .with(ObjectAttributes::RESTRICTED)
    .with(ObjectAttributes::SIGN);

/// What a TPM sets for an endorsement key.
pub(crate) const ENDORSEMENT: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .with(ObjectAttributes::FIXED_PARENT)
    .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .with(ObjectAttributes::ADMIN_WITH_POLICY)
    .with(ObjectAttributes::RESTRICTED)
    .with(ObjectAttributes::DECRYPT);

/// `TPMT_PUBLIC` of an ECDSA-SHA-256 key on P-256.
pub(crate) fn signing_area(key: &KeyPair, attributes: ObjectAttributes, policy: &[u8]) -> Vec<u8> {
    let scheme = [0x00, 0x18, 0x00, 0x0b];
    p256_area(key, attributes, policy, &[0x00, 0x10], &scheme)
}

/// `TPMT_PUBLIC` of a P-256 key with the given symmetric definition and scheme.
pub(crate) fn p256_area(
    key: &KeyPair,
    attributes: ObjectAttributes,
    policy: &[u8],
    symmetric: &[u8],
    scheme: &[u8],
) -> Vec<u8> {
    // 0x04, then both coordinates.
    let (x, y) = key.der_bytes().split_at(33);
    let mut area = header(0x0023, attributes, policy);
    area.extend_from_slice(symmetric);
    area.extend_from_slice(scheme);
    area.extend_from_slice(&[0x00, 0x03, 0x00, 0x10]);
    area.extend_from_slice(&tpm2b(x.split_first().unwrap().1));
    area.extend_from_slice(&tpm2b(y));
    area
}

/// `TPMT_PUBLIC` of an RSA-2048 storage key.
pub(crate) fn rsa_storage_area(
    key: &rsa::RsaPublicKey,
    attributes: ObjectAttributes,
    policy: &[u8],
) -> Vec<u8> {
    let mut area = header(0x0001, attributes, policy);
    area.extend_from_slice(&[0x00, 0x06, 0x00, 0x80, 0x00, 0x43, 0x00, 0x10, 0x08, 0x00]);
    area.extend_from_slice(&0u32.to_be_bytes());
    area.extend_from_slice(&tpm2b(&key.n().to_bytes_be()));
    area
}

fn header(object_type: u16, attributes: ObjectAttributes, policy: &[u8]) -> Vec<u8> {
    let mut area = object_type.to_be_bytes().to_vec();
    area.extend_from_slice(&0x000b_u16.to_be_bytes());
    area.extend_from_slice(&attributes.bits().to_be_bytes());
    area.extend_from_slice(&tpm2b(policy));
    area
}

fn tpm2b(bytes: &[u8]) -> Vec<u8> {
    [&u16::try_from(bytes.len()).unwrap().to_be_bytes(), bytes].concat()
}

pub(crate) fn attestation_key(key: &KeyPair) -> AttestationKey {
    PublicArea::parse(&signing_area(key, ATTESTATION, &[]))
        .unwrap()
        .try_into()
        .unwrap()
}

/// The symmetric definition of a storage key: AES-128-CFB.
pub(crate) const AES_128_CFB: [u8; 6] = [0x00, 0x06, 0x00, 0x80, 0x00, 0x43];

/// PolicyA of the TCG's EK Credential Profile.
pub(crate) const POLICY_A: [u8; 32] = [
    0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7, 0x24,
    0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14, 0x69, 0xaa,
];

pub(crate) fn p256_endorsement_key(key: &KeyPair) -> EndorsementKey {
    let area = p256_area(key, ENDORSEMENT, &POLICY_A, &AES_128_CFB, &[0x00, 0x10]);
    PublicArea::parse(&area).unwrap().try_into().unwrap()
}

pub(crate) fn name_of(bytes: &[u8]) -> TpmName {
    let mut name = vec![0x00, 0x0b];
    name.extend_from_slice(Digest32::of(bytes).as_bytes());
    TpmName::from_bytes(&name).unwrap()
}

/// An issuer and one host with its IK.
pub(crate) struct Tree {
    pub(crate) issuer: Issuer,
    pub(crate) host_key: KeyPair,
    pub(crate) host: CertificateDer<'static>,
}

impl Tree {
    pub(crate) fn new() -> Self {
        Self::named("host-1", "demo.example")
    }

    pub(crate) fn named(host: &str, domain: &str) -> Self {
        let issuer = Issuer::create(domain.parse().unwrap(), years(10)).unwrap();
        Self::under(issuer, host)
    }

    pub(crate) fn under(issuer: Issuer, host: &str) -> Self {
        let host_key = KeyPair::generate().unwrap();
        let host = issuer
            .certify_host(&HostIkSpec {
                host: HostName::new(host, issuer.domain()).unwrap(),
                ik: attestation_key(&host_key),
                ek: name_of(b"ek"),
                policy_key: name_of(b"policy key"),
                validity: years(1),
            })
            .unwrap();
        Self {
            issuer,
            host_key,
            host,
        }
    }

    pub(crate) fn anchors(&self) -> TrustAnchors {
        TrustAnchors::from_pem(&self.issuer.certificate_pem()).unwrap()
    }

    pub(crate) fn vik(&self, spec: &VikSpec) -> CertificateDer<'static> {
        issue_vrot_certificate(spec, &self.host_key, &self.host).unwrap()
    }

    pub(crate) fn chain(&self, spec: &VikSpec) -> VikChain {
        VikChain::from_der_list(&[self.vik(spec), self.host.clone()]).unwrap()
    }
}

pub(crate) fn vik_spec(vik: &KeyPair) -> VikSpec {
    VikSpec {
        vm: VmId::random(),
        vrot: VrotId::random(),
        tenant: "demo".parse().unwrap(),
        generation: Generation::new(1),
        manager: Digest32::of(b"manager"),
        backend: Digest32::of(b"backend"),
        vik: attestation_key(vik),
        validity: Validity::starting(now(), VIK_LIFETIME).unwrap(),
    }
}

/// A TPM maker with a CA of its own, for endorsement keys that exist in software only.
pub(crate) struct Maker {
    key: KeyPair,
    params: rcgen::CertificateParams,
    root: CertificateDer<'static>,
}

impl Maker {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = rcgen::CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, name);
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let root = params.self_signed(&key).unwrap().into();
        Self { key, params, root }
    }

    pub(crate) fn root_pem(&self) -> String {
        cert_chain::pem::encode_certificate(&self.root)
    }

    pub(crate) fn certify(
        &self,
        key: &impl PublicKeyData,
        change: impl FnOnce(&mut rcgen::CertificateParams),
    ) -> CertificateDer<'static> {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::ExplicitNoCa;
        params.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::Other(vec![
            2, 23, 133, 8, 1,
        ])];
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyAgreement];
        change(&mut params);
        let issuer = rcgen::Issuer::from_params(&self.params, &self.key);
        params.signed_by(key, &issuer).unwrap().into()
    }
}

/// A request that an issuer accepts, from a host whose TPM exists in software only.
pub(crate) fn request(maker: &Maker) -> Request {
    let ek = p256_endorsement_key(&KeyPair::generate().unwrap());
    let policy_key = signing_area(&KeyPair::generate().unwrap(), ObjectAttributes::SIGN, &[]);
    let policy_ref = HOST_POLICY_REF.to_vec();
    let policy = authorize_digest(&PublicArea::parse(&policy_key).unwrap().name(), &policy_ref);
    Request {
        host: "host-1".to_owned(),
        ek_certificate: maker.certify(ek.public_area(), |_| ()).to_vec(),
        ek_chain: Vec::new(),
        ek: ek.public_area().as_bytes().to_vec(),
        ik: signing_area(
            &KeyPair::generate().unwrap(),
            ATTESTATION,
            policy.as_bytes(),
        ),
        policy_key,
        policy_ref,
    }
}
