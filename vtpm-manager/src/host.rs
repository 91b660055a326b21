//! The host itself: its keys in the physical TPM, its enrolment, and what both allow.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use api_types::Timestamp;
use bounded_file::read_bounded;
use cert_chain::enrolment::{
    Answer, Certificate, Challenge, MAX_MESSAGE, Message, MessageError, Request,
};
use cert_chain::operator::{Approval, PolicyKeyPublic};
use cert_chain::policy::HOST_POLICY_REF;
use cert_chain::profile::ProfileError;
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::{CredentialBlob, HostName, TpmName};
use tokio::sync::OnceCell;
use trust_anchor::{AnchorError, HostIkSigner, HostPolicy, HostPublic, TrustAnchor};

use crate::keys::{KeyError, Keyring};

/// The physical TPM, and what this host has become with it.
#[derive(Debug)]
pub struct Host {
    anchor: TrustAnchor,
    certificate_file: PathBuf,
    enrolment: RwLock<Option<Arc<Enrolment>>>,
    keyring: OnceCell<Arc<Keyring>>,
    /// Set once the host IK has certified the key to which secrets are encrypted.
    storage_root_key: OnceCell<()>,
}

/// The host's certificate, checked against its own keys when it was installed.
#[derive(Clone, Debug)]
pub struct Enrolment {
    /// The host IK's certificate.
    pub certificate: HostCertificate,
    /// The issuer's root, for people to hand to verifiers.
    pub root: Vec<u8>,
}

/// Why the host cannot do what was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// The trust anchor refused.
    #[error(transparent)]
    Anchor(#[from] AnchorError),
    /// The certificate is for other keys.
    #[error(
        "the certificate is for {which} {found}, this host's is {own}: it was issued for another \
         host or another TPM"
    )]
    CertificateOfAnother {
        /// Which key.
        which: &'static str,
        /// In the certificate.
        found: TpmName,
        /// This host's.
        own: TpmName,
    },
    /// The certificate is not that of a host.
    #[error("the certificate is refused")]
    CertificateProfile(#[source] ProfileError),
    /// The vRoTs' keys cannot be used.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The certificate's validity is over.
    #[error("this host's certificate expired at {not_after}: enrol it again, `vtpmctl host enrol`")]
    Expired {
        /// Its last second.
        not_after: Timestamp,
    },
    /// The certificate's file cannot be used.
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
    /// The file holds something else.
    #[error("`{}` is refused; remove it and enrol the host again", path.display())]
    Message {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: MessageError,
    },
    /// No issuer has certified the host.
    #[error("this host is not enrolled: run `vtpmctl host enrol`")]
    NotEnrolled,
}

impl Host {
    /// Takes up what an earlier manager left.
    pub fn new(anchor: TrustAnchor, certificate_file: &Path) -> Result<Self, HostError> {
        let enrolment = match read_bounded(certificate_file, MAX_MESSAGE) {
            Ok(json) => {
                let message =
                    Certificate::from_json(&json).map_err(|source| HostError::Message {
                        path: certificate_file.to_owned(),
                        source,
                    })?;
                Some(Arc::new(Enrolment::read(&message)?))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(source) => {
                return Err(HostError::File {
                    path: certificate_file.to_owned(),
                    action: "read",
                    source,
                });
            }
        };
        Ok(Self {
            anchor,
            certificate_file: certificate_file.to_owned(),
            enrolment: RwLock::new(enrolment),
            keyring: OnceCell::new(),
            storage_root_key: OnceCell::new(),
        })
    }

    /// Makes the host's keys, if they are not there.
    pub async fn initialise(&self, policy_key: &PolicyKeyPublic) -> Result<HostPublic, HostError> {
        Ok(self.anchor.provision(policy_key).await?)
    }

    /// The host's keys.
    pub async fn public(&self) -> Result<HostPublic, HostError> {
        Ok(self.anchor.host_public().await?)
    }

    /// What the keys are bound to.
    pub async fn policy(&self) -> Result<HostPolicy, HostError> {
        Ok(self.anchor.policy().await?)
    }

    /// Takes up an operator's approval.
    pub async fn approve(&self, approval: Approval) -> Result<(), HostError> {
        Ok(self.anchor.approve(approval).await?)
    }

    /// First message of an enrolment: asks to be certified under this label.
    pub async fn request(&self, label: String) -> Result<Request, HostError> {
        let public = self.public().await?;
        Ok(Request {
            host: label,
            ek_certificate: public.ek_certificate,
            ek_chain: public.ek_chain,
            ek: public.ek_public.public_area().as_bytes().to_vec(),
            ik: public.ik_public.public_area().as_bytes().to_vec(),
            policy_key: public.policy_key.as_bytes().to_vec(),
            policy_ref: HOST_POLICY_REF.to_vec(),
        })
    }

    /// Third message: the secret in the issuer's challenge.
    pub async fn answer(&self, challenge: &Challenge) -> Result<Answer, HostError> {
        let credential: &CredentialBlob = &challenge.credential;
        let secret = self.anchor.activate_credential(credential).await?;
        Ok(Answer {
            enrolment: challenge.enrolment,
            secret: secret.to_vec(),
        })
    }

    /// Takes the fourth message: checks that the certificate is for this host's keys, keeps it.
    pub async fn install(&self, message: &Certificate) -> Result<Arc<Enrolment>, HostError> {
        let enrolment = Arc::new(Enrolment::read(message)?);
        belongs(&enrolment, &self.public().await?)?;
        durable_file::replace(&self.certificate_file, message.to_json().as_bytes(), 0o600)
            .map_err(|source| HostError::File {
                path: self.certificate_file.clone(),
                action: "written",
                source,
            })?;
        let mut installed = self
            .enrolment
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        *installed = Some(Arc::clone(&enrolment));
        Ok(enrolment)
    }

    /// The host's certificate, if it has one.
    pub fn enrolment(&self) -> Option<Arc<Enrolment>> {
        self.enrolment
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// What issuing a certificate takes: the host's own, still valid, and its key; and that the
    /// TPM with that key is the one to which all that is secret went.
    pub async fn issuer(&self) -> Result<(Arc<Enrolment>, HostIkSigner), HostError> {
        let enrolment = self.enrolment().ok_or(HostError::NotEnrolled)?;
        let not_after = Timestamp::new(enrolment.certificate.not_after().as_secs());
        if not_after <= Timestamp::now() {
            return Err(HostError::Expired { not_after });
        }
        let public = self.public().await?;
        belongs(&enrolment, &public)?;
        self.storage_root_key
            .get_or_try_init(|| self.anchor.certify_storage_root_key(&public.ik_public))
            .await?;
        Ok((enrolment, self.anchor.ik_signer(&public.ik_public)))
    }

    /// The keys of the vRoTs. The root secret is unsealed the first time.
    pub async fn keyring(&self) -> Result<Arc<Keyring>, HostError> {
        let keyring = self
            .keyring
            .get_or_try_init(|| async {
                let root = self.anchor.root_secret().await?;
                Ok::<_, HostError>(Arc::new(Keyring::derive(root.expose())?))
            })
            .await?;
        Ok(Arc::clone(keyring))
    }

    /// The handle to the TPM.
    pub fn anchor(&self) -> &TrustAnchor {
        &self.anchor
    }
}

impl Enrolment {
    fn read(message: &Certificate) -> Result<Self, HostError> {
        Ok(Self {
            certificate: HostCertificate::read(&message.certificate)
                .map_err(HostError::CertificateProfile)?,
            root: message.root.clone(),
        })
    }

    /// The host's name.
    pub fn host(&self) -> &HostName {
        self.certificate.host()
    }
}

/// A certificate counts beside the keys that it speaks of only. Both lie in files, which somebody
/// may have changed while the manager was down.
fn belongs(enrolment: &Enrolment, host: &HostPublic) -> Result<(), HostError> {
    let claims = enrolment.certificate.claims();
    for (which, found, own) in [
        ("host IK", &claims.ik, host.ik_public.name()),
        ("endorsement key", &claims.ek, host.ek_public.name()),
        ("policy key", &claims.policy_key, host.policy_key.name()),
    ] {
        if *found != own {
            return Err(HostError::CertificateOfAnother {
                which,
                found: found.clone(),
                own,
            });
        }
    }
    Ok(())
}
