//! Certificates for a vRoT's keys, and the indices that wait for them.

use std::time::Duration;

use cert_chain::layout::NvIndex;
use cert_chain::profile::{TlsSpec, VrotCertificateSpec, vrot_certificate_length};
use cert_chain::{
    AttestationKey, EkSpec, EndorsementKey, IssueError, TlsKey, TpmDevice, Validity, VikSpec,
    issue_vrot_certificate,
};
use rcgen::SigningKey;
use rustls_pki_types::CertificateDer;

use super::authority::NvAuthority;
use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::nv;
use super::order::{CertifiedSubject, Chain, ManufactureOrder};

/// How long an EK certificate lives; it is cut at the end of the host's own certificate.
const EK_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

const VIK: &str = "identity key's";
const TLS: &str = "TLS key's";
const EK_RSA: &str = "RSA endorsement key's";
const EK_P256: &str = "P-256 endorsement key's";

/// One signature in 250 has an unusual length, and then the certificate does not have that of its
/// index. So many are tried; the last one is followed by zeros, or is refused as too long.
const ATTEMPTS: u32 = 4;

/// The keys of a vRoT whose certificates are still to be issued.
#[derive(Clone, Debug, Default)]
pub struct Uncertified {
    /// Its identity key.
    pub vik: Option<AttestationKey>,
    /// Its TLS key.
    pub tls: Option<TlsKey>,
    /// Its endorsement keys, the RSA key first.
    pub eks: Option<[EndorsementKey; 2]>,
}

/// Issues the certificate of a vIK, which must be the one that was made in this vRoT.
pub fn issue_vik(
    order: &ManufactureOrder,
    vik: &AttestationKey,
    signer: &impl SigningKey,
) -> Result<CertificateDer<'static>, ManufactureError> {
    issue(VIK, &vik_spec(order, vik)?, order, signer)
}

/// Issues the certificate of a TLS key, which must be the one that was made in this vRoT. Its names
/// are those of the order's VM and vRoT.
pub fn issue_tls(
    order: &ManufactureOrder,
    key: &TlsKey,
    signer: &impl SigningKey,
) -> Result<CertificateDer<'static>, ManufactureError> {
    issue(TLS, &tls_spec(order, key)?, order, signer)
}

/// Issues the certificates of a vRoT's endorsement keys, that of the RSA key first.
pub fn issue_eks(
    order: &ManufactureOrder,
    keys: &[EndorsementKey; 2],
    device: TpmDevice,
    signer: &impl SigningKey,
) -> Result<[CertificateDer<'static>; 2], ManufactureError> {
    let issue = |which, key| issue(which, &ek_spec(order, which, key, device)?, order, signer);
    let [rsa, p256] = keys;
    Ok([issue(EK_RSA, rsa)?, issue(EK_P256, p256)?])
}

/// What the vRoT says of itself, as certificates of endorsement keys state it.
pub fn device(channel: &mut dyn CommandChannel) -> Result<TpmDevice, ManufactureError> {
    properties(&mut Tpm::new(channel))
}

/// An error if the vRoT takes no commands now, because its VMM has yet to resume it or its guest's
/// firmware to start it.
pub fn check_ready(channel: &mut dyn CommandChannel) -> Result<(), ManufactureError> {
    Tpm::new(channel)
        .size_of(NvIndex::VIK_CERTIFICATE)
        .map(drop)
}

/// Writes certificates into the indices that were reserved for them, also beside a guest.
pub fn write_certificates(
    certificates: &[(NvIndex, CertificateDer<'static>)],
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
) -> Result<(), ManufactureError> {
    let mut tpm = Tpm::new(channel);
    certificates
        .iter()
        .try_for_each(|(index, content)| nv::replace(&mut tpm, authority, *index, content))
}

/// Makes sure, before there is a guest, that the indices of these keys have the length of the
/// certificates that this order leads to, and no content; and puts the host's certificate of the
/// order where the old one was, if it changed.
pub fn withdraw(
    order: &ManufactureOrder,
    uncertified: &Uncertified,
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
    chain: Chain,
) -> Result<(), ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;
    if chain == Chain::Changed {
        let content = &order.host_certificate;
        nv::republish(&mut tpm, authority, NvIndex::CERTIFICATE_CHAIN, content)?;
    }
    for (index, length) in lengths(order, &mut tpm, uncertified)? {
        nv::empty(&mut tpm, authority, index, length)?;
    }
    Ok(())
}

/// The lengths of the certificates that this order leads to.
pub(super) fn lengths(
    order: &ManufactureOrder,
    tpm: &mut Tpm<'_>,
    uncertified: &Uncertified,
) -> Result<Vec<(NvIndex, usize)>, ManufactureError> {
    let Uncertified { vik, tls, eks } = uncertified;
    let mut lengths = Vec::new();
    if let Some(vik) = vik {
        let length = length(VIK, &vik_spec(order, vik)?, order)?;
        lengths.push((NvIndex::VIK_CERTIFICATE, length));
    }
    if let Some(key) = tls {
        let length = length(TLS, &tls_spec(order, key)?, order)?;
        lengths.push((NvIndex::TLS_CERTIFICATE, length));
    }
    if let Some([rsa, p256]) = eks {
        let device = properties(tpm)?;
        for (index, which, key) in [
            (NvIndex::EK_RSA_CERTIFICATE, EK_RSA, rsa),
            (NvIndex::EK_P256_CERTIFICATE, EK_P256, p256),
        ] {
            let spec = ek_spec(order, which, key, device)?;
            lengths.push((index, length(which, &spec, order)?));
        }
    }
    Ok(lengths)
}

/// What the vRoT says of itself (`TPM_PT`, TPM 2.0 Part 2 §6.13).
pub(super) fn properties(tpm: &mut Tpm<'_>) -> Result<TpmDevice, ManufactureError> {
    Ok(TpmDevice {
        specification_level: tpm.property(0x101)?,
        specification_revision: tpm.property(0x102)?,
        manufacturer: tpm.property(0x105)?,
        firmware_version: tpm.property(0x10b)?,
    })
}

fn vik_spec(order: &ManufactureOrder, vik: &AttestationKey) -> Result<VikSpec, ManufactureError> {
    let CertifiedSubject {
        vm,
        vrot,
        tenant,
        generation,
    } = order.subject.clone();
    Ok(VikSpec {
        vm,
        vrot,
        tenant,
        generation,
        manager: order.manager,
        backend: order.backend,
        vik: vik.clone(),
        validity: Validity::starting(order.now, order.vik_lifetime).map_err(failed(VIK))?,
    })
}

fn tls_spec(order: &ManufactureOrder, key: &TlsKey) -> Result<TlsSpec, ManufactureError> {
    Ok(TlsSpec {
        vm: order.subject.vm,
        vrot: order.subject.vrot,
        key: key.clone(),
        validity: Validity::starting(order.now, order.vik_lifetime).map_err(failed(TLS))?,
    })
}

fn ek_spec(
    order: &ManufactureOrder,
    which: &'static str,
    ek: &EndorsementKey,
    device: TpmDevice,
) -> Result<EkSpec, ManufactureError> {
    Ok(EkSpec {
        vrot: order.subject.vrot,
        ek: ek.clone(),
        device,
        validity: Validity::starting(order.now, EK_LIFETIME).map_err(failed(which))?,
    })
}

fn failed(which: &'static str) -> impl Fn(IssueError) -> ManufactureError {
    move |source| ManufactureError::Issue { which, source }
}

fn length(
    which: &'static str,
    spec: &impl VrotCertificateSpec,
    order: &ManufactureOrder,
) -> Result<usize, ManufactureError> {
    vrot_certificate_length(spec, &order.host_certificate).map_err(failed(which))
}

fn issue(
    which: &'static str,
    spec: &impl VrotCertificateSpec,
    order: &ManufactureOrder,
    signer: &impl SigningKey,
) -> Result<CertificateDer<'static>, ManufactureError> {
    of_length(length(which, spec, order)?, || {
        issue_vrot_certificate(spec, signer, &order.host_certificate).map_err(failed(which))
    })
}

/// A certificate of this length, or the last one of a few attempts.
fn of_length(
    length: usize,
    mut issue: impl FnMut() -> Result<CertificateDer<'static>, ManufactureError>,
) -> Result<CertificateDer<'static>, ManufactureError> {
    let mut certificate = issue()?;
    for _ in 1..ATTEMPTS {
        if certificate.len() == length {
            break;
        }
        certificate = issue()?;
    }
    Ok(certificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Certificates of these sizes, one after another; the last size for ever.
    fn sized(sizes: &[usize], length: usize) -> Result<(usize, usize), ManufactureError> {
        let mut issued = 0;
        let certificate = of_length(length, || {
            let size = *sizes.get(issued).or(sizes.last()).unwrap_or(&0);
            issued += 1;
            Ok(vec![0; size].into())
        })?;
        Ok((certificate.len(), issued))
    }

    #[test]
    fn one_signature_makes_a_certificate_and_another_only_where_the_length_is_unusual()
    -> Result<(), ManufactureError> {
        assert_eq!(sized(&[790], 790)?, (790, 1));
        assert_eq!(sized(&[789, 790], 790)?, (790, 2));
        assert_eq!(sized(&[801], 790)?, (801, 4));
        Ok(())
    }
}
