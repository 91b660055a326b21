//! What a device keeps of its enrolment: the certificate of its identity key. The key itself is in the
//! TPM, which makes it anew whenever it is asked.
//!
//! | File | What |
//! |---|---|
//! | `certificate.pem` | the device's certificate |
//! | `issuer.pem` | the root of who certified it, for people to look at |

use std::io;
use std::path::{Path, PathBuf};

use bounded_file::read_bounded;
use cert_chain::enrolment::device::Certificate;
use cert_chain::path::ChainError;
use cert_chain::pem::{self, encode_certificate};
use cert_chain::profile::ProfileError;
use cert_chain::profile::device::DeviceCertificate;
use cert_chain::{
    AttestationKey, DeviceName, TpmName, TrustAnchorError, TrustAnchors, VerifiedDeviceCertificate,
};
use rustls_pki_types::{CertificateDer, UnixTime};

use crate::tpm::TpmError;

/// The folder of a device's identity.
#[derive(Clone, Debug)]
pub struct IdentityFolder {
    folder: PathBuf,
}

/// Why a device has no identity to show.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RootOfTrustError {
    /// A file cannot be used.
    #[error("{} cannot be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Nothing was installed there.
    #[error(
        "{} has no identity of a device: enrol the device (`vrot-device enrol`), or name the folder in which \
         its identity was installed",
        folder.display()
    )]
    NotEnrolled {
        /// The folder.
        folder: PathBuf,
    },
    /// No certificate in PEM.
    #[error("{} has no certificate in PEM: enrol the device (`vrot-device enrol`)", path.display())]
    Pem {
        /// The file.
        path: PathBuf,
    },
    /// A certificate of something else.
    #[error("this is no device's certificate")]
    NoDevice(#[source] ProfileError),
    /// The certificate does not lead to the root beside it.
    #[error("the certificate does not lead to the issuer's root that came along with it")]
    Chain(#[source] ChainError),
    /// The root is none.
    #[error("the issuer's root that came along with the certificate cannot be used")]
    Root(#[source] TrustAnchorError),
    /// The certificate is of another TPM's key.
    #[error(
        "the certificate of {device} is for the key {certified}, and this TPM has the key {found}: \
         another TPM was enrolled under this name. Enrol this one (`vrot-device enrol`)"
    )]
    AnotherKey {
        /// The device that it names.
        device: Box<DeviceName>,
        /// The key that it is for.
        certified: TpmName,
        /// The key of this TPM.
        found: TpmName,
    },
    /// The TPM did not do its part.
    #[error(transparent)]
    Tpm(#[from] TpmError),
}

const CERTIFICATE: &str = "certificate.pem";
const ISSUER: &str = "issuer.pem";
/// One certificate in PEM, and some text around it.
const MAX_FILE: usize = 64 * 1024;

impl IdentityFolder {
    /// An identity that is, or will be, in this folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
        }
    }

    /// The device's certificate, which must be for this key.
    pub fn certificate(
        &self,
        key: &AttestationKey,
    ) -> Result<CertificateDer<'static>, RootOfTrustError> {
        let (der, certificate) = self.read()?;
        check_key(&certificate, key)?;
        Ok(der)
    }

    /// The device's certificate, and what it says.
    pub fn read(&self) -> Result<(CertificateDer<'static>, DeviceCertificate), RootOfTrustError> {
        let path = self.folder.join(CERTIFICATE);
        let text = read_bounded(&path, MAX_FILE).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => RootOfTrustError::NotEnrolled {
                folder: self.folder.clone(),
            },
            _ => RootOfTrustError::File {
                path: path.clone(),
                action: "read",
                source,
            },
        })?;
        let block = pem::only_block(&text).map_err(|_| RootOfTrustError::Pem { path })?;
        let certificate =
            DeviceCertificate::read(&block.contents).map_err(RootOfTrustError::NoDevice)?;
        Ok((block.contents.to_vec().into(), certificate))
    }

    /// Takes up a certificate for this key, as of `at`. One that is for another key, or does not lead to
    /// the root that came along with it, changes nothing.
    pub fn install(
        &self,
        issued: &Certificate,
        key: &AttestationKey,
        at: UnixTime,
    ) -> Result<DeviceCertificate, RootOfTrustError> {
        let anchors = TrustAnchors::from_pem(&issued.root).map_err(RootOfTrustError::Root)?;
        VerifiedDeviceCertificate::verify(&issued.certificate, &anchors, at)
            .map_err(RootOfTrustError::Chain)?;
        let certificate =
            DeviceCertificate::read(&issued.certificate).map_err(RootOfTrustError::NoDevice)?;
        check_key(&certificate, key)?;
        let made = std::fs::create_dir_all(&self.folder);
        made.map_err(|source| RootOfTrustError::File {
            path: self.folder.clone(),
            action: "made",
            source,
        })?;
        // The certificate last: with it the identity is there.
        self.write(ISSUER, &issued.root)?;
        self.write(CERTIFICATE, &issued.certificate)?;
        Ok(certificate)
    }

    fn write(&self, name: &str, certificate: &[u8]) -> Result<(), RootOfTrustError> {
        let path = self.folder.join(name);
        let text = encode_certificate(&CertificateDer::from(certificate));
        durable_file::replace(&path, text.as_bytes(), 0o644).map_err(|source| {
            RootOfTrustError::File {
                path,
                action: "written",
                source,
            }
        })
    }

    /// Where it is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

fn check_key(
    certificate: &DeviceCertificate,
    key: &AttestationKey,
) -> Result<(), RootOfTrustError> {
    let certified = &certificate.claims().ik;
    if *certified == key.name() {
        return Ok(());
    }
    Err(RootOfTrustError::AnotherKey {
        device: Box::new(certificate.device().clone()),
        certified: certified.clone(),
        found: key.name(),
    })
}
