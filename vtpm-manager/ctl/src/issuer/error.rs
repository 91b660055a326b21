//! Why the issuer did not do what it was asked for.

use std::io;
use std::path::{Path, PathBuf};

use api_types::Timestamp;
use cert_chain::TrustAnchorError;
use cert_chain::enrolment::EnrolmentError;
use cert_chain::operator::ApprovalError;
use cert_chain::{CertificateSerial, DeviceName, HostName, IssueError, Tenant, TpmName};

/// Why the issuer did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub(crate) enum IssuerError {
    /// The revocation list cannot be made.
    #[error("the revocation list cannot be made")]
    Crl {
        /// Why.
        #[source]
        source: IssueError,
    },
    /// The name belongs to another device.
    #[error(
        "`{device}` is the name of the device whose TPM has endorsement key {owner}; the one that asks \
         has {found}. Choose another name, or give this one away: revoke its certificates (`vtpmctl issuer \
         revoke`), and remove `{}`",
        file.display()
    )]
    DeviceNameTaken {
        /// The name.
        device: DeviceName,
        /// Endorsement key of its owner.
        owner: TpmName,
        /// Endorsement key of the device that asks.
        found: TpmName,
        /// Where this is written down.
        file: Box<Path>,
    },
    /// The TPM was certified as another device's.
    #[error(
        "the device that asks for the name `{device}` has the {which} of `{owner}`: one TPM has one \
         name. If it is to be renamed, revoke the certificates under the old name (`vtpmctl issuer revoke`), \
         and remove `{}`",
        file.display()
    )]
    DeviceTpmKnown {
        /// Which of its keys is known.
        which: &'static str,
        /// The name that it has.
        owner: DeviceName,
        /// The name that it asks for.
        device: Box<DeviceName>,
        /// Where this is written down.
        file: Box<Path>,
    },
    /// The device asks for another name than it is to get.
    #[error(
        "the request asks for the name `{asked}`, and --device says `{expected}`: whoever sent it is \
         not the device that you mean, or has to ask for that name"
    )]
    DeviceUnexpected {
        /// The name in the request.
        asked: String,
        /// The name that the administrator gave.
        expected: String,
    },
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
    /// The key may be in somebody else's hands.
    #[error(
        "`{subject}` asks for a certificate for the key of certificate {serial}, which was revoked on \
         {since} because somebody else may have that key. A host makes new keys first; a device has one key \
         as long as it has this TPM"
    )]
    KeyRevoked {
        /// Who asks.
        subject: String,
        /// The revoked certificate.
        serial: CertificateSerial,
        /// Since when it is.
        since: Timestamp,
    },
    /// No number is left for another revocation list.
    #[error(
        "`{}` has the highest number that a revocation list can have: put the number of the newest list there \
         that any verifier was given",
        path.display()
    )]
    LastNumber {
        /// The file.
        path: PathBuf,
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
         asks has {found}. Choose another name, or give this one away: revoke its certificates (`vtpmctl \
         issuer revoke`), and remove `{}`",
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
        file: Box<Path>,
    },
    /// No such certificate is known.
    #[error(
        "this issuer knows no certificate of `{subject}` that has not expired. If it was issued by an \
         earlier version, name the file that has it: --certificate FILE"
    )]
    NothingIssued {
        /// Whose.
        subject: String,
    },
    /// Somebody else made the certificate.
    #[error("`{}` has no certificate that this issuer made: there is nothing to revoke", path.display())]
    NotIssued {
        /// The file.
        path: PathBuf,
    },
    /// The host was certified under another operator's key.
    #[error(
        "`{host}` was certified under operator key {recorded}, and now asks under {found}. If its \
         operator wants that, pass --replace-operator-key; `{}` records it",
        file.display()
    )]
    OperatorKeyChanged {
        /// The name.
        host: HostName,
        /// Operator key of its present certificate.
        recorded: TpmName,
        /// Operator key of the host that asks.
        found: TpmName,
        /// Where this is written down.
        file: Box<Path>,
    },
    /// Operator keys that cannot be used.
    #[error("the operator keys in `{}` cannot be used", path.display())]
    OperatorKeys {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: ApprovalError,
    },
    /// The tenant's certificate cannot be made.
    #[error("the certificate of tenant `{tenant}` cannot be made")]
    Tenant {
        /// The tenant.
        tenant: Tenant,
        /// Why.
        #[source]
        source: IssueError,
    },
    /// The TPM was certified under another name.
    #[error(
        "the host that asks for the name `{host}` has the {which} of `{owner}`: one TPM has one \
         name. If it is to be renamed, revoke the certificates under the old name (`vtpmctl issuer revoke`), \
         and remove `{}`",
        file.display()
    )]
    TpmKnown {
        /// Which of its keys is known.
        which: &'static str,
        /// The name that it has.
        owner: HostName,
        /// The name that it asks for.
        host: Box<HostName>,
        /// Where this is written down.
        file: Box<Path>,
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
    /// No such certificate.
    #[error(
        "this issuer knows no certificate with the serial number {serial}. If it was issued by an \
         earlier version, name the file that has it: --certificate FILE"
    )]
    UnknownSerial {
        /// The number.
        serial: CertificateSerial,
    },
    /// No such operator key.
    #[error("this issuer does not accept operator key {operator_key}: there is nothing to remove")]
    UnknownOperatorKey {
        /// Its name.
        operator_key: TpmName,
    },
}
