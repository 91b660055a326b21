//! What a relying party expects, as TOML.
//!
//! ```toml
//! [trust]
//! roots = "roots.pem"              # identity issuers, beside this file
//!
//! [expect]
//! vm = "6f1c0a52-7a44-4a0e-9f0e-0c8f5a2b7d11"
//! tenant = "acme"                  # vm or tenant, or both
//! hosts = ["host-1.example.org"]
//! # anchor = "strict"              # no loss of power may take state back
//! # firmware_not_measured = "accept"  # a TPM that the VM's firmware cannot measure into will do
//! # power_losses_accepted = { "host-1.example.org" = 17 }
//! # state_losses_accepted = { "03030303-0303-4303-8303-030303030303" = 42 }
//!
//! [freshness]
//! result_lifetime_s = 300
//!
//! [connection]                     # of attested connections; without it, as it is here
//! verdict = "affirming"            # or "warning": the least that one is made with, and kept
//! key_exchange = "any"             # or "hybrid": X25519MLKEM768 alone
//!
//! [revocation]                     # without it, no revocation list of the issuer is asked for
//! max_crl_age_s = 604800
//!
//! [launch]                         # without it, any will do, also one that was not measured
//! required = true                  # as it is where nothing is said
//! digests = ["<64 hexadecimal digits>"]  # of all parts; or part by part:
//! ignored_parts = ["value:zone"]   # any other part that is not listed is contraindicated
//!
//! [launch.parts]
//! kernel = ["sha256:<64 hexadecimal digits>"]
//! cpus = ["2", "4"]
//!
//! [host.reference.pcrs]            # each value with its bank; sha256 where none is named
//! 0 = ["sha256:<64 hexadecimal digits>", "sha384:<96 hexadecimal digits>"]
//!
//! [[vm.reference.events]]
//! name = "kernel"
//! pcr = 4
//! type = "EV_EFI_BOOT_SERVICES_APPLICATION"
//! digests = ["sha256:<64 hexadecimal digits>"]
//!
//! [vm.without_log]                 # without it, evidence without a boot log is contraindicated
//! demand = ["pinned-pcrs"]         # and/or "pinned-launch"
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cert_chain::profile::validity::CLOCK_SKEW;
use cert_chain::trust_anchors::TrustAnchorError;
use cert_chain::{
    Digest32, Generation, HashAlgorithm, HostName, RevocationDemand, Tenant, TrustAnchors, VmId,
    VrotId,
};
use serde::Deserialize;

use crate::launch::LaunchPolicy;
use crate::policy_without_log::{WithoutLog, WithoutLogError};
use crate::reference::ReferenceValues;
use crate::toml_error::TomlError;
use crate::verdict::Verdict;

/// A policy that pins what evidence must show. One that pins too little cannot be made.
#[derive(Clone, Debug)]
pub struct Policy {
    anchors: TrustAnchors,
    expect: Expectation,
    result_lifetime: Duration,
    connection: ConnectionPolicy,
    launch: Option<LaunchPolicy>,
    host: ReferenceValues,
    vm: VmPolicy,
    digest: Digest32,
}

/// What an attested connection has to be.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConnectionPolicy {
    /// The least verdict on its other end.
    verdict: LeastVerdict,
    /// How its keys are agreed on.
    pub key_exchange: ExpectedKeyExchange,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum LeastVerdict {
    #[default]
    Affirming,
    Warning,
}

/// How the keys of a connection may be agreed on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ExpectedKeyExchange {
    /// By hybrid key exchange where both ends have it, or else by elliptic curves alone.
    #[default]
    Any,
    /// By hybrid key exchange (X25519MLKEM768, RFC 10024) alone.
    Hybrid,
}

/// Whose evidence is acceptable.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Expectation {
    /// The one VM that is meant.
    pub vm: Option<VmId>,
    /// The tenant whose VMs are meant.
    pub tenant: Option<Tenant>,
    /// The hosts on which it may run.
    pub hosts: Vec<HostName>,
    /// The lowest acceptable generation.
    #[serde(default)]
    min_generation: u64,
    /// How the host must anchor its vRoTs' state; without this field either way will do.
    pub anchor: Option<ExpectedAnchoring>,
    /// Without this field, a TPM that the VM's firmware cannot measure into is contraindicated.
    pub firmware_not_measured: Option<FirmwareNotMeasured>,
    /// A loss of power on a host that may have cut off state earns a warning for good. For each
    /// host, the one that the relying party has looked at and accepts: the number of the first
    /// batch after it, which the warning names. A host numbers its batches upwards and never
    /// anew, and its clock plays no part; so any other loss, also a later one, is not accepted.
    #[serde(default)]
    pub power_losses_accepted: BTreeMap<HostName, u64>,
    /// State that a vRoT lost with its backend earns a warning for good. For each vRoT, the loss
    /// that the relying party has looked at and accepts: the number of the newest batch when it was
    /// noted, which the warning names. A later loss has a higher one, and is not accepted.
    #[serde(default)]
    pub state_losses_accepted: BTreeMap<VrotId, u64>,
}

/// What a policy can ask of a host's rollback anchor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExpectedAnchoring {
    /// The physical TPM vouches for every change before it is acknowledged.
    Strict,
}

/// What a policy can say of a VM whose TPM no firmware measures into.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FirmwareNotMeasured {
    /// It is acceptable.
    Accept,
}

/// Why there is no policy.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A name that no issuer gives a device.
    #[error(
        "`{pattern}` in [expect] names no device with a TPM: their names are \
         spiffe://<domain>/<name>, as `vrot-device enrol show` prints them"
    )]
    DeviceName {
        /// What was given.
        pattern: String,
    },
    /// No reason is given for accepting devices without a root of trust.
    #[error(
        "`reason` in [exempt_software_keys] must say why devices without a root of trust are accepted: \
         a printable text of 1 to 256 bytes"
    )]
    ExemptionReason,
    /// Of what a policy says about devices with a TPM, something is missing.
    #[error(
        "a policy about devices with a TPM needs all of [trust], [expect] and [device.reference]; one \
         about other devices, which [exempt_software_keys] names, needs none of them"
    )]
    IncompleteDevices,
    /// No device is acceptable.
    #[error(
        "the policy names no device: list at least one in `devices` in [expect], or in \
         [exempt_software_keys]"
    )]
    NoDevices,
    /// Results of connections that end before they can be made anew.
    #[error(
        "the policy's results live for {found} s, and no connection can be attested anew in that time: \
         set `result_lifetime_s` in [freshness] to at least {shortest}"
    )]
    Lifetime {
        /// What the policy says.
        found: u64,
        /// What it has to say.
        shortest: u64,
    },
    /// Nothing says whose evidence is meant.
    #[error("the policy names neither a VM nor a tenant: set `vm` or `tenant` in [expect]")]
    NoSubject,
    /// A loss of power is accepted on a host that is not.
    #[error(
        "`power_losses_accepted` in [expect] names {host}, which is not among `hosts`: correct \
         the name, or remove the entry"
    )]
    PowerLossElsewhere {
        /// The host.
        host: HostName,
    },
    /// No list could be so young.
    #[error(
        "`max_crl_age_s` in [revocation] is {found}: it must be at least {MIN_CRL_AGE}, because lists are \
         dated back by {} s, for clocks that are slow",
        CLOCK_SKEW.as_secs()
    )]
    MaxCrlAge {
        /// What the policy says.
        found: u64,
    },
    /// No host is acceptable.
    #[error("the policy names no host: list at least one in `hosts` in [expect]")]
    NoHosts,
    /// A layer could have booted anything.
    #[error(
        "the policy has no reference values for the {layer}: add [{layer}.reference.pcrs] or [[{layer}.reference.events]] (optional events and PCRs that no boot chain measures into do not count)"
    )]
    NoReferenceValues {
        /// `host`, `vm` or `device`.
        layer: &'static str,
    },
    /// A file cannot be read.
    #[error("{} cannot be read", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The roots are not usable.
    #[error("the roots in {} cannot be used", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustAnchorError,
    },
    /// The reference values are those of a bank that nothing was measured into.
    #[error(
        "the policy's reference values of PCRs 0 to 7 ({bank}) for the {layer} are those after a \
         reset: no boot was measured into that bank, and whatever boots without a measurement would \
         meet them. Take them from a boot that is measured into the bank (`vrot-device reference`)"
    )]
    Unextended {
        /// `host`, `vm` or `device`.
        layer: &'static str,
        /// The bank.
        bank: HashAlgorithm,
    },
    /// What takes the place of a boot log would be met by any boot.
    #[error(transparent)]
    WithoutLog(#[from] WithoutLogError),
    /// Not the TOML that a policy is.
    #[error("this is no policy")]
    Toml(#[from] TomlError),
}

/// Reference values of thousands of good boots.
pub const MAX_POLICY: usize = 1024 * 1024;
/// More certificates than [`TrustAnchors`] take.
pub const MAX_ROOTS: usize = 16 * 1024 * 1024;
const DEFAULT_RESULT_LIFETIME: u64 = 300;
/// Seconds.
const MIN_CRL_AGE: u64 = 2 * CLOCK_SKEW.as_secs();

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    trust: Trust,
    expect: Expectation,
    #[serde(default)]
    freshness: Freshness,
    #[serde(default)]
    connection: ConnectionPolicy,
    revocation: Option<RevocationPolicy>,
    launch: Option<LaunchPolicy>,
    host: LayerPolicy,
    vm: VmPolicy,
}

/// What a VM may have booted, and what takes the place of its boot log. At least one of both is there.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct VmPolicy {
    reference: Option<ReferenceValues>,
    without_log: Option<WithoutLog>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Trust {
    pub(crate) roots: PathBuf,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Freshness {
    result_lifetime_s: u64,
}

/// The section `[revocation]` of a policy: where there is one, a certificate counts only beside a
/// revocation list of its issuer.
#[derive(Clone, Copy, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RevocationPolicy {
    max_crl_age_s: u64,
}

impl RevocationPolicy {
    /// What a policy with this section, or without one, demands.
    pub fn demand(section: Option<Self>) -> Result<RevocationDemand, PolicyError> {
        match section {
            None => Ok(RevocationDemand::NotAsked),
            Some(Self { max_crl_age_s }) if max_crl_age_s < MIN_CRL_AGE => {
                Err(PolicyError::MaxCrlAge {
                    found: max_crl_age_s,
                })
            }
            Some(Self { max_crl_age_s }) => Ok(RevocationDemand::Listed {
                max_age: Duration::from_secs(max_crl_age_s),
            }),
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct LayerPolicy {
    pub(crate) reference: ReferenceValues,
}

impl Default for Freshness {
    fn default() -> Self {
        Self {
            result_lifetime_s: DEFAULT_RESULT_LIFETIME,
        }
    }
}

impl Freshness {
    pub(crate) fn lifetime(&self) -> Duration {
        Duration::from_secs(self.result_lifetime_s)
    }
}

/// Refuses reference values that any boot would meet.
pub(crate) fn check_reference(
    layer: &'static str,
    reference: &ReferenceValues,
) -> Result<(), PolicyError> {
    if !reference.says_what_booted() {
        return Err(PolicyError::NoReferenceValues { layer });
    }
    match reference.unextended_bank() {
        Some(bank) => Err(PolicyError::Unextended { layer, bank }),
        None => Ok(()),
    }
}

impl Policy {
    /// Reads a policy; `read_roots` delivers the PEM text of the roots that it names.
    pub fn parse(
        text: &str,
        read_roots: impl FnOnce(&Path) -> Result<String, PolicyError>,
    ) -> Result<Self, PolicyError> {
        let document: Document =
            toml::from_str(text).map_err(|error| TomlError::of(&error, text))?;
        if document.expect.vm.is_none() && document.expect.tenant.is_none() {
            return Err(PolicyError::NoSubject);
        }
        if document.expect.hosts.is_empty() {
            return Err(PolicyError::NoHosts);
        }
        let accepted = &document.expect.power_losses_accepted;
        if let Some(host) = (accepted.keys()).find(|host| !document.expect.hosts.contains(host)) {
            return Err(PolicyError::PowerLossElsewhere { host: host.clone() });
        }
        check_reference("host", &document.host.reference)?;
        document.vm.check(document.launch.as_ref())?;
        let demand = RevocationPolicy::demand(document.revocation)?;
        let path = document.trust.roots;
        let anchors = TrustAnchors::from_pem(&read_roots(&path)?)
            .map_err(|source| PolicyError::Roots { path, source })?
            .demanding(demand);
        let text = Digest32::of(text.as_bytes());
        let digest = Digest32::of([*text.as_bytes(), *anchors.digest().as_bytes()].as_flattened());
        Ok(Self {
            anchors,
            expect: document.expect,
            result_lifetime: document.freshness.lifetime(),
            connection: document.connection,
            launch: document.launch,
            host: document.host.reference,
            vm: document.vm,
            digest,
        })
    }

    /// The identity issuers that are trusted, and what is demanded of their revocation lists.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// Whose evidence is acceptable.
    pub fn expectation(&self) -> &Expectation {
        &self.expect
    }

    /// How long a result may be relied on.
    pub fn result_lifetime(&self) -> Duration {
        self.result_lifetime
    }

    /// What an attested connection has to be.
    pub fn connection(&self) -> &ConnectionPolicy {
        &self.connection
    }

    /// What the VM may have been launched as, if that matters.
    pub fn launch(&self) -> Option<&LaunchPolicy> {
        self.launch.as_ref()
    }

    /// What the host may have booted.
    pub fn host_reference(&self) -> &ReferenceValues {
        &self.host
    }

    /// What the VM may have booted; nothing where the policy is about VMs without a boot log alone.
    pub fn vm_reference(&self) -> Option<&ReferenceValues> {
        self.vm.reference.as_ref()
    }

    /// What takes the place of a VM's boot log; without it, nothing does.
    pub fn vm_without_log(&self) -> Option<&WithoutLog> {
        self.vm.without_log.as_ref()
    }

    /// By which a result names the policy: SHA-256 value over that of its text and the
    /// [digest](TrustAnchors::digest) of its roots, which stand in another file.
    pub fn digest(&self) -> &Digest32 {
        &self.digest
    }
}

impl VmPolicy {
    fn check(&self, launch: Option<&LaunchPolicy>) -> Result<(), PolicyError> {
        if let Some(reference) = &self.reference {
            check_reference("vm", reference)?;
        }
        match &self.without_log {
            Some(section) => Ok(section.check(self.reference.as_ref(), launch)?),
            None if self.reference.is_none() => Err(PolicyError::NoReferenceValues { layer: "vm" }),
            None => Ok(()),
        }
    }
}

impl ConnectionPolicy {
    /// Whether a connection is made, and kept, to an end with this verdict.
    pub fn accepts(&self, verdict: Verdict) -> bool {
        verdict
            <= match self.verdict {
                LeastVerdict::Affirming => Verdict::Affirming,
                LeastVerdict::Warning => Verdict::Warning,
            }
    }
}

impl Expectation {
    /// The lowest acceptable generation.
    pub fn min_generation(&self) -> Generation {
        Generation::new(self.min_generation)
    }
}
