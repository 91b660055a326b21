//! What a manager has before it has a store: enough to serve its API, which answers "opening" until
//! the rest is there.

use std::fs::{DirBuilder, File, TryLockError};
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use cert_chain::Digest32;
use guarded_state::disk::{EmbeddedStore, Store};
use guarded_state::journal::Journal;
use tokio::time::sleep;
use trust_anchor::TrustAnchor;

use super::Manager;
use super::blocking::blocking;
use super::error::ManagerError;
use super::launcher::digest_of_file;
use crate::audit::{self, AuditLog};
use crate::backend::Isolation;
use crate::config::Config;
use crate::fault::Fault;
use crate::host::Host;

/// A manager that starts. None of it took longer than reading a program.
#[derive(Debug)]
pub struct Startup {
    pub(super) config: Config,
    pub(super) isolation: Isolation,
    /// Digest of this program.
    pub(super) program: Digest32,
    /// How the last manager ended, if that was by a fault of its own.
    pub(super) last_fault: Option<Fault>,
    /// The state folder, locked for as long as this manager lives.
    pub(super) claim: File,
}

/// What takes the time of disk and physical TPM to open.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) journal: Journal,
    pub(super) audit: Arc<AuditLog>,
    pub(super) anchor: TrustAnchor,
    pub(super) host: Host,
}

impl Startup {
    /// Makes the folders and claims them: a second manager ends here, before it has touched
    /// anything of the first.
    pub async fn begin(config: Config) -> Result<Self, ManagerError> {
        make_folder(&config.state_dir, 0o700)?;
        let claim = claim(&config.state_dir).await?;
        // Allowed users must get through to the API's socket; each vRoT's folder is the manager's.
        make_folder(&config.runtime_dir, 0o711)?;
        make_folder(&config.locks(), 0o700)?;
        let last_fault = Fault::take(&config.runtime_dir);
        if let Some(Fault { time, place }) = &last_fault {
            tracing::error!(%time, place, "the last manager ended by a fault of its own: report it");
        }
        Ok(Self {
            isolation: Isolation::of(config.backend_uids, &config.runtime_dir, &config.locks())?,
            program: digest_of_file(Path::new("/proc/self/exe")).await?,
            config,
            last_fault,
            claim,
        })
    }

    /// Opens store file and audit log and connects to the physical TPM. Whether the store is the one
    /// that the TPM vouches for is found out when the manager [starts serving](Manager::start_serving).
    pub async fn open(self) -> Result<Arc<Manager>, ManagerError> {
        let opened = open(&self.config).await?;
        Ok(Manager::new(self, opened))
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// What keeps the backends apart.
    pub fn isolation(&self) -> &Isolation {
        &self.isolation
    }

    /// Digest of this program.
    pub fn program_digest(&self) -> Digest32 {
        self.program
    }

    /// How the last manager ended, if that was by a fault of its own.
    pub fn last_fault(&self) -> Option<&Fault> {
        self.last_fault.as_ref()
    }
}

/// All three at once: guests of backends that run wait for it.
async fn open(config: &Config) -> Result<Opened, ManagerError> {
    let store_file = config.store();
    let store = opened(move || EmbeddedStore::open(&store_file));
    let audit_file = config.audit_log();
    let layout = audit::Layout {
        from: config.audit_begins_after,
        ..Default::default()
    };
    let audit = opened(move || AuditLog::open(&audit_file, layout));
    let anchor_config = config.anchor.clone();
    let anchor = opened(move || TrustAnchor::start(&anchor_config));
    let (store, audit, anchor) = tokio::try_join!(store, audit, anchor)?;
    let journal = Journal::start_locked(Arc::new(store) as Arc<dyn Store>)
        .map_err(|source| ManagerError::Thread { source })?;
    Ok(Opened {
        journal,
        audit: Arc::new(audit),
        host: Host::new(anchor.clone(), &config.host_certificate())?,
        anchor,
    })
}

async fn opened<T: Send + 'static, E: Into<ManagerError> + Send + 'static>(
    open: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, ManagerError> {
    blocking(open).await?.map_err(Into::into)
}

/// Makes a folder with this mode; one that exists keeps its own.
fn make_folder(path: &Path, mode: u32) -> Result<(), ManagerError> {
    DirBuilder::new()
        .recursive(true)
        .mode(mode)
        .create(path)
        .map_err(|source| ManagerError::Folder {
            path: path.to_owned(),
            source,
        })
}

/// For how long another manager is waited for that may have ended: a program that it was starting has
/// a copy of its descriptors, and so of its lock, until it is executed.
const PATIENCE: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(10);

/// Locks the state folder; the kernel gives the lock back when this process has ended. Backends do
/// not inherit it: descriptors are closed when a program is started.
async fn claim(state_dir: &Path) -> Result<File, ManagerError> {
    let failed = |source| ManagerError::Claim {
        path: state_dir.to_owned(),
        source,
    };
    let folder = File::open(state_dir).map_err(failed)?;
    let deadline = Instant::now() + PATIENCE;
    loop {
        match folder.try_lock() {
            Ok(()) => return Ok(folder),
            Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(PAUSE).await,
            Err(TryLockError::WouldBlock) => {
                return Err(ManagerError::AnotherManager {
                    path: state_dir.to_owned(),
                });
            }
            Err(TryLockError::Error(source)) => return Err(failed(source)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_state_folder_has_one_manager_at_a_time() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let first = claim(folder.path()).await?;
        let refused = claim(folder.path()).await.err();
        let refused = refused.map(|error| error.to_string());
        let named = folder.path().display().to_string();
        assert!(refused.is_some_and(|error| error.contains(&named)));
        drop(first);
        claim(folder.path()).await?;
        Ok(())
    }
}
