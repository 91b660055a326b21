//! Manufacture over a real TPM implementation, with stock tools in the part of the guest.

mod failures;
mod guest;
mod interleaving;
mod pending;
mod socket;

use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::layout::NvIndex;
use cert_chain::profile::vik::VIK_LIFETIME;
use cert_chain::profile::{HostIkSpec, Issuer};
use cert_chain::template::{EccTemplate, Purpose, RESIDENT};
use cert_chain::{
    AttestationKey, Digest32, EndorsementKey, Generation, ObjectAttributes, PublicArea, TlsKey,
    TpmName, TrustAnchors, Validity, VmId, VrotId,
};
use rcgen::{KeyPair, PublicKeyData, SigningKey};
use rustls_pki_types::{CertificateDer, UnixTime};
use test_support::Swtpm;

use super::command::Tpm;
use super::renewal::made_anew;
use super::{
    CertifiedSubject, CommandChannel, ManufactureError, ManufactureOrder, Manufactured,
    NvAuthority, RederivedVik, device, issue_eks, issue_tls, issue_vik, manufacture,
    write_certificates,
};
use socket::TpmSocket;

/// Makes the vIK anew where no guest is in the way.
fn rederived(
    channel: &mut dyn CommandChannel,
    expected: &TpmName,
) -> Result<RederivedVik, ManufactureError> {
    let mut tpm = Tpm::new(channel);
    tpm.start_up()?;
    made_anew(&mut tpm, expected)
}

/// A host whose identity key is in a file, for tests that are not about the physical TPM.
struct Host {
    ik: KeyPair,
    certificate: Vec<u8>,
    roots: TrustAnchors,
}

impl Host {
    fn new() -> Result<Self> {
        let ik = KeyPair::generate()?;
        let point = ik.der_bytes().get(1..).context("point")?;
        let (x, y) = point.split_at_checked(32).context("coordinates")?;
        let area = EccTemplate {
            attributes: RESIDENT
                .with(ObjectAttributes::RESTRICTED)
                .with(ObjectAttributes::SIGN),
            auth_policy: &[0; 32],
            purpose: Purpose::Signing,
            unique: [x, y],
        }
        .to_bytes();
        let ik_public = AttestationKey::try_from(PublicArea::parse(&area)?)?;
        let name = format!("000b{}", "1".repeat(64));
        let validity = Validity::starting(UnixTime::now(), Duration::from_secs(30 * 86_400))?;
        let issuer = Issuer::create("demo.example".parse()?, validity)?;
        let certificate = issuer.certify_host(&HostIkSpec {
            host: "host-1.demo.example".parse()?,
            ik: ik_public,
            ek: name.parse()?,
            policy_key: name.parse()?,
            validity,
        })?;
        Ok(Self {
            ik,
            certificate: certificate.to_vec(),
            roots: TrustAnchors::from_pem(&issuer.certificate_pem())?,
        })
    }

    fn order(&self) -> Result<ManufactureOrder> {
        Ok(ManufactureOrder {
            subject: CertifiedSubject {
                vm: VmId::random(),
                vrot: VrotId::random(),
                tenant: "tenant".parse()?,
                generation: Generation::new(1),
            },
            manager: Digest32::of(b"manager"),
            backend: Digest32::of(b"backend"),
            host_certificate: self.certificate.clone(),
            now: UnixTime::now(),
            vik_lifetime: VIK_LIFETIME,
        })
    }
}

/// A vRoT, manufactured and handed to its guest.
struct Guest {
    host: Host,
    order: ManufactureOrder,
    made: Certified,
    tpm: Swtpm,
}

/// A manufactured vRoT with its certificates.
struct Certified {
    vik: AttestationKey,
    tls: TlsKey,
    eks: [EndorsementKey; 2],
    vik_certificate: CertificateDer<'static>,
    tls_certificate: CertificateDer<'static>,
    ek_certificates: [CertificateDer<'static>; 2],
    nv_authority: NvAuthority,
}

impl Certified {
    fn new(
        order: &ManufactureOrder,
        channel: &mut dyn CommandChannel,
        signer: &impl SigningKey,
    ) -> Result<Self, ManufactureError> {
        let Manufactured {
            vik,
            tls,
            ek_rsa,
            ek_p256,
            nv_authority,
        } = manufacture(order, channel)?;
        let eks = [ek_rsa, ek_p256];
        Tpm::new(channel).start_up()?;
        let made = Self {
            vik_certificate: issue_vik(order, &vik, signer)?,
            tls_certificate: issue_tls(order, &tls, signer)?,
            ek_certificates: issue_eks(order, &eks, device(channel)?, signer)?,
            vik,
            tls,
            eks,
            nv_authority,
        };
        write_certificates(&made.certificates(), &made.nv_authority, channel)?;
        Tpm::new(channel).shut_down()?;
        Ok(made)
    }

    fn certificates(&self) -> [(NvIndex, CertificateDer<'static>); 4] {
        let [rsa, p256] = &self.ek_certificates;
        [
            (NvIndex::VIK_CERTIFICATE, self.vik_certificate.clone()),
            (NvIndex::TLS_CERTIFICATE, self.tls_certificate.clone()),
            (NvIndex::EK_RSA_CERTIFICATE, rsa.clone()),
            (NvIndex::EK_P256_CERTIFICATE, p256.clone()),
        ]
    }
}

impl Guest {
    fn new() -> Result<Self> {
        let tpm = Swtpm::blank()?;
        let host = Host::new()?;
        let order = host.order()?;
        let made = Certified::new(&order, &mut TpmSocket::connect(&tpm.socket())?, &host.ik)?;
        Ok(Self {
            host,
            order,
            made,
            tpm,
        })
    }

    /// For one that sends commands of its own.
    fn channel(&self) -> Result<TpmSocket> {
        Ok(TpmSocket::connect(&self.tpm.socket())?)
    }
}
