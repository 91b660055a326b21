//! What can go wrong between the manager and the physical TPM.

use std::fmt;
use std::path::PathBuf;

use cert_chain::{HashAlgorithm, PcrSelection, TpmName};
use tpm_wire::{Disposition, Operation, ResponseCode};

use super::policy::PcrDifference;

/// Why the trust anchor did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum AnchorError {
    /// An approval that the policy key did not sign.
    #[error(
        "the approval is not signed by policy key {policy_key}: sign it with that key, \
         `vtpmctl host policy sign`"
    )]
    ApprovalSignature {
        /// The key the host was provisioned with.
        policy_key: TpmName,
    },
    /// An approval of another bank than the host quotes.
    #[error(
        "the approval is of PCRs in the {found} bank, and this host goes by its {bank} bank: have \
         the values of that bank signed, `vtpmctl host policy show`; or set `pcr_bank = \"{found}\"` \
         in the manager's configuration"
    )]
    ApprovalBank {
        /// The bank in the approval.
        found: HashAlgorithm,
        /// The host's.
        bank: HashAlgorithm,
    },
    /// An approval of the state in which a bank is that nothing was measured into.
    #[error(
        "the approval is of PCRs 0 to 7 ({bank}) as they are after a reset, and this host has a \
         boot measured into them: whoever approved that approved nothing that boots here"
    )]
    ApprovalUnextended {
        /// The bank.
        bank: HashAlgorithm,
    },
    /// An approval of other PCRs than the host is configured for.
    #[error("the approval is for PCRs {found}, this host's policy is over PCRs {configured}")]
    ApprovalSelection {
        /// PCRs in the approval.
        found: PcrSelection,
        /// PCRs configured.
        configured: PcrSelection,
    },
    /// The bank that would be taken is one that nothing measures into.
    #[error(
        "no boot was measured into the TPM's {bank} bank (its PCRs 0 to 7 are as after a reset), but \
         one into its {extended} bank: whoever gets at the TPM can extend {bank} to any value, so it \
         is neither approved nor quoted. Have the firmware measure into it, or deactivate it in the \
         firmware's setup and use a bank that is measured into (sha256, sha384 or sha512; `pcr_bank` \
         in the manager's configuration)"
    )]
    BankUnextended {
        /// The bank that would be taken.
        bank: HashAlgorithm,
        /// One that a boot was measured into.
        extended: HashAlgorithm,
    },
    /// Too many requests wait for the TPM.
    #[error("{limit} {queue} wait for the TPM already: try again in a moment")]
    Busy {
        /// Which queue is full.
        queue: &'static str,
        /// Its length.
        limit: usize,
    },
    /// The TPM, or the way to it, failed.
    #[error(transparent)]
    Hardware(#[from] HardwareError),
    /// Nothing was approved yet.
    #[error(
        "no PCR values of the {bank} bank are approved on this host: sign the present ones with \
         `vtpmctl host policy sign`"
    )]
    NoApproval {
        /// The host's bank.
        bank: HashAlgorithm,
    },
    /// The TPM has no bank that can be used.
    #[error(
        "the TPM has no active {wanted} bank; active are {active}. Activate one in the firmware's \
         setup, or set `pcr_bank` in the manager's configuration to one that is active"
    )]
    NoBank {
        /// What would do.
        wanted: BankList,
        /// What it has.
        active: BankList,
    },
    /// The host has no keys of ours yet.
    #[error("this host is not provisioned: run `vtpmctl host init`")]
    NotProvisioned,
    /// The host booted something that was not approved.
    #[error(
        "this host's PCRs are not as approved: {}; nothing was changed. If the change is wanted, \
         approve the present values with `vtpmctl host policy sign`; otherwise restore what the \
         host booted before",
        list(differences)
    )]
    PcrsNotApproved {
        /// Where the PCRs differ from the nearest approval.
        differences: Vec<PcrDifference>,
    },
    /// PCRs kept changing while a policy was being satisfied.
    #[error(
        "PCRs changed during each of {attempts} attempts to use a key: try again when the host has finished starting"
    )]
    PcrsUnsteady {
        /// How often it was tried.
        attempts: u32,
    },
    /// The host was provisioned for another operator.
    #[error(
        "this host is provisioned for policy key {found}, not {wanted}: a change of operator \
         needs new keys, so move its record `{}` away first and enrol the host again",
        record.display()
    )]
    PolicyKeyMismatch {
        /// The key in the record.
        found: TpmName,
        /// The key given now.
        wanted: TpmName,
        /// Where the record is.
        record: PathBuf,
    },
    /// The record of what was provisioned cannot be used.
    #[error("`{}` {problem}", path.display())]
    Record {
        /// The file.
        path: PathBuf,
        /// What was tried.
        problem: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// A sealed root secret that this host did not seal, or not while it ran as approved.
    #[error(
        "the root secret in `{}` is not vouched for by this host's identity key {ik}: somebody \
         put it there. Restore the record from a backup; nothing was opened",
        record.display()
    )]
    RootSecretForeign {
        /// Where the record is.
        record: PathBuf,
        /// The key that would have to have signed it.
        ik: TpmName,
    },
    /// The host has keys, but no root secret yet: it never ran as approved.
    #[error(
        "this host has no root secret yet: run `vtpmctl host init` once its PCR values are approved"
    )]
    RootSecretMissing,
    /// The TPM takes longer than any TPM needs.
    #[error(
        "the physical TPM (`{tpm}`) has not answered for {seconds} s: what was asked of it is given \
         up. All goes on by itself once it answers. Until then look after it: the kernel's messages \
         for a chip, the process for a swtpm"
    )]
    Silent {
        /// The TPM, as configured.
        tpm: String,
        /// For how long.
        seconds: u64,
    },
    /// The caller had given the request up.
    #[error("the TPM answered too late: nothing of it is kept")]
    TooLate,
    /// The key to which sessions are salted may not be in this TPM.
    #[error(
        "the host's identity key does not certify the storage root key {srk}, to which everything \
         secret was encrypted on its way to the TPM: something between manager and TPM may know it \
         all. Examine the host; then move its record `{}` away, and make and enrol its keys anew",
        record.display()
    )]
    StorageRootKey {
        /// Name of the recorded key.
        srk: TpmName,
        /// Where the record is.
        record: PathBuf,
    },
    /// The owner thread has ended.
    #[error("the thread that owns the TPM has ended: restart the manager and look into its log")]
    Stopped,
    /// The TPM in front of us is not the one the record speaks of.
    #[error(
        "the TPM is another one than recorded in `{}`, or it was cleared: its storage root key is \
         {found}, recorded is {recorded}. Restore the TPM, or move the record away and enrol the \
         host anew; its vRoTs cannot be opened with this TPM",
        record.display()
    )]
    TpmReplaced {
        /// Name of the key found.
        found: TpmName,
        /// Name of the key recorded.
        recorded: TpmName,
        /// Where the record is.
        record: PathBuf,
    },
}

/// Why the hardware root did not do what it was asked for.
#[derive(Debug, thiserror::Error)]
pub enum HardwareError {
    /// The answer contradicts itself, or what we can compute without the TPM.
    #[error(
        "{operation}: what came back is not the TPM's answer to what was sent. Nothing came of it. \
         Something on the way to the TPM changes what passes: examine the host"
    )]
    Altered {
        /// Which command.
        operation: Operation,
    },
    /// The stand-in for a Unix socket could not be set up.
    #[error("{operation}: the connection to swtpm's socket could not be bridged")]
    Bridge {
        /// What it was for.
        operation: Operation,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A software TPM's Unix socket, in a build that cannot use it.
    #[error(
        "`swtpm:path=SOCKET` needs a build with the feature `software-tpm`: set `tpm` to \
         `device:/dev/tpmrm0`, or to `swtpm:host=HOST,port=PORT`"
    )]
    NoUnixSockets,
    /// The endorsement key has no certificate in NV memory.
    #[error(
        "the TPM has no endorsement key certificate at NV index 0x01c0000a or 0x01c00002: the \
         issuer cannot know it. A TPM's maker puts it there (for swtpm: `swtpm_setup \
         --create-ek-cert`)"
    )]
    NoEkCertificate,
    /// A PCR that the bank does not have.
    #[error("the TPM's {bank} bank does not have the PCRs {pcrs}")]
    NoPcr {
        /// The bank.
        bank: HashAlgorithm,
        /// The PCRs.
        pcrs: PcrSelection,
    },
    /// The PCRs that were read are not those that were quoted just before.
    #[error(
        "the host's PCRs changed while they were quoted, or were altered on the way from the TPM: \
         leave out of `quoted_pcrs` what goes on being extended after the boot"
    )]
    PcrsChange,
    /// A persistent handle that we need holds something else.
    #[error(
        "handle 0x{handle:08x} holds {found}: {reason}. Move it with `tpm2_evictcontrol`, or set \
         another handle"
    )]
    Occupied {
        /// The persistent handle.
        handle: u32,
        /// Name of the object in it.
        found: String,
        /// Why it cannot be used.
        reason: &'static str,
    },
    /// The TPM returned something that is not what the command returns.
    #[error("{operation}: the TPM returned {what} that cannot be used")]
    Response {
        /// Which command.
        operation: Operation,
        /// What was returned.
        what: &'static str,
    },
    /// The software stack refused the command before the TPM saw it.
    #[error("{operation}: the TPM software stack refused it")]
    Stack {
        /// Which command.
        operation: Operation,
        /// Why.
        #[source]
        source: tss_esapi::Error,
    },
    /// The TPM answered with an error.
    #[error("{operation} failed with {code}")]
    Tpm {
        /// Which command.
        operation: Operation,
        /// The answer.
        code: ResponseCode,
    },
    /// A message too long for a restricted key.
    #[error("a restricted key signs at most {limit} bytes, not {length}")]
    TooLong {
        /// Its length.
        length: usize,
        /// What one `TPM2_Hash` takes.
        limit: usize,
    },
}

/// PCR banks, for messages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BankList(pub Vec<HashAlgorithm>);

impl fmt::Display for BankList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.0.iter().map(|bank| bank.name()).collect();
        match names.as_slice() {
            [] => f.write_str("none"),
            names => f.write_str(&names.join(", ")),
        }
    }
}

fn list(differences: &[PcrDifference]) -> String {
    let texts: Vec<String> = differences.iter().map(ToString::to_string).collect();
    texts.join("; ")
}

impl HardwareError {
    /// What to do about it.
    pub fn disposition(&self) -> Disposition {
        match self {
            // The PCRs do not have the values that the approval names (Part 3 §23.7).
            Self::Tpm {
                operation: Operation::POLICY_PCR,
                code,
            } if code.without_position() == ResponseCode::VALUE => Disposition::PolicyRefused,
            Self::Tpm { code, .. } => code.disposition(),
            Self::Bridge { .. } => Disposition::ConnectionLost,
            _ => Disposition::Final,
        }
    }
}
