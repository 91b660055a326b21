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

use std::path::Path;

use cert_chain::{AttestationKey, EndorsementKey, TpmName};
use rcgen::SigningKey;
use rustls_pki_types::CertificateDer;

use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::layout::NvIndex;
use super::{
    EK_P256, EK_RSA, Keep, ManufactureOrder, NvAuthority, connect, device, issue_ek, issue_vik,
    issue_vik_of_usual_length, nv, vik,
};

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

/// Whether the certificate of the host is the one that the vRoT has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It is.
    Same,
    /// The host got another one since.
    Changed,
}

/// An ECDSA signature over P-256 in DER has 70 to 72 bytes, as its scalars happen to be (shorter
/// ones are rare); an index keeps its size while a guest is there. Two certificates of the same
/// content differ by this many bytes at most.
const SIGNATURE_SPREAD: usize = 2;

/// So many certificates are tried for the exact size of the index, because some readers refuse a
/// certificate with zeros behind it.
const EXACT_ATTEMPTS: u32 = 32;

/// So many are tried for one that is not longer than the index. At worst one in four is not, so
/// one renewal in 10^8 fails, and is tried again later.
const FITTING_ATTEMPTS: u32 = 64;

/// Makes the vIK anew in the vRoT behind the data socket `tpm`.
pub fn rederive_vik(tpm: &Path, expected: &TpmName) -> Result<RederivedVik, ManufactureError> {
    let mut channel = connect(tpm)?;
    rederive_vik_over(&mut channel, expected)
}

/// [`rederive_vik`] over any channel, to a vRoT that no guest has used since it was switched on.
pub fn rederive_vik_over(
    channel: &mut dyn CommandChannel,
    expected: &TpmName,
) -> Result<RederivedVik, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;
    made_anew(&mut tpm, expected)
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
    let certificate = match guest {
        Guest::Absent => issue_vik_of_usual_length(order, vik.key(), signer)?,
        Guest::Present => fitting(&mut tpm, NvIndex::VIK_CERTIFICATE, || {
            issue_vik(order, vik.key(), signer)
        })?,
    };
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
    let device = device(&mut tpm)?;
    let mut renewed = |which, index, key| {
        let issue = || issue_ek(order, which, key, device, signer);
        let certificate = match guest {
            Guest::Absent => issue()?,
            Guest::Present => fitting(&mut tpm, index, issue)?,
        };
        guest.way_to_put()(&mut tpm, authority, index, &certificate)?;
        Ok(certificate)
    };
    let [rsa, p256] = keys;
    Ok([
        renewed(EK_RSA, NvIndex::EK_RSA_CERTIFICATE, rsa)?,
        renewed(EK_P256, NvIndex::EK_P256_CERTIFICATE, p256)?,
    ])
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

/// A certificate that fits its index.
fn fitting(
    tpm: &mut Tpm<'_>,
    index: NvIndex,
    issue: impl FnMut() -> Result<CertificateDer<'static>, ManufactureError>,
) -> Result<CertificateDer<'static>, ManufactureError> {
    of_size(tpm.size_of(index)?, issue)
}

/// A certificate of exactly `room` bytes, or a shorter one if none of that size comes soon. One
/// that cannot fit, whatever its signature, is returned at once, for the caller to refuse.
fn of_size(
    room: usize,
    mut issue: impl FnMut() -> Result<CertificateDer<'static>, ManufactureError>,
) -> Result<CertificateDer<'static>, ManufactureError> {
    let mut certificate = issue()?;
    for attempt in 1..FITTING_ATTEMPTS {
        let length = certificate.len();
        let fits = length == room || (attempt >= EXACT_ATTEMPTS && length < room);
        if fits || length > room + SIGNATURE_SPREAD {
            break;
        }
        certificate = issue()?;
    }
    Ok(certificate)
}

fn made_anew(tpm: &mut Tpm<'_>, expected: &TpmName) -> Result<RederivedVik, ManufactureError> {
    let vik = vik(tpm, Keep::Nowhere)?;
    if vik.name() == *expected {
        Ok(RederivedVik(vik))
    } else {
        Err(ManufactureError::AnotherVik {
            found: vik.name(),
            expected: expected.clone(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Certificates of these sizes, one after another; the last size for ever.
    fn sized(sizes: &[usize], room: usize) -> Result<(usize, usize), ManufactureError> {
        let mut issued = 0;
        let certificate = of_size(room, || {
            let size = *sizes.get(issued).or(sizes.last()).unwrap_or(&0);
            issued += 1;
            Ok(vec![0; size].into())
        })?;
        Ok((certificate.len(), issued))
    }

    #[test]
    fn a_certificate_that_is_long_by_chance_is_issued_again_until_it_fits()
    -> Result<(), ManufactureError> {
        let mut sizes = vec![792; 40];
        sizes.push(790);
        assert_eq!(sized(&sizes, 790)?, (790, 41));
        Ok(())
    }

    #[test]
    fn a_certificate_fills_its_index_or_is_shorter_when_none_of_its_size_comes()
    -> Result<(), ManufactureError> {
        assert_eq!(sized(&[790, 792, 791], 791)?, (791, 3));
        assert_eq!(sized(&[790], 791)?, (790, 32));
        Ok(())
    }

    #[test]
    fn no_signature_is_spent_on_a_certificate_that_cannot_fit() -> Result<(), ManufactureError> {
        assert_eq!(sized(&[801], 790)?, (801, 1));
        Ok(())
    }
}
