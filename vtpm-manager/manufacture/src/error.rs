//! Why a vRoT was not manufactured.

use cert_chain::attestation_key::AttestationKeyError;
use cert_chain::endorsement_key::EndorsementKeyError;
use cert_chain::layout::{MAX_INDEX, NvIndex};
use cert_chain::public_area::PublicAreaError;
use cert_chain::{IssueError, TpmName};
use tpm_wire::{Operation, ResponseCode};

/// Why a vRoT was not manufactured, or a certificate in it not renewed. Nothing of a vRoT whose
/// manufacture failed may be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ManufactureError {
    /// The vIK made from its template is not the one that was certified.
    #[error(
        "the vIK made anew from its template is {found}, but {expected} was certified: it was \
         exchanged; no certificate is issued"
    )]
    AnotherVik {
        /// Name of the key found.
        found: TpmName,
        /// Name expected.
        expected: TpmName,
    },
    /// Something in the vRoT is not what a vIK is.
    #[error("the vRoT's identity key is refused")]
    AttestationKey(#[source] AttestationKeyError),
    /// The TPM has no such banks together.
    #[error("the vRoT refuses these PCR banks")]
    Banks,
    /// The connection to the vRoT broke.
    #[error("{operation}: the connection to the vRoT broke")]
    Connection {
        /// The command under way.
        operation: Operation,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// Something in the vRoT is not what an endorsement key is.
    #[error("the vRoT's endorsement key is refused")]
    EndorsementKey(#[source] EndorsementKeyError),
    /// A certificate was not issued.
    #[error("the {which} certificate was not issued")]
    Issue {
        /// Which certificate.
        which: &'static str,
        /// Why.
        #[source]
        source: IssueError,
    },
    /// The vRoT returned a public area that cannot be read.
    #[error("{operation}: the vRoT returned a public area that cannot be read")]
    PublicArea {
        /// Which command.
        operation: Operation,
        /// Why.
        #[source]
        source: PublicAreaError,
    },
    /// The operating system gave no random numbers.
    #[error("the operating system gave no random numbers")]
    Random,
    /// The vRoT's NV memory holds something else than was written.
    #[error("NV index 0x{:08x} does not hold what was written to it", index.handle())]
    ReadBack {
        /// The index.
        index: NvIndex,
    },
    /// The vRoT returned something that is not what the command returns.
    #[error("{operation}: the vRoT's response cannot be read")]
    Response {
        /// Which command.
        operation: Operation,
    },
    /// What is to be written does not fit into its index.
    #[error(
        "NV index 0x{:08x} has room for {room} bytes (at most {MAX_INDEX} are possible), not for \
         {length}",
        index.handle()
    )]
    TooLong {
        /// The index.
        index: NvIndex,
        /// Length of the content.
        length: usize,
        /// Size of the index.
        room: usize,
    },
    /// Something in the vRoT is not what a TLS key is.
    #[error("the vRoT's TLS key is refused")]
    TlsKey(#[source] AttestationKeyError),
    /// The vRoT answered with an error.
    #[error("{operation} failed in the vRoT with {code}")]
    Tpm {
        /// Which command.
        operation: Operation,
        /// The answer.
        code: ResponseCode,
    },
}
