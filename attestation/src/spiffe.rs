//! Node attestation of SPIFFE: a VM's evidence for the authority of a trust domain, and the identity that it
//! earns there.
//!
//! The evidence is bound to the trust domain, so what a service answers to anybody's challenge, or shows on a
//! connection, earns no identity, and what one trust domain gets is of no use to another.

use std::fmt;
use std::str::FromStr;

use cert_chain::Digest32;
use serde::Serialize;

use crate::binding::{Binding, Purpose};
use crate::launch::LaunchMeasurement;
use crate::qualifying::encoded;
use crate::refusal::Layer;
use crate::result::{AttestationResult, Verdict};

/// The name of a trust domain (SPIFFE ID §2.1).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustDomain(String);

/// A text that names no trust domain.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
#[error(
    "`{text}` names no trust domain: lower-case letters, digits, dots, dashes and underscores, {MAX_TRUST_DOMAIN} at \
     most, as in `example.org`"
)]
pub struct TrustDomainError {
    text: String,
}

/// What the authority of a trust domain knows of a node that it has attested. Only an affirming result
/// makes it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct NodeAttributes {
    /// The node's SPIFFE ID.
    pub spiffe_id: String,
    /// By what workloads can be bound to this node: selectors without the type in front of them.
    pub selector_values: Vec<String>,
    /// It may be attested again at any time.
    pub can_reattest: bool,
}

/// SPIFFE ID §2.1.
pub const MAX_TRUST_DOMAIN: usize = 255;
/// The name of the attestor, which is the type of its selectors and a part of each node's path.
pub const ATTESTOR: &str = "vrot";
const NODE: &str = "vrot spiffe node attestation v1";

impl TrustDomain {
    /// What evidence for this trust domain is bound to: `spiffe-binding-data` in `evidence.cddl`.
    pub fn binding(&self) -> Binding {
        let data = encoded(|encoder| encoder.array(2)?.str(NODE)?.str(&self.0)?.ok());
        Binding::Node(Digest32::of(&data))
    }

    /// What its authority asks evidence for.
    pub fn purpose(&self) -> Purpose {
        Purpose::Node {
            binding: self.binding(),
        }
    }
}

impl NodeAttributes {
    /// The node that an affirming result is about.
    pub fn of(result: &AttestationResult, domain: &TrustDomain) -> Option<Self> {
        if result.verdict() != Verdict::Affirming {
            return None;
        }
        let evidence = result.evidence();
        let (leaf, chain) = (evidence.leaf(), evidence.chain());
        let mut selectors = vec![
            format!("vm:{}", leaf.vm),
            format!("vrot:{}", leaf.vrot),
            format!("tenant:{}", leaf.tenant),
            format!("generation:{}", leaf.generation),
            format!("host:{}", chain.host()),
            format!("host-ik:{}", chain.host_claims().ik),
            format!("policy:sha256:{}", result.policy()),
        ];
        if let LaunchMeasurement::Measured(launch) = &leaf.launch {
            selectors.push(format!("launch:{}", launch.digest()));
            let parts = launch.parts().iter();
            selectors.extend(parts.map(|part| format!("launch-part:{}:{}", part.id, part.value)));
        }
        let booted = result.layer(Layer::Vm).boot().iter();
        selectors.extend(booted.map(|(name, digest)| {
            let bank = digest.algorithm();
            format!("booted:{name}:{bank}:{digest}")
        }));
        Some(Self {
            // Agents' names are below /spire/agent, and an attestor's below its own.
            spiffe_id: format!(
                "spiffe://{domain}/spire/agent/{ATTESTOR}/{}/{}",
                leaf.tenant, leaf.vm
            ),
            selector_values: selectors,
            can_reattest: true,
        })
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for TrustDomain {
    type Err = TrustDomainError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let allowed =
            |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > MAX_TRUST_DOMAIN || !text.bytes().all(allowed) {
            return Err(TrustDomainError {
                text: text.chars().take(MAX_TRUST_DOMAIN).collect(),
            });
        }
        Ok(Self(text.to_owned()))
    }
}
