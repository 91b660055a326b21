//! The device's certificate, which goes with each confirmation.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use bounded_file::read_bounded;
use cert_chain::{AttestationKey, PublicArea, pem};
use rustls_pki_types::UnixTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::prelude::FromDer;

use crate::key_file::KeyFile;

/// A certificate of the identity key that certified the confirmation key. Who issued it, services judge.
#[derive(Debug)]
pub(crate) struct DeviceCertificate {
    path: PathBuf,
    der: Vec<u8>,
    /// Seconds since 1970, the first and the last.
    validity: (i64, i64),
}

/// A certificate that no service would accept at present.
#[derive(Debug, thiserror::Error)]
#[error(
    "by this device's clock, its certificate in {} has expired or is not valid yet: renew it, install it there and \
     restart vrot-confirm",
    path.display()
)]
pub(crate) struct OutOfTime {
    path: PathBuf,
}

const MAX_PEM: usize = 64 * 1024;

impl DeviceCertificate {
    /// Reads it.
    pub(crate) fn read(path: &Path, key: &KeyFile) -> Result<Self> {
        let text = read_bounded(path, MAX_PEM)
            .with_context(|| format!("{} cannot be read", path.display()))?;
        let found = pem::certificates(&text)
            .ok()
            .and_then(|all| all.into_iter().next());
        let found = found.with_context(|| {
            format!(
                "{} has no certificate in PEM: enrol the device (`vrot-device enrol`)",
                path.display()
            )
        })?;
        let (_, certificate) = X509Certificate::from_der(&found.der)
            .with_context(|| format!("{} has no certificate that can be read", path.display()))?;
        let identity = AttestationKey::try_from(PublicArea::parse(&key.identity_key)?)
            .context("the key's file has no identity key that can be read")?;
        ensure!(
            certificate.public_key().raw == identity.subject_public_key_info(),
            "{} is of another key than the device's identity key, which the confirmation key was made with: install \
             the device's certificate, or enrol again (`vrot-confirm enrol`)",
            path.display()
        );
        let validity = certificate.validity();
        Ok(Self {
            path: path.to_owned(),
            validity: (
                validity.not_before.timestamp(),
                validity.not_after.timestamp(),
            ),
            der: found.der.to_vec(),
        })
    }

    /// That it is valid at this time.
    pub(crate) fn check(&self, at: UnixTime) -> Result<(), OutOfTime> {
        let (first, last) = self.validity;
        match i64::try_from(at.as_secs()) {
            Ok(at) if (first..=last).contains(&at) => Ok(()),
            _ => Err(OutOfTime {
                path: self.path.clone(),
            }),
        }
    }

    pub(crate) fn der(&self) -> &[u8] {
        &self.der
    }
}
