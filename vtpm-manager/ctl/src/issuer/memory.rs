//! What an issuer writes down: whom it challenged, and whom it certified.

use std::path::Path;

use api_types::Timestamp;
use cert_chain::enrolment::PendingEnrolment;
use cert_chain::{Digest32, HostName, TpmName};
use serde::{Deserialize, Serialize};

use super::error::IssuerError;

/// A host that was certified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IssuedHost {
    version: u32,
    /// Its name.
    pub host: HostName,
    /// Name of its TPM's endorsement key.
    pub ek: TpmName,
    /// SHA-256 value of that key alone; records of version 1 have none.
    #[serde(default)]
    pub ek_key: Option<Digest32>,
    /// Name of its identity key; records of version 1 have none.
    #[serde(default)]
    pub ik: Option<TpmName>,
    /// Name of the operator's key.
    pub policy_key: TpmName,
    /// Who made its TPM.
    pub maker: String,
    /// When it was certified last.
    pub issued_at: Timestamp,
    /// Under which operator keys it was certified before, oldest first.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub replaced: Vec<ReplacedOperatorKey>,
}

/// An operator key that a host does not depend on any more.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct ReplacedOperatorKey {
    /// Its name.
    pub policy_key: TpmName,
    /// When the host was certified under another one.
    pub replaced_at: Timestamp,
}

/// A challenge that waits for its answer, or had it.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Challenged {
    pub(super) enrolment: PendingEnrolment,
    /// The operator key that the host may give up: what the issuer's administrator allowed.
    pub(super) replaces: Option<TpmName>,
}

const VERSION: u32 = 2;

impl IssuedHost {
    /// A host as it is certified now.
    pub(super) fn new(
        enrolment: &PendingEnrolment,
        issued_at: Timestamp,
        earlier: Option<Self>,
    ) -> Self {
        let mut replaced = Vec::new();
        if let Some(earlier) = earlier {
            replaced = earlier.replaced;
            if earlier.policy_key != *enrolment.policy_key() {
                replaced.push(ReplacedOperatorKey {
                    policy_key: earlier.policy_key,
                    replaced_at: issued_at,
                });
            }
        }
        Self {
            version: VERSION,
            host: enrolment.host().clone(),
            ek: enrolment.ek().clone(),
            ek_key: Some(*enrolment.ek_key()),
            ik: Some(enrolment.ik().clone()),
            policy_key: enrolment.policy_key().clone(),
            maker: enrolment.maker().to_owned(),
            issued_at,
            replaced,
        }
    }

    /// One TPM for one name: otherwise a host could stand in for another one. This is the record of
    /// another name.
    pub(super) fn is_another(
        &self,
        enrolment: &PendingEnrolment,
        file: &Path,
    ) -> Result<(), IssuerError> {
        let same_ek = self.ek == *enrolment.ek() || self.ek_key == Some(*enrolment.ek_key());
        let same_ik = self.ik.as_ref() == Some(enrolment.ik());
        let which = match (same_ek, same_ik) {
            (false, false) => return Ok(()),
            (true, _) => "endorsement key",
            (false, true) => "identity key",
        };
        Err(IssuerError::TpmKnown {
            which,
            owner: self.host.clone(),
            host: enrolment.host().clone().into(),
            file: file.into(),
        })
    }

    /// One name for one TPM: otherwise a second host could stand in for the first. And one
    /// operator for one host: otherwise the host could choose who approves what it boots.
    /// `replaces` is the operator key that it may give up.
    pub(super) fn admits(
        &self,
        enrolment: &PendingEnrolment,
        replaces: Option<&TpmName>,
        file: &Path,
    ) -> Result<(), IssuerError> {
        if self.ek != *enrolment.ek() {
            return Err(IssuerError::NameTaken {
                host: enrolment.host().clone(),
                owner: self.ek.clone(),
                found: enrolment.ek().clone(),
                file: file.into(),
            });
        }
        if self.policy_key != *enrolment.policy_key() && replaces != Some(&self.policy_key) {
            return Err(IssuerError::OperatorKeyChanged {
                host: enrolment.host().clone(),
                recorded: self.policy_key.clone(),
                found: enrolment.policy_key().clone(),
                file: file.into(),
            });
        }
        Ok(())
    }
}
