//! From a set to verified evidence of each of its VMs: the host's part once, then each VM's.

use std::sync::Arc;

use cert_chain::{AttestationKey, TrustAnchors, VmId};
use rustls_pki_types::UnixTime;

use super::{EvidenceSet, SetVm, Unquoted};
use crate::host_leaf::QuotePurpose;
use crate::nonce::Nonce;
use crate::qualifying::{tenant_qualifying_data, tenant_request_digest};
use crate::refusal::{Layer, Refusal};
use crate::verification::{
    HostQuote, LeafPlace, VerifiedEvidence, VerifiedLayer, account_for, check_host,
    check_qualifying_data, read_key, verify_chain, verify_host_quote, verify_leaf, verify_quote,
    verify_vik,
};

/// A set whose host's part was verified, with what came of each VM.
#[derive(Debug)]
pub struct VerifiedSet {
    pub(super) vms: Vec<Result<VerifiedEvidence, VmRefusal>>,
    pub(super) unquoted: Vec<Unquoted>,
}

/// Why the evidence of one VM of a set proves nothing.
#[derive(Debug)]
pub struct VmRefusal {
    /// Which VM it was said to be.
    pub vm: Option<VmId>,
    /// Why.
    pub refusal: Refusal,
}

/// What is the same for all VMs of a set.
struct Common<'e> {
    set: &'e EvidenceSet,
    anchors: TrustAnchors,
    at: UnixTime,
    ik: AttestationKey,
    host: Arc<VerifiedLayer>,
}

impl EvidenceSet {
    /// Verifies everything that can be verified without a policy: that the set answers `nonce`, that
    /// the host IK quoted the host's PCRs over all statements of the set, and the host's event log; and
    /// for each VM that the certificates lead to `anchors` as of `at`, that its vIK quoted for the
    /// tenant, and that the host states so of this very quote.
    ///
    /// What is wrong with the host's part is wrong with all. What is wrong with a VM is told for that one.
    pub fn verify(
        &self,
        nonce: &Nonce,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedSet, Refusal> {
        if self.nonce != *nonce {
            return Err(Refusal::Nonce);
        }
        let ik = read_key(Layer::Host, &self.host.host_ik_public)?;
        let quote = HostQuote {
            attest: &self.host.attest,
            signature: &self.host.signature,
            event_log_digest: &self.host.event_log_digest,
            event_log: &self.host.event_log,
            root: &self.host.root,
            tree_size: self.host.tree_size,
            pcr_values: &self.host.pcr_values,
        };
        let host = verify_host_quote(&quote, &ik)?.accounted()?;
        let common = Common {
            set: self,
            anchors: anchors.with_carried(self.crls.iter()),
            at,
            ik,
            host: Arc::new(host),
        };
        let verified = |vm: &SetVm| {
            common.verify(vm).map_err(|refusal| VmRefusal {
                vm: vm.said_vm(),
                refusal,
            })
        };
        Ok(VerifiedSet {
            vms: self.vms.iter().map(verified).collect(),
            unquoted: self.unquoted.clone(),
        })
    }
}

impl Common<'_> {
    fn verify(&self, vm: &SetVm) -> Result<VerifiedEvidence, Refusal> {
        let host = &self.set.host;
        let certificates = [&**vm.certificate, &**host.certificate];
        let chain = verify_chain(&certificates, &self.anchors, self.at)?;
        check_host(&self.ik, &chain)?;
        let vik = verify_vik(&vm.vik_public, &chain)?;
        let quote = verify_quote(Layer::Vm, &vm.attest, &vm.signature, &vik)?;
        let expected = tenant_qualifying_data(&self.set.nonce, &vik.name());
        check_qualifying_data(Layer::Vm, &quote, &expected)?;
        let place = LeafPlace {
            leaf: &vm.leaf,
            index: vm.index,
            path: &vm.path,
            root: &host.root,
            tree_size: host.tree_size,
        };
        let request = tenant_request_digest(&vm.attest, &vm.signature);
        let leaf = verify_leaf(&place, QuotePurpose::Tenant, &request, &chain)?;
        Ok(VerifiedEvidence {
            nonce: self.set.nonce.clone(),
            anchors: *self.anchors.digest(),
            verified_at: self.at,
            vm: account_for(Layer::Vm, &quote, None, &vm.pcr_values)?,
            host: Arc::clone(&self.host),
            chain,
            leaf,
        })
    }
}

impl VerifiedSet {
    /// What came of each VM.
    pub fn vms(&self) -> &[Result<VerifiedEvidence, VmRefusal>] {
        &self.vms
    }

    /// The VMs that the host says it could not quote.
    pub fn unquoted(&self) -> &[Unquoted] {
        &self.unquoted
    }
}
