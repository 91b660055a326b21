//! Commands by which an issuer revokes, and says so.

use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::RevocationReason;
use cert_chain::enrolment::{Certificate, Message, MessageError, device};
use cert_chain::pem::certificates;
use serde::Serialize;

use crate::arguments::{CrlArguments, RevokeArguments, WhoseArguments};
use crate::error::CtlError;
use crate::files::{Destination, Kind, not_needed, read};
use crate::issuer::{CertificateRecord, IssuerError, IssuerFolder, Whose};
use crate::output::{Output, Table};

/// A revocation list that was made.
#[derive(Serialize)]
struct MadeList {
    crl: PathBuf,
    number: String,
    this_update: Timestamp,
    next_update: Timestamp,
}

/// What is to be revoked, and whether a list is to be made of it.
pub(super) struct Revocation<'a> {
    pub(super) whose: Vec<Whose>,
    pub(super) reason: RevocationReason,
    pub(super) crl: Option<&'a Path>,
    pub(super) lifetime: Duration,
    pub(super) directory: &'a Path,
}

pub(crate) fn revoke(arguments: &RevokeArguments, output: &Output) -> Result<(), CtlError> {
    let issuer = IssuerFolder::open(&arguments.directory)?;
    Revocation {
        whose: whose(&arguments.whose, &issuer)?,
        reason: arguments.reason.into(),
        crl: arguments.crl.as_deref(),
        lifetime: arguments.lifetime.lifetime(),
        directory: &arguments.directory,
    }
    .carry_out(&issuer, output)
}

impl Revocation<'_> {
    pub(super) fn carry_out(self, issuer: &IssuerFolder, output: &Output) -> Result<(), CtlError> {
        // A list that cannot be written there is told before anything is revoked.
        let place = self.crl.map(ListFile::open).transpose()?;
        let mut revoked = Vec::new();
        for whose in self.whose {
            revoked.extend(issuer.revoke(whose, self.reason)?);
        }
        let list = place
            .map(|place| place.make_list(issuer, self.lifetime))
            .transpose()?;
        let made = serde_json::json!({ "revoked": revoked, "list": list });
        output.result(&made, || {
            let text = table(&revoked).render();
            list.as_ref()
                .map_or(text.clone(), |list| text + &list.told())
        })?;
        let kept = stay_compromised(&revoked, self.reason);
        if !kept.is_empty() {
            output.warn(&format!(
                "as before, somebody else may have the keys of these, which are not certified again; if that \
                 was a mistake, revoke them by --serial: {}",
                kept.join(", ")
            ));
        }
        let left = others(issuer, &revoked)?;
        if !left.is_empty() {
            output.warn(&format!(
                "the same hosts, devices or tenants have certificates that stay valid: {}",
                left.join(", ")
            ));
        }
        if list.is_none() {
            output.next(&format!(
            "Nobody knows of it before there is a new list:\n  vtpmctl issuer crl --dir {} --out FILE",
            self.directory.display()
        ));
        }
        Ok(())
    }
}

pub(crate) fn crl(arguments: &CrlArguments, output: &Output) -> Result<(), CtlError> {
    let issuer = IssuerFolder::open(&arguments.directory)?;
    let list = ListFile::open(&arguments.out)?.make_list(&issuer, arguments.lifetime.lifetime())?;
    output.result(&list, || list.told())
}

pub(crate) fn list(directory: &Path, output: &Output) -> Result<(), CtlError> {
    let known = IssuerFolder::open(directory)?.certificates()?;
    output.result(&serde_json::json!({ "certificates": known }), || {
        if known.is_empty() {
            return "no certificate is known".to_owned();
        }
        table(&known).render()
    })
}

/// Where a list is going to be.
struct ListFile<'a> {
    path: &'a Path,
    place: Destination,
}

impl<'a> ListFile<'a> {
    fn open(path: &'a Path) -> Result<Self, CtlError> {
        let place = Destination::open(path, Kind::pem("X509 CRL"))?;
        Ok(Self { path, place })
    }

    fn make_list(self, issuer: &IssuerFolder, lifetime: Duration) -> Result<MadeList, CtlError> {
        let list = issuer.make_crl(lifetime)?;
        self.place.write(list.to_pem().as_bytes())?;
        Ok(MadeList {
            crl: self.path.to_owned(),
            number: list.number().to_string(),
            this_update: Timestamp::new(list.this_update().as_secs()),
            next_update: Timestamp::new(list.next_update().as_secs()),
        })
    }
}

/// Which certificates are meant; those of a file are looked at.
fn whose(arguments: &WhoseArguments, issuer: &IssuerFolder) -> Result<Vec<Whose>, CtlError> {
    let named = [
        arguments.host.clone().map(Whose::Host),
        arguments.device.clone().map(Whose::Device),
        arguments.serial.clone().map(Whose::Serial),
    ];
    let Some(path) = &arguments.certificate else {
        return Ok(named.into_iter().flatten().collect());
    };
    let issued = certificates_in(path)?;
    let issued: Vec<Whose> = (issued.iter())
        .filter_map(|der| issuer.recognise(der))
        .map(Whose::Certificate)
        .collect();
    if issued.is_empty() {
        return Err(IssuerError::NotIssued { path: path.clone() }.into());
    }
    Ok(issued)
}

/// The certificates of a file: of an enrolment's last message, or in PEM or DER.
fn certificates_in(path: &Path) -> Result<Vec<Vec<u8>>, CtlError> {
    let file = read(path)?;
    if file.first() == Some(&b'{') {
        let of_device = || device::Certificate::from_json(&file).map(|sent| sent.certificate);
        let certificate = match Certificate::from_json(&file) {
            Ok(of_host) => Ok(of_host.certificate),
            Err(MessageError::Type { found, .. }) if found == device::Certificate::TYPE => {
                of_device()
            }
            Err(error) => Err(error),
        };
        return Ok(vec![
            certificate.map_err(|error| not_needed(path, error.into()))?,
        ]);
    }
    let found = certificates(&file).map_err(|error| not_needed(path, error.into()))?;
    Ok(found.into_iter().map(|found| found.der.to_vec()).collect())
}

/// Certificates of which it stays true that somebody else may have their keys, whatever reason was given now.
fn stay_compromised(revoked: &[CertificateRecord], reason: RevocationReason) -> Vec<String> {
    let kept = revoked.iter().filter(|record| {
        record.is_compromised().is_some()
            && record
                .revoked
                .is_some_and(|revoked| revoked.reason != reason)
    });
    kept.map(|record| record.serial.to_string()).collect()
}

/// Certificates of the same subjects that were not revoked and have not expired.
fn others(issuer: &IssuerFolder, revoked: &[CertificateRecord]) -> Result<Vec<String>, CtlError> {
    let now = Timestamp::now();
    let known = issuer.certificates()?.into_iter();
    let left = known.filter(|record| {
        record.revoked.is_none()
            && record.not_after >= now
            && revoked
                .iter()
                .any(|revoked| revoked.subject == record.subject)
    });
    Ok(left.map(|record| record.serial.to_string()).collect())
}

pub(super) fn table(records: &[CertificateRecord]) -> Table {
    let mut table = Table::default();
    table.row(["SUBJECT", "SERIAL NUMBER", "VALID UNTIL", "REVOKED"]);
    for record in records {
        let revoked = record
            .revoked
            .map(|revoked| format!("{} ({})", revoked.since, revoked.reason));
        table.row([
            record.subject.clone(),
            record.serial.to_string(),
            record.not_after.to_string(),
            revoked.unwrap_or_default(),
        ]);
    }
    table
}

impl MadeList {
    fn told(&self) -> String {
        format!(
            "revocation list {}: {}, valid until {}",
            self.number,
            self.crl.display(),
            self.next_update
        )
    }
}
