//! Complete synthetic evidence: keys in software stand for the two TPMs.
//!
//! For tests alone. Everything is built byte by byte as a TPM would marshal it, so that a test
//! can change any part of it and sign again.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::time::Duration;

use cert_chain::profile::{TlsSpec, issue_tls_certificate};
use cert_chain::{
    AttestationKey, Digest32, Generation, HashAlgorithm, HostIkSpec, HostName, Issuer,
    ObjectAttributes, PcrValues, PublicArea, TlsKey, Validity, VikSpec, VmId, VrotId,
    issue_vik_certificate,
};
use minicbor::bytes::ByteVec;
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::appraisal::appraise;
use crate::binding::{Binding, Purpose};
use crate::certification::TlsKeyStatement;
use crate::event_log::EventLog;
use crate::event_log::writer::LogWriter;
use crate::evidence::{Evidence, HostLayer, VmLayer};
use crate::host_leaf::{Anchoring, CutOff, Durability, HostLeaf, LaunchMeasurement, StateLoss};
use crate::merkle::Tree;
use crate::nonce::Nonce;
use crate::policy::{Policy, PolicyError};
use crate::qualifying::{
    host_qualifying_data, request_digest, vm_qualifying_data, vm_request_leaf,
};
use crate::quote::canonical_signature;
use crate::reference::{BOOT_PCRS, reference_values};
use crate::result::AttestationResult;

/// 2026-06-01T00:00:00Z
pub const NOW: u64 = 1_780_272_000;
/// How often the TPMs were reset, unless a test says otherwise.
const RESETS: u32 = 3;

/// What a TPM sets for a restricted signing key of its own.
pub const ATTESTATION: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .with(ObjectAttributes::FIXED_PARENT)
    .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .with(ObjectAttributes::RESTRICTED)
    .with(ObjectAttributes::SIGN);

/// What a TPM sets for a TLS key of its own.
pub const TLS: ObjectAttributes = ObjectAttributes::FIXED_TPM
    .with(ObjectAttributes::FIXED_PARENT)
    .with(ObjectAttributes::SENSITIVE_DATA_ORIGIN)
    .with(ObjectAttributes::SIGN);

/// An issuer with one host.
pub struct Host {
    /// The host's name.
    pub name: HostName,
    /// The identity issuer.
    pub issuer: Issuer,
    /// The private part of the host IK.
    pub key: KeyPair,
    /// The host IK as its TPM marshals it.
    pub public: AttestationKey,
    /// The host IK's certificate.
    pub certificate: CertificateDer<'static>,
    /// The host's event log.
    pub log: Vec<u8>,
    /// The bank that the host quotes.
    pub bank: HashAlgorithm,
    /// The PCRs that the host quotes.
    pub quoted: Vec<u8>,
    /// When everything here is made.
    pub made_at: UnixTime,
    /// How often the host's TPM was reset.
    pub resets: u32,
}

/// A VM on a host.
pub struct Vm {
    /// The VM's id.
    pub vm: VmId,
    /// Its vRoT's id.
    pub vrot: VrotId,
    /// The private part of the vIK.
    pub key: KeyPair,
    /// The vIK as its TPM marshals it.
    pub public: Vec<u8>,
    /// The vIK's certificate.
    pub certificate: CertificateDer<'static>,
    /// The private part of the TLS key.
    pub tls_key: KeyPair,
    /// The guest's event log.
    pub log: Vec<u8>,
    /// The bank that the VM quotes.
    pub bank: HashAlgorithm,
    /// The PCRs that the VM quotes.
    pub quoted: Vec<u8>,
    /// Which of the lineage's identities the vRoT has.
    pub generation: Generation,
    /// How often the vRoT was reset.
    pub resets: u32,
}

/// Time as the certificates of this fixture need it.
pub fn now() -> UnixTime {
    UnixTime::since_unix_epoch(Duration::from_secs(NOW))
}

/// A nonce that is as good as any other in a test.
pub fn nonce() -> Nonce {
    Nonce::new([0xa5; 32]).unwrap()
}

impl Host {
    /// A host called `label` in the domain `demo.example`, with an issuer of its own.
    pub fn new(label: &str) -> Self {
        Self::made_at(now(), label)
    }

    /// The same at another time: for what is judged by a clock.
    pub fn made_at(at: UnixTime, label: &str) -> Self {
        let years = Validity::starting(at, Duration::from_secs(10 * 366 * 86400)).unwrap();
        let issuer = Issuer::create("demo.example".parse().unwrap(), years).unwrap();
        Self::under_at(at, issuer, label)
    }

    /// A host called `label` under an existing issuer.
    pub fn under(issuer: Issuer, label: &str) -> Self {
        Self::under_at(now(), issuer, label)
    }

    /// The same at another time.
    pub fn under_at(at: UnixTime, issuer: Issuer, label: &str) -> Self {
        let years = Validity::starting(at, Duration::from_secs(366 * 86400)).unwrap();
        let key = KeyPair::generate().unwrap();
        let area = PublicArea::parse(&signing_area(&key, ATTESTATION)).unwrap();
        let public = AttestationKey::try_from(area).unwrap();
        let name = HostName::new(label, issuer.domain()).unwrap();
        let certificate = issuer
            .certify_host(&HostIkSpec {
                host: name.clone(),
                ik: public.clone(),
                ek: public.name(),
                policy_key: public.name(),
                validity: years,
            })
            .unwrap();
        Self {
            name,
            issuer,
            key,
            public,
            certificate,
            log: event_log(&[
                (0, 0x8000_0008, b"host firmware"),
                (4, 0x8000_0003, b"host boot loader"),
            ]),
            bank: HashAlgorithm::Sha256,
            quoted: BOOT_PCRS.into(),
            made_at: at,
            resets: RESETS,
        }
    }

    /// A copy of the issuer, for a second host or a policy.
    pub fn issuer_again(&self) -> Issuer {
        Issuer::from_pem(&self.issuer.key_pem(), &self.issuer.certificate_pem()).unwrap()
    }

    /// The issuer's private key.
    pub fn issuer_key(&self) -> KeyPair {
        KeyPair::from_pem(&self.issuer.key_pem()).unwrap()
    }

    /// A VM of the tenant `acme` on this host.
    pub fn vm(&self) -> Vm {
        let key = KeyPair::generate().unwrap();
        let public = signing_area(&key, ATTESTATION);
        let (vm, vrot) = (VmId::random(), VrotId::random());
        let generation = Generation::new(1);
        let certificate = self.certify(vm, vrot, generation, &public);
        Vm {
            vm,
            vrot,
            key,
            public,
            certificate,
            tls_key: KeyPair::generate().unwrap(),
            log: event_log(&[
                (0, 0x8000_0008, b"guest firmware"),
                (4, 0x8000_0003, &image_load_event("kernel", 14_186_432)),
                (4, 0x0000_0004, &[0; 4]),
                (9, 0x0000_0006, &initramfs_event()),
            ]),
            bank: HashAlgorithm::Sha256,
            quoted: BOOT_PCRS.into(),
            generation,
            resets: RESETS,
        }
    }

    /// The vRoT of `vm` after its state was restored with sanction.
    pub fn restored(&self, vm: Vm) -> Vm {
        let generation = vm.generation.next().unwrap();
        Vm {
            certificate: self.certify(vm.vm, vm.vrot, generation, &vm.public),
            generation,
            ..vm
        }
    }

    fn certify(
        &self,
        vm: VmId,
        vrot: VrotId,
        generation: Generation,
        public: &[u8],
    ) -> CertificateDer<'static> {
        let vik = AttestationKey::try_from(PublicArea::parse(public).unwrap()).unwrap();
        let spec = VikSpec {
            vm,
            vrot,
            tenant: "acme".parse().unwrap(),
            generation,
            manager: Digest32::of(b"manager"),
            backend: Digest32::of(b"backend"),
            vik,
            validity: self.for_a_day(),
        };
        issue_vik_certificate(&spec, &self.key, &self.certificate).unwrap()
    }

    fn for_a_day(&self) -> Validity {
        Validity::starting(self.made_at, Duration::from_secs(86400)).unwrap()
    }

    /// The certificate of the TLS key of `vm`.
    pub fn tls_certificate(&self, vm: &Vm) -> CertificateDer<'static> {
        let area = PublicArea::parse(&signing_area(&vm.tls_key, TLS)).unwrap();
        let spec = TlsSpec {
            vm: vm.vm,
            vrot: vm.vrot,
            key: TlsKey::try_from(area).unwrap(),
            validity: self.for_a_day(),
        };
        issue_tls_certificate(&spec, &self.key, &self.certificate).unwrap()
    }

    /// The leaf with which this host answers for `vm`.
    pub fn leaf(&self, vm: &Vm, layer: &VmLayer) -> HostLeaf {
        let vik = PublicArea::parse(&vm.public).unwrap().name();
        HostLeaf {
            salt: Digest32::of(vm.vm.to_string().as_bytes()),
            vm: vm.vm,
            vrot: vm.vrot,
            tenant: "acme".parse().unwrap(),
            generation: vm.generation,
            vik: vik.clone(),
            eks: vec![vik],
            launch: LaunchMeasurement::NotMeasured,
            request: request_digest(&layer.attest, &layer.signature),
            durability: Durability::Durable,
            anchoring: Anchoring::Checkpoint(600),
            cut_off: CutOff::Excluded,
            state_loss: StateLoss::Excluded,
        }
    }

    /// The host layer over these leaves, for the one at `index`.
    pub fn layer(&self, leaves: &[HostLeaf], index: usize) -> HostLayer {
        let tree = Tree::new(leaves.iter().map(HostLeaf::hash).collect()).unwrap();
        HostLayer {
            leaf: leaves.get(index).unwrap().encode().into(),
            ..self.layer_over(&tree, index)
        }
    }

    /// The host layer over a tree, for the leaf at `index`, whose contents are left out.
    pub fn layer_over(&self, tree: &Tree, index: usize) -> HostLayer {
        let event_log_digest = Digest32::of(&self.log);
        let qualifying = host_qualifying_data(
            &tree.root(),
            tree.size(),
            &self.public.name(),
            &event_log_digest,
        );
        let pcrs = pcrs_of(self.bank, &self.log, &self.quoted);
        let attest = quote_after(self.resets, &pcrs, &qualifying);
        HostLayer {
            signature: sign(&self.key, &attest),
            attest: attest.into(),
            host_ik_public: self.public.public_area().as_bytes().to_vec().into(),
            event_log_digest,
            event_log: self.log.clone().into(),
            root: tree.root(),
            tree_size: tree.size(),
            index: index as u64,
            path: tree.path(index).unwrap(),
            leaf: Vec::new().into(),
            pcr_values: pcrs.to_bytes().into(),
        }
    }

    /// Complete evidence for `vm`, with two neighbours in the same tree.
    pub fn evidence(&self, vm: &Vm, nonce: &Nonce, binding: Binding) -> Evidence {
        let vm_layer = vm.layer(self, nonce, binding);
        let leaf = self.leaf(vm, &vm_layer);
        let neighbour = |salt: &[u8]| HostLeaf {
            salt: Digest32::of(salt),
            ..leaf.clone()
        };
        let leaves = [neighbour(b"left"), leaf.clone(), neighbour(b"right")];
        let host_layer = self.layer(&leaves, 1);
        Evidence::new(vm_layer, host_layer)
    }

    /// What `policy` makes of genuine evidence of `vm`.
    pub fn appraise(&self, vm: &Vm, policy: &Policy) -> AttestationResult {
        let evidence = self.evidence(vm, &nonce(), Binding::None);
        let (nonce, at) = (nonce(), self.made_at);
        let verified = evidence.verify(&nonce, &Purpose::Challenge, policy.anchors(), at);
        appraise(verified.unwrap(), policy)
    }

    /// A policy that accepts exactly `vm` as it booted on this host.
    pub fn policy(&self, vm: &Vm) -> Policy {
        self.read_policy(&self.policy_text(vm)).unwrap()
    }

    /// Reads a policy whose roots are this host's issuer.
    pub fn read_policy(&self, text: &str) -> Result<Policy, PolicyError> {
        Policy::parse(text, |_| Ok(self.issuer.certificate_pem()))
    }

    /// The text of [`Host::policy`].
    pub fn policy_text(&self, vm: &Vm) -> String {
        let reference = |log: &[u8], bank| {
            reference_values(&EventLog::parse(log).unwrap(), bank, BOOT_PCRS).unwrap()
        };
        format!(
            "[trust]\nroots = \"roots.pem\"\n\n[expect]\nvm = \"{}\"\ntenant = \"acme\"\nhosts = [\"{}\"]\n\n{}\n{}",
            vm.vm,
            self.name,
            reference(&self.log, self.bank).to_toml("host"),
            reference(&vm.log, vm.bank).to_toml("vm"),
        )
    }
}

impl Vm {
    /// The VM layer for a challenge, with a TLS key if it is for a connection. Its quote answers two
    /// other requests as well.
    pub fn layer(&self, host: &Host, nonce: &Nonce, binding: Binding) -> VmLayer {
        let tls_key = match binding {
            Binding::None => None,
            Binding::Connection(_) => Some(self.tls_key_statement()),
        };
        self.layer_with(host, nonce, binding, tls_key)
    }

    /// The same with this statement about a TLS key, or none.
    pub fn layer_with(
        &self,
        host: &Host,
        nonce: &Nonce,
        binding: Binding,
        tls_key: Option<TlsKeyStatement>,
    ) -> VmLayer {
        let event_log_digest = Digest32::of(&self.log);
        let digest = tls_key.as_ref().map(TlsKeyStatement::digest);
        let leaf = |salt, digest| vm_request_leaf(salt, nonce, &binding, digest);
        let salt = Digest32::of(b"this");
        let leaves = vec![
            leaf(&Digest32::of(b"left"), None),
            leaf(&salt, digest.as_ref()),
            leaf(&Digest32::of(b"right"), None),
        ];
        let tree = Tree::new(leaves).unwrap();
        let qualifying = vm_qualifying_data(&tree.root(), tree.size(), &event_log_digest);
        let pcrs = pcrs_of(self.bank, &self.log, &self.quoted);
        let attest = quote_after(self.resets, &pcrs, &qualifying);
        VmLayer {
            nonce: nonce.clone(),
            binding,
            salt,
            tree_size: tree.size(),
            index: 1,
            path: tree.path(1).unwrap(),
            tls_key,
            signature: sign(&self.key, &attest),
            attest: attest.into(),
            vik_public: self.public.clone().into(),
            event_log_digest,
            event_log: self.log.clone().into(),
            chain: vec![
                self.certificate.to_vec().into(),
                host.certificate.to_vec().into(),
            ],
            pcr_values: pcrs.to_bytes().into(),
        }
    }
}

impl Vm {
    /// What the vIK says about the TLS key.
    pub fn tls_key_statement(&self) -> TlsKeyStatement {
        self.statement_about(signing_area(&self.tls_key, TLS))
    }

    /// What the vIK says about a key with this public area.
    pub fn statement_about(&self, public: Vec<u8>) -> TlsKeyStatement {
        let attest = certification(&public);
        TlsKeyStatement {
            public: public.into(),
            signature: sign(&self.key, &attest),
            attest: attest.into(),
        }
    }
}

/// A certificate whose key is replaced by another P-256 key, signed again by `issuer`: what a
/// lying issuer could make, and none of ours would.
pub fn certificate_for_another_key(
    certificate: &[u8],
    old: &KeyPair,
    new: &KeyPair,
    issuer: &KeyPair,
) -> CertificateDer<'static> {
    // Certificate ::= SEQUENCE { tbsCertificate, signatureAlgorithm, signatureValue }, where the
    // first two have lengths of two octets and of one.
    const HEADER: usize = 4;
    let length = |at: usize| {
        let octets = certificate.get(at + 2..at + HEADER).unwrap();
        usize::from(u16::from_be_bytes(octets.try_into().unwrap()))
    };
    let signed_end = HEADER + HEADER + length(HEADER);
    let mut signed = certificate.get(HEADER..signed_end).unwrap().to_vec();
    let point = old.der_bytes();
    let position = signed
        .windows(point.len())
        .position(|window| window == point)
        .unwrap();
    let place = signed.get_mut(position..position + point.len()).unwrap();
    place.copy_from_slice(new.der_bytes());

    let rest = certificate.get(signed_end..).unwrap();
    let algorithm = rest.get(..usize::from(*rest.get(1).unwrap()) + 2).unwrap();
    let signature = issuer.sign(&signed).unwrap();
    let bits = u8::try_from(signature.len() + 1).unwrap();
    let content = [&signed, algorithm, &[0x03, bits, 0], &signature].concat();
    let length = u16::try_from(content.len()).unwrap().to_be_bytes();
    [[0x30, 0x82].as_slice(), &length, &content].concat().into()
}

/// `TPMT_PUBLIC` of an ECDSA-SHA-256 key on P-256 (TPM 2.0 Part 2 §12.2.4).
pub fn signing_area(key: &KeyPair, attributes: ObjectAttributes) -> Vec<u8> {
    let point = key.der_bytes();
    let mut area = vec![0x00, 0x23, 0x00, 0x0b];
    area.extend(attributes.bits().to_be_bytes());
    // Policy, symmetric algorithm, scheme, curve, KDF.
    area.extend([0x00, 0x00]);
    area.extend([0x00, 0x10]);
    area.extend([0x00, 0x18, 0x00, 0x0b]);
    area.extend([0x00, 0x03, 0x00, 0x10]);
    for coordinate in [point.get(1..33).unwrap(), point.get(33..).unwrap()] {
        area.extend([0x00, 0x20]);
        area.extend(coordinate);
    }
    area
}

/// `TPMT_PUBLIC` of an endorsement key with this point: template L-2 of the TCG EK Credential
/// Profile (§B.3.4), with which TPMs are delivered.
pub fn endorsement_area(key: &KeyPair) -> Vec<u8> {
    let point = key.der_bytes();
    let mut area = vec![0x00, 0x23, 0x00, 0x0b, 0x00, 0x03, 0x00, 0xb2];
    // Policy: TPM2_PolicySecret of the endorsement hierarchy.
    area.extend([0x00, 0x20]);
    area.extend([
        0x83, 0x71, 0x97, 0x67, 0x44, 0x84, 0xb3, 0xf8, 0x1a, 0x90, 0xcc, 0x8d, 0x46, 0xa5, 0xd7,
        0x24, 0xfd, 0x52, 0xd7, 0x6e, 0x06, 0x52, 0x0b, 0x64, 0xf2, 0xa1, 0xda, 0x1b, 0x33, 0x14,
        0x69, 0xaa,
    ]);
    // AES-128-CFB for children, no scheme, curve, no KDF.
    area.extend([0x00, 0x06, 0x00, 0x80, 0x00, 0x43]);
    area.extend([0x00, 0x10, 0x00, 0x03, 0x00, 0x10]);
    for coordinate in [point.get(1..33).unwrap(), point.get(33..).unwrap()] {
        area.extend([0x00, 0x20]);
        area.extend(coordinate);
    }
    area
}

/// A crypto-agile log with SHA-256 digests of these events' data: PCR, event type, data.
pub fn event_log(events: &[(u32, u32, &[u8])]) -> Vec<u8> {
    event_log_in(&[HashAlgorithm::Sha256], events)
}

/// The same with digests of these banks.
pub fn event_log_in(banks: &[HashAlgorithm], events: &[(u32, u32, &[u8])]) -> Vec<u8> {
    let mut log = LogWriter::crypto_agile(banks);
    for (pcr, event_type, data) in events {
        let digests: Vec<(u16, Vec<u8>)> = banks
            .iter()
            .map(|bank| (bank.identifier(), bank.hash(&[data]).as_bytes().to_vec()))
            .collect();
        let event_type = format!("EV_0x{event_type:08x}").parse().unwrap();
        log.event(*pcr, event_type, &digests, data);
    }
    log.bytes().to_vec()
}

/// These PCRs of the SHA-256 bank after a boot that left this log.
pub fn pcrs(log: &[u8], quoted: &[u8]) -> PcrValues {
    pcrs_of(HashAlgorithm::Sha256, log, quoted)
}

/// These PCRs of a bank after a boot that left this log. Where the log has none of its digests,
/// they are as after a reset.
pub fn pcrs_of(bank: HashAlgorithm, log: &[u8], quoted: &[u8]) -> PcrValues {
    let replay = EventLog::parse(log).unwrap().replay_bank(bank);
    let mut values = PcrValues::new(bank);
    for pcr in quoted {
        let value = replay.as_ref().map(|of_bank| of_bank.value(*pcr).unwrap());
        let value = value.unwrap_or_else(|| bank.filled(0));
        values.insert(*pcr, value).unwrap();
    }
    values
}

/// `TPMS_ATTEST` of a key's certification (TPM 2.0 Part 2 §10.12.3).
pub fn certification(public: &[u8]) -> Vec<u8> {
    let name = PublicArea::parse(public).unwrap().name();
    let mut attest = statement(0x8017, &[], RESETS);
    // Name and qualified name, of which nobody here looks at the second.
    for _ in 0..2 {
        attest.extend(u16::try_from(name.as_bytes().len()).unwrap().to_be_bytes());
        attest.extend(name.as_bytes());
    }
    attest
}

/// What statements of all kinds begin with.
fn statement(kind: u16, qualifying_data: &[u8], resets: u32) -> Vec<u8> {
    const GENERATED: u32 = 0xff54_4347;
    let mut attest = GENERATED.to_be_bytes().to_vec();
    attest.extend(kind.to_be_bytes());
    // Qualified name of the signer: 34 bytes that nobody here looks at.
    attest.extend([0x00, 0x22, 0x00, 0x0b]);
    attest.extend([0x77; 32]);
    attest.extend(u16::try_from(qualifying_data.len()).unwrap().to_be_bytes());
    attest.extend(qualifying_data);
    // Clock, reset count, restart count, safe; firmware version.
    attest.extend(1_000u64.to_be_bytes());
    attest.extend(resets.to_be_bytes());
    attest.extend([0, 0, 0, 1, 1]);
    attest.extend(0x2019_1023_0016_3636u64.to_be_bytes());
    attest
}

/// `TPMS_ATTEST` of a quote (TPM 2.0 Part 2 §10.12.8).
pub fn quote(pcrs: &PcrValues, qualifying_data: &Digest32) -> Vec<u8> {
    quote_after(RESETS, pcrs, qualifying_data)
}

fn quote_after(resets: u32, pcrs: &PcrValues, qualifying_data: &Digest32) -> Vec<u8> {
    let mut attest = statement(0x8018, qualifying_data.as_bytes(), resets);
    attest.extend(pcrs.selection().to_bytes(pcrs.bank()));
    attest.extend([0x00, 0x20]);
    attest.extend(pcrs.digest().as_bytes());
    attest
}

/// `TPMT_SIGNATURE` with ECDSA and SHA-256 (TPM 2.0 Part 2 §11.3.4).
pub fn sign(key: &KeyPair, message: &[u8]) -> ByteVec {
    let der = key.sign(message).unwrap();
    let mut signature = vec![0x00, 0x18, 0x00, 0x0b];
    // SEQUENCE of two INTEGERs, each at most 33 bytes long.
    let mut rest = der.get(2..).unwrap();
    for _ in 0..2 {
        let length = usize::from(*rest.get(1).unwrap());
        let (integer, behind) = rest.get(2..).unwrap().split_at(length);
        let scalar = integer.strip_prefix(&[0]).unwrap_or(integer);
        signature.extend(u16::try_from(scalar.len()).unwrap().to_be_bytes());
        signature.extend(scalar);
        rest = behind;
    }
    canonical_signature(&signature).unwrap().into()
}

/// `UEFI_IMAGE_LOAD_EVENT` of a program with this file name and length, as QEMU's firmware logs
/// the kernel.
pub fn image_load_event(file: &str, length: u64) -> Vec<u8> {
    let name: Vec<u8> = file
        .encode_utf16()
        .chain([0])
        .flat_map(u16::to_le_bytes)
        .collect();
    let node = u16::try_from(name.len() + 4).unwrap();
    let path = [
        [4, 4].as_slice(),
        &node.to_le_bytes(),
        &name,
        &[0x7f, 0xff, 4, 0],
    ]
    .concat();
    let mut data = Vec::new();
    for number in [0x1c0c_c018, length, 0, path.len() as u64] {
        data.extend(number.to_le_bytes());
    }
    data.extend(path);
    data
}

/// The event by which the Linux boot stub logs the initramfs.
pub fn initramfs_event() -> Vec<u8> {
    [
        0x8f3b_22ec_u32.to_le_bytes().as_slice(),
        &[13, 0, 0, 0],
        b"Linux initrd\0",
    ]
    .concat()
}
