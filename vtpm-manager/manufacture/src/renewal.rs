//! A new certificate for the vIK of a vRoT that has one.
//!
//! Before each issuance the vIK is made anew from its template and held against the name that was
//! certified first. A guest's administrator owns the guest's TPM and may put another key where
//! the vIK was; in a large cloud that key got a certificate (CVE-2025-49707). What the template
//! makes under the endorsement seed, only this vRoT can have.
//!
//! A guest can hold every slot that making a key needs, and can set an authorization value for the
//! hierarchy in which it is made. So the key is made in a copy of the vRoT, which has the same
//! seed and no guest.

use cert_chain::layout::NvIndex;
use cert_chain::{AttestationKey, EndorsementKey, TpmName};
use rcgen::SigningKey;
use rustls_pki_types::CertificateDer;

use super::authority::NvAuthority;
use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::issuance::{issue_eks, issue_vik, properties};
use super::keys::{self, Keep};
use super::nv;
use super::order::{Chain, ManufactureOrder};

/// Puts content into an index.
pub(super) type Put =
    fn(&mut Tpm<'_>, &NvAuthority, NvIndex, &[u8]) -> Result<(), ManufactureError>;

/// A vIK that was made anew just now, and is the one that was certified before.
#[derive(Clone, Debug)]
pub struct RederivedVik(AttestationKey);

impl RederivedVik {
    /// The key.
    pub fn key(&self) -> &AttestationKey {
        &self.0
    }
}

/// Whether a guest may be at work in a vRoT.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Guest {
    /// Not since the vRoT was switched on: indices may be made anew.
    Absent,
    /// Perhaps: the vRoT is left as it is, but for the content of indices.
    Present,
}

/// Makes the vIK anew in a copy of the vRoT, which is of no other use afterwards: it is cleared,
/// for its owner may have set authorization values.
pub fn rederive_vik_from_copy(
    copy: &mut dyn CommandChannel,
    expected: &TpmName,
) -> Result<RederivedVik, ManufactureError> {
    let mut tpm = Tpm::new(copy);
    tpm.start_up()?;
    tpm.clear()?;
    made_anew(&mut tpm, expected)
}

/// Issues a new vIK certificate and puts it in the old one's place. Beside a guest this takes no
/// object slot, and gives the one session slot back as it was.
pub fn renew_vik_certificate(
    order: &ManufactureOrder,
    vik: &RederivedVik,
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
    signer: &impl SigningKey,
    (guest, chain): (Guest, Chain),
) -> Result<CertificateDer<'static>, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    let put = guest.way_to_put();
    let certificate = issue_vik(order, vik.key(), signer)?;
    if chain == Chain::Changed {
        put(
            &mut tpm,
            authority,
            NvIndex::CERTIFICATE_CHAIN,
            &order.host_certificate,
        )?;
    }
    put(&mut tpm, authority, NvIndex::VIK_CERTIFICATE, &certificate)?;
    Ok(certificate)
}

/// Issues new certificates for the endorsement keys, the RSA key's first, and puts them in the old
/// ones' places. They live as long as the host's own, so this is for those that begin too late or
/// have ended by a clock that was set right since.
pub fn renew_ek_certificates(
    order: &ManufactureOrder,
    keys: [&EndorsementKey; 2],
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
    signer: &impl SigningKey,
    guest: Guest,
) -> Result<[CertificateDer<'static>; 2], ManufactureError> {
    let mut tpm = Tpm::new(channel);
    let device = properties(&mut tpm)?;
    let [rsa, p256] = issue_eks(order, keys, device, signer)?;
    let put = guest.way_to_put();
    put(&mut tpm, authority, NvIndex::EK_RSA_CERTIFICATE, &rsa)?;
    put(&mut tpm, authority, NvIndex::EK_P256_CERTIFICATE, &p256)?;
    Ok([rsa, p256])
}

impl Guest {
    /// How the content of an index is changed beside this guest.
    pub(super) fn way_to_put(self) -> Put {
        match self {
            Self::Absent => nv::republish,
            Self::Present => nv::replace,
        }
    }
}

/// Makes the vIK anew and holds it against the name that was certified.
pub(super) fn made_anew(
    tpm: &mut Tpm<'_>,
    expected: &TpmName,
) -> Result<RederivedVik, ManufactureError> {
    let vik = keys::vik(tpm, Keep::Nowhere)?;
    if vik.name() == *expected {
        Ok(RederivedVik(vik))
    } else {
        Err(ManufactureError::AnotherVik {
            found: vik.name(),
            expected: expected.clone(),
        })
    }
}
