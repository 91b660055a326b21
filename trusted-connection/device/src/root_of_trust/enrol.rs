//! `vrot-device enrol`: this device's part of the four messages by which an issuer certifies the key in
//! its TPM.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use bounded_file::read_bounded;
use cert_chain::DeviceName;
use cert_chain::enrolment::device::{Answer, Certificate, Challenge, Request};
use cert_chain::enrolment::{self, MAX_MESSAGE, Message};
use cert_chain::profile::device::DeviceCertificate;
use clap::Subcommand;
use printable::Printable;
use rustls_pki_types::UnixTime;
use serde_json::json;

use super::folder::IdentityFolder;
use crate::command_line::{say, say_json};
use crate::outcome::Outcome;
use crate::times::rfc3339;
use crate::tpm::DeviceTpm;

/// The TPM of a device with one, behind the kernel's resource manager.
pub(super) const TPM: &str = "/dev/tpmrm0";

/// A step of the enrolment. The other two are the issuer's: `vtpmctl issuer challenge --device` and
/// `vtpmctl issuer certify`.
#[derive(Debug, Subcommand)]
pub enum Enrol {
    /// First message: which keys the TPM has, and which name this device is to get.
    Request {
        /// The name that the device is to get in the issuer's domain; `/` separates the groups that it
        /// is in: plant-7/meter-12.
        #[arg(long, value_name = "NAME")]
        name: String,
        /// The device's TPM.
        #[arg(long, value_name = "DEVICE", default_value = TPM)]
        tpm: PathBuf,
        /// Where to write the request.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Third message: the answer to the issuer's challenge, which only this TPM can give.
    Answer {
        /// The issuer's challenge.
        #[arg(long, value_name = "FILE")]
        challenge: PathBuf,
        /// The device's TPM.
        #[arg(long, value_name = "DEVICE", default_value = TPM)]
        tpm: PathBuf,
        /// Where to write the answer. It is worth something to the issuer alone, and once.
        #[arg(long, value_name = "FILE")]
        out: PathBuf,
    },
    /// Fourth message: take up the certificate.
    Install {
        /// The certificate from the issuer.
        #[arg(long, value_name = "FILE")]
        certificate: PathBuf,
        /// The device's TPM.
        #[arg(long, value_name = "DEVICE", default_value = TPM)]
        tpm: PathBuf,
        /// The folder for this device's identity.
        #[arg(long, value_name = "DIR")]
        identity: PathBuf,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
    /// Show this device's identity. The TPM is not asked.
    Show {
        /// The folder of this device's identity.
        #[arg(long, value_name = "DIR")]
        identity: PathBuf,
        /// Print as JSON.
        #[arg(long)]
        json: bool,
    },
}

impl Enrol {
    /// Carries the step out.
    pub fn run(&self) -> Result<Outcome> {
        match self {
            Self::Request { name, tpm, out } => request(name, tpm, out)?,
            Self::Answer {
                challenge,
                tpm,
                out,
            } => answer(&read(challenge)?, tpm, out)?,
            Self::Install {
                certificate,
                tpm,
                identity,
                json,
            } => {
                let issued: Certificate = read(certificate)?;
                let tpm = DeviceTpm::open(tpm)?;
                let identity = IdentityFolder::new(identity);
                let installed = identity
                    .install(&issued, tpm.identity_key(), UnixTime::now())
                    .with_context(|| {
                        format!(
                            "the certificate in {} is not taken up",
                            certificate.display()
                        )
                    })?;
                describe(&identity, &installed, *json)?;
            }
            Self::Show { identity, json } => {
                let identity = IdentityFolder::new(identity);
                let (_, certificate) = identity.read()?;
                describe(&identity, &certificate, *json)?;
            }
        }
        Ok(Outcome::Good)
    }
}

fn request(name: &str, tpm: &Path, out: &Path) -> Result<()> {
    // Whether the device gets it, the issuer says.
    DeviceName::check_path(name)?;
    let mut tpm = DeviceTpm::open(tpm)?;
    let ek = tpm.endorsement_key()?;
    let request = Request {
        device: name.to_owned(),
        ek_certificate: ek.certificate,
        ek_chain: ek.chain,
        ek: ek.key.public_area().as_bytes().to_vec(),
        ik: tpm.identity_key().public_area().as_bytes().to_vec(),
    };
    write(out, &request.to_json())?;
    say_lines(&format!(
        "{}\ntake this to the issuer: vtpmctl issuer challenge --device {name}",
        out.display()
    ))
}

fn answer(challenge: &Challenge, tpm: &Path, out: &Path) -> Result<()> {
    let mut tpm = DeviceTpm::open(tpm)?;
    let secret = tpm.activate_credential(&challenge.credential).context(
        "the challenge cannot be answered: it is for another TPM, or for a key that this one does not \
         have",
    )?;
    let answer = Answer(enrolment::Answer {
        enrolment: challenge.enrolment,
        secret: secret.to_vec(),
    });
    write(out, &answer.to_json())?;
    say_lines(&format!(
        "{}\ntake this to the issuer: vtpmctl issuer certify",
        out.display()
    ))
}

fn describe(
    identity: &IdentityFolder,
    certificate: &DeviceCertificate,
    as_json: bool,
) -> Result<()> {
    let not_after = rfc3339(certificate.not_after().as_secs());
    let claims = certificate.claims();
    if as_json {
        return say_json(&json!({
            "device": certificate.device(),
            "issuer": certificate.issuer(),
            "not_after": not_after,
            "ik": claims.ik,
            "ek": claims.ek,
            "identity": identity.folder(),
        }));
    }
    say_lines(&format!(
        "device        {}\ncertified by  {}\nvalid until   {not_after}\nidentity key  {}\nTPM's EK      {}",
        certificate.device(),
        certificate.issuer(),
        claims.ik,
        claims.ek
    ))
}

fn say_lines(lines: &str) -> Result<()> {
    let lines: Vec<String> = lines
        .lines()
        .map(|line| Printable(line).to_string())
        .collect();
    say(&format!("{}\n", lines.join("\n")))
}

fn read<M: Message>(path: &Path) -> Result<M> {
    let bytes = read_bounded(path, MAX_MESSAGE)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    M::from_json(&bytes).with_context(|| format!("{} is not what is needed here", path.display()))
}

fn write(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text).with_context(|| format!("{} cannot be written", path.display()))
}
