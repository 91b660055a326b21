//! `vrot-service identity`: who this VM is, as its host has certified it.

use anyhow::{Context, Result};
use cert_chain::layout::NvIndex;
use cert_chain::pem::encode_certificate;
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::profile::tls::TlsCertificate;
use cert_chain::profile::vik::VikCertificate;
use cert_chain::{PcrSelection, VikChain};
use printable::printable_json;
use program_output::console::print;
use rustls_pki_types::UnixTime;
use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::attester::EsysTpm;
use crate::command_line::{IdentityKey, IdentityOptions};

/// Prints the certificates, once there are any. They are read and not verified: that takes the issuer's
/// root, and whoever relies on them has it.
pub fn show(options: &IdentityOptions) -> Result<()> {
    let mut tpm = EsysTpm::open(&options.tpm, PcrSelection::default(), None)
        .with_context(|| format!("{} cannot be used as a vRoT", options.tpm))?;
    let index = match options.key {
        IdentityKey::Vik => NvIndex::VIK_CERTIFICATE,
        IdentityKey::Tls => NvIndex::TLS_CERTIFICATE,
    };
    let chain = tpm.wait_for_chain(index)?;
    let text = match options.json {
        true => printable_json(&format!("{:#}\n", describe(options.key, &chain)?)),
        false => chain.iter().map(|der| encode_certificate(der)).collect(),
    };
    print(&text).context("standard output cannot be written")
}

/// What the certificates say.
fn describe(key: IdentityKey, chain: &[Vec<u8>]) -> Result<Value> {
    const MALFORMED: &str = "a certificate in the vRoT does not follow its profile";
    let chain = VikChain::from_der_list(chain).context(MALFORMED)?;
    let host = HostCertificate::read(chain.host_certificate()).context(MALFORMED)?;
    let leaf = chain.vik_certificate();
    let mut told = match key {
        IdentityKey::Vik => {
            let leaf = VikCertificate::read(leaf, host.host()).context(MALFORMED)?;
            let claims = leaf.claims();
            json!({
                "key": "vik",
                "vm": claims.vm,
                "vrot": claims.vrot,
                "tenant": claims.tenant,
                "generation": claims.generation,
                "vik": claims.vik,
                "uri": leaf.uri(),
                "dns": host.host().vrot_name(&claims.vrot),
                "not_after": rfc3339(leaf.not_after())?,
            })
        }
        IdentityKey::Tls => {
            let leaf = TlsCertificate::read(leaf, host.host()).context(MALFORMED)?;
            json!({
                "key": "tls",
                "vm": leaf.vm(),
                "vrot": leaf.vrot(),
                "uri": leaf.uri(),
                "dns": host.host().vrot_name(&leaf.vrot()),
                "not_after": rfc3339(leaf.not_after())?,
            })
        }
    };
    if let Some(told) = told.as_object_mut() {
        told.insert(
            "host".to_owned(),
            json!({
                "name": host.host(),
                "ik": host.claims().ik,
                "issuer": host.issuer(),
                "not_after": rfc3339(host.not_after())?,
            }),
        );
        let certificates = [chain.vik_certificate(), chain.host_certificate()];
        let pem = certificates.map(|der| encode_certificate(der));
        told.insert("certificates".to_owned(), json!(pem));
        told.insert("verified".to_owned(), json!(false));
    }
    Ok(told)
}

fn rfc3339(time: UnixTime) -> Result<String> {
    let seconds = i64::try_from(time.as_secs())?;
    Ok(OffsetDateTime::from_unix_timestamp(seconds)?.format(&Rfc3339)?)
}
