//! A new vRoT: key, backend, identity.

use api_types::Timestamp;
use cert_chain::{Generation, Tenant, VmId, VrotId};
use vtpm_backend::message::{Open, StateKey};

use super::{Manager, ManagerError};
use crate::backend::{Backend, Role, RuntimeFolder};
use crate::keys::{Keyring, Purpose};
use crate::manufacture::{ManufactureOrder, manufacture_over};
use crate::store::{Part, StateBlob};
use crate::vrot::{Identity, Lifecycle, VrotRecord};

/// A vRoT's first generation; sanctioned restores and copies count on from it.
pub(super) const FIRST_GENERATION: Generation = Generation::new(1);

/// A manufactured vRoT that belongs to no VM yet.
#[derive(Debug)]
pub(super) struct Product {
    pub(super) record: VrotRecord,
    /// It listens, but serves nobody.
    pub(super) backend: Backend,
    /// Its state, where the store has neither that nor the record.
    pub(super) unsaved: Option<StateBlob>,
}

impl Manager {
    /// Makes a vRoT for a VM. Takes seconds where RSA keys are slow to make.
    ///
    /// The process that makes it is not the one that serves it: making keys leaves hundreds of
    /// KiB of memory written to that a process which only opens the state never touches.
    pub(super) async fn manufacture(
        &self,
        vm: VmId,
        tenant: Tenant,
    ) -> Result<Product, ManagerError> {
        let place = self.workshop.place().await;
        let (enrolment, signer) = self.host.issuer().await?;
        let keyring = self.host.keyring().await?;
        let vrot = VrotId::random();
        let key = Keyring::generate()?;
        let now = Timestamp::now();
        let order = ManufactureOrder {
            vm,
            vrot,
            tenant: tenant.clone(),
            generation: FIRST_GENERATION,
            manager: self.program,
            backend: self.backend_digest().await?,
            host_certificate: enrolment.certificate.der().to_vec(),
            now: now.unix_time(),
            vik_lifetime: self.config.renewal.lifetime,
        };
        let state_key = keyring.wrap(vrot, Purpose::State, key.as_bytes())?;
        let folder = self.folder(vrot);
        let open = self.open_message(vrot, FIRST_GENERATION, key, None);
        let maker = Backend::launch(&self.nursery, folder.clone(), open, Role::Manufacture).await?;
        let mut channel = maker.channel();
        let ordered = order.clone();
        let manufactured = place
            .work(move || {
                manufacture_over(&ordered, &mut channel, &signer)
                    .map_err(|error| ManagerError::of_manufacture(error, &signer))
            })
            .await;
        // Whatever came of it, it has done its work.
        let ended = maker.stop().await;
        let manufactured = manufactured??;
        let state = ended?.state.ok_or(ManagerError::NoState)?;
        let record = VrotRecord {
            vrot,
            vm,
            tenant,
            name: None,
            generation: FIRST_GENERATION,
            lifecycle: Lifecycle::Manufactured { at: now },
            state_key,
            nv_authority: keyring.wrap(
                vrot,
                Purpose::NvIndices,
                manufactured.nv_authority.expose(),
            )?,
            identity: Identity::new(
                &manufactured,
                &order.host_certificate,
                order.manager,
                order.backend,
                now,
            ),
            state_loss: None,
        };
        let key = keyring.state_key(vrot, &record.state_key)?;
        let open = self.open_message(vrot, FIRST_GENERATION, key, Some(state.clone()));
        let backend = Backend::launch(&self.nursery, folder, open, Role::Manufacture).await?;
        Ok(Product {
            record,
            backend,
            unsaved: Some(state),
        })
    }

    /// Opens a vRoT from the store in a new backend.
    pub(super) async fn open_backend(
        &self,
        record: &VrotRecord,
        role: Role,
    ) -> Result<Backend, ManagerError> {
        let folder = self.folder(record.vrot);
        self.open_backend_in(folder, record, role).await
    }

    /// The same, with its sockets in this folder.
    pub(super) async fn open_backend_in(
        &self,
        folder: RuntimeFolder,
        record: &VrotRecord,
        role: Role,
    ) -> Result<Backend, ManagerError> {
        let vrot = record.vrot;
        let keyring = self.host.keyring().await?;
        let key = keyring.state_key(vrot, &record.state_key)?;
        let state = self.journal.read(vrot, Part::Permanent).await?;
        let state = state.ok_or(ManagerError::StateMissing { vrot })?;
        let state = StateBlob::from_bytes(&state)?;
        let volatile = match record.lifecycle {
            Lifecycle::Suspended { .. } => self.journal.read(vrot, Part::Volatile).await?,
            _ => None,
        };
        let open = Open {
            volatile: volatile.map(Into::into),
            is_copy: folder.is_of_copy(),
            ..self.open_message(vrot, record.generation, key, Some(state))
        };
        Ok(Backend::launch(&self.nursery, folder, open, role).await?)
    }

    fn open_message(
        &self,
        vrot: VrotId,
        generation: Generation,
        key: StateKey,
        state: Option<StateBlob>,
    ) -> Open {
        Open {
            vrot: (*vrot.as_bytes()).into(),
            generation: generation.number(),
            key,
            permanent: state.map(|state| state.sealed),
            volatile: None,
            is_copy: false,
            durability_deadline_ms: self.config.durability_deadline_ms,
        }
    }
}
