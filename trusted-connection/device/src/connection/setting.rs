//! How a connector makes connections and judges services, which may change while it has some.

use std::sync::{Arc, PoisonError, RwLock};

use attestation::Policy;
use attested_tls::tls::ClientTls;
use attested_tls::{Attester, Deadlines};
use rustls_pki_types::ServerName;
use trusted_connection::crl_files::CrlFiles;

/// How connections are made.
#[derive(Clone)]
pub(super) struct Setting {
    pub(super) judging: Judging,
    pub(super) tls: ClientTls,
    pub(super) attester: Arc<dyn Attester>,
    pub(super) server_name: Option<ServerName<'static>>,
    pub(super) deadlines: Deadlines,
}

/// By what evidence is judged.
#[derive(Clone, Debug)]
pub(super) struct Judging {
    pub(super) policy: Arc<Policy>,
    pub(super) crls: Arc<CrlFiles>,
}

/// The setting that counts at the time. All clones are one.
#[derive(Clone)]
pub(super) struct InForce(Arc<RwLock<Setting>>);

impl InForce {
    pub(super) fn new(setting: Setting) -> Self {
        Self(Arc::new(RwLock::new(setting)))
    }

    pub(super) fn get(&self) -> Setting {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut Setting)) {
        change(&mut self.0.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl std::fmt::Debug for InForce {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("InForce").field(&self.get().judging).finish()
    }
}
