//! Why a key of an operator, or an approval, is refused.

use crate::HashAlgorithm;
use crate::pcr::PcrValuesError;
use crate::pem::FileError;

/// Why a key or an approval was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ApprovalError {
    /// Not a private key as we write it.
    #[error(
        "this is no PEM file with the operator's private key, an ECDSA P-256 key in PKCS #8, as \
         `vtpmctl host policy keygen` makes it"
    )]
    Key,
    /// A note that cannot be shown.
    #[error(
        "the label of an approval has at most {MAX_LABEL} characters, all of them visible and on \
         one line"
    )]
    Label,
    /// A text that does not show what it is.
    #[error(
        "{field} of the approval has characters that cannot be seen or that terminals obey: sign \
         it again without them"
    )]
    Unprintable {
        /// Where.
        field: String,
    },
    /// A file in which not everything can be read.
    #[error("{0}")]
    KeyFile(FileError),
    /// A private key where its public half is needed.
    #[error(
        "this is a private key, and here its public half is needed: the file that \
         `vtpmctl host policy keygen` wrote beside it, with the ending .pub"
    )]
    PrivateKey,
    /// Not a public area of a policy key.
    #[error("the policy key's public area is refused: it must be that of a P-256 key which signs")]
    PublicKey,
    /// Not the public key of an operator.
    #[error(
        "this is no PEM file with the public key of an operator (`-----BEGIN PUBLIC KEY-----`, \
         P-256), as `vtpmctl host policy keygen` makes it"
    )]
    PublicKeyFile,
    /// Not an approval as we write it.
    #[error("the approval is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The bank is not named, or cannot be relied on.
    #[error(
        "an approval names the PCR bank that it is of, in `bank`: sha256, sha384 or sha512{}",
        found.map(|bank| format!(", and not {bank}")).unwrap_or_default()
    )]
    Bank {
        /// The bank that it names.
        found: Option<HashAlgorithm>,
    },
    /// A PCR that does not exist, or a value of another bank.
    #[error("the approval's PCR values cannot be used")]
    Values(#[from] PcrValuesError),
    /// Another kind of file, or a version from the future.
    #[error(
        "this is `{kind}` in version {version}, `{expected}` in a version up to {VERSION} is needed"
    )]
    Type {
        /// What it should be.
        expected: &'static str,
        /// What the file says it is.
        kind: String,
        /// Its version.
        version: u32,
    },
    /// The system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// No PCR is named.
    #[error("an approval of no PCRs would approve everything")]
    NoPcrs,
}

/// Most characters of a label: a version, a date or a ticket.
pub(super) const MAX_LABEL: usize = 200;
/// `version` of an approval as it is written; version 2 names the PCR bank.
pub(super) const VERSION: u32 = 2;
