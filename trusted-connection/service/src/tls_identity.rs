//! How the service shows itself in TLS: its key, and the certificate that the host's manager gave it last.

use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use attested_tls::tls::{KeyExchange, ServerTls, TlsSetupError};
use printable::WithCauses;
use rustls::server::danger::ClientCertVerifier;
use rustls::sign::CertifiedKey;
use rustls_pki_types::CertificateDer;
use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::sleep;

use crate::attester::AttesterError;
use crate::tls_key::TpmTlsKey;

/// What handshakes are made with. A renewed certificate is used from the next one on; connections that
/// live are not touched.
#[derive(Debug)]
pub struct TlsIdentity {
    setting: Setting,
    current: RwLock<Current>,
}

#[derive(Debug)]
struct Setting {
    key: TpmTlsKey,
    key_exchange: KeyExchange,
    /// For handshakes with whatever certificate.
    handshakes: Arc<Semaphore>,
}

#[derive(Clone, Debug)]
struct Current {
    tls: ServerTls,
    chain: Vec<CertificateDer<'static>>,
    clients: Arc<dyn ClientCertVerifier>,
}

/// Why there is no identity for TLS.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TlsIdentityError {
    /// The certificate cannot be read from the TPM.
    #[error("the certificate of the vRoT's TLS key cannot be read")]
    Certificate(#[source] AttesterError),
    /// The certificate is of another key.
    #[error("the certificate in the vRoT is not of the vRoT's TLS key")]
    OtherKey(#[source] rustls::Error),
    /// TLS cannot be set up with it.
    #[error(transparent)]
    Setup(#[from] TlsSetupError),
    /// The thread that asks the TPM has failed.
    #[error("the TPM was not asked")]
    Task(#[from] tokio::task::JoinError),
}

/// Handshakes that are worked on at a time. Each may hold a thread until the TPM has made its signature;
/// the TPM makes one after the other.
const HANDSHAKES_AT_A_TIME: usize = 8;
/// How often the TPM is asked whether there is a new certificate. The manager renews it long before it
/// ends.
pub const RENEWAL_PERIOD: Duration = Duration::from_secs(60);
/// Between two questions for the first one.
const FIRST_PAUSE: Duration = Duration::from_millis(200);
/// So many questions are asked before the log says what is waited for.
const QUIET_QUESTIONS: u32 = 10;

impl TlsIdentity {
    /// Waits until the host has certified the key. `clients` says which clients the handshake lets
    /// through.
    pub async fn wait_for(
        key: TpmTlsKey,
        clients: Arc<dyn ClientCertVerifier>,
        key_exchange: KeyExchange,
    ) -> Result<Arc<Self>, TlsIdentityError> {
        let setting = Setting {
            key,
            key_exchange,
            handshakes: Arc::new(Semaphore::new(HANDSHAKES_AT_A_TIME)),
        };
        let mut questions: u32 = 0;
        let current = loop {
            if let Some(chain) = setting.read().await? {
                break setting.use_chain(chain, clients)?;
            }
            questions = questions.saturating_add(1);
            if questions == QUIET_QUESTIONS {
                tracing::info!("waiting until the host has certified this VM's TLS key");
            }
            sleep(FIRST_PAUSE).await;
        };
        Ok(Arc::new(Self {
            setting,
            current: RwLock::new(current),
        }))
    }

    /// For the next handshake.
    pub fn tls(&self) -> ServerTls {
        let current = self.current.read().unwrap_or_else(PoisonError::into_inner);
        current.tls.clone()
    }

    /// Goes on looking for renewed certificates. What is wrong with one is logged, and the last good one
    /// stays.
    pub async fn keep_renewed(&self, period: Duration) {
        loop {
            sleep(period).await;
            match self.renew().await {
                Ok(false) => {}
                Ok(true) => tracing::info!("new connections use a renewed certificate"),
                Err(error) => tracing::warn!(
                    error = %WithCauses(&error),
                    "the certificate for TLS is not renewed"
                ),
            }
        }
    }

    /// Lets other clients through from the next handshake on.
    pub fn let_through(
        &self,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> Result<(), TlsIdentityError> {
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        *current = self.setting.use_chain(current.chain.clone(), clients)?;
        Ok(())
    }

    /// Takes a renewed certificate into use; whether there was one.
    async fn renew(&self) -> Result<bool, TlsIdentityError> {
        let Some(chain) = self.setting.read().await? else {
            return Ok(false);
        };
        let mut current = self.current.write().unwrap_or_else(PoisonError::into_inner);
        if current.chain == chain {
            return Ok(false);
        }
        let clients = Arc::clone(&current.clients);
        *current = self.setting.use_chain(chain, clients)?;
        Ok(true)
    }
}

impl Setting {
    async fn read(&self) -> Result<Option<Vec<CertificateDer<'static>>>, TlsIdentityError> {
        let key = self.key.clone();
        spawn_blocking(move || key.chain())
            .await?
            .map_err(TlsIdentityError::Certificate)
    }

    fn use_chain(
        &self,
        chain: Vec<CertificateDer<'static>>,
        clients: Arc<dyn ClientCertVerifier>,
    ) -> Result<Current, TlsIdentityError> {
        let certified = CertifiedKey::new(chain.clone(), Arc::new(self.key.clone()));
        certified.keys_match().map_err(TlsIdentityError::OtherKey)?;
        let tls = ServerTls::new(certified, Arc::clone(&clients), self.key_exchange)?;
        Ok(Current {
            tls: tls.at_a_time(Arc::clone(&self.handshakes)),
            chain,
            clients,
        })
    }
}
