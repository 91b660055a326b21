//! What a vRoT says it is, held against the issuer's root.

use std::fs;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use cert_chain::{TrustAnchors, VerifiedVikChain, VikChain};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;

use super::Host;

/// The chain of an identity as `vtpmctl identity` shows it, if it leads to the root.
pub(crate) fn verified(host: &Host, identity: &Value) -> Result<VerifiedVikChain> {
    let root = fs::read_to_string(host.path("issuer/root.pem"))?;
    let chain = [
        der(&identity["vik"]["certificate_pem"])?,
        der(&identity["chain_pem"])?,
    ];
    let now = UnixTime::since_unix_epoch(SystemTime::now().duration_since(UNIX_EPOCH)?);
    let chain = VikChain::from_der_list(&chain)?;
    Ok(chain.verify(&TrustAnchors::from_pem(&root)?, now)?)
}

/// A certificate in PEM as DER.
pub(crate) fn der(pem: &Value) -> Result<CertificateDer<'static>> {
    let pem = pem.as_str().context("a certificate in PEM")?;
    CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|error| anyhow::anyhow!("{error}"))
}
