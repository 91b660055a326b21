//! What a guest finds in the certificate indices, held against what the manager put there.
//!
//! Only the manager can write them. Should a fault let others write, or a state be damaged, the
//! guest must not be left with what was put there.

use cert_chain::layout::NvIndex;
use tpm_wire::ResponseCode;

use super::authority::NvAuthority;
use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::keys::vik_template;
use super::nv;
use super::renewal::Guest;

/// The certificates of a vRoT, as its record has them, in DER. One that is still pending is none;
/// its index is left alone.
#[derive(Clone, Debug)]
pub struct Published {
    /// Of the RSA-2048 EK.
    pub ek_rsa_certificate: Option<Vec<u8>>,
    /// Of the P-256 EK.
    pub ek_p256_certificate: Option<Vec<u8>>,
    /// Of the host, above all others.
    pub host_certificate: Vec<u8>,
    /// Of the vIK.
    pub vik_certificate: Option<Vec<u8>>,
}

/// Puts back what is not as it should be, and returns the indices where that was so.
pub fn restore(
    published: &Published,
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
    guest: Guest,
) -> Result<Vec<NvIndex>, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    if guest == Guest::Absent {
        tpm.start_up()?;
    }
    let template = vik_template();
    let mut restored = Vec::new();
    for (index, content) in [
        (
            NvIndex::EK_RSA_CERTIFICATE,
            published.ek_rsa_certificate.as_ref(),
        ),
        (
            NvIndex::EK_P256_CERTIFICATE,
            published.ek_p256_certificate.as_ref(),
        ),
        (
            NvIndex::CERTIFICATE_CHAIN,
            Some(&published.host_certificate),
        ),
        (NvIndex::VIK_CERTIFICATE, published.vik_certificate.as_ref()),
        (NvIndex::VIK_TEMPLATE, Some(&template)),
    ] {
        if let Some(content) = content
            && !holds(&mut tpm, index, content)?
        {
            guest.way_to_put()(&mut tpm, authority, index, content)?;
            restored.push(index);
        }
    }
    Ok(restored)
}

/// Whether an index has this content, and at most zeros behind it.
fn holds(tpm: &mut Tpm<'_>, index: NvIndex, content: &[u8]) -> Result<bool, ManufactureError> {
    match nv::read(tpm, index) {
        Ok(found) => Ok(found
            .strip_prefix(content)
            .is_some_and(|rest| rest.iter().all(|byte| *byte == 0))),
        Err(ManufactureError::Tpm { code, .. })
            if [ResponseCode::HANDLE, ResponseCode::NV_UNINITIALIZED]
                .contains(&code.without_position()) =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    }
}
