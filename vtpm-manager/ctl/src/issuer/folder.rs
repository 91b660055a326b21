//! An issuer: what it does for hosts. What it does for devices is in [`super::devices`].

use std::fs::{self, DirBuilder, File};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use api_types::Timestamp;
use cert_chain::enrolment::{
    Accepted, Answer, Certificate, Challenge, EnrolmentError, EnrolmentState, OperatorKeys,
    PendingEnrolment, Request,
};
use cert_chain::operator::PolicyKeyPublic;
use cert_chain::{Domain, HostName, IssuedCertificate, Issuer, TpmMakerRoots, TpmName, Validity};
use nix::fcntl::Flock;
use zeroize::Zeroizing;

use super::error::IssuerError;
use super::files::{
    file_error, lock, operators_in, read, recall, remember, tpm_roots_in, write, write_operators,
};
use super::memory::{Challenged, IssuedHost};

/// An issuer, and what it remembers. While there is one, no other program uses its folder.
#[derive(Debug)]
pub(crate) struct IssuerFolder {
    folder: PathBuf,
    issuer: Issuer,
    operators: Vec<PolicyKeyPublic>,
    _lock: Flock<File>,
}

/// What to do about a host that was certified under another operator key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OperatorKeyChange {
    /// Refuse it.
    Refuse,
    /// Accept it, and write it down.
    Accept,
}

/// What hosts get and verifiers need.
pub(crate) const ROOT: &str = "root.pem";
const KEY: &str = "issuer-key.pem";
const TPM_ROOTS: &str = "tpm-roots.pem";
const OPERATOR_KEYS: &str = "operator-keys.pem";
const PENDING: &str = "pending";
const HOSTS: &str = "hosts";

/// How long the root lives: as long as hardware is expected to.
const ROOT_LIFETIME: Duration = days(3650);
/// How long a host's certificate lives.
const HOST_LIFETIME: Duration = days(365);

impl IssuerFolder {
    /// Makes an issuer for the hosts of a domain whose TPMs come from these makers, and whose
    /// operators have the public keys in these files.
    pub(crate) fn init(
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
        write_operators(&folder.join(OPERATOR_KEYS), &operators)?;
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
    pub(crate) fn open(folder: &Path) -> Result<Self, IssuerError> {
        let lock = lock(folder)?;
        let key = Zeroizing::new(read(&folder.join(KEY))?);
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

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn issuer(&self) -> &Issuer {
        &self.issuer
    }

    /// What a certificate is, if this issuer made it.
    pub(crate) fn recognise(&self, der: &[u8]) -> Option<IssuedCertificate> {
        self.issuer.recognise(der)
    }

    /// The domain in which it names hosts.
    pub(crate) fn domain(&self) -> &Domain {
        self.issuer.domain()
    }

    /// Where the root certificate is.
    pub(crate) fn root(&self) -> PathBuf {
        self.folder.join(ROOT)
    }

    /// The keys of the operators whose approvals hosts may depend on.
    pub(crate) fn operator_keys(&self) -> &[PolicyKeyPublic] {
        &self.operators
    }

    /// Accepts more operator keys.
    pub(crate) fn add_operator_keys(&mut self, files: &[PathBuf]) -> Result<(), IssuerError> {
        let mut operators = self.operators.clone();
        for key in operators_in(files)? {
            if !operators.contains(&key) {
                operators.push(key);
            }
        }
        write_operators(&self.folder.join(OPERATOR_KEYS), &operators)?;
        self.operators = operators;
        Ok(())
    }

    /// Accepts an operator key no more. Hosts that were certified under it keep their
    /// certificates until those expire.
    pub(crate) fn remove_operator_key(
        &mut self,
        operator_key: &TpmName,
    ) -> Result<(), IssuerError> {
        let mut operators = self.operators.clone();
        operators.retain(|key| key.name() != *operator_key);
        if operators.len() == self.operators.len() {
            return Err(IssuerError::UnknownOperatorKey {
                operator_key: operator_key.clone(),
            });
        }
        write_operators(&self.folder.join(OPERATOR_KEYS), &operators)?;
        self.operators = operators;
        Ok(())
    }

    /// Checks a host's request, and challenges the host to prove that its TPM holds both keys.
    pub(crate) fn challenge(
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
        self.check_asking(&enrolment.host().to_string(), &request.ik)?;
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
    pub(crate) fn certify(&self, answer: &Answer) -> Result<Certificate, IssuerError> {
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
        self.note_issued(&certificate.certificate)?;
        let issued = IssuedHost::new(&challenged.enrolment, now, earlier);
        let file = self.host_file(&issued.host);
        remember(&file, &issued)?;
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
    pub(super) fn tpm_roots(&self) -> Result<TpmMakerRoots, IssuerError> {
        tpm_roots_in(&self.folder.join(TPM_ROOTS)).map(|(_, roots)| roots)
    }

    fn accepted(&self) -> OperatorKeys {
        self.operators.iter().map(PolicyKeyPublic::name).collect()
    }

    fn remember(&self, challenged: &Challenged) -> Result<(), IssuerError> {
        let path = self.pending(&challenged.enrolment.enrolment().to_string());
        remember(&path, challenged)
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

pub(super) const fn days(number: u64) -> Duration {
    Duration::from_secs(number * 24 * 60 * 60)
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
