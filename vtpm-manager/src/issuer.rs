//! The identity issuer as a folder: no daemon, no network.
//!
//! | File | What |
//! |---|---|
//! | `issuer-key.pem` | the private key, readable by its owner alone |
//! | `root.pem` | the root certificate that verifiers trust |
//! | `tpm-roots.pem` | certificates of the TPM makers that are accepted |
//! | `pending/<enrolment>.json` | challenges that wait for their answer, or had it |
//! | `hosts/<label>.json` | who was certified under which name |

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use cert_chain::enrolment::{
    Answer, Certificate, Challenge, EnrolmentError, EnrolmentState, PendingEnrolment, Request,
};
use cert_chain::trust_anchors::TrustAnchorError;
use cert_chain::{Domain, HostName, IssueError, Issuer, TpmMakerRoots, TpmName, Validity};
use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use crate::timestamp::Timestamp;

/// An issuer, and what it remembers. While there is one, no other program uses its folder.
#[derive(Debug)]
pub struct IssuerFolder {
    folder: PathBuf,
    issuer: Issuer,
    roots: TpmMakerRoots,
    _lock: Flock<File>,
}

/// A host that was certified.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct IssuedHost {
    version: u32,
    /// Its name.
    pub host: HostName,
    /// Name of its TPM's endorsement key.
    pub ek: TpmName,
    /// Name of the operator's key.
    pub policy_key: TpmName,
    /// Who made its TPM.
    pub maker: String,
    /// When it was certified last.
    pub issued_at: Timestamp,
}

/// Why the issuer did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum IssuerError {
    /// The folder has an issuer already.
    #[error(
        "`{}` has an issuer already: it is not overwritten, because every host it certified \
         would lose its identity",
        folder.display()
    )]
    Exists {
        /// The folder.
        folder: PathBuf,
    },
    /// The enrolment was refused.
    #[error(transparent)]
    Enrolment(#[from] EnrolmentError),
    /// A file cannot be used.
    #[error("`{}` cannot be {action}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Key or root cannot be made or read.
    #[error("the issuer in `{}` cannot be used", folder.display())]
    Issuer {
        /// The folder.
        folder: PathBuf,
        /// Why.
        #[source]
        source: IssueError,
    },
    /// What the issuer wrote down cannot be read any more.
    #[error("`{}` is damaged", path.display())]
    Memory {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// The name belongs to another host.
    #[error(
        "`{host}` is the name of the host whose TPM has endorsement key {owner}; the one that \
         asks has {found}. Choose another name, or remove `{}` to give the name away",
        file.display()
    )]
    NameTaken {
        /// The name.
        host: HostName,
        /// Endorsement key of its owner.
        owner: TpmName,
        /// Endorsement key of the host that asks.
        found: TpmName,
        /// Where this is written down.
        file: PathBuf,
    },
    /// The TPM makers' certificates cannot be used.
    #[error("the TPM makers' certificates in `{}` cannot be used", path.display())]
    TpmRoots {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: TrustAnchorError,
    },
    /// No such enrolment.
    #[error("this issuer has no enrolment {enrolment}: was the challenge made by another one?")]
    UnknownEnrolment {
        /// Its number.
        enrolment: String,
    },
}

/// What hosts get and verifiers need.
pub const ROOT: &str = "root.pem";
const KEY: &str = "issuer-key.pem";
const TPM_ROOTS: &str = "tpm-roots.pem";
const PENDING: &str = "pending";
const HOSTS: &str = "hosts";
const LOCK: &str = ".lock";
const VERSION: u32 = 1;

/// How long the root lives: as long as hardware is expected to.
const ROOT_LIFETIME: Duration = days(3650);
/// How long a host's certificate lives.
const HOST_LIFETIME: Duration = days(365);

impl IssuerFolder {
    /// Makes an issuer for the hosts of a domain whose TPMs come from these makers.
    pub fn init(folder: &Path, domain: Domain, tpm_roots: &Path) -> Result<Self, IssuerError> {
        let roots = read(tpm_roots)?;
        TpmMakerRoots::from_pem(&roots).map_err(|source| IssuerError::TpmRoots {
            path: tpm_roots.to_owned(),
            source,
        })?;
        for part in [folder.to_owned(), folder.join(PENDING), folder.join(HOSTS)] {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&part)
                .map_err(file_error(&part, "made"))?;
        }
        let lock = lock(folder)?;
        if folder.join(KEY).exists() {
            return Err(IssuerError::Exists {
                folder: folder.to_owned(),
            });
        }
        let refused = |source| IssuerError::Issuer {
            folder: folder.to_owned(),
            source,
        };
        let validity =
            Validity::starting(Timestamp::now().unix_time(), ROOT_LIFETIME).map_err(refused)?;
        let issuer = Issuer::create(domain, validity).map_err(refused)?;
        write(&folder.join(TPM_ROOTS), roots.as_bytes(), 0o644)?;
        write(
            &folder.join(ROOT),
            issuer.certificate_pem().as_bytes(),
            0o644,
        )?;
        // Last: an issuer without its key was never there.
        write(&folder.join(KEY), issuer.key_pem().as_bytes(), 0o600)?;
        drop(lock);
        Self::open(folder)
    }

    /// Opens an issuer.
    pub fn open(folder: &Path) -> Result<Self, IssuerError> {
        let lock = lock(folder)?;
        let key = zeroize::Zeroizing::new(read(&folder.join(KEY))?);
        let root = read(&folder.join(ROOT))?;
        let issuer = Issuer::from_pem(&key, &root).map_err(|source| IssuerError::Issuer {
            folder: folder.to_owned(),
            source,
        })?;
        let path = folder.join(TPM_ROOTS);
        let roots = TpmMakerRoots::from_pem(&read(&path)?)
            .map_err(|source| IssuerError::TpmRoots { path, source })?;
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
            roots,
            _lock: lock,
        })
    }

    /// The domain in which it names hosts.
    pub fn domain(&self) -> &Domain {
        self.issuer.domain()
    }

    /// Where the root certificate is.
    pub fn root(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// Checks a host's request, and challenges the host to prove that its TPM holds both keys.
    pub fn challenge(
        &self,
        request: &Request,
    ) -> Result<(Challenge, PendingEnrolment), IssuerError> {
        let (challenge, pending) =
            self.issuer
                .challenge(request, &self.roots, Timestamp::now().unix_time())?;
        self.check_name(&pending)?;
        self.remember(&pending)?;
        Ok((challenge, pending))
    }

    /// Checks a host's answer, and certifies the host.
    pub fn certify(&self, answer: &Answer) -> Result<Certificate, IssuerError> {
        let path = self.pending(&answer.enrolment.to_string());
        let json = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                return Err(IssuerError::UnknownEnrolment {
                    enrolment: answer.enrolment.to_string(),
                });
            }
            other => other.map_err(file_error(&path, "read"))?,
        };
        let mut pending: PendingEnrolment =
            serde_json::from_slice(&json).map_err(|source| IssuerError::Memory { path, source })?;
        self.check_name(&pending)?;
        let now = Timestamp::now();
        let validity =
            Validity::starting(now.unix_time(), HOST_LIFETIME).map_err(EnrolmentError::Issue)?;
        let certified = self
            .issuer
            .certify(&mut pending, answer, validity, now.unix_time());
        // The answer is used up, whatever came of it: before anybody gets the certificate.
        if *pending.state() == EnrolmentState::Answered {
            self.remember(&pending)?;
        }
        let certificate = certified?;
        let issued = IssuedHost {
            version: VERSION,
            host: pending.host().clone(),
            ek: pending.ek().clone(),
            policy_key: pending.policy_key().clone(),
            maker: pending.maker().to_owned(),
            issued_at: now,
        };
        write(&self.host_file(pending.host()), &json_of(&issued), 0o600)?;
        Ok(certificate)
    }

    /// One name for one TPM: otherwise a second host could stand in for the first.
    fn check_name(&self, pending: &PendingEnrolment) -> Result<(), IssuerError> {
        let file = self.host_file(pending.host());
        let json = match fs::read(&file) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(file_error(&file, "read"))?,
        };
        let issued: IssuedHost =
            serde_json::from_slice(&json).map_err(|source| IssuerError::Memory {
                path: file.clone(),
                source,
            })?;
        if issued.ek == *pending.ek() {
            return Ok(());
        }
        Err(IssuerError::NameTaken {
            host: pending.host().clone(),
            owner: issued.ek,
            found: pending.ek().clone(),
            file,
        })
    }

    fn remember(&self, pending: &PendingEnrolment) -> Result<(), IssuerError> {
        let path = self.pending(&pending.enrolment().to_string());
        write(&path, &json_of(pending), 0o600)
    }

    fn pending(&self, enrolment: &str) -> PathBuf {
        self.folder.join(PENDING).join(format!("{enrolment}.json"))
    }

    fn host_file(&self, host: &HostName) -> PathBuf {
        self.folder
            .join(HOSTS)
            .join(format!("{}.json", host.label()))
    }
}

const fn days(number: u64) -> Duration {
    Duration::from_secs(number * 24 * 60 * 60)
}

fn lock(folder: &Path) -> Result<Flock<File>, IssuerError> {
    let path = folder.join(LOCK);
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(file_error(
            &path,
            "opened: is there an issuer (`vtpmctl issuer init`)",
        ))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, error)| file_error(&path, "locked")(error.into()))
}

fn json_of(value: &impl Serialize) -> Vec<u8> {
    match serde_json::to_vec_pretty(value) {
        Ok(json) => json,
        // Strings, numbers, and maps with string keys.
        Err(error) => unreachable!("JSON: {error}"),
    }
}

fn read(path: &Path) -> Result<String, IssuerError> {
    fs::read_to_string(path).map_err(file_error(path, "read"))
}

/// A crash leaves the old file or the new one.
fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), IssuerError> {
    let temporary = path.with_extension("new");
    let written = (|| {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(mode)
            .open(&temporary)?;
        file.write_all(contents)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    })();
    written.map_err(file_error(path, "written"))
}

fn file_error(path: &Path, action: &'static str) -> impl FnOnce(io::Error) -> IssuerError {
    let path = path.to_owned();
    move |source| IssuerError::File {
        path,
        action,
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn init(folder: &Path) -> anyhow::Result<IssuerFolder> {
        // Any certificate authority will do as a maker: a second issuer, for one.
        let maker = Issuer::create(
            "maker.example".parse()?,
            Validity::starting(Timestamp::now().unix_time(), days(1))?,
        )?;
        let roots = folder.join("makers.pem");
        fs::write(&roots, maker.certificate_pem())?;
        let issuer = IssuerFolder::init(&folder.join("issuer"), "demo.example".parse()?, &roots)?;
        Ok(issuer)
    }

    #[test]
    fn an_issuer_is_made_once() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let issuer = init(folder.path())?;
        assert_eq!(issuer.domain().as_str(), "demo.example");
        let root = fs::read(issuer.root())?;
        drop(issuer);
        let again = init(folder.path());
        assert!(again.is_err_and(|error| error.to_string().contains("not overwritten")));
        assert_eq!(fs::read(folder.path().join("issuer/root.pem"))?, root);
        Ok(())
    }

    #[test]
    fn only_the_owner_can_read_the_key() -> anyhow::Result<()> {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir()?;
        let _issuer = init(folder.path())?;
        let mode = fs::metadata(folder.path().join("issuer").join(KEY))?.permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
        Ok(())
    }

    #[test]
    fn a_file_without_certificates_is_no_list_of_makers() -> anyhow::Result<()> {
        let folder = tempfile::tempdir()?;
        let roots = folder.path().join("makers.pem");
        fs::write(&roots, "nothing")?;
        let refused = IssuerFolder::init(
            &folder.path().join("issuer"),
            "demo.example".parse()?,
            &roots,
        );
        assert!(matches!(refused, Err(IssuerError::TpmRoots { .. })));
        assert!(!folder.path().join("issuer").exists());
        Ok(())
    }
}
