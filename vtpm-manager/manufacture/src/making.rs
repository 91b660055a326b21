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
    make(order, &mut tpm)
}

/// Makes a TPM a vRoT that was made, and perhaps used, elsewhere: its endorsement keys are those that its
/// seed has given all along, and whatever else it holds stays. Blocks as [`manufacture`] does.
///
/// The owner's and the endorsement hierarchy must have empty authorization values, and the handles of
/// vIK and TLS key must be free. What lies in the places of certificates, such as those of the TPM's
/// first maker, is removed.
pub fn take_over(
    order: &ManufactureOrder,
    channel: &mut dyn CommandChannel,
) -> Result<Manufactured, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;
    for index in PLACES {
        if tpm.is_defined(index)? {
            tpm.remove(index)?;
        }
    }
    make(order, &mut tpm)
}

/// All indices of a vRoT.
const PLACES: [NvIndex; 8] = [
    NvIndex::EK_RSA_CERTIFICATE,
    NvIndex::EK_P256_CERTIFICATE,
    NvIndex::CERTIFICATE_CHAIN,
    NvIndex::VIK_CERTIFICATE,
    NvIndex::VIK_TEMPLATE,
    NvIndex::TLS_CERTIFICATE,
    NvIndex::TLS_TEMPLATE,
    NvIndex::WRITER,
];

fn make(order: &ManufactureOrder, tpm: &mut Tpm<'_>) -> Result<Manufactured, ManufactureError> {
    let ek_rsa = keys::endorsement_key(tpm, &EkTemplate::L1.to_bytes())?;
    let ek_p256 = keys::endorsement_key(tpm, &EkTemplate::L2.to_bytes())?;
    let vik = keys::vik(tpm, Keep::Persistent)?;
    let tls = keys::tls_key(tpm)?;

    let authority = NvAuthority::random()?;
    nv::define_writer(tpm, &authority)?;
    let uncertified = Uncertified {
        vik: Some(vik.clone()),
        tls: Some(tls.clone()),
        eks: Some([ek_rsa.clone(), ek_p256.clone()]),
    };
    for (index, length) in lengths(order, tpm, &uncertified)? {
        nv::reserve(tpm, index, length)?;
    }
    for (index, content) in [
        (NvIndex::CERTIFICATE_CHAIN, &order.host_certificate),
        (NvIndex::VIK_TEMPLATE, &keys::vik_template()),
        (NvIndex::TLS_TEMPLATE, &keys::tls_template()),
    ] {
        nv::publish(tpm, &authority, index, content)?;
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
