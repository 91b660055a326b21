//! Evidence of VMs for their tenants, which the host makes without the guests.

use std::collections::BTreeMap;
use std::sync::Arc;

use attestation::evidence_set::{EvidenceSet, MAX_VMS, SetHost, SetVm, Unquoted};
use attestation::quote::{VerifiedQuote, canonical_signature};
use attestation::{Nonce, tenant_qualifying_data, tenant_request_digest};
use cert_chain::{AttestationKey, PcrValues, VmId, VrotId};
use minicbor::bytes::ByteVec;
use tokio::task::JoinSet;

use super::Fleet;
use crate::backend::{NotQuoted, QuotedVm};
use crate::host::HostError;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::RecordError;

/// What goes into a set about one VM, but for the host's statement.
struct Quoted {
    vm: QuotedVm,
    signature: Vec<u8>,
    certificate: ByteVec,
}

/// Why there is nothing of a VM in a set.
#[derive(Debug, thiserror::Error)]
enum WithoutQuote {
    #[error("it does not run")]
    NotRunning,
    #[error("its identity key is not certified yet: ask again in a moment")]
    Pending,
    #[error("its certificate is of an earlier identity of this host: it is renewed in a moment")]
    OtherHost,
    #[error(transparent)]
    Backend(#[from] NotQuoted),
    #[error("its record cannot be used")]
    Record(#[from] RecordError),
    #[error("what its TPM quoted is not what was asked for")]
    Quote,
}

impl Fleet {
    /// Has each of these vRoTs quote with this nonce between two commands of its guest, and the host
    /// vouch for all of them with one signature of the physical TPM.
    ///
    /// A vRoT that is named several times quotes once, and of none the physical TPM signs nothing. A VM
    /// that cannot be quoted is in the set with the reason. Whose VMs may be asked for is for the caller
    /// to know.
    pub async fn evidence_set(
        &self,
        nonce: &Nonce,
        vrots: Vec<Arc<Vrot>>,
    ) -> Result<EvidenceSet, ManagerError> {
        let vrots = vrots.into_iter().map(|vrot| (vrot.record().vrot, vrot));
        let vrots: BTreeMap<VrotId, Arc<Vrot>> = vrots.collect();
        if vrots.is_empty() {
            return Err(ManagerError::NoVms);
        }
        if vrots.len() > MAX_VMS {
            return Err(ManagerError::TooManyVms { found: vrots.len() });
        }
        let enrolment = self.certification.enrolment();
        let enrolment = enrolment.ok_or(HostError::NotEnrolled)?;
        let certificate: Arc<[u8]> = enrolment.certificate.der().to_vec().into();
        let share = self.quoting.share();
        let mut quotes = JoinSet::new();
        for vrot in vrots.into_values() {
            let (nonce, share) = (nonce.clone(), share.clone());
            let certificate = Arc::clone(&certificate);
            quotes.spawn(async move {
                let vm = vrot.record().vm;
                (vm, share.quote(quote(&vrot, nonce, &certificate)).await)
            });
        }
        let mut quoted: Vec<Quoted> = Vec::new();
        let mut unquoted = Vec::new();
        while let Some(outcome) = quotes.join_next().await {
            match outcome.map_err(|source| ManagerError::Task { source })? {
                (_, Ok(vm)) => quoted.push(vm),
                (vm, Err(why)) => unquoted.push(told(vm, &why)),
            }
        }
        let stated: Vec<_> = (quoted.iter())
            .map(|quoted| {
                let request = tenant_request_digest(&quoted.vm.quote.attest, &quoted.signature);
                (quoted.vm.subject.clone(), quoted.vm.durability, request)
            })
            .collect();
        let (leaves, signed) = self.evidence.statements(&stated).await?;
        let vms = quoted.into_iter().zip(leaves).zip(signed.places);
        let vms = vms.map(|((quoted, leaf), place)| SetVm {
            attest: quoted.vm.quote.attest,
            signature: quoted.signature.into(),
            vik_public: quoted.vm.quote.public,
            certificate: quoted.certificate,
            pcr_values: quoted.vm.quote.pcr_values,
            leaf: leaf.encode().into(),
            index: place.index,
            path: place.path,
        });
        let host = SetHost {
            attest: signed.attest.into(),
            signature: signed.signature.into(),
            host_ik_public: signed.host_ik_public.into(),
            certificate: certificate.to_vec().into(),
            event_log_digest: signed.event_log_digest,
            event_log: signed.event_log.to_vec().into(),
            root: signed.root,
            tree_size: signed.tree_size,
            pcr_values: signed.pcr_values.into(),
        };
        Ok(EvidenceSet::new(
            nonce.clone(),
            host,
            vms.collect(),
            unquoted,
        ))
    }
}

async fn quote(vrot: &Vrot, nonce: Nonce, host: &[u8]) -> Result<Quoted, WithoutQuote> {
    let backend = vrot.backend().ok_or(WithoutQuote::NotRunning)?;
    let vm = backend.quote(nonce.clone()).await?;
    // As it is now: a certificate that was renewed meanwhile is of the same key.
    let record = vrot.record();
    let certificate = record.identity.vik_certificate.clone();
    let certificate = certificate.ok_or(WithoutQuote::Pending)?;
    if **record.identity.host_certificate != *host {
        return Err(WithoutQuote::OtherHost);
    }
    let vik = record.identity.vik(record.vrot)?;
    let signature = checked(&vm, &nonce, &vik).ok_or(WithoutQuote::Quote)?;
    Ok(Quoted {
        vm,
        signature,
        certificate,
    })
}

/// The signature in the form that evidence has, if the certified key quoted what was asked for. The
/// host states nothing of other quotes.
fn checked(vm: &QuotedVm, nonce: &Nonce, vik: &AttestationKey) -> Option<Vec<u8>> {
    if *vm.quote.public != *vik.public_area().as_bytes() || vm.subject.vik != vik.name() {
        return None;
    }
    let signature = canonical_signature(&vm.quote.signature).ok()?;
    let quote = VerifiedQuote::verify(&vm.quote.attest, &signature, vik).ok()?;
    if quote.qualifying_data() != tenant_qualifying_data(nonce, &vik.name()).as_bytes() {
        return None;
    }
    PcrValues::from_bytes(quote.bank(), quote.selection(), &vm.quote.pcr_values)
        .filter(|pcrs| pcrs.digest() == *quote.pcr_digest())?;
    Some(signature)
}

fn told(vm: VmId, why: &WithoutQuote) -> Unquoted {
    if let WithoutQuote::Record(_) | WithoutQuote::Quote = why {
        tracing::error!(%vm, %why, "no evidence for its tenant");
    }
    Unquoted {
        vm,
        reason: why.to_string(),
    }
}
