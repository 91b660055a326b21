//! What travels as JSON between the manager and its clients, `vtpmctl` among them.

mod audit;
mod event;
mod evidence;
mod host;
mod identity;
mod launch;
mod policy;
mod store;
mod tenant;
mod vrot;

pub use audit::{AuditAcceptance, AuditView};
pub use event::{Event, EventDetails, EventKind, EventLine, NDJSON};
pub use evidence::{EVIDENCE_SET, EvidenceRequest, PcrsView};
pub use host::{
    EnrolmentRequest, EnrolmentView, EventLogView, FaultView, HostKeys, HostView, InitRequest,
    LogView,
};
pub use identity::{CertificateState, IdentityView, KeyView};
pub use launch::{
    LaunchPartRequest, LaunchPartView, LaunchRequest, LaunchSource, LaunchState, LaunchView,
    StartRequest,
};
pub use policy::{ApprovalView, DifferenceView, PolicyView};
pub use store::{PowerLossView, RecoverRequest, RecoveryView, StoreView};
pub use tenant::{TenantEvidenceRequest, TenantVmDetails, TenantVmList, TenantVmView};
pub use vrot::{
    BackendView, CreateRequest, ImportRequest, QemuArguments, StateLossView, TpmDeviceModel,
    TpmState, TpmTransport, VrotList, VrotView,
};
