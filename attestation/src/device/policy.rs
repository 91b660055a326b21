//! What the server of a connection expects of devices, as TOML.
//!
//! ```toml
//! [trust]
//! roots = "roots.pem"              # identity issuers, beside this file
//!
//! [expect]
//! devices = ["spiffe://demo.example/plant-7/*", "spiffe://demo.example/meter-1"]
//!
//! [freshness]
//! result_lifetime_s = 300
//!
//! [revocation]                     # without it, no revocation list of the issuer is asked for
//! max_crl_age_s = 604800
//!
//! [device.reference.pcrs]          # as in a policy about VMs
//! 0 = ["sha256:<64 hexadecimal digits>"]
//!
//! # Devices without a root of trust. Without this table there are none.
//! [exempt_software_keys]
//! roots = "meters-ca.pem"          # who certifies them as TLS clients
//! devices = ["meter-3.example.org"]
//! reason = "meters of series 3 have no TPM"
//! ```

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use cert_chain::device_name::SCHEME;
use cert_chain::{Digest32, RevocationDemand, TrustAnchors};
use printable::is_printable;
use serde::Deserialize;

use crate::policy::{
    Freshness, LayerPolicy, PolicyError, RevocationPolicy, Trust, check_reference,
};
use crate::reference::ReferenceValues;
use crate::toml_error::TomlError;

/// A policy about devices. One that says too little cannot be made.
#[derive(Clone, Debug)]
pub struct DevicePolicy {
    attested: Option<AttestedDevices>,
    software_keys: Option<SoftwareKeyExemption>,
    result_lifetime: Duration,
    digest: Digest32,
}

/// Which devices with a TPM are acceptable, and what they may have booted.
#[derive(Clone, Debug)]
pub(super) struct AttestedDevices {
    pub(super) anchors: TrustAnchors,
    pub(super) devices: Vec<DevicePattern>,
    pub(super) reference: ReferenceValues,
}

/// Devices that are accepted although their identity is a key in software: they have no root of trust,
/// and nothing shows what they booted.
#[derive(Clone, Debug)]
pub struct SoftwareKeyExemption {
    anchors: TrustAnchors,
    devices: Vec<DevicePattern>,
    reason: String,
}

/// A device's name, or everything below a part of a URI: `spiffe://demo.example/plant-7/*`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DevicePattern(String);

/// A device is attested anew after half of a result's life, which takes a second on a slow TPM.
const SHORTEST_LIFETIME: Duration = Duration::from_secs(2);
/// Longer than any sentence that somebody reads in a log.
const MAX_REASON: usize = 256;
/// As long as names in certificates can be.
const MAX_PATTERN: usize = 1024;
const EVERY: &str = "/*";

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Document {
    trust: Option<Trust>,
    expect: Option<Expectation>,
    #[serde(default)]
    freshness: Freshness,
    revocation: Option<RevocationPolicy>,
    device: Option<LayerPolicy>,
    exempt_software_keys: Option<Exemption>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expectation {
    devices: Vec<DevicePattern>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exemption {
    roots: PathBuf,
    devices: Vec<DevicePattern>,
    reason: String,
}

impl DevicePolicy {
    /// Reads a policy; `read_roots` delivers the PEM text of the roots that it names.
    pub fn parse(
        text: &str,
        mut read_roots: impl FnMut(&Path) -> Result<String, PolicyError>,
    ) -> Result<Self, PolicyError> {
        let document: Document =
            toml::from_str(text).map_err(|error| TomlError::of(&error, text))?;
        let mut anchors = |path: PathBuf| {
            TrustAnchors::from_pem(&read_roots(&path)?)
                .map_err(|source| PolicyError::Roots { path, source })
        };
        let demand = RevocationPolicy::demand(document.revocation)?;
        let attested = match (document.trust, document.expect, document.device) {
            // Without a table of accepted devices there is no certificate to look for in a list.
            (None, None, None) if demand == RevocationDemand::NotAsked => None,
            (Some(trust), Some(expect), Some(device)) => Some(AttestedDevices::new(
                expect.devices,
                device,
                anchors(trust.roots)?.demanding(demand),
            )?),
            _ => return Err(PolicyError::IncompleteDevices),
        };
        let software_keys = document
            .exempt_software_keys
            .map(|exemption| {
                let anchors = anchors(exemption.roots.clone())?;
                SoftwareKeyExemption::new(exemption, anchors)
            })
            .transpose()?;
        let result_lifetime = document.freshness.lifetime();
        if result_lifetime < SHORTEST_LIFETIME {
            return Err(PolicyError::Lifetime {
                found: result_lifetime.as_secs(),
                shortest: SHORTEST_LIFETIME.as_secs(),
            });
        }
        if attested.is_none() && software_keys.is_none() {
            return Err(PolicyError::NoDevices);
        }
        let roots = [
            attested.as_ref().map(|attested| *attested.anchors.digest()),
            software_keys
                .as_ref()
                .map(|exempt| *exempt.anchors.digest()),
        ];
        let parts: Vec<u8> = [Digest32::of(text.as_bytes())]
            .into_iter()
            .chain(roots.into_iter().flatten())
            .flat_map(|digest| *digest.as_bytes())
            .collect();
        Ok(Self {
            attested,
            software_keys,
            result_lifetime,
            digest: Digest32::of(&parts),
        })
    }

    /// The issuers that certify devices with a TPM; none, if the policy accepts no such device.
    pub fn anchors(&self) -> Option<&TrustAnchors> {
        self.attested.as_ref().map(|attested| &attested.anchors)
    }

    pub(super) fn attested(&self) -> Option<&AttestedDevices> {
        self.attested.as_ref()
    }

    /// The exemption of devices without a root of trust, if the policy has one.
    pub fn software_keys(&self) -> Option<&SoftwareKeyExemption> {
        self.software_keys.as_ref()
    }

    /// How long a result may be relied on.
    pub fn result_lifetime(&self) -> Duration {
        self.result_lifetime
    }

    /// By which a result names the policy: SHA-256 value over that of its text and the
    /// [digests](TrustAnchors::digest) of its roots, which stand in other files.
    pub fn digest(&self) -> &Digest32 {
        &self.digest
    }
}

impl AttestedDevices {
    fn new(
        devices: Vec<DevicePattern>,
        device: LayerPolicy,
        anchors: TrustAnchors,
    ) -> Result<Self, PolicyError> {
        if devices.is_empty() {
            return Err(PolicyError::NoDevices);
        }
        // No issuer of devices gives another kind of name, so it would never be met.
        if let Some(other) = devices
            .iter()
            .find(|pattern| !pattern.0.starts_with(SCHEME))
        {
            return Err(PolicyError::DeviceName {
                pattern: other.to_string(),
            });
        }
        check_reference("device", &device.reference)?;
        Ok(Self {
            anchors,
            devices,
            reference: device.reference,
        })
    }
}

impl SoftwareKeyExemption {
    fn new(exemption: Exemption, anchors: TrustAnchors) -> Result<Self, PolicyError> {
        if exemption.devices.is_empty() {
            return Err(PolicyError::NoDevices);
        }
        let reason = exemption.reason.trim();
        if reason.is_empty() || reason.len() > MAX_REASON || !reason.chars().all(is_printable) {
            return Err(PolicyError::ExemptionReason);
        }
        Ok(Self {
            anchors,
            devices: exemption.devices,
            reason: reason.to_owned(),
        })
    }

    /// The authorities that certify such devices as TLS clients.
    pub fn anchors(&self) -> &TrustAnchors {
        &self.anchors
    }

    /// Which devices are meant.
    pub fn devices(&self) -> &[DevicePattern] {
        &self.devices
    }

    /// Why the policy's author exempts them.
    pub fn reason(&self) -> &str {
        &self.reason
    }
}

impl DevicePattern {
    /// Whether a name is meant.
    pub fn matches(&self, name: &str) -> bool {
        match self.0.strip_suffix(EVERY) {
            Some(group) => name
                .strip_prefix(group)
                .and_then(|rest| rest.strip_prefix('/'))
                .is_some_and(|rest| !rest.is_empty()),
            None => name == self.0,
        }
    }
}

impl TryFrom<String> for DevicePattern {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let group = text.strip_suffix(EVERY);
        let names_a_group = group.is_none_or(|group| {
            group
                .split_once("://")
                .is_some_and(|(scheme, rest)| !scheme.is_empty() && !rest.is_empty())
        });
        let name = group.unwrap_or(&text);
        let is_name = !name.is_empty()
            && text.len() <= MAX_PATTERN
            && !name.contains('*')
            && name.chars().all(is_printable);
        if is_name && names_a_group {
            Ok(Self(text))
        } else {
            Err(format!(
                "`{}` names no devices: write a name, or a URI that ends with `/*` for all below it",
                text.escape_debug()
            ))
        }
    }
}

impl fmt::Display for DevicePattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
