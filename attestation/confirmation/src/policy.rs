//! What a service expects of confirmations, as TOML.
//!
//! ```toml
//! demand = "required"              # or "optional": what comes without one passes, too
//! roots = "roots.pem"              # identity issuers, beside this file
//! devices = ["spiffe://demo.example/plant-7/desk-1"]
//! keys = ["000b…"]                 # as `vrot-confirm enrol` named them
//! max_age_s = 300
//!
//! [revocation]                     # without it, no revocation list of the device's issuer is asked for
//! max_crl_age_s = 604800
//! ```

use std::collections::BTreeSet;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use attestation::TomlError;
use attestation::policy::RevocationPolicy;
use cert_chain::{DeviceName, RevocationLists, TpmName, TrustAnchorError, TrustAnchors};
use serde::Deserialize;

/// Whether a person must have confirmed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Demand {
    /// Without a confirmation, nothing passes.
    Required,
    /// Without one it passes. One that is there must be good.
    Optional,
}

/// What is expected. One that says too little cannot be made.
#[derive(Clone, Debug)]
pub struct ConfirmationPolicy {
    pub(crate) demand: Demand,
    pub(crate) anchors: TrustAnchors,
    pub(crate) devices: BTreeSet<String>,
    pub(crate) keys: BTreeSet<String>,
    pub(crate) max_age: Duration,
}

/// Why a policy cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// It is not the TOML that is needed.
    #[error(transparent)]
    Toml(#[from] TomlError),
    /// The roots cannot be read.
    #[error("the roots in {} cannot be read", path.display())]
    Roots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The roots are none.
    #[error("the roots cannot be used")]
    Anchors(#[from] TrustAnchorError),
    /// No revocation list could be so young.
    #[error(transparent)]
    Revocation(attestation::policy::PolicyError),
    /// A device's name is none.
    #[error("`devices`: `{0}` is no name of a device: spiffe://DOMAIN/NAME")]
    Device(String),
    /// A key's name is none.
    #[error(
        "`keys`: `{0}` is no name of a TPM's key, in hexadecimal: `vrot-confirm enrol` tells it"
    )]
    Key(String),
    /// Nothing would be accepted.
    #[error("`{0}` is empty, so no confirmation would be accepted")]
    Nothing(&'static str),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Toml {
    demand: Demand,
    roots: PathBuf,
    devices: Vec<String>,
    keys: Vec<String>,
    max_age_s: u32,
    revocation: Option<RevocationPolicy>,
}

impl ConfirmationPolicy {
    /// Reads a policy. `read_roots` gives the text of the file with the roots.
    pub fn parse(
        text: &str,
        read_roots: impl FnOnce(&Path) -> io::Result<String>,
    ) -> Result<Self, PolicyError> {
        let read: Toml = toml::from_str(text).map_err(|error| TomlError::of(&error, text))?;
        let roots = read_roots(&read.roots).map_err(|source| PolicyError::Roots {
            path: read.roots.clone(),
            source,
        })?;
        for (is_empty, what) in [
            (read.devices.is_empty(), "devices"),
            (read.keys.is_empty(), "keys"),
        ] {
            if is_empty {
                return Err(PolicyError::Nothing(what));
            }
        }
        let demand = RevocationPolicy::demand(read.revocation).map_err(PolicyError::Revocation)?;
        let device = |name: &String| match name.parse::<DeviceName>() {
            Ok(name) => Ok(name.to_string()),
            Err(_) => Err(PolicyError::Device(name.clone())),
        };
        let key = |name: &String| match name.parse::<TpmName>() {
            Ok(name) => Ok(name.to_string()),
            Err(_) => Err(PolicyError::Key(name.clone())),
        };
        Ok(Self {
            demand: read.demand,
            anchors: TrustAnchors::from_pem(&roots)?.demanding(demand),
            devices: read.devices.iter().map(device).collect::<Result<_, _>>()?,
            keys: read.keys.iter().map(key).collect::<Result<_, _>>()?,
            max_age: Duration::from_secs(read.max_age_s.into()),
        })
    }

    /// The same with revocation lists that the service has.
    #[must_use]
    pub fn with_lists(mut self, lists: &RevocationLists) -> Self {
        self.anchors = self.anchors.with_lists(lists);
        self
    }
}
