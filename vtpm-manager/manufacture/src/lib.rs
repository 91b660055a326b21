//! Manufacture of a vRoT: what a TPM's maker does to a hardware TPM.
//!
//! The manager does it before a guest ever sees the vRoT, and never on a guest's word:
//! endorsement keys, identity key (vIK), its template, and places for their certificates, where
//! stock tools look ([`layout`]).
//!
//! A certificate takes a signature of the physical TPM, and a launch does not wait for that. So
//! manufacture signs nothing. It reserves an index of the certificate's exact length for each of
//! the three: until that is written, reading it fails with `TPM_RC_NV_UNINITIALIZED`. The
//! certificates are [issued](issue_vik) afterwards, also beside the guest, and
//! [written](write_certificates).
//!
//! The NV indices belong to the platform, so the guest's owner can neither change nor remove
//! them, not even with `TPM2_Clear`; `TPMA_NV_POLICY_DELETE` keeps them from the platform's own
//! hands too, for the case that a guest's firmware leaves that hierarchy open. Everything in the
//! guest may read them: with the owner's authorization, with the platform's, or with the index's
//! own, which is empty. It takes the authorization value of [`NvIndex::WRITER`] to write
//! or remove them: their policy begins with `TPM2_PolicySecret` for that index. The value is
//! random and stays with the manager, which can so renew certificates while the VM runs, and
//! make room for longer ones before it runs.

pub mod channel;
pub mod layout;

mod bound_session;
mod command;
mod error;
mod issuance;
mod nv;
mod policy;
mod renewal;
mod restoration;
mod session;

use std::fmt;
use std::path::Path;
use std::time::Duration;

use cert_chain::ek_template::EkTemplate;
use cert_chain::template::{EccTemplate, Purpose, RESIDENT};
use cert_chain::{
    AttestationKey, Digest32, EndorsementKey, Generation, ObjectAttributes, Tenant, VmId, VrotId,
};
use ring::rand::{SecureRandom, SystemRandom};
use rustls_pki_types::UnixTime;
use tpm_wire::Operation;
use zeroize::{Zeroize, ZeroizeOnDrop};

use command::Tpm;
use issuance::lengths;

pub use channel::{CommandChannel, TpmSocket};
pub use error::ManufactureError;
pub use issuance::{check_ready, device, issue_eks, issue_vik, withdraw, write_certificates};
pub use layout::{NvIndex, VIK_HANDLE};
pub use renewal::{
    Guest, RederivedVik, rederive_vik, rederive_vik_from_copy, renew_ek_certificates,
    renew_vik_certificate,
};
pub use restoration::{Published, restore};

/// What certificates say of a vRoT besides its keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertifiedSubject {
    /// The VM the vRoT is for.
    pub vm: VmId,
    /// The vRoT.
    pub vrot: VrotId,
    /// Whose VM it is.
    pub tenant: Tenant,
    /// Which of the lineage's identities this is.
    pub generation: Generation,
}

/// Whether the certificate of the host is the one that the vRoT has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It is.
    Same,
    /// The host got another one since.
    Changed,
}

/// What to make.
#[derive(Clone, Debug)]
pub struct ManufactureOrder {
    /// Whose certificates.
    pub subject: CertifiedSubject,
    /// Digest of the manager program.
    pub manager: Digest32,
    /// Digest of the backend program.
    pub backend: Digest32,
    /// The certificate of the host IK, in DER.
    pub host_certificate: Vec<u8>,
    /// The present time.
    pub now: UnixTime,
    /// How long the vIK's certificate is to live.
    pub vik_lifetime: Duration,
}

/// A manufactured vRoT's identity.
#[derive(Debug)]
pub struct Manufactured {
    /// The vRoT's identity key.
    pub vik: AttestationKey,
    /// Its RSA-2048 endorsement key.
    pub ek_rsa: EndorsementKey,
    /// Its P-256 endorsement key.
    pub ek_p256: EndorsementKey,
    /// What writing the vRoT's certificates takes.
    pub nv_authority: NvAuthority,
}

/// The authorization value of [`NvIndex::WRITER`]. Not printable, zeroed on drop.
#[derive(Clone, PartialEq, Eq, Zeroize, ZeroizeOnDrop)]
pub struct NvAuthority([u8; NV_AUTHORITY_LENGTH]);

/// As long as the name algorithm's digest allows (TPM 2.0 Part 2 §10.4).
pub const NV_AUTHORITY_LENGTH: usize = 32;

/// How long an EK certificate lives; it is cut at the end of the host's own certificate.
pub const EK_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 60 * 60);

impl NvAuthority {
    /// Takes up a value that was stored.
    pub const fn from_bytes(bytes: [u8; NV_AUTHORITY_LENGTH]) -> Self {
        Self(bytes)
    }

    /// The value, for sealed storage.
    pub const fn expose(&self) -> &[u8; NV_AUTHORITY_LENGTH] {
        &self.0
    }
}

impl fmt::Debug for NvAuthority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("NvAuthority")
    }
}

/// Manufactures, without certificates, the vRoT behind the data socket `tpm`. Blocks, for seconds where RSA keys are
/// slow to make: call it from `spawn_blocking`.
pub fn manufacture(order: &ManufactureOrder, tpm: &Path) -> Result<Manufactured, ManufactureError> {
    let mut channel = connect(tpm)?;
    manufacture_over(order, &mut channel)
}

/// [`manufacture`] over any channel. The TPM must be fresh: made, but never used.
pub fn manufacture_over(
    order: &ManufactureOrder,
    channel: &mut dyn CommandChannel,
) -> Result<Manufactured, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;

    let rsa = endorsement_key(&mut tpm, &EkTemplate::L1.to_bytes())?;
    let p256 = endorsement_key(&mut tpm, &EkTemplate::L2.to_bytes())?;
    let vik = vik(&mut tpm, Keep::Persistent)?;

    let authority = NvAuthority::random()?;
    nv::define_writer(&mut tpm, &authority)?;
    for (index, length) in lengths(order, &mut tpm, Some(&vik), Some([&rsa, &p256]))? {
        nv::reserve(&mut tpm, index, length)?;
    }
    for (index, content) in [
        (NvIndex::CERTIFICATE_CHAIN, &order.host_certificate),
        (NvIndex::VIK_TEMPLATE, &vik_template()),
    ] {
        nv::publish(&mut tpm, &authority, index, content)?;
    }
    tpm.shut_down()?;
    Ok(Manufactured {
        vik,
        ek_rsa: rsa,
        ek_p256: p256,
        nv_authority: authority,
    })
}

/// The template of every vIK: a restricted P-256 key that signs with ECDSA and SHA-256. Its
/// `unique` field is empty, as `tpm2_createprimary` leaves it.
pub fn vik_template() -> Vec<u8> {
    EccTemplate {
        attributes: RESIDENT
            .with(ObjectAttributes::USER_WITH_AUTH)
            .with(ObjectAttributes::NO_DA)
            .with(ObjectAttributes::RESTRICTED)
            .with(ObjectAttributes::SIGN),
        auth_policy: &[],
        purpose: Purpose::Signing,
        unique: [&[], &[]],
    }
    .to_bytes()
}

/// What happens to the vIK after it was made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Keep {
    Persistent,
    Nowhere,
}

fn vik(tpm: &mut Tpm<'_>, keep: Keep) -> Result<AttestationKey, ManufactureError> {
    let primary = tpm.create_primary(&vik_template())?;
    let kept = match keep {
        Keep::Persistent => tpm.keep_vik(primary.handle),
        Keep::Nowhere => Ok(()),
    };
    tpm.flush(primary.handle)?;
    kept?;
    AttestationKey::try_from(primary.public).map_err(ManufactureError::AttestationKey)
}

fn endorsement_key(tpm: &mut Tpm<'_>, template: &[u8]) -> Result<EndorsementKey, ManufactureError> {
    let primary = tpm.create_primary(template)?;
    tpm.flush(primary.handle)?;
    EndorsementKey::try_from(primary.public).map_err(ManufactureError::EndorsementKey)
}

impl NvAuthority {
    fn random() -> Result<Self, ManufactureError> {
        let mut bytes = [0; NV_AUTHORITY_LENGTH];
        SystemRandom::new()
            .fill(&mut bytes)
            .map_err(|_| ManufactureError::Random)?;
        // A zero at the end would be taken off by the TPM, as authorization values have none.
        if let Some(last) = bytes.last_mut() {
            *last |= 1;
        }
        Ok(Self(bytes))
    }
}

fn connect(tpm: &Path) -> Result<TpmSocket, ManufactureError> {
    TpmSocket::connect(tpm).map_err(|source| ManufactureError::Connect {
        operation: Operation("connecting"),
        path: tpm.to_owned(),
        source,
    })
}

#[cfg(test)]
mod tests;
