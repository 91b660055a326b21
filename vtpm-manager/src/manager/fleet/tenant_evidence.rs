//! What the vRoTs of VMs quote without the guests: evidence for tenants, and what the host itself shows.

use std::collections::BTreeMap;
use std::sync::Arc;

use attestation::evidence_set::{EvidenceSet, MAX_VMS, SetHost, SetVm, Unquoted};
use attestation::quote::{VerifiedQuote, canonical_signature};
use attestation::{Nonce, tenant_qualifying_data, tenant_request_digest};
use cert_chain::{AttestationKey, PcrValues, VmId, VrotId};
use minicbor::bytes::ByteVec;
use tokio::task::JoinSet;
use uuid::Uuid;

use super::Fleet;
use crate::backend::{NotQuoted, QuotedVm};
use crate::host::HostError;
use crate::manager::error::ManagerError;
use crate::manager::registry::Vrot;
use crate::vrot::RecordError;

/// What a vRoT quoted, once that was checked.
struct Checked {
    vm: QuotedVm,
    /// In the form that evidence has.
    signature: Vec<u8>,
    pcrs: PcrValues,
}

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

    /// What the PCRs of a VM hold now, quoted between two commands of its guest. The physical TPM
    /// signs nothing, and nobody else can use the quote.
    pub async fn quoted_pcrs(&self, vrot: &Vrot) -> Result<PcrValues, ManagerError> {
        let quoted = async {
            let nonce = Nonce::new(Uuid::new_v4().into_bytes()).map_err(|_| WithoutQuote::Quote)?;
            self.quoting.share().quote(checked(vrot, &nonce)).await
        };
        quoted.await.map(|checked| checked.pcrs).map_err(|why| {
            let record = vrot.record();
            ManagerError::NotQuoted {
                vrot: record.vrot,
                reason: told(record.vm, &why).reason,
            }
        })
    }
}

async fn quote(vrot: &Vrot, nonce: Nonce, host: &[u8]) -> Result<Quoted, WithoutQuote> {
    let Checked { vm, signature, .. } = checked(vrot, &nonce).await?;
    // As it is now: a certificate that was renewed meanwhile is of the same key.
    let record = vrot.record();
    let certificate = record.identity.vik_certificate.clone();
    let Some(certificate) = certificate else {
        vrot.ask_for();
        return Err(WithoutQuote::Pending);
    };
    if **record.identity.host_certificate != *host {
        return Err(WithoutQuote::OtherHost);
    }
    Ok(Quoted {
        vm,
        signature,
        certificate,
    })
}

/// Has a vRoT quote. The host states and shows nothing of quotes of another key, or of something else.
async fn checked(vrot: &Vrot, nonce: &Nonce) -> Result<Checked, WithoutQuote> {
    let backend = vrot.backend().ok_or(WithoutQuote::NotRunning)?;
    let vm = backend.quote(nonce.clone()).await?;
    let record = vrot.record();
    let vik = record.identity.vik(record.vrot)?;
    let (signature, pcrs) = verified(&vm, nonce, &vik).ok_or(WithoutQuote::Quote)?;
    Ok(Checked {
        vm,
        signature,
        pcrs,
    })
}

/// The signature and the values, if this key quoted what was asked for.
fn verified(vm: &QuotedVm, nonce: &Nonce, vik: &AttestationKey) -> Option<(Vec<u8>, PcrValues)> {
    if *vm.quote.public != *vik.public_area().as_bytes() || vm.subject.vik != vik.name() {
        return None;
    }
    let signature = canonical_signature(&vm.quote.signature).ok()?;
    let quote = VerifiedQuote::verify(&vm.quote.attest, &signature, vik).ok()?;
    if quote.qualifying_data() != tenant_qualifying_data(nonce, &vik.name()).as_bytes() {
        return None;
    }
    let pcrs = PcrValues::from_bytes(quote.bank(), quote.selection(), &vm.quote.pcr_values)
        .filter(|pcrs| pcrs.digest() == *quote.pcr_digest())?;
    Some((signature, pcrs))
}

fn told(vm: VmId, why: &WithoutQuote) -> Unquoted {
    if let WithoutQuote::Record(_) | WithoutQuote::Quote = why {
        tracing::error!(%vm, %why, "its vRoT is not quoted");
    }
    Unquoted {
        vm,
        reason: why.to_string(),
    }
}
