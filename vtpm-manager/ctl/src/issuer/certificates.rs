//! Every certificate that an issuer made, each in a file of its own, and which of them it revoked.

use std::fs::{self, DirBuilder};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::device_name::SCHEME;
use cert_chain::profile::{CrlSpec, RevokedCertificate, tenant_uri};
use cert_chain::{
    CertificateSerial, Crl, Digest32, Domain, IssuedCertificate, PublicArea, RevocationReason,
    Tenant, Validity,
};
use serde::{Deserialize, Serialize};

use super::error::IssuerError;
use super::files::{file_error, recall, remember};
use super::folder::IssuerFolder;

/// A certificate that was issued.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct CertificateRecord {
    version: u32,
    /// Its number.
    pub serial: CertificateSerial,
    /// Whom it names: a host's DNS name, or a device's or tenant's URI.
    pub subject: String,
    /// SHA-256 value of its key, as SubjectPublicKeyInfo in DER.
    pub key: Digest32,
    /// The last second of its validity.
    pub not_after: Timestamp,
    /// Whether it was revoked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub revoked: Option<RevocationRecord>,
}

/// That a certificate was revoked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct RevocationRecord {
    /// Since when.
    pub since: Timestamp,
    /// Why.
    pub reason: RevocationReason,
}

/// Which certificates are meant.
#[derive(Clone, Debug)]
pub(crate) enum Whose {
    /// All that name this host, by its label or its whole name.
    Host(String),
    /// All that name this device, by its path or its whole name.
    Device(String),
    /// All that name this tenant.
    Tenant(Tenant),
    /// The one with this number.
    Serial(CertificateSerial),
    /// This one.
    Certificate(IssuedCertificate),
}

/// The number of the last revocation list.
#[derive(Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct LastList {
    version: u32,
    number: u64,
}

const CERTIFICATES: &str = "certificates";
const LAST_LIST: &str = "last-crl.json";
const VERSION: u32 = 1;
/// How long a certificate stays in lists after its end, for verifiers whose clock is slow (RFC 5280
/// §3.3 asks for one list after the end).
const LISTED_AFTER_END: Duration = Duration::from_secs(30 * 24 * 60 * 60);

impl IssuerFolder {
    /// Writes a certificate down before anybody gets it. A key that somebody else may have is not
    /// certified again.
    pub(super) fn note_issued(&self, certificate: &[u8]) -> Result<(), IssuerError> {
        let Some(issued) = self.issuer().recognise(certificate) else {
            unreachable!("this issuer has just made the certificate")
        };
        self.check_key(&issued.subject, &issued.key)?;
        self.put(&CertificateRecord::new(issued))
    }

    /// The same about a key that is to be certified (`TPMT_PUBLIC`), before anything is done for it.
    pub(super) fn check_asking(&self, subject: &str, key: &[u8]) -> Result<(), IssuerError> {
        match PublicArea::parse(key) {
            Ok(key) => self.check_key(subject, &Digest32::of(&key.subject_public_key_info())),
            // That is what a refusal of the request says.
            Err(_) => Ok(()),
        }
    }

    fn check_key(&self, subject: &str, key: &Digest32) -> Result<(), IssuerError> {
        for record in self.certificates()? {
            if let Some(revoked) = record.is_compromised().filter(|_| record.key == *key) {
                return Err(IssuerError::KeyRevoked {
                    subject: subject.to_owned(),
                    serial: record.serial,
                    since: revoked.since,
                });
            }
        }
        Ok(())
    }

    /// All certificates that are known, in the order of their subjects and ends.
    pub(crate) fn certificates(&self) -> Result<Vec<CertificateRecord>, IssuerError> {
        let folder = self.folder().join(CERTIFICATES);
        let entries = match fs::read_dir(&folder) {
            // An issuer of an earlier version, or one that certified nobody yet.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(file_error(&folder, "read"))?,
        };
        let mut records = Vec::new();
        for entry in entries {
            let file = entry.map_err(file_error(&folder, "read"))?.path();
            if file.extension().is_some_and(|ending| ending == "json") {
                records.extend(recall::<CertificateRecord>(&file)?);
            }
        }
        records.sort_by(|a, b| a.place().cmp(&b.place()));
        Ok(records)
    }

    /// Revokes certificates, and returns their records. To revoke one again corrects the reason and
    /// nothing else; and that somebody else may have its key is taken back only where this one
    /// certificate is meant, not whoever it names.
    pub(crate) fn revoke(
        &self,
        whose: Whose,
        reason: RevocationReason,
    ) -> Result<Vec<CertificateRecord>, IssuerError> {
        let now = Timestamp::now();
        let is_one = matches!(whose, Whose::Serial(_) | Whose::Certificate(_));
        let mut meant = self.meant(whose, reason)?;
        for record in &mut meant {
            if record.is_compromised().is_some() && !is_one {
                continue;
            }
            let since = record.revoked.map_or(now, |revoked| revoked.since);
            record.revoked = Some(RevocationRecord { since, reason });
            self.put(record)?;
        }
        Ok(meant)
    }

    fn meant(
        &self,
        whose: Whose,
        reason: RevocationReason,
    ) -> Result<Vec<CertificateRecord>, IssuerError> {
        let mut known = self.certificates()?;
        match whose {
            Whose::Certificate(issued) => {
                // It may be older than the records.
                let found = known
                    .into_iter()
                    .find(|record| record.serial == issued.serial);
                Ok(vec![
                    found.unwrap_or_else(|| CertificateRecord::new(issued)),
                ])
            }
            Whose::Serial(serial) => {
                known.retain(|record| record.serial == serial);
                match known.is_empty() {
                    true => Err(IssuerError::UnknownSerial { serial }),
                    false => Ok(known),
                }
            }
            Whose::Host(name) => all_of(known, host_name(&name, self.domain()), reason),
            Whose::Tenant(tenant) => all_of(known, tenant_uri(&tenant), reason),
            Whose::Device(name) => all_of(known, device_name(&name, self.domain()), reason),
        }
    }

    /// Makes a revocation list that lives for so long. Its number is used up before it is signed, so
    /// that no two lists have the same. It is the time in seconds, where that is higher than the last
    /// number: an issuer whose folder was put back from a copy does not make lists that count as older
    /// than those it made since.
    pub(crate) fn make_crl(&self, lifetime: Duration) -> Result<Crl, IssuerError> {
        let now = Timestamp::now();
        let file = self.folder().join(LAST_LIST);
        let last = recall::<LastList>(&file)?.unwrap_or_default();
        let Some(next) = last.number.checked_add(1) else {
            return Err(IssuerError::LastNumber { path: file });
        };
        let list = LastList {
            version: VERSION,
            number: next.max(now.seconds()),
        };
        remember(&file, &list)?;
        let listed = |record: CertificateRecord| {
            let end = record.not_after.seconds() + LISTED_AFTER_END.as_secs();
            let revoked = record.revoked.filter(|_| end >= now.seconds())?;
            Some(RevokedCertificate {
                serial: record.serial,
                since: revoked.since.unix_time(),
                reason: revoked.reason,
            })
        };
        let refused = |source| IssuerError::Crl { source };
        let spec = CrlSpec {
            number: list.number,
            validity: Validity::starting(now.unix_time(), lifetime).map_err(refused)?,
            revoked: self
                .certificates()?
                .into_iter()
                .filter_map(listed)
                .collect(),
        };
        self.issuer().sign_crl(&spec).map_err(refused)
    }

    fn put(&self, record: &CertificateRecord) -> Result<(), IssuerError> {
        let folder = self.folder().join(CERTIFICATES);
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&folder)
            .map_err(file_error(&folder, "made"))?;
        remember(&file_of(&folder, &record.serial), record)
    }
}

impl CertificateRecord {
    fn new(issued: IssuedCertificate) -> Self {
        Self {
            version: VERSION,
            serial: issued.serial,
            subject: issued.subject,
            key: issued.key,
            not_after: Timestamp::new(issued.not_after.as_secs()),
            revoked: None,
        }
    }

    fn place(&self) -> (&String, Timestamp, &CertificateSerial) {
        (&self.subject, self.not_after, &self.serial)
    }

    /// Whether somebody else may have its key.
    pub(crate) fn is_compromised(&self) -> Option<RevocationRecord> {
        self.revoked.filter(|revoked| is_compromise(revoked.reason))
    }
}

/// The certificates of one subject that are to be revoked. What has expired needs no revocation, but its key
/// may be one of those that are not to be certified again.
fn all_of(
    mut known: Vec<CertificateRecord>,
    subject: String,
    reason: RevocationReason,
) -> Result<Vec<CertificateRecord>, IssuerError> {
    let now = Timestamp::now();
    known.retain(|record| {
        record.subject == subject && (record.not_after >= now || is_compromise(reason))
    });
    if known.is_empty() {
        return Err(IssuerError::NothingIssued { subject });
    }
    Ok(known)
}

fn is_compromise(reason: RevocationReason) -> bool {
    matches!(
        reason,
        RevocationReason::KeyCompromise | RevocationReason::CaCompromise
    )
}

fn file_of(folder: &Path, serial: &CertificateSerial) -> PathBuf {
    folder.join(format!("{serial}.json"))
}

fn host_name(name: &str, domain: &Domain) -> String {
    if name.contains('.') {
        name.to_owned()
    } else {
        format!("{name}.{domain}")
    }
}

fn device_name(name: &str, domain: &Domain) -> String {
    if name.contains("://") {
        name.to_owned()
    } else {
        format!("{SCHEME}{domain}/{name}")
    }
}
