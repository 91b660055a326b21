//! What the API needs of the manager.

use std::net::IpAddr;
use std::sync::Arc;

use api_types::wire::{TenantEvidenceRequest, TenantVmDetails, TenantVmView};
use cert_chain::{CertificateSerial, HostName, Tenant, VmId};
use futures_util::future::BoxFuture;
use vrot_events::EventLog;

/// The manager, as far as tenants may know of it. Each answer is about one tenant's VMs, and found
/// without looking at those of others.
pub trait TenantHost: Send + Sync + 'static {
    /// Whether VMs can be asked about: the store is open.
    fn is_ready(&self) -> bool;

    /// The host's name, if it is enrolled.
    fn name(&self) -> Option<HostName>;

    /// The tenant's VMs, in the order of their numbers.
    fn vms(&self, tenant: &Tenant) -> Vec<TenantVmView>;

    /// The tenant's VM with this number. None is also one of which there is nothing that can be told.
    fn vm(&self, tenant: &Tenant, vm: VmId) -> Option<TenantVmDetails>;

    /// An evidence set in CBOR, of the tenant's VMs that are asked for. A VM that is not the tenant's is
    /// what a VM that does not exist is.
    fn evidence(
        &self,
        tenant: &Tenant,
        request: TenantEvidenceRequest,
    ) -> BoxFuture<'static, Result<Vec<u8>, EvidenceRefusal>>;

    /// What happens to vRoTs.
    fn events(&self) -> &Arc<EventLog>;

    /// Writes something down. Does not wait.
    fn note(&self, notice: Notice);
}

/// Why there is no evidence.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[non_exhaustive]
pub enum EvidenceRefusal {
    /// A VM that is asked for is none of the tenant's.
    #[error("a VM that is asked for is none of yours on this host")]
    UnknownVm,
    /// Of all VMs was asked for, and the tenant has none.
    #[error("you have no VMs on this host")]
    NoVms,
    /// The request makes no sense.
    #[error("{0}")]
    BadRequest(String),
    /// The host cannot quote at present.
    #[error("the host cannot give evidence at present: try again in a moment")]
    Unavailable,
}

/// What is written down of connections.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Notice {
    /// A tenant was admitted with a certificate that was not seen since the manager started.
    Admitted {
        /// The tenant.
        tenant: Tenant,
        /// Its certificate.
        certificate: CertificateSerial,
        /// From where.
        address: IpAddr,
    },
    /// Somebody was not admitted.
    Refused {
        /// From where.
        address: IpAddr,
        /// Why.
        reason: String,
    },
}
