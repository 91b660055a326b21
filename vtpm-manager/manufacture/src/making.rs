//! A new vRoT: its keys, and its indices.

use cert_chain::ek_template::EkTemplate;
use cert_chain::layout::NvIndex;
use cert_chain::{AttestationKey, EndorsementKey, TlsKey};

use super::authority::NvAuthority;
use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::issuance::{Uncertified, lengths};
use super::keys::{self, Keep};
use super::nv;
use super::order::ManufactureOrder;

/// A manufactured vRoT's identity.
#[derive(Debug)]
pub struct Manufactured {
    /// The vRoT's identity key.
    pub vik: AttestationKey,
    /// The key with which the VM's service authenticates itself in TLS.
    pub tls: TlsKey,
    /// Its RSA-2048 endorsement key.
    pub ek_rsa: EndorsementKey,
    /// Its P-256 endorsement key.
    pub ek_p256: EndorsementKey,
    /// What writing the vRoT's certificates takes.
    pub nv_authority: NvAuthority,
}

/// Manufactures a vRoT, without certificates. The TPM must be fresh: made, but never used. Blocks,
/// for seconds where RSA keys are slow to make.
pub fn manufacture(
    order: &ManufactureOrder,
    channel: &mut dyn CommandChannel,
) -> Result<Manufactured, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;

    let ek_rsa = keys::endorsement_key(&mut tpm, &EkTemplate::L1.to_bytes())?;
    let ek_p256 = keys::endorsement_key(&mut tpm, &EkTemplate::L2.to_bytes())?;
    let vik = keys::vik(&mut tpm, Keep::Persistent)?;
    let tls = keys::tls_key(&mut tpm)?;

    let authority = NvAuthority::random()?;
    nv::define_writer(&mut tpm, &authority)?;
    let uncertified = Uncertified {
        vik: Some(vik.clone()),
        tls: Some(tls.clone()),
        eks: Some([ek_rsa.clone(), ek_p256.clone()]),
    };
    for (index, length) in lengths(order, &mut tpm, &uncertified)? {
        nv::reserve(&mut tpm, index, length)?;
    }
    for (index, content) in [
        (NvIndex::CERTIFICATE_CHAIN, &order.host_certificate),
        (NvIndex::VIK_TEMPLATE, &keys::vik_template()),
        (NvIndex::TLS_TEMPLATE, &keys::tls_template()),
    ] {
        nv::publish(&mut tpm, &authority, index, content)?;
    }
    tpm.shut_down()?;
    Ok(Manufactured {
        vik,
        tls,
        ek_rsa,
        ek_p256,
        nv_authority: authority,
    })
}
