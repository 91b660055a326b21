//! From evidence to verified evidence: signatures first, then what they cover.

use std::sync::Arc;

use cert_chain::{
    AttestationKey, Digest32, HashAlgorithm, PcrValues, PublicArea, TlsKey, TrustAnchors,
    VerifiedVikChain, VikChain,
};
use rustls_pki_types::UnixTime;

use crate::binding::{Binding, Purpose};
use crate::event_log::EventLog;
use crate::evidence::{BootRecord, Evidence, HostLayer, VmLayer};
use crate::host_leaf::{HostLeaf, QuotePurpose};
use crate::merkle;
use crate::nonce::Nonce;
use crate::qualifying::{RequestDigest, host_qualifying_data, request_digest, vm_qualifying_data};
use crate::quote::{ClockInfo, QuoteError, VerifiedQuote};
use crate::refusal::{Layer, Refusal};

/// Evidence of which every byte was verified: it stands in what a quote or a certificate's
/// signature covers, or is such a signature.
///
/// Of an ECDSA signature (r, s) there is a second form (r, n − s), which proves the same to
/// everybody; so evidence has no other content, but the host's quote and the certificates can
/// have other signature bytes. The VM's signature cannot: the host's quote covers it.
///
/// The revocation lists that it carries are no part of it: a list counts if its issuer signed it, wherever
/// it comes from, and is passed over if not.
///
/// It establishes who made it, for which challenge, and what both TPMs measured. It does not
/// establish that any of that is acceptable: [`appraise`](crate::appraise) compares it with a
/// policy.
///
/// A result keeps it with what the TPMs [reported](TpmReport) alone: the logs are by far the most of it,
/// and have been appraised by then.
#[derive(Clone, Debug)]
pub struct VerifiedEvidence<L = VerifiedLayer> {
    pub(crate) nonce: Nonce,
    pub(crate) anchors: Digest32,
    pub(crate) verified_at: UnixTime,
    pub(crate) chain: VerifiedVikChain,
    pub(crate) leaf: HostLeaf,
    pub(crate) vm: L,
    /// What many VMs of one host share.
    pub(crate) host: Arc<L>,
}

/// What one TPM reported, with what accounts for it.
#[derive(Clone, Debug)]
pub struct VerifiedLayer {
    boot: VerifiedBoot,
    report: TpmReport,
}

/// What accounts for quoted PCRs.
#[derive(Clone, Debug)]
pub enum VerifiedBoot {
    /// Nothing: the values stand for themselves.
    PcrsAlone,
    /// An event log that leads to all of them.
    Log(EventLog),
}

/// What one TPM reported.
#[derive(Clone, Debug)]
pub struct TpmReport {
    has_log: bool,
    pcrs: PcrValues,
    clock: ClockInfo,
    firmware_version: u64,
}

impl Evidence {
    /// Verifies everything that can be verified without a policy: that the certificates lead to
    /// `anchors` as of `at`, that the VM's quote answers `nonce` for `purpose`, that the host's
    /// quote was made over it by the host that the certificates name, and that both event logs
    /// account for the quoted PCRs. Of the revocation lists that the anchors know and those that the
    /// evidence carries, the newest counts. Evidence for a connection has to be of the VM whose TPM has the
    /// key of that connection.
    pub fn verify(
        &self,
        nonce: &Nonce,
        purpose: &Purpose,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedEvidence, Refusal> {
        check_purpose(&self.vm, nonce, purpose.binding())?;
        let anchors = anchors.with_carried(self.crls.iter());
        let certificates: Vec<&[u8]> = self.vm.chain.iter().map(|der| der.as_slice()).collect();
        let chain = verify_chain(&certificates, &anchors, at)?;
        let vik = verify_vik(&self.vm.vik_public, &chain)?;
        let vm_quote = verify_vm_quote(&self.vm, &vik)?;
        verify_tls_key(&self.vm, &vik, purpose)?;
        let ik = read_key(Layer::Host, &self.host.host_ik_public)?;
        check_host(&ik, &chain)?;
        let host = verify_host_quote(&HostQuote::of_layer(&self.host), &ik)?;
        let place = LeafPlace {
            leaf: &self.host.leaf,
            index: self.host.index,
            path: &self.host.path,
            root: &self.host.root,
            tree_size: self.host.tree_size,
        };
        let request = request_digest(&self.vm.attest, &self.vm.signature);
        let leaf = verify_leaf(&place, QuotePurpose::Service, &request, &chain)?;
        Ok(VerifiedEvidence {
            nonce: nonce.clone(),
            anchors: *anchors.digest(),
            verified_at: at,
            vm: account_for(
                Layer::Vm,
                &vm_quote,
                self.vm.boot.log(),
                &self.vm.pcr_values,
            )?,
            host: Arc::new(host.accounted()?),
            chain,
            leaf,
        })
    }
}

impl VerifiedEvidence {
    pub(crate) fn without_logs(self) -> VerifiedEvidence<TpmReport> {
        VerifiedEvidence {
            nonce: self.nonce,
            anchors: self.anchors,
            verified_at: self.verified_at,
            chain: self.chain,
            leaf: self.leaf,
            vm: self.vm.into_report(),
            host: Arc::new(self.host.report.clone()),
        }
    }
}

impl<L> VerifiedEvidence<L> {
    /// The challenge that it answers.
    pub fn nonce(&self) -> &Nonce {
        &self.nonce
    }

    /// [Digest](TrustAnchors::digest) of the anchors that the certificates lead to.
    pub fn anchors(&self) -> &Digest32 {
        &self.anchors
    }

    /// The time as of which everything was verified.
    pub fn verified_at(&self) -> UnixTime {
        self.verified_at
    }

    /// The certificates, and what they say.
    pub fn chain(&self) -> &VerifiedVikChain {
        &self.chain
    }

    /// What the host says about the VM.
    pub fn leaf(&self) -> &HostLeaf {
        &self.leaf
    }

    /// One of the two layers.
    pub fn layer(&self, layer: Layer) -> &L {
        match layer {
            Layer::Host => &self.host,
            Layer::Vm => &self.vm,
        }
    }
}

impl VerifiedLayer {
    /// What accounts for all quoted PCRs.
    pub fn boot(&self) -> &VerifiedBoot {
        &self.boot
    }

    /// The bank of the quoted PCRs. Of the log, only its digests are verified.
    pub fn bank(&self) -> HashAlgorithm {
        self.report.bank()
    }

    /// The quoted PCRs.
    pub fn pcrs(&self) -> &PcrValues {
        self.report.pcrs()
    }

    pub(crate) fn into_report(self) -> TpmReport {
        self.report
    }
}

impl TpmReport {
    /// The bank of the quoted PCRs.
    pub fn bank(&self) -> HashAlgorithm {
        self.pcrs.bank()
    }

    /// What accounted for the quoted PCRs, as results name it.
    pub fn boot_record(&self) -> &'static str {
        match self.has_log {
            true => "log",
            false => "pcrs-alone",
        }
    }

    /// The quoted PCRs.
    pub fn pcrs(&self) -> &PcrValues {
        &self.pcrs
    }

    /// The TPM's clock and counters; see [`ClockInfo`] for what a host's are worth.
    pub fn clock(&self) -> ClockInfo {
        self.clock
    }

    /// The TPM's firmware version, as its maker counts; obfuscated for the host, whose IK is a
    /// key of the owner hierarchy.
    pub fn firmware_version(&self) -> u64 {
        self.firmware_version
    }
}

fn check_purpose(vm: &VmLayer, nonce: &Nonce, binding: &Binding) -> Result<(), Refusal> {
    if vm.nonce != *nonce {
        return Err(Refusal::Nonce);
    }
    if vm.binding != *binding {
        return Err(Refusal::Binding {
            found: Box::new(vm.binding.clone()),
            expected: Box::new(binding.clone()),
        });
    }
    Ok(())
}

pub(crate) fn verify_chain<C: AsRef<[u8]>>(
    certificates: &[C],
    anchors: &TrustAnchors,
    at: UnixTime,
) -> Result<VerifiedVikChain, Refusal> {
    VikChain::from_der_list(certificates)
        .and_then(|chain| chain.verify(anchors, at))
        .map_err(Refusal::Chain)
}

pub(crate) fn verify_vik(
    vik_public: &[u8],
    chain: &VerifiedVikChain,
) -> Result<AttestationKey, Refusal> {
    let vik = read_key(Layer::Vm, vik_public)?;
    if vik.name() != chain.claims().vik || vik.subject_public_key_info() != chain.vik_spki() {
        return Err(Refusal::KeyMismatch(Layer::Vm));
    }
    Ok(vik)
}

fn verify_vm_quote(vm: &VmLayer, vik: &AttestationKey) -> Result<VerifiedQuote, Refusal> {
    let quote = verify_quote(Layer::Vm, &vm.attest, &vm.signature, vik)?;
    if let BootRecord::Log { digest, log } = &vm.boot {
        check_log_digest(Layer::Vm, log, digest)?;
    }
    let root = vm.request_root().map_err(Refusal::RequestPath)?;
    let expected = vm_qualifying_data(&root, vm.tree_size, &vm.boot);
    check_qualifying_data(Layer::Vm, &quote, &expected)?;
    Ok(quote)
}

/// A statement that is there is verified, whatever the purpose; a connection has to have one.
fn verify_tls_key(vm: &VmLayer, vik: &AttestationKey, purpose: &Purpose) -> Result<(), Refusal> {
    let certified = vm
        .tls_key
        .as_ref()
        .map(|statement| statement.verify::<TlsKey>(vik).map_err(Refusal::TlsKey))
        .transpose()?;
    match (purpose, certified) {
        (Purpose::Challenge | Purpose::Node { .. } | Purpose::SignedData, _) => Ok(()),
        (Purpose::Connection { .. }, None) => Err(Refusal::TlsKeyMissing),
        (Purpose::Connection { key, .. }, Some(certified)) => {
            if Digest32::of(&certified.subject_public_key_info()) == *key {
                Ok(())
            } else {
                Err(Refusal::TlsKeyMismatch)
            }
        }
    }
}

/// A host's quote, with what it covers.
pub(crate) struct HostQuote<'e> {
    pub(crate) attest: &'e [u8],
    pub(crate) signature: &'e [u8],
    pub(crate) event_log_digest: &'e Digest32,
    pub(crate) event_log: &'e [u8],
    pub(crate) root: &'e Digest32,
    pub(crate) tree_size: u64,
    pub(crate) pcr_values: &'e [u8],
}

/// The same, signed by the host IK; what it has to be compared with yet is at hand.
pub(crate) struct SignedHostQuote<'e> {
    quote: VerifiedQuote,
    event_log: &'e [u8],
    pcr_values: &'e [u8],
}

impl<'e> HostQuote<'e> {
    fn of_layer(layer: &'e HostLayer) -> Self {
        Self {
            attest: &layer.attest,
            signature: &layer.signature,
            event_log_digest: &layer.event_log_digest,
            event_log: &layer.event_log,
            root: &layer.root,
            tree_size: layer.tree_size,
            pcr_values: &layer.pcr_values,
        }
    }
}

impl SignedHostQuote<'_> {
    /// What the host's TPM reported: its event log accounts for the quoted PCRs.
    pub(crate) fn accounted(&self) -> Result<VerifiedLayer, Refusal> {
        account_for(
            Layer::Host,
            &self.quote,
            Some(self.event_log),
            self.pcr_values,
        )
    }
}

/// The key is that of the host which vouches for the VM.
pub(crate) fn check_host(ik: &AttestationKey, chain: &VerifiedVikChain) -> Result<(), Refusal> {
    if ik.name() != chain.host_claims().ik {
        return Err(Refusal::HostMismatch {
            host: chain.host().clone(),
            expected: chain.host_claims().ik.clone(),
            found: ik.name(),
        });
    }
    if ik.subject_public_key_info() != chain.host_spki() {
        return Err(Refusal::KeyMismatch(Layer::Host));
    }
    Ok(())
}

pub(crate) fn verify_host_quote<'e>(
    host: &HostQuote<'e>,
    ik: &AttestationKey,
) -> Result<SignedHostQuote<'e>, Refusal> {
    let quote = verify_quote(Layer::Host, host.attest, host.signature, ik)?;
    check_log_digest(Layer::Host, host.event_log, host.event_log_digest)?;
    let expected =
        host_qualifying_data(host.root, host.tree_size, &ik.name(), host.event_log_digest);
    check_qualifying_data(Layer::Host, &quote, &expected)?;
    Ok(SignedHostQuote {
        quote,
        event_log: host.event_log,
        pcr_values: host.pcr_values,
    })
}

/// An encoded leaf, and where it stands in the tree that the host signed.
pub(crate) struct LeafPlace<'e> {
    pub(crate) leaf: &'e [u8],
    pub(crate) index: u64,
    pub(crate) path: &'e [Digest32],
    pub(crate) root: &'e Digest32,
    pub(crate) tree_size: u64,
}

/// The leaf is in the signed tree, is about a quote of this purpose, namely this one, and agrees with
/// the certificate.
pub(crate) fn verify_leaf(
    place: &LeafPlace<'_>,
    purpose: QuotePurpose,
    request: &RequestDigest,
    chain: &VerifiedVikChain,
) -> Result<HostLeaf, Refusal> {
    let hash = merkle::leaf_hash(place.leaf);
    let root = merkle::root_from_path(hash, place.index, place.tree_size, place.path)
        .map_err(Refusal::InclusionPath)?;
    if root != *place.root {
        return Err(Refusal::Inclusion);
    }
    let leaf = HostLeaf::decode(place.leaf).ok_or(Refusal::LeafMalformed)?;
    if leaf.purpose != purpose {
        return Err(Refusal::Purpose {
            found: leaf.purpose,
            expected: purpose,
        });
    }
    if leaf.request != *request {
        return Err(Refusal::Request);
    }
    let claims = chain.claims();
    for (agree, what) in [
        (leaf.vm == claims.vm, "VM"),
        (leaf.vrot == claims.vrot, "vRoT"),
        (leaf.tenant == claims.tenant, "tenant"),
        (leaf.generation == claims.generation, "generation"),
        (leaf.vik == claims.vik, "identity key"),
    ] {
        if !agree {
            return Err(Refusal::LeafMismatch(what));
        }
    }
    Ok(leaf)
}

pub(crate) fn read_key<L: Copy>(
    layer: L,
    tpmt_public: &[u8],
) -> Result<AttestationKey, Refusal<L>> {
    let area =
        PublicArea::parse(tpmt_public).map_err(|source| Refusal::KeyMalformed { layer, source })?;
    AttestationKey::try_from(area).map_err(|source| Refusal::Key { layer, source })
}

pub(crate) fn verify_quote<L: Copy>(
    layer: L,
    attest: &[u8],
    signature: &[u8],
    key: &AttestationKey,
) -> Result<VerifiedQuote, Refusal<L>> {
    VerifiedQuote::verify(attest, signature, key)
        .map_err(|source: QuoteError| Refusal::Quote { layer, source })
}

pub(crate) fn check_log_digest<L: Copy>(
    layer: L,
    log: &[u8],
    digest: &Digest32,
) -> Result<(), Refusal<L>> {
    if Digest32::of(log) == *digest {
        Ok(())
    } else {
        Err(Refusal::EventLogAltered(layer))
    }
}

pub(crate) fn check_qualifying_data<L: Copy>(
    layer: L,
    quote: &VerifiedQuote,
    expected: &Digest32,
) -> Result<(), Refusal<L>> {
    if quote.qualifying_data() == expected.as_bytes() {
        Ok(())
    } else {
        Err(Refusal::QualifyingData(layer))
    }
}

/// Compares what the TPM quoted with the log, where there is one. The quote has a digest of the PCRs
/// alone, so their values come beside it: they say which PCR it is that differs.
pub(crate) fn account_for<L: Copy>(
    layer: L,
    quote: &VerifiedQuote,
    log: Option<&[u8]>,
    values: &[u8],
) -> Result<VerifiedLayer, Refusal<L>> {
    let pcrs = PcrValues::from_bytes(quote.bank(), quote.selection(), values)
        .filter(|pcrs| pcrs.digest() == *quote.pcr_digest())
        .ok_or(Refusal::PcrValues(layer))?;
    let boot = match log {
        None => VerifiedBoot::PcrsAlone,
        Some(log) => VerifiedBoot::Log(replayed(layer, &pcrs, log)?),
    };
    Ok(VerifiedLayer {
        boot,
        report: TpmReport {
            has_log: log.is_some(),
            pcrs,
            clock: quote.clock(),
            firmware_version: quote.firmware_version(),
        },
    })
}

/// A log that leads to these PCRs.
fn replayed<L: Copy>(layer: L, pcrs: &PcrValues, log: &[u8]) -> Result<EventLog, Refusal<L>> {
    let bank = pcrs.bank();
    let log =
        EventLog::parse(log).map_err(|source| Refusal::EventLogMalformed { layer, source })?;
    let replayed = log
        .replay_bank(bank)
        .ok_or(Refusal::EventLogBank { layer, bank })?;
    let unaccounted = replayed
        .unaccounted(pcrs.iter())
        .map_err(|source| Refusal::EventLogGap { layer, source })?;
    if unaccounted.is_empty() {
        return Ok(log);
    }
    Err(Refusal::EventLogReplay {
        layer,
        bank,
        pcrs: unaccounted,
    })
}
