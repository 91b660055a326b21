//! Path validation, with the outcome as a type: only a chain that was verified becomes a
//! [`VerifiedVikChain`].

use rustls_pki_types::{CertificateDer, SignatureVerificationAlgorithm, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, VerifiedPath};

use crate::claims::{HostClaims, VikClaims};
use crate::identifiers::HostName;
use crate::profile::ProfileError;
use crate::profile::host_ik::HostCertificate;
use crate::profile::vik::{AIK_PURPOSE_DER, VikCertificate};
use crate::revocation::{CheckedRevocation, RevocationError, RevocationStatus};
use crate::trust_anchors::{Root, RootValidity, TrustAnchors};

/// A vIK's chain as it is carried in evidence and in a vRoT's NV memory: the vIK's certificate
/// and the host's, never a root. Nothing about it is verified yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VikChain {
    vik: CertificateDer<'static>,
    host: CertificateDer<'static>,
}

/// A chain that leads from a vIK to a trust anchor and follows the profiles.
///
/// It establishes that the issuer named this host, that the host named this vRoT, and which
/// keys they meant. It does not establish that the host or the VM is in an acceptable state,
/// nor that it is present: evidence does.
#[derive(Clone, Debug)]
pub struct VerifiedVikChain {
    chain: VikChain,
    vik: VikFacts,
    host: HostCertificate,
    root: RootValidity,
    revocation: CheckedRevocation,
}

#[derive(Clone, Debug)]
struct VikFacts {
    claims: VikClaims,
    subject_public_key_info: Vec<u8>,
    not_before: UnixTime,
    not_after: UnixTime,
}

/// Which certificate of the chain is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainMember {
    /// The vIK's certificate.
    Vik,
    /// The host's certificate.
    Host,
    /// The device's certificate.
    Device,
    /// A TLS client's own certificate.
    Client,
    /// A time-stamp authority's certificate, or one between it and its root.
    TimeStampAuthority,
}

/// Why a chain was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChainError {
    /// Not two certificates.
    #[error("the chain has {found} certificates: it must be the vIK's and the host's, no root")]
    CertificateCount {
        /// How many there are.
        found: usize,
    },
    /// A certificate's validity is over.
    #[error("a certificate of the chain expired at {not_after} (Unix time; it is {at})")]
    Expired {
        /// Last second of its validity.
        not_after: u64,
        /// The time of the check.
        at: u64,
    },
    /// The host's certificate is not one that may issue.
    #[error("the host's certificate is not a CA certificate: it may not issue a vIK's")]
    HostIsNoCa,
    /// The attestation key's certificate is a CA certificate.
    #[error("the attestation key's certificate is a CA certificate: it may not issue")]
    LeafIsCa,
    /// Not parsable as a certificate, or not as strictly as needed.
    #[error("the {member} certificate is malformed")]
    Malformed {
        /// Which certificate.
        member: ChainMember,
        /// Why.
        #[source]
        source: webpki::Error,
    },
    /// A name outside what the issuing certificate may name.
    #[error("a certificate names something outside its issuer's name constraints")]
    NameConstraint,
    /// Not certified for time stamps.
    #[error(
        "the certificate is not a time-stamp authority's: RFC 3161 demands a critical extended key usage of \
         1.3.6.1.5.5.7.3.8 alone"
    )]
    NoTimeStampAuthority,
    /// A certificate's validity has not begun.
    #[error("a certificate of the chain is not valid before {not_before} (Unix time; it is {at})")]
    NotYetValid {
        /// First second of its validity.
        not_before: u64,
        /// The time of the check.
        at: u64,
    },
    /// No trust anchor issued the host's certificate, or the host did not issue the vIK's.
    #[error("the chain does not lead to a trusted root: another issuer made it")]
    OtherIssuer,
    /// More CA certificates than an issuer's path length allows.
    #[error("the chain is longer than an issuer in it allows")]
    PathLength,
    /// A certificate departs from the profile.
    #[error("the {member} certificate does not follow its profile")]
    Profile {
        /// Which certificate.
        member: ChainMember,
        /// How it departs.
        #[source]
        source: ProfileError,
    },
    /// The certificate that the issuer made was revoked, or it is not known whether it was.
    #[error(transparent)]
    Revocation(#[from] RevocationError),
    /// The root's own validity is over.
    #[error("the root that the chain leads to expired at {not_after} (Unix time; it is {at})")]
    RootExpired {
        /// Last second of its validity.
        not_after: u64,
        /// The time of the check.
        at: u64,
    },
    /// The root's own validity has not begun.
    #[error(
        "the root that the chain leads to is not valid before {not_before} (Unix time; it is {at})"
    )]
    RootNotYetValid {
        /// First second of its validity.
        not_before: u64,
        /// The time of the check.
        at: u64,
    },
    /// A signature does not verify.
    #[error("a signature in the chain does not verify")]
    Signature,
    /// An extended key usage other than that of an attestation key.
    #[error("the certificate is not meant for attestation keys (2.23.133.8.3)")]
    Usage,
    /// The path is refused for another reason.
    #[error("the chain does not validate")]
    Validation(#[source] webpki::Error),
}

impl VikChain {
    /// Takes the certificates as listed: first the vIK's, then the host's.
    pub fn from_der_list<C: AsRef<[u8]>>(certificates: &[C]) -> Result<Self, ChainError> {
        match certificates {
            [vik, host] => Ok(Self {
                vik: CertificateDer::from(vik.as_ref().to_vec()),
                host: CertificateDer::from(host.as_ref().to_vec()),
            }),
            _ => Err(ChainError::CertificateCount {
                found: certificates.len(),
            }),
        }
    }

    /// Splits certificates that stand one after the other.
    pub fn from_concatenated_der(bytes: &[u8]) -> Result<Self, ChainError> {
        let mut certificates = Vec::new();
        let mut rest = bytes;
        while !rest.is_empty() {
            let member = if certificates.is_empty() {
                ChainMember::Vik
            } else {
                ChainMember::Host
            };
            let (certificate, behind) = split_sequence(rest).ok_or(ChainError::Malformed {
                member,
                source: webpki::Error::BadDer,
            })?;
            certificates.push(certificate);
            if certificates.len() > MAX_CONCATENATED {
                break;
            }
            rest = behind;
        }
        Self::from_der_list(&certificates)
    }

    /// The vIK's certificate.
    pub fn vik_certificate(&self) -> &CertificateDer<'static> {
        &self.vik
    }

    /// The host's certificate.
    pub fn host_certificate(&self) -> &CertificateDer<'static> {
        &self.host
    }

    /// Validates the path as of `at`, compares both certificates with their profiles, and looks for
    /// the host's in the revocation lists that the anchors come with.
    ///
    /// Hosts make no revocation lists: a vIK's certificate lives for a day. With a host's
    /// certificate all that it certified are revoked.
    pub fn verify(
        &self,
        anchors: &TrustAnchors,
        at: UnixTime,
    ) -> Result<VerifiedVikChain, ChainError> {
        let intermediates = std::slice::from_ref(&self.host);
        let root = root_of_path(ChainMember::Vik, &self.vik, intermediates, anchors, at)?;
        let host = HostCertificate::read(&self.host).map_err(|source| ChainError::Profile {
            member: ChainMember::Host,
            source,
        })?;
        let vik =
            VikCertificate::read(&self.vik, host.host()).map_err(|source| ChainError::Profile {
                member: ChainMember::Vik,
                source,
            })?;
        let subject = host.host().to_string();
        let revocation = anchors.revocation_of(&subject, host.serial(), &root.anchor, at)?;
        Ok(VerifiedVikChain {
            chain: self.clone(),
            vik: VikFacts {
                claims: vik.claims,
                subject_public_key_info: vik.subject_public_key_info,
                not_before: vik.not_before,
                not_after: vik.not_after,
            },
            host,
            root: root.validity,
            revocation,
        })
    }
}

/// The root to which a certificate leads through all of these certificates, which are hosts'.
pub(crate) fn root_of_path(
    member: ChainMember,
    certificate: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    anchors: &TrustAnchors,
    at: UnixTime,
) -> Result<Root, ChainError> {
    let malformed = |member| move |source| ChainError::Malformed { member, source };
    let leaf = EndEntityCert::try_from(certificate).map_err(malformed(member))?;
    for host in intermediates {
        EndEntityCert::try_from(host).map_err(malformed(ChainMember::Host))?;
    }
    let algorithms = anchors.signature_algorithms();
    let algorithms = algorithms.each_ref().map(|algorithm| algorithm as _);
    let valid = anchors.valid_at(at);
    let refused = match validate(&leaf, intermediates, &valid, &algorithms, at) {
        Ok(path) => return root_of(anchors, &path),
        Err(refused) => refused,
    };
    let of_all = validate(&leaf, intermediates, anchors.as_slice(), &algorithms, at);
    Err(refusal(anchors, refused, of_all, at))
}

/// Why a path is refused, given what comes of all roots: those that are not valid may tell more, and never excuse
/// anything.
pub(crate) fn refusal(
    anchors: &TrustAnchors,
    refused: ChainError,
    of_all: Result<VerifiedPath<'_>, ChainError>,
    at: UnixTime,
) -> ChainError {
    match of_all {
        Ok(path) => match root_of(anchors, &path) {
            Ok(root) => ChainError::of_root(root.validity, at),
            Err(error) => error,
        },
        Err(of_all) if matches!(refused, ChainError::OtherIssuer) => of_all,
        Err(_) => refused,
    }
}

fn validate<'p>(
    leaf: &'p EndEntityCert<'p>,
    intermediates: &'p [CertificateDer<'p>],
    anchors: &'p [TrustAnchor<'p>],
    algorithms: &[&dyn SignatureVerificationAlgorithm],
    at: UnixTime,
) -> Result<VerifiedPath<'p>, ChainError> {
    let path = leaf
        .verify_for_usage(
            algorithms,
            anchors,
            intermediates,
            at,
            // "If present" because the host's certificate has none; the profiles of attestation keys
            // demand exactly this one.
            KeyUsage::required_if_present(AIK_PURPOSE_DER),
            None,
            None,
        )
        .map_err(ChainError::from_validation)?;
    // A vIK certified by a root itself would be a path too, but no host vouches for it.
    if path.intermediate_certificates().count() == intermediates.len() {
        Ok(path)
    } else {
        Err(ChainError::OtherIssuer)
    }
}

/// A root with its validity, which path validation ignores (RFC 5280 §6.1.1 takes a root for a name and
/// a key).
pub(crate) fn root_of(anchors: &TrustAnchors, path: &VerifiedPath<'_>) -> Result<Root, ChainError> {
    let validity = anchors
        .validity_of(path.anchor())
        .ok_or(ChainError::OtherIssuer)?;
    Ok(Root {
        anchor: path.anchor().to_owned(),
        validity,
    })
}

impl VerifiedVikChain {
    /// The certificates themselves.
    pub fn chain(&self) -> &VikChain {
        &self.chain
    }

    /// What the host's manager claims about the vRoT.
    pub fn claims(&self) -> &VikClaims {
        &self.vik.claims
    }

    /// What the issuer claims about the host: among others the name of the host IK, which the
    /// host's quote must have been made with.
    pub fn host_claims(&self) -> &HostClaims {
        self.host.claims()
    }

    /// The vIK as SubjectPublicKeyInfo in DER.
    pub fn vik_spki(&self) -> &[u8] {
        &self.vik.subject_public_key_info
    }

    /// The host IK as SubjectPublicKeyInfo in DER.
    pub fn host_spki(&self) -> &[u8] {
        self.host.subject_public_key_info()
    }

    /// The host that vouches for the vRoT.
    pub fn host(&self) -> &HostName {
        self.host.host()
    }

    /// The issuer's distinguished name, for people to read.
    pub fn issuer(&self) -> &str {
        self.host.issuer()
    }

    /// What is known about the revocation of the host's certificate.
    pub fn revocation(&self) -> &RevocationStatus {
        self.revocation.status()
    }

    /// From when on both certificates and their root are valid.
    pub fn not_before(&self) -> UnixTime {
        let below = self.vik.not_before.max(self.host.not_before());
        below.max(self.root.not_before)
    }

    /// Until when both certificates and their root are valid, and the revocation list is what was
    /// demanded.
    pub fn not_after(&self) -> UnixTime {
        let below = self.vik.not_after.min(self.host.not_after());
        self.revocation.limit(below.min(self.root.not_after))
    }
}

impl ChainError {
    fn of_root(root: RootValidity, at: UnixTime) -> Self {
        if at < root.not_before {
            Self::RootNotYetValid {
                not_before: root.not_before.as_secs(),
                at: at.as_secs(),
            }
        } else {
            Self::RootExpired {
                not_after: root.not_after.as_secs(),
                at: at.as_secs(),
            }
        }
    }

    pub(crate) fn from_validation(error: webpki::Error) -> Self {
        use webpki::Error as E;
        match error {
            E::CertExpired { time, not_after } => Self::Expired {
                not_after: not_after.as_secs(),
                at: time.as_secs(),
            },
            E::CertNotValidYet { time, not_before } => Self::NotYetValid {
                not_before: not_before.as_secs(),
                at: time.as_secs(),
            },
            E::CaUsedAsEndEntity => Self::LeafIsCa,
            E::EndEntityUsedAsCa => Self::HostIsNoCa,
            E::InvalidSignatureForPublicKey => Self::Signature,
            E::NameConstraintViolation => Self::NameConstraint,
            E::PathLenConstraintViolated => Self::PathLength,
            E::RequiredEkuNotFoundContext(_) => Self::Usage,
            E::UnknownIssuer => Self::OtherIssuer,
            other => Self::Validation(other),
        }
    }
}

impl std::fmt::Display for ChainMember {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Vik => "vIK's",
            Self::Host => "host's",
            Self::Device => "device's",
            Self::Client => "client's",
            Self::TimeStampAuthority => "time-stamp authority's",
        })
    }
}

/// Where splitting stops: the error can then still tell "too many" from "two".
const MAX_CONCATENATED: usize = 3;

/// Splits off a DER SEQUENCE with a length in short form or in one or two further octets.
fn split_sequence(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    const SEQUENCE: u8 = 0x30;
    let (header, length) = match *bytes {
        [SEQUENCE, length @ 0..=0x7f, ..] => (2, usize::from(length)),
        [SEQUENCE, 0x81, length, ..] => (3, usize::from(length)),
        [SEQUENCE, 0x82, high, low, ..] => (4, usize::from(u16::from_be_bytes([high, low]))),
        _ => return None,
    };
    bytes.split_at_checked(header + length)
}
