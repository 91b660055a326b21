//! New certificates for the keys of a vRoT that has some.
//!
//! Before each issuance the vIK is made anew from its template and held against the name that was
//! certified first. A guest's administrator owns the guest's TPM and may put another key where
//! the vIK was; in a large cloud that key got a certificate (CVE-2025-49707). What the template
//! makes under the endorsement seed, only this vRoT can have. The TLS key is made under the same
//! seed, so a vRoT that has the one has the other; what is certified is the key that was made when
//! the vRoT was, never what is found at a handle.
//!
//! A guest can hold every slot that making a key needs, and can set an authorization value for the
//! hierarchy in which it is made. So the key is made in a copy of the vRoT, which has the same
//! seed and no guest.

use cert_chain::layout::NvIndex;
use cert_chain::{AttestationKey, EndorsementKey, TlsKey, TpmName};
use rcgen::SigningKey;
use rustls_pki_types::CertificateDer;

use super::authority::NvAuthority;
use super::channel::CommandChannel;
use super::command::Tpm;
use super::error::ManufactureError;
use super::issuance::{issue_eks, issue_tls, issue_vik, properties};
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

/// What is renewed besides the vIK's certificate.
#[derive(Clone, Debug, Default)]
pub struct RenewedBesides {
    /// The TLS key, whose certificate lives as long as the vIK's.
    pub tls: Option<TlsKey>,
    /// The endorsement keys, the RSA key first. Their certificates live as long as the host's own, so
    /// this is for those that begin too late or have ended by a clock that was set right since.
    pub eks: Option<[EndorsementKey; 2]>,
}

/// New certificates, in the old ones' places.
#[derive(Clone, Debug)]
pub struct Renewed {
    /// Of the vIK.
    pub vik: CertificateDer<'static>,
    /// Of the TLS key.
    pub tls: Option<CertificateDer<'static>>,
    /// Of the endorsement keys, the RSA key's first.
    pub eks: Option<[CertificateDer<'static>; 2]>,
}

/// Issues new certificates and puts them in the old ones' places. Nothing is written before all of
/// them are signed. Beside a guest this takes no object slot, and gives the one session slot back as
/// it was.
pub fn renew(
    order: &ManufactureOrder,
    vik: &RederivedVik,
    besides: &RenewedBesides,
    authority: &NvAuthority,
    channel: &mut dyn CommandChannel,
    signer: &impl SigningKey,
    (guest, chain): (Guest, Chain),
) -> Result<Renewed, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    let mut renewed = Renewed {
        vik: issue_vik(order, vik.key(), signer)?,
        tls: None,
        eks: None,
    };
    if let Some(key) = &besides.tls {
        renewed.tls = Some(issue_tls(order, key, signer)?);
    }
    if let Some(keys) = &besides.eks {
        let device = properties(&mut tpm)?;
        renewed.eks = Some(issue_eks(order, keys, device, signer)?);
    }
    let host = (chain == Chain::Changed).then_some(&order.host_certificate[..]);
    let [rsa, p256] = match &renewed.eks {
        Some([rsa, p256]) => [Some(&rsa[..]), Some(&p256[..])],
        None => [None, None],
    };
    let put = guest.way_to_put();
    for (index, content) in [
        (NvIndex::CERTIFICATE_CHAIN, host),
        (NvIndex::VIK_CERTIFICATE, Some(&renewed.vik[..])),
        (NvIndex::TLS_CERTIFICATE, renewed.tls.as_deref()),
        (NvIndex::EK_RSA_CERTIFICATE, rsa),
        (NvIndex::EK_P256_CERTIFICATE, p256),
    ] {
        if let Some(content) = content {
            put(&mut tpm, authority, index, content)?;
        }
    }
    Ok(renewed)
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
