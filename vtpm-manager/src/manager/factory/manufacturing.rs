//! A new vRoT: key, backend, identity.

use std::sync::Arc;

use api_types::Timestamp;
use backend_link::StateKey;
use backend_link::sealing::Sealer;
use backend_link::transport::Transport;
use cert_chain::{Generation, Tenant, VmId, VrotId};
use guarded_state::disk::StateBlob;
use tokio::sync::{AcquireError, OwnedSemaphorePermit};
use vrot_manufacture::{CertifiedSubject, ManufactureError, manufacture, take_over};
use zeroize::Zeroizing;

use super::Factory;
use crate::backend::Backend;
use crate::backend::BackendError;
use crate::keys::{Keyring, Purpose};
use crate::manager::blocking::blocking;
use crate::manager::error::ManagerError;
use crate::vrot::{Identity, Lifecycle, Origin, VrotRecord};

/// A vRoT's first generation; sanctioned restores and copies count on from it.
pub(in crate::manager) const FIRST_GENERATION: Generation = Generation::new(1);

/// How many vRoTs are in manufacture at a time. Each holds a thread of those that also wait for
/// disk and TPM on behalf of all others, and makes an RSA key.
pub(in crate::manager) const AT_A_TIME: usize = 8;

/// The right to manufacture one vRoT. It is an error only once the semaphore is closed, which does
/// not happen.
type Permit = Result<OwnedSemaphorePermit, AcquireError>;

/// A vRoT that was just made or waits in the pool; it belongs to no VM yet.
#[derive(Debug)]
pub(in crate::manager) struct ManufacturedVrot {
    pub(in crate::manager) record: VrotRecord,
    /// It listens; no VMM may attach.
    pub(in crate::manager) backend: Backend,
    /// Its state, where the store has neither that nor the record.
    pub(in crate::manager) unsaved: Option<StateBlob>,
}

impl Factory {
    /// Makes a vRoT for a VM, without certificates. Takes seconds where RSA keys are slow to make.
    ///
    /// The process that makes it is not the one that serves it: making keys leaves hundreds of
    /// KiB of memory written to that a process which only opens the state never touches.
    pub(in crate::manager) async fn manufacture(
        &self,
        vm: VmId,
        tenant: Tenant,
    ) -> Result<ManufacturedVrot, ManagerError> {
        self.make(vm, tenant, None).await
    }

    /// Makes a vRoT of a TPM that had its life elsewhere, from its permanent state.
    pub(in crate::manager) async fn take_over(
        &self,
        vm: VmId,
        tenant: Tenant,
        state: &Zeroizing<Vec<u8>>,
    ) -> Result<ManufacturedVrot, ManagerError> {
        self.make(vm, tenant, Some(state)).await
    }

    async fn make(
        &self,
        vm: VmId,
        tenant: Tenant,
        beginning: Option<&Zeroizing<Vec<u8>>>,
    ) -> Result<ManufacturedVrot, ManagerError> {
        let permit = Arc::clone(&self.manufacturing).acquire_owned().await;
        // Nothing is signed now; but what can never be certified is not made.
        let (enrolment, _) = self.host.issuer().await?;
        let keyring = self.host.keyring().await?;
        let vrot = VrotId::random();
        let key = Keyring::generate()?;
        let now = Timestamp::now();
        let subject = CertifiedSubject {
            vm,
            vrot,
            tenant,
            generation: FIRST_GENERATION,
        };
        let host_certificate = enrolment.certificate.der();
        let order = self.certification.order(subject, host_certificate, now);
        let order = order.await?;
        let state_key = keyring.wrap(vrot, Purpose::State, key.as_bytes())?;
        let launcher = &self.launcher;
        let sealed = beginning
            .map(|state| sealed(&key, vrot, state))
            .transpose()?;
        let is_taken_over = sealed.is_some();
        let not_taken_over = |reason: String| ManagerError::NotTakenOver { reason };
        let maker = launcher.launch_new(vrot, FIRST_GENERATION, key, sealed);
        let maker = match maker.await {
            Err(ManagerError::Backend(BackendError::Ended { reason, .. })) if is_taken_over => {
                return Err(not_taken_over(reason));
            }
            other => other?,
        };
        let mut channel = maker.channel();
        let ordered = order.clone();
        let manufactured = blocking_with(permit, move || match is_taken_over {
            false => manufacture(&ordered, &mut channel).map_err(ManagerError::Manufacture),
            true => take_over(&ordered, &mut channel).map_err(|error| match error {
                ManufactureError::Tpm { .. } => not_taken_over(error.to_string()),
                other => ManagerError::Manufacture(other),
            }),
        })
        .await;
        // Whatever came of it, it has done its work.
        let ended = maker.stop().await;
        let manufactured = manufactured??;
        let state = ended?.state.ok_or(ManagerError::NoState)?;
        let record = VrotRecord {
            vrot,
            vm: order.subject.vm,
            tenant: order.subject.tenant,
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
            ),
            state_loss: None,
            folder: None,
            requires_launch: false,
            launch: None,
            origin: is_taken_over.then_some(Origin::Imported),
            transport: Transport::Emulator,
        };
        let key = keyring.state_key(vrot, &record.state_key)?;
        let saved = Some(state.clone());
        let backend = launcher.launch_new(vrot, FIRST_GENERATION, key, saved);
        let backend = backend.await?;
        Ok(ManufacturedVrot {
            record,
            backend,
            unsaved: Some(state),
        })
    }
}

/// The state of a TPM that comes from elsewhere, as a backend opens it.
fn sealed(key: &StateKey, vrot: VrotId, state: &[u8]) -> Result<StateBlob, ManagerError> {
    let sealer = Sealer::new(key, *vrot.as_bytes(), FIRST_GENERATION.number());
    let sealed = sealer.and_then(|sealer| sealer.seal_permanent(state, None));
    let sealed = sealed.map_err(|error| ManagerError::NotTakenOver {
        reason: error.to_string(),
    })?;
    Ok(StateBlob::new(0, sealed))
}

/// Runs what blocks, and gives the permit back when that is over, even if the caller does not wait
/// for it any more.
async fn blocking_with<T: Send + 'static>(
    permit: Permit,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ManagerError> {
    blocking(move || {
        let done = work();
        drop(permit);
        done
    })
    .await
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;
    use std::sync::mpsc::channel;
    use std::time::Duration;

    use anyhow::{Context, Result};
    use tokio::runtime::Builder;
    use tokio::sync::Semaphore;
    use tokio::task::JoinSet;
    use tokio::time::timeout;

    use super::*;

    /// For a test that has failed: a thread that is never free.
    const NEVER: Duration = Duration::from_secs(20);

    #[test]
    fn many_vrots_in_the_making_leave_threads_for_everybody_else() -> Result<()> {
        let threads = AT_A_TIME + 1;
        let runtime = Builder::new_current_thread()
            .enable_time()
            .max_blocking_threads(threads)
            .build()?;
        runtime.block_on(async {
            let permits = Arc::new(Semaphore::new(AT_A_TIME));
            let (finish, unfinished) = channel::<()>();
            let unfinished = Arc::new(Mutex::new(unfinished));
            let mut orders = JoinSet::new();
            for _ in 0..3 * threads {
                let (permits, unfinished) = (Arc::clone(&permits), Arc::clone(&unfinished));
                orders.spawn(async move {
                    let permit = permits.acquire_owned().await;
                    let manufactured =
                        move || unfinished.lock().is_ok_and(|line| line.recv().is_err());
                    blocking_with(permit, manufactured).await
                });
            }
            // Every order has been looked at once before this.
            tokio::task::yield_now().await;
            let served = timeout(NEVER, blocking(|| "served")).await;
            // Before any check, because the runtime waits for its threads at its end.
            drop(finish);
            let served = served.context("no thread was free while vRoTs were made")?;
            assert_eq!(served?, "served");
            let made = orders.join_all().await;
            assert!(made.into_iter().all(|made| matches!(made, Ok(true))));
            anyhow::Ok(())
        })
    }
}
