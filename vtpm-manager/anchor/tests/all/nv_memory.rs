//! What the maker of a TPM leaves in its NV memory beside the EK certificate.

use anyhow::{Context, Result};
use cert_chain::ek_template::EkTemplate;
use cert_chain::make_credential;
use cert_chain::operator::PolicyKey;
use cert_chain::pem::certificates;
use test_support::Swtpm;
use trust_anchor::{HostPublic, TrustAnchor};

use crate::config;

const NONCE: [u8; 16] = [0x5a; 16];

fn define(tpm: &Swtpm, index: u32, contents: &[u8]) -> Result<()> {
    tpm.write("contents", contents)?;
    tpm.tool(&format!(
        "tpm2_nvdefine 0x{index:08x} -C o -s {} -a ownerread|ownerwrite|authread",
        contents.len()
    ))?;
    tpm.tool(&format!("tpm2_nvwrite 0x{index:08x} -C o -i contents"))?;
    Ok(())
}

/// The host's keys, after its EK has opened a credential for its IK.
async fn host_of(tpm: &Swtpm, operator: &PolicyKey) -> Result<HostPublic> {
    let anchor = TrustAnchor::start(&config(tpm))?;
    let host = anchor.provision(operator.public()).await?;
    let credential = make_credential(&host.ek_public, &host.ik_public.name(), b"secret")?;
    let opened = anchor.activate_credential(&credential).await?;
    assert_eq!(opened.as_slice(), b"secret");
    Ok(host)
}

/// Whether stock tools make the same key.
fn is_made_by(tpm: &Swtpm, options: &str, host: &HostPublic) -> Result<bool> {
    tpm.tool(&format!("tpm2_createek {options} -c ek.ctx -u ek.pub"))?;
    tpm.tool("tpm2_flushcontext -t")?;
    let file = tpm.read("ek.pub")?;
    let area = file.get(2..).context("no TPM2B_PUBLIC")?;
    Ok(host.ek_public.public_area().as_bytes() == area)
}

#[tokio::test]
async fn an_endorsement_key_is_made_by_its_makers_template_and_nonce() -> Result<()> {
    // A modulus, or two coordinates with the length of the second one.
    for (algorithm, first_index, default_template, length_of_unique) in [
        ("rsa", 0x01c0_0002, EkTemplate::L1, 256),
        ("ecc", 0x01c0_000a, EkTemplate::L2, 66),
    ] {
        let tpm = Swtpm::of_a_host()?;
        let operator = PolicyKey::generate()?;
        if algorithm == "ecc" {
            define(&tpm, first_index, b"certificate")?;
        }
        let usual = host_of(&tpm, &operator).await?;
        assert!(is_made_by(&tpm, &format!("-G {algorithm}"), &usual)?);

        define(&tpm, first_index + 1, &NONCE)?;
        let with_nonce = host_of(&tpm, &operator).await?;
        assert_ne!(with_nonce.ek_public, usual.ek_public);
        // The same in so many words: a template with the nonce at the start of `unique`.
        let undefine = |index: u32| tpm.tool(&format!("tpm2_nvundefine 0x{index:08x} -C o"));
        undefine(first_index + 1)?;
        let mut template = default_template.to_bytes();
        let unique = template.len() - length_of_unique;
        template.splice(unique..unique + NONCE.len(), NONCE);
        define(&tpm, first_index + 2, &template)?;
        let by_template = host_of(&tpm, &operator).await?;
        assert_eq!(by_template.ek_public, with_nonce.ek_public);

        // noDA besides.
        let mut template = default_template.to_bytes();
        *template.get_mut(6).context("attributes")? |= 0x04;
        undefine(first_index + 2)?;
        define(&tpm, first_index + 2, &template)?;
        let with_template = host_of(&tpm, &operator).await?;
        let area = with_template.ek_public.public_area();
        assert_eq!(area.as_bytes().get(6), template.get(6));
    }
    Ok(())
}

#[tokio::test]
async fn certificates_above_the_endorsement_keys_come_along() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    let operator = PolicyKey::generate()?;
    assert!(host_of(&tpm, &operator).await?.ek_chain.is_empty());
    let makers = tpm.maker_pem()?;
    let mut chain = Vec::new();
    for certificate in certificates(makers.as_bytes())? {
        chain.extend_from_slice(&certificate.der);
    }
    // The second one crosses from an index to the next.
    let (first, second) = chain.split_at_checked(chain.len() - 100).context("short")?;
    define(&tpm, 0x01c0_0100, first)?;
    define(&tpm, 0x01c0_0101, second)?;
    define(&tpm, 0x01c0_0200, b"something else")?;
    assert_eq!(host_of(&tpm, &operator).await?.ek_chain, chain);
    Ok(())
}
