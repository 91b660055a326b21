//! The manager, as the API for tenants sees it: each answer is about one tenant's VMs, found by an index
//! of that tenant's alone.

mod certificate;
mod notices;

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use api_types::WithCauses;
use api_types::wire::{
    CertificateState, StateLossView, TenantEvidenceRequest, TenantVmDetails, TenantVmView,
};
use attestation::Nonce;
use cert_chain::{HostName, Tenant, VmId, pem};
use futures_util::future::BoxFuture;
use tenant_api::{
    Bound, EvidenceRefusal, Notice, ServerCertificate, Settings, TenantApiError, TenantHost,
};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use vrot_events::EventLog;

use crate::api::vrots::identity_view;
use crate::manager::{Manager, ManagerError, Vrot};
use crate::vrot::{Origin, Pending};

/// A manager whose tenants ask it.
struct Asked {
    manager: Arc<Manager>,
    notices: mpsc::Sender<Notice>,
}

/// What waits to be written down; beyond, it is left out.
const NOTICES: usize = 256;
/// The name under which the service manager passes sockets (sd_listen_fds_with_names(3)).
const PASSED: &str = "tenants";

/// Listens, and reads what is configured.
pub(crate) async fn bind(settings: &Settings) -> Result<Bound, TenantApiError> {
    let passed = passed().unwrap_or_else(|error| {
        tracing::warn!(%error, "what the service manager passed cannot be told");
        Vec::new()
    });
    Bound::bind(settings.clone(), passed).await
}

/// Serves a manager's tenants until `ending` is cancelled.
pub(crate) fn serve(
    bound: Bound,
    certificate: &ServerCertificate,
    manager: &Arc<Manager>,
    ending: CancellationToken,
) -> Result<impl Future<Output = ()> + Send + use<>, TenantApiError> {
    let key = Arc::clone(bound.key());
    for address in bound.addresses() {
        tracing::info!(%address, "listening for tenants");
    }
    let (notices, noticed) = mpsc::channel(NOTICES);
    let host = Arc::new(Asked {
        manager: Arc::clone(manager),
        notices,
    });
    let (api, serving) = bound.serve(host, ending.clone())?;
    manager.tell_of_tenant_api(api);
    let is_certified_here = *certificate == ServerCertificate::OfHostIk;
    let manager = Arc::clone(manager);
    Ok(async move {
        let certifying = async {
            match is_certified_here {
                true => certificate::keep_certified(&manager, &key).await,
                false => std::future::pending().await,
            }
        };
        let aside = async { tokio::join!(certifying, notices::write_down(&manager, noticed)) };
        tokio::select! {
            () = serving => {}
            _ = aside => {}
        }
    })
}

impl TenantHost for Asked {
    fn is_ready(&self) -> bool {
        self.manager.guarded().is_open()
    }

    fn name(&self) -> Option<HostName> {
        let enrolment = self.manager.host().enrolment()?;
        Some(enrolment.host().clone())
    }

    fn vms(&self, tenant: &Tenant) -> Vec<TenantVmView> {
        let vrots = self.manager.fleet().registry().of_tenant(tenant);
        vrots.iter().map(|vrot| view(vrot)).collect()
    }

    fn vm(&self, tenant: &Tenant, vm: VmId) -> Option<TenantVmDetails> {
        let vrot = (self.manager.fleet().registry()).of_tenants_vm(tenant, vm)?;
        let keys = identity_view(&self.manager, &vrot);
        let keys = keys.inspect_err(|error| {
            tracing::error!(%vm, %error, "its tenant is not told of it");
        });
        let enrolment = self.manager.host().enrolment();
        Some(TenantVmDetails {
            vm: view(&vrot),
            keys: keys.ok()?,
            issuer_pem: enrolment.map(|enrolment| pem::encode_certificate(&enrolment.root)),
        })
    }

    fn evidence(
        &self,
        tenant: &Tenant,
        request: TenantEvidenceRequest,
    ) -> BoxFuture<'static, Result<Vec<u8>, EvidenceRefusal>> {
        let registry = self.manager.fleet().registry();
        let vrots = match request.vms {
            None => Some(registry.of_tenant(tenant)),
            // However often it is named.
            Some(ref vms) => (vms.iter().copied().collect::<BTreeSet<_>>().into_iter())
                .map(|vm| registry.of_tenants_vm(tenant, vm))
                .collect(),
        };
        let manager = Arc::clone(&self.manager);
        Box::pin(async move {
            let nonce = (request.nonce.parse::<Nonce>())
                .map_err(|error| EvidenceRefusal::BadRequest(format!("nonce: {error}")))?;
            if request.vms.is_some_and(|vms| vms.is_empty()) {
                let detail = "vms: name at least one of your VMs, or leave it out for all";
                return Err(EvidenceRefusal::BadRequest(detail.to_owned()));
            }
            let vrots = vrots.ok_or(EvidenceRefusal::UnknownVm)?;
            let set = manager.fleet().evidence_set(&nonce, vrots).await;
            let set = set.map_err(|error| match error {
                ManagerError::NoVms => EvidenceRefusal::NoVms,
                ManagerError::TooManyVms { .. } => EvidenceRefusal::BadRequest(error.to_string()),
                other => {
                    tracing::warn!(error = %WithCauses(&other), "no evidence for a tenant");
                    EvidenceRefusal::Unavailable
                }
            })?;
            Ok(set.to_cbor())
        })
    }

    fn events(&self) -> &Arc<EventLog> {
        self.manager.events()
    }

    fn note(&self, notice: Notice) {
        // Many at a time say no more than some of them.
        let _ = self.notices.try_send(notice);
    }
}

fn view(vrot: &Vrot) -> TenantVmView {
    let record = vrot.record();
    let observed = vrot.observed();
    TenantVmView {
        vm: record.vm,
        vrot: record.vrot,
        name: record.name.as_ref().map(ToString::to_string),
        state: record.lifecycle.name().to_owned(),
        since: record.lifecycle.since(),
        generation: record.generation,
        identity: match record.identity.pending() {
            Some(Pending::Vik) => CertificateState::Pending,
            _ => CertificateState::Issued,
        },
        not_after: vrot.vik_not_after(),
        attached: observed.is_some_and(|observed| observed.attached),
        degraded: observed.is_some_and(|observed| observed.degraded),
        state_loss: record.state_loss.map(|loss| StateLossView {
            batch: loss.batch,
            at: loss.at,
        }),
        imported: record.origin == Some(Origin::Imported),
    }
}

/// The sockets that the service manager made for tenants.
fn passed() -> io::Result<Vec<std::net::TcpListener>> {
    let passed = sd_notify::listen_fds_with_names()?;
    let tenants = passed.filter(|(_, name)| name == PASSED);
    Ok(tenants
        .map(|(descriptor, _)| listener(descriptor))
        .collect())
}

#[expect(
    unsafe_code,
    reason = "the service manager passes numbers of descriptors"
)]
fn listener(descriptor: std::os::fd::RawFd) -> std::net::TcpListener {
    use std::os::fd::FromRawFd;
    // SAFETY: the service manager says that it passed this descriptor to this process, and it is taken
    // once, at the start.
    unsafe { std::net::TcpListener::from_raw_fd(descriptor) }
}
