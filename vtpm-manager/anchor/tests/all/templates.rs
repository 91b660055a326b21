//! The templates of `cert_chain` as the TPM software stack reads them.

use anyhow::Result;
use cert_chain::ek_template::EkTemplate;
use cert_chain::template::storage_root_key;
use tss_esapi::abstraction::AsymmetricAlgorithmSelection as Algorithm;
use tss_esapi::abstraction::ek::create_ek_public_from_default_template_2 as default_template;
use tss_esapi::interface_types::ecc::EccCurve;
use tss_esapi::interface_types::key_bits::RsaKeyBits;
use tss_esapi::structures::Public;
use tss_esapi::traits::{Marshall, UnMarshall};

#[test]
fn the_software_stack_reads_every_template_back_as_it_was_written() -> Result<()> {
    for template in [
        storage_root_key(),
        EkTemplate::L1.to_bytes(),
        EkTemplate::L2.to_bytes(),
    ] {
        assert_eq!(Public::unmarshall(&template)?.marshall()?, template);
    }
    Ok(())
}

#[test]
fn the_ek_templates_are_those_of_the_tcg() -> Result<()> {
    let rsa = default_template(Algorithm::Rsa(RsaKeyBits::Rsa2048), None)?;
    assert_eq!(rsa.marshall()?, EkTemplate::L1.to_bytes());
    let p256 = default_template(Algorithm::Ecc(EccCurve::NistP256), None)?;
    assert_eq!(p256.marshall()?, EkTemplate::L2.to_bytes());
    Ok(())
}
