//! The identity issuer as a folder: no daemon, no network.
//!
//! | File | What |
//! |---|---|
//! | `issuer-key.pem` | the private key, readable by its owner alone |
//! | `root.pem` | the root certificate that verifiers trust |
//! | `tpm-roots.pem` | certificates of the TPM makers that are accepted |
//! | `operator-keys.pem` | public keys of the operators whose approvals hosts may depend on |
//! | `pending/<enrolment>.json` | challenges that wait for their answer, or had it |
//! | `hosts/<label>.json` | who was certified under which name and which operator key |

mod error;
mod memory;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::Timestamp;
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::enrolment::{
    Accepted, Answer, Certificate, Challenge, EnrolmentError, EnrolmentState, OperatorKeys,
    PendingEnrolment, Request,
};
use cert_chain::operator::PolicyKeyPublic;
use cert_chain::{Domain, HostName, Issuer, TpmMakerRoots, TpmName, Validity};
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use error::IssuerError;
use memory::Challenged;
pub use memory::{IssuedHost, ReplacedOperatorKey};

/// An issuer, and what it remembers. While there is one, no other program uses its folder.
#[derive(Debug)]
pub struct IssuerFolder {
    folder: PathBuf,
    issuer: Issuer,
    operators: Vec<PolicyKeyPublic>,
    _lock: Flock<File>,
}

/// What to do about a host that was certified under another operator key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OperatorKeyChange {
    /// Refuse it.
    Refuse,
    /// Accept it, and write it down.
    Accept,
}

/// What hosts get and verifiers need.
pub const ROOT: &str = "root.pem";
const KEY: &str = "issuer-key.pem";
const TPM_ROOTS: &str = "tpm-roots.pem";
const OPERATOR_KEYS: &str = "operator-keys.pem";
const PENDING: &str = "pending";
const HOSTS: &str = "hosts";
const LOCK: &str = ".lock";

/// All makers' roots and intermediates of today have under 1 MiB.
const MAX_LIST: u64 = 16 * 1024 * 1024;

/// How long the root lives: as long as hardware is expected to.
const ROOT_LIFETIME: Duration = days(3650);
/// How long a host's certificate lives.
const HOST_LIFETIME: Duration = days(365);

impl IssuerFolder {
    /// Makes an issuer for the hosts of a domain whose TPMs come from these makers, and whose
    /// operators have the public keys in these files.
    pub fn init(
        folder: &Path,
        domain: Domain,
        tpm_roots: &Path,
        operator_keys: &[PathBuf],
    ) -> Result<Self, IssuerError> {
        let operators = operators_in(operator_keys)?;
        let (roots, _) = tpm_roots_in(tpm_roots)?;
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
        write(&folder.join(TPM_ROOTS), &roots, 0o644)?;
        write_operators(folder, &operators)?;
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
        // Early, so that a mistake in it is told by the first command.
        tpm_roots_in(&folder.join(TPM_ROOTS))?;
        let path = folder.join(OPERATOR_KEYS);
        let operators = if path.exists() {
            operators_in(&[path])?
        } else {
            // An issuer of an earlier version, which accepted whatever a host named.
            Vec::new()
        };
        Ok(Self {
            folder: folder.to_owned(),
            issuer,
            operators,
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

    /// The keys of the operators whose approvals hosts may depend on.
    pub fn operator_keys(&self) -> &[PolicyKeyPublic] {
        &self.operators
    }

    /// Accepts more operator keys.
    pub fn add_operator_keys(&mut self, files: &[PathBuf]) -> Result<(), IssuerError> {
        let mut operators = self.operators.clone();
        for key in operators_in(files)? {
            if !operators.contains(&key) {
                operators.push(key);
            }
        }
        write_operators(&self.folder, &operators)?;
        self.operators = operators;
        Ok(())
    }

    /// Accepts an operator key no more. Hosts that were certified under it keep their
    /// certificates until those expire.
    pub fn remove_operator_key(&mut self, operator_key: &TpmName) -> Result<(), IssuerError> {
        let mut operators = self.operators.clone();
        operators.retain(|key| key.name() != *operator_key);
        if operators.len() == self.operators.len() {
            return Err(IssuerError::UnknownOperatorKey {
                operator_key: operator_key.clone(),
            });
        }
        write_operators(&self.folder, &operators)?;
        self.operators = operators;
        Ok(())
    }

    /// Checks a host's request, and challenges the host to prove that its TPM holds both keys.
    pub fn challenge(
        &self,
        request: &Request,
        change: OperatorKeyChange,
    ) -> Result<(Challenge, PendingEnrolment), IssuerError> {
        let now = Timestamp::now().unix_time();
        let roots = self.tpm_roots()?;
        let operators = self.accepted();
        let accepted = Accepted {
            roots: &roots,
            operators: &operators,
        };
        let (challenge, enrolment) = self.issuer.challenge(request, accepted, now)?;
        let earlier = recall::<IssuedHost>(&self.host_file(enrolment.host()))?;
        let replaces = match (change, earlier) {
            (OperatorKeyChange::Accept, Some(host)) => Some(host.policy_key),
            (OperatorKeyChange::Accept, None) | (OperatorKeyChange::Refuse, _) => None,
        };
        self.admit(&enrolment, replaces.as_ref())?;
        let challenged = Challenged {
            enrolment,
            replaces,
        };
        self.remember(&challenged)?;
        Ok((challenge, challenged.enrolment))
    }

    /// Checks a host's answer, and certifies the host.
    pub fn certify(&self, answer: &Answer) -> Result<Certificate, IssuerError> {
        let path = self.pending(&answer.enrolment.to_string());
        let mut challenged: Challenged =
            recall(&path)?.ok_or_else(|| IssuerError::UnknownEnrolment {
                enrolment: answer.enrolment.to_string(),
            })?;
        // All of it may have changed since the challenge.
        let roots = self.tpm_roots()?;
        let operators = self.accepted();
        let accepted = Accepted {
            roots: &roots,
            operators: &operators,
        };
        let earlier = self.admit(&challenged.enrolment, challenged.replaces.as_ref())?;
        let now = Timestamp::now();
        let validity =
            Validity::starting(now.unix_time(), HOST_LIFETIME).map_err(EnrolmentError::Issue)?;
        let certified = self.issuer.certify(
            &mut challenged.enrolment,
            answer,
            accepted,
            validity,
            now.unix_time(),
        );
        // The answer is used up, whatever came of it: before anybody gets the certificate.
        if *challenged.enrolment.state() == EnrolmentState::Answered {
            self.remember(&challenged)?;
        }
        let certificate = certified?;
        let issued = IssuedHost::new(&challenged.enrolment, now, earlier);
        let file = self.host_file(&issued.host);
        write(&file, &json_of(&issued), 0o600)?;
        Ok(certificate)
    }

    /// Holds an enrolment against what was certified before, and returns that of its own name.
    fn admit(
        &self,
        enrolment: &PendingEnrolment,
        replaces: Option<&TpmName>,
    ) -> Result<Option<IssuedHost>, IssuerError> {
        let own = self.host_file(enrolment.host());
        let folder = self.folder.join(HOSTS);
        for entry in fs::read_dir(&folder).map_err(file_error(&folder, "read"))? {
            let file = entry.map_err(file_error(&folder, "read"))?.path();
            if file == own || file.extension().is_none_or(|ending| ending != "json") {
                continue;
            }
            if let Some(other) = recall::<IssuedHost>(&file)? {
                other.is_another(enrolment, &file)?;
            }
        }
        let earlier = recall::<IssuedHost>(&own)?;
        if let Some(host) = &earlier {
            host.admits(enrolment, replaces, &own)?;
        }
        Ok(earlier)
    }

    /// The makers, as the file says at the time.
    fn tpm_roots(&self) -> Result<TpmMakerRoots, IssuerError> {
        tpm_roots_in(&self.folder.join(TPM_ROOTS)).map(|(_, roots)| roots)
    }

    fn accepted(&self) -> OperatorKeys {
        self.operators.iter().map(PolicyKeyPublic::name).collect()
    }

    fn remember(&self, challenged: &Challenged) -> Result<(), IssuerError> {
        let path = self.pending(&challenged.enrolment.enrolment().to_string());
        write(&path, &json_of(challenged), 0o600)
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

/// What the issuer writes itself, and operators' keys: some ten kilobytes.
const MAX_FILE: usize = 1024 * 1024;

fn read(path: &Path) -> Result<String, IssuerError> {
    read_bounded_text(path, MAX_FILE).map_err(file_error(path, "read"))
}

/// What was written down under this name, if anything was.
fn recall<T: DeserializeOwned>(path: &Path) -> Result<Option<T>, IssuerError> {
    let json = match read_bounded(path, MAX_FILE) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(file_error(path, "read"))?,
    };
    let value = serde_json::from_slice(&json).map_err(|source| IssuerError::Memory {
        path: path.to_owned(),
        source,
    })?;
    Ok(Some(value))
}

/// A list of makers, as it stands in the file and as it is meant.
fn tpm_roots_in(path: &Path) -> Result<(Vec<u8>, TpmMakerRoots), IssuerError> {
    let file = read_list(path)?;
    let roots = TpmMakerRoots::from_pem(&file).map_err(|source| IssuerError::TpmRoots {
        path: path.to_owned(),
        source,
    })?;
    Ok((file, roots))
}

/// A list that people keep, within a limit.
fn read_list(path: &Path) -> Result<Vec<u8>, IssuerError> {
    let read = || {
        let mut list = Vec::new();
        File::open(path)?
            .take(MAX_LIST + 1)
            .read_to_end(&mut list)?;
        if list.len() as u64 > MAX_LIST {
            return Err(io::Error::other(format!(
                "it has more than {MAX_LIST} bytes"
            )));
        }
        Ok(list)
    };
    read().map_err(file_error(path, "read"))
}

fn operators_in(files: &[PathBuf]) -> Result<Vec<PolicyKeyPublic>, IssuerError> {
    let mut operators = Vec::new();
    for path in files {
        let keys = PolicyKeyPublic::all_from_pem(&read_list(path)?).map_err(|source| {
            IssuerError::OperatorKeys {
                path: path.clone(),
                source,
            }
        })?;
        operators.extend(keys);
    }
    Ok(operators)
}

fn write_operators(folder: &Path, operators: &[PolicyKeyPublic]) -> Result<(), IssuerError> {
    let pem: String = operators.iter().map(PolicyKeyPublic::to_pem).collect();
    write(&folder.join(OPERATOR_KEYS), pem.as_bytes(), 0o644)
}

fn write(path: &Path, contents: &[u8], mode: u32) -> Result<(), IssuerError> {
    durable_file::replace(path, contents, mode).map_err(file_error(path, "written"))
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
        let issuer =
            IssuerFolder::init(&folder.join("issuer"), "demo.example".parse()?, &roots, &[])?;
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
            &[],
        );
        assert!(matches!(refused, Err(IssuerError::TpmRoots { .. })));
        assert!(!folder.path().join("issuer").exists());
        Ok(())
    }
}
