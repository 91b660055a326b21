//! Certificate indices of a vRoT that hold something else than its record.
use vrot_manufacture::{Guest, restore};

use super::Certification;
use crate::audit::Event;
use crate::backend::Backend;
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::VrotRecord;

impl Certification {
    /// Puts back what a guest would find changed in its certificate indices, and says so.
    pub(super) async fn restore_certificates(
        &self,
        record: &VrotRecord,
        backend: &Backend,
        guest: Guest,
    ) -> Result<(), ManagerError> {
        let vrot = record.vrot;
        let authority = self.authority(record).await?;
        let published = record.identity.published();
        let mut channel = backend.channel();
        let restored = blocking(move || restore(&published, &authority, &mut channel, guest))
            .await?
            .map_err(ManagerError::Manufacture)?;
        if restored.is_empty() {
            return Ok(());
        }
        let indices: Vec<String> = restored
            .iter()
            .map(|index| format!("0x{:08x}", index.handle()))
            .collect();
        let indices = indices.join(", ");
        tracing::error!(
            %vrot,
            indices,
            "certificate indices held something else than the manager wrote, and were restored"
        );
        self.guarded
            .record(Event::CertificatesRestored {
                vrot,
                indices: indices.into(),
            })
            .await
    }

    /// Restores certificates before the guest runs. A vRoT in which that fails is started all the
    /// same, and the failure is shown.
    pub(in crate::manager) async fn restore_before_start(
        &self,
        record: &VrotRecord,
        backend: &Backend,
    ) {
        let restored = self.restore_certificates(record, backend, Guest::Absent);
        if let Err(error) = restored.await {
            self.note_failure(record.vrot, &error).await;
        }
    }
}
