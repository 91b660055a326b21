//! Starts backends: with the key and the state of their vRoT, and with the program that certificates
//! state.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use backend_link::StateKey;
use backend_link::message::Open;
use backend_link::transport::Transport;
use cert_chain::{Digest32, Generation, VrotId};
use guarded_state::disk::{Part, StateBlob};

use super::blocking::blocking;
use super::error::ManagerError;
use super::folders::Folders;
use super::guarded::Guarded;
use crate::backend::{Backend, BackendError, GuestRole, Isolation, Role, RuntimeFolder, Zygote};
use crate::background::Background;
use crate::config::Config;
use crate::host::Host;
use crate::vrot::{Lifecycle, VrotRecord};

/// Starts the backends of all vRoTs.
#[derive(Debug)]
pub(super) struct Launcher {
    background: Arc<Background>,
    zygote: Arc<Zygote>,
    host: Arc<Host>,
    guarded: Arc<Guarded>,
    folders: Folders,
    durability_deadline_ms: u32,
    answer_within_ms: Option<u32>,
}

/// All backends were released or ended before.
const JOIN_TIMEOUT: Duration = Duration::from_secs(1);

impl Launcher {
    pub(super) fn new(
        config: &Config,
        isolation: Isolation,
        host: Arc<Host>,
        guarded: Arc<Guarded>,
    ) -> Self {
        let (background, vmms) = (Arc::new(Background::default()), config.vmms.clone());
        Self {
            zygote: Arc::new(Zygote::of(
                &config.backend,
                vmms,
                isolation,
                Arc::clone(&background),
            )),
            background,
            host,
            guarded,
            folders: Folders::new(config),
            durability_deadline_ms: config.durability_deadline_ms,
            answer_within_ms: config.answer_within_ms,
        }
    }

    /// What keeps the backends apart.
    pub(super) fn isolation(&self) -> &Isolation {
        self.zygote.isolation()
    }

    /// Digest of the program that backends are.
    pub(super) async fn program_digest(&self) -> Result<Digest32, ManagerError> {
        let program = self.zygote.executable().await?;
        let digest = (program.digest).get_or_try_init(|| digest_of_file(&program.path));
        digest.await.copied()
    }

    /// Gives up what serves backends still, and ends the process that starts them.
    pub(super) async fn close(&self) {
        self.zygote.close().await;
        let tasks = self.background.join_within(JOIN_TIMEOUT).await;
        if tasks > 0 {
            tracing::warn!(tasks, "what serves backends is given up");
        }
    }

    /// Starts a vRoT that is not in the store yet, without a guest: from nothing, or from this state.
    pub(super) async fn launch_new(
        &self,
        vrot: VrotId,
        generation: Generation,
        key: StateKey,
        state: Option<StateBlob>,
    ) -> Result<Backend, ManagerError> {
        let open = self.open_message(vrot, generation, key, state);
        let folder = self.folders.of(vrot);
        self.launch(folder, open, Role::Manufacture, Transport::Emulator)
            .await
    }

    /// Starts a vRoT from the store.
    pub(super) async fn open(
        &self,
        record: &VrotRecord,
        role: Role,
    ) -> Result<Backend, ManagerError> {
        self.open_in(self.folders.of(record.vrot), record, role)
            .await
    }

    /// Starts a copy of a vRoT from the store, which may run beside it.
    pub(super) async fn open_copy(&self, record: &VrotRecord) -> Result<Backend, ManagerError> {
        let folder = self.folders.of_copy(record.vrot);
        self.open_in(folder, record, Role::Manufacture).await
    }

    /// Takes over the backend of a vRoT that an earlier manager started; none, if it is gone.
    pub(super) async fn adopt(
        &self,
        record: &VrotRecord,
        role: Role,
        patience: Duration,
    ) -> Result<Option<Backend>, BackendError> {
        let folder = self.folders.of(record.vrot);
        Backend::adopt(&self.background, folder, record.generation, role, patience).await
    }

    /// Gives a backend that waited for a VM its guest; state that was kept aside until now.
    pub(super) async fn serve(
        &self,
        backend: &Backend,
        role: Box<GuestRole>,
    ) -> Result<Option<StateBlob>, BackendError> {
        backend.serve(&self.zygote, role).await
    }

    async fn open_in(
        &self,
        folder: RuntimeFolder,
        record: &VrotRecord,
        role: Role,
    ) -> Result<Backend, ManagerError> {
        let vrot = record.vrot;
        let keyring = self.host.keyring().await?;
        let key = keyring.state_key(vrot, &record.state_key)?;
        let state = self.guarded.read(vrot, Part::Permanent).await?;
        let state = state.ok_or(ManagerError::StateMissing { vrot })?;
        let state = StateBlob::from_bytes(&state)?;
        let volatile = match record.lifecycle {
            Lifecycle::Suspended { .. } => self.guarded.read(vrot, Part::Volatile).await?,
            _ => None,
        };
        let open = Open {
            volatile: volatile.map(Into::into),
            is_copy: folder.is_of_copy(),
            ..self.open_message(vrot, record.generation, key, Some(state))
        };
        // Without a guest, nobody attaches.
        let transport = match role {
            Role::Guest(_) => record.transport,
            Role::Manufacture => Transport::Emulator,
        };
        self.launch(folder, open, role, transport).await
    }

    /// In a task of its own: a launch whose caller has gone is not left half-way.
    async fn launch(
        &self,
        folder: RuntimeFolder,
        open: Open,
        role: Role,
        transport: Transport,
    ) -> Result<Backend, ManagerError> {
        let (background, zygote) = (Arc::clone(&self.background), Arc::clone(&self.zygote));
        let launch = async move {
            Backend::launch(&background, &zygote, folder, open, role, transport).await
        };
        let launched = self.background.spawn(launch).await;
        Ok(launched.map_err(|source| ManagerError::Task { source })??)
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
            durability_deadline_ms: self.durability_deadline_ms,
            answer_within_ms: self.answer_within_ms,
        }
    }
}

/// Reads all of a program.
pub(super) async fn digest_of_file(path: &Path) -> Result<Digest32, ManagerError> {
    let contents = tokio::fs::read(path)
        .await
        .map_err(|source| ManagerError::Program {
            path: path.to_owned(),
            source,
        })?;
    blocking(move || Digest32::of(&contents)).await
}
