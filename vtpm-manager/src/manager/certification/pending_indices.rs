//! Room, in a vRoT's TPM, for certificates that are still to be issued.

use api_types::Timestamp;
use vrot_manufacture::{Chain, withdraw};

use super::Certification;
use crate::backend::Backend;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::{Pending, VrotRecord};

impl Certification {
    /// Makes sure, before there is a guest, that the indices of pending certificates have room for
    /// what this record leads to, and no content: a certificate with another VM's number must not
    /// be found there.
    pub(in crate::manager) async fn withdraw_pending(
        &self,
        record: &VrotRecord,
        backend: &Backend,
        chain: Chain,
    ) -> Result<(), ManagerError> {
        let (vrot, identity) = (record.vrot, &record.identity);
        let host_certificate = &identity.host_certificate;
        let order = self.order(record.subject(), host_certificate, Timestamp::now());
        let order = order.await?;
        let authority = self.authority(record).await?;
        let uncertified = identity.uncertified(vrot)?;
        let mut channel = backend.channel();
        let withdrawn =
            blocking(move || withdraw(&order, &uncertified, &authority, &mut channel, chain));
        withdrawn.await?.map_err(ManagerError::Manufacture)
    }

    /// The same at a start, for certificates under the host's present certificate. A vRoT in which
    /// that fails is started all the same, and the failure is shown.
    pub(in crate::manager) async fn reserve_pending(
        &self,
        record: &mut VrotRecord,
        backend: &Backend,
    ) {
        let Some(pending) = record.identity.pending() else {
            return;
        };
        let mut chain = Chain::Same;
        // A certificate that the vIK has was issued under the one that is there.
        if pending == Pending::Vik
            && let Some(enrolment) = self.host.enrolment()
            && enrolment.certificate.der()[..] != record.identity.host_certificate[..]
        {
            record.identity.host_certificate = enrolment.certificate.der().to_vec().into();
            chain = Chain::Changed;
        }
        if let Err(error) = self.withdraw_pending(record, backend, chain).await {
            self.note_failure(record.vrot, &error).await;
        }
    }
}
