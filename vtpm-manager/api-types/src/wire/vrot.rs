//! vRoTs, and how a VMM attaches to one.

use std::fmt;
use std::path::PathBuf;

use cert_chain::{Generation, Tenant, TpmName, VmId, VrotId};
use serde::{Deserialize, Serialize};
use zeroize::Zeroize;

use super::identity::CertificateState;
use super::launch::{LaunchRequest, LaunchView};
use crate::timestamp::Timestamp;

/// What is to be created.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct CreateRequest {
    /// The VM. Without it the manager chooses the number, which a vRoT of the pool is certified
    /// for already; otherwise the identity is pending for as long as the physical TPM needs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vm: Option<VmId>,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Whether to start it, too.
    #[serde(default)]
    pub start: bool,
    /// Whether it is never to be started without a measurement of what it is started with.
    #[serde(default)]
    pub require_launch_measurement: bool,
    /// What is measured for its first start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch: Option<LaunchRequest>,
    /// How the VM reaches it, for its whole life.
    #[serde(default, skip_serializing_if = "TpmTransport::is_emulator")]
    pub transport: TpmTransport,
}

/// How a VM reaches its TPM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TpmTransport {
    /// Through its VMM, by the TPM emulator protocol: QEMU, libvirt, cloud-hypervisor.
    #[default]
    Emulator,
    /// By a queue in the guest's memory (vhost-user, virtio device 62): crosvm, cloud-hypervisor.
    /// No firmware measures into it.
    VirtioTpm,
    /// By a TPM behind virtio-i2c (vhost-user): QEMU. No firmware measures into it.
    VirtioI2c,
}

impl TpmTransport {
    /// Whether it is that of a VM of which nothing else was said.
    pub fn is_emulator(&self) -> bool {
        *self == Self::Emulator
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::Emulator => "emulator",
            Self::VirtioTpm => "virtio-tpm",
            Self::VirtioI2c => "virtio-i2c",
        }
    }
}

/// A TPM that had its life elsewhere, to become a vRoT.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(deny_unknown_fields)]
pub struct ImportRequest {
    /// The VM.
    pub vm: VmId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// What people call it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The permanent state of a TPM 2.0 that is off, as libtpms writes it and not encrypted, in
    /// hexadecimal digits.
    pub state: TpmState,
}

/// A TPM's permanent state in hexadecimal digits: with its keys, so that it is zeroed when dropped, and
/// never shown.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[cfg_attr(feature = "schema", schema(value_type = String))]
#[serde(transparent)]
pub struct TpmState(String);

impl TpmState {
    /// Wraps the digits.
    pub fn new(digits: String) -> Self {
        Self(digits)
    }

    /// The digits.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl Drop for TpmState {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for TpmState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TpmState({} digits)", self.0.len())
    }
}

/// One vRoT.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VrotView {
    /// Its number.
    pub vrot: VrotId,
    /// The VM that it belongs to.
    pub vm: VmId,
    /// Whose VM that is.
    pub tenant: Tenant,
    /// What people call it.
    pub name: Option<String>,
    /// Rises with each sanctioned restore or copy.
    pub generation: Generation,
    /// How the VM reaches it.
    #[serde(default)]
    pub transport: TpmTransport,
    /// Where in its life it is: `assigned`, `running`, `suspended` or `stopped`.
    pub state: String,
    /// Since when.
    pub since: Timestamp,
    /// What else there is to say about the state.
    pub note: Option<String>,
    /// State that its guest was told of and that may have been lost with a backend, until the vRoT
    /// has a new generation: evidence says so, and a policy accepts it by `batch`.
    pub state_loss: Option<StateLossView>,
    /// Whether its TPM had its life elsewhere before: then its endorsement seed, and whatever else it held
    /// by then, were not guarded by this host's physical TPM.
    #[serde(default)]
    pub imported: bool,
    /// Name of its identity key.
    pub vik: Option<TpmName>,
    /// Whether the identity key is certified: without that certificate the VM gets no evidence.
    pub vik_certificate: CertificateState,
    /// Whether the TLS key is certified, which comes after the identity key; none for a vRoT that was
    /// made before there were such keys.
    pub tls_certificate: Option<CertificateState>,
    /// Whether the endorsement keys are certified, which follows when the physical TPM has nothing
    /// more urgent to sign.
    pub ek_certificates: CertificateState,
    /// Last second of the identity key's certificate.
    pub vik_not_after: Option<Timestamp>,
    /// Why the last attempt to issue or renew a certificate failed, until one succeeds.
    pub renewal_problem: Option<String>,
    /// What was measured of what the VM is launched with.
    pub launch: LaunchView,
    /// Its backend, while it runs.
    pub backend: Option<BackendView>,
}

/// State that may have been lost with a backend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct StateLossView {
    /// Number of the store's newest batch when it was noted.
    pub batch: u64,
    /// When it was noted.
    pub at: Timestamp,
}

/// A live backend.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct BackendView {
    /// Its process.
    pub process: u32,
    /// Where a VMM attaches: by the TPM emulator protocol, or by vhost-user if the vRoT's transport is
    /// another one.
    #[cfg_attr(feature = "schema", schema(value_type = String))]
    pub control: PathBuf,
    /// Whether one is attached.
    pub attached: bool,
    /// Whether a command was answered before its state was durable.
    pub degraded: bool,
}

/// All vRoTs of the host.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct VrotList {
    /// In the order of their numbers.
    pub vrots: Vec<VrotView>,
}

/// Arguments that attach a vRoT to QEMU.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
pub struct QemuArguments {
    /// To be passed to QEMU one by one.
    pub arguments: Vec<String>,
}

/// How the guest sees its TPM.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "schema", derive(utoipa::ToSchema))]
#[serde(rename_all = "kebab-case")]
pub enum TpmDeviceModel {
    /// Command response buffer.
    #[default]
    TpmCrb,
    /// TPM interface specification (FIFO).
    TpmTis,
}

impl TpmDeviceModel {
    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::TpmCrb => "tpm-crb",
            Self::TpmTis => "tpm-tis",
        }
    }
}
