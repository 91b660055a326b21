//! Certificate indices of a vRoT that hold something else than its record.

use vrot_manufacture::{Guest, NvAuthority, restore};

use crate::audit::Event;
use crate::backend::Backend;
use crate::keys::{KeyError, Keyring, Purpose};
use crate::manager::{Manager, ManagerError, blocking};
use crate::vrot::VrotRecord;

impl Manager {
    /// Puts back what a guest would find changed in its certificate indices, and says so.
    pub(in crate::manager) async fn restore_certificates(
        &self,
        record: &VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
        guest: Guest,
    ) -> Result<(), ManagerError> {
        let vrot = record.vrot;
        let authority = nv_authority(keyring, record)?;
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
        self.record(Event::CertificatesRestored {
            vrot,
            indices: indices.into(),
        })
        .await
    }

    /// Restores certificates before the guest runs. A vRoT in which that fails is started all the
    /// same, and the failure is shown.
    pub(in crate::manager) async fn look_after_certificates(
        &self,
        record: &VrotRecord,
        keyring: &Keyring,
        backend: &Backend,
    ) {
        let restored = self.restore_certificates(record, keyring, backend, Guest::Absent);
        if let Err(error) = restored.await {
            self.note_failure(record.vrot, &error).await;
        }
    }
}

/// What writing a vRoT's certificates takes.
pub(in crate::manager) fn nv_authority(
    keyring: &Keyring,
    record: &VrotRecord,
) -> Result<NvAuthority, KeyError> {
    let (vrot, purpose) = (record.vrot, Purpose::NvIndices);
    let authority = keyring.unwrap(vrot, purpose, &record.nv_authority)?;
    let authority = authority.as_slice().try_into().map(NvAuthority::from_bytes);
    authority.map_err(|_| KeyError::Unwrap { vrot, purpose })
}
