//! What an issuer does for devices.
//!
//! A device's request names no operator, whose key would say that the device is one of ours. So the
//! administrator says so for each of them, by its name.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::enrolment::device::{Answer, Certificate, Challenge, Pending, Request};
use cert_chain::enrolment::{EnrolmentError, EnrolmentState};
use cert_chain::{DeviceName, Digest32, TpmName, Validity};
use serde::{Deserialize, Serialize};

use super::error::IssuerError;
use super::files::{file_error, recall, remember};
use super::folder::{IssuerFolder, days};

/// Challenges of devices that wait for their answers, or had them.
const PENDING: &str = "pending-devices";
const DEVICES: &str = "devices";
/// How long a device's certificate lives: as long as a host's.
const LIFETIME: Duration = days(365);
const VERSION: u32 = 1;

/// A device that was certified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct IssuedDevice {
    version: u32,
    /// Its name.
    device: DeviceName,
    /// Name of its TPM's endorsement key.
    ek: TpmName,
    /// SHA-256 value of that key alone.
    ek_key: Digest32,
    /// Name of its identity key.
    ik: TpmName,
    /// Who made its TPM.
    maker: String,
    /// When it was certified last.
    issued_at: Timestamp,
}

impl IssuerFolder {
    /// Checks a device's request, and challenges the device to prove that its TPM holds both keys.
    /// `expected` is the name that it has to ask for.
    pub(crate) fn challenge_device(
        &self,
        request: &Request,
        expected: &str,
    ) -> Result<(Challenge, Pending), IssuerError> {
        if request.device != expected {
            return Err(IssuerError::DeviceUnexpected {
                asked: request.device.clone(),
                expected: expected.to_owned(),
            });
        }
        let roots = self.tpm_roots()?;
        let now = Timestamp::now().unix_time();
        let (challenge, pending) = self.issuer().challenge_device(request, &roots, now)?;
        self.check_asking(&pending.device().to_string(), &request.ik)?;
        self.admit_device(&pending)?;
        // An issuer of an earlier version has no folders for devices.
        for part in [PENDING, DEVICES] {
            let part = self.folder().join(part);
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&part)
                .map_err(file_error(&part, "made"))?;
        }
        remember(
            &self.pending_device(&pending.enrolment().to_string()),
            &pending,
        )?;
        Ok((challenge, pending))
    }

    /// Checks a device's answer, and certifies the device.
    pub(crate) fn certify_device(&self, answer: &Answer) -> Result<Certificate, IssuerError> {
        let enrolment = answer.0.enrolment.to_string();
        let path = self.pending_device(&enrolment);
        let mut pending: Pending =
            recall(&path)?.ok_or(IssuerError::UnknownEnrolment { enrolment })?;
        // All of it may have changed since the challenge.
        let roots = self.tpm_roots()?;
        self.admit_device(&pending)?;
        let now = Timestamp::now();
        let validity =
            Validity::starting(now.unix_time(), LIFETIME).map_err(EnrolmentError::Issue)?;
        let certified =
            self.issuer()
                .certify_answer(&mut pending, answer, &roots, validity, now.unix_time());
        // The answer is used up, whatever came of it: before anybody gets the certificate.
        if *pending.state() == EnrolmentState::Answered {
            remember(&path, &pending)?;
        }
        let certificate = certified?;
        self.note_issued(&certificate.certificate)?;
        let issued = IssuedDevice {
            version: VERSION,
            device: pending.device().clone(),
            ek: pending.ek().clone(),
            ek_key: *pending.ek_key(),
            ik: pending.ik().clone(),
            maker: pending.maker().to_owned(),
            issued_at: now,
        };
        remember(&self.device_file(&issued.device), &issued)?;
        Ok(certificate)
    }

    /// One name for one TPM, and one TPM for one name: otherwise a device could stand in for another.
    fn admit_device(&self, pending: &Pending) -> Result<(), IssuerError> {
        let folder = self.folder().join(DEVICES);
        if !folder.exists() {
            return Ok(());
        }
        let own = self.device_file(pending.device());
        for entry in fs::read_dir(&folder).map_err(file_error(&folder, "read"))? {
            let file = entry.map_err(file_error(&folder, "read"))?.path();
            if file.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            match recall::<IssuedDevice>(&file)? {
                None => {}
                Some(device) if file == own => device.admits(pending, &file)?,
                Some(other) => other.is_another(pending, &file)?,
            }
        }
        Ok(())
    }

    fn pending_device(&self, enrolment: &str) -> PathBuf {
        self.folder()
            .join(PENDING)
            .join(format!("{enrolment}.json"))
    }

    /// `+` is in no device's name.
    fn device_file(&self, device: &DeviceName) -> PathBuf {
        let name = device.path().replace('/', "+");
        self.folder().join(DEVICES).join(format!("{name}.json"))
    }
}

impl IssuedDevice {
    fn admits(&self, pending: &Pending, file: &Path) -> Result<(), IssuerError> {
        if self.ek == *pending.ek() {
            return Ok(());
        }
        Err(IssuerError::DeviceNameTaken {
            device: pending.device().clone(),
            owner: self.ek.clone(),
            found: pending.ek().clone(),
            file: file.into(),
        })
    }

    fn is_another(&self, pending: &Pending, file: &Path) -> Result<(), IssuerError> {
        let same_ek = self.ek == *pending.ek() || self.ek_key == *pending.ek_key();
        let which = match (same_ek, self.ik == *pending.ik()) {
            (false, false) => return Ok(()),
            (true, _) => "endorsement key",
            (false, true) => "identity key",
        };
        Err(IssuerError::DeviceTpmKnown {
            which,
            owner: self.device.clone(),
            device: Box::new(pending.device().clone()),
            file: file.into(),
        })
    }
}
