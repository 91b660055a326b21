//! Response codes of a TPM, and what can be done about them.

use std::fmt;

/// A response code (TPM 2.0 Part 2 §6.6, TSS 2.0 Overview §3.3).
///
/// The upper 16 bits say which layer of the software stack spoke; zero is the TPM itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct ResponseCode(u32);

/// What a response code means for whoever sent the command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disposition {
    /// The TPM is busy: the same command may succeed in a moment.
    TryAgain,
    /// A PCR changed while a policy was being satisfied.
    PcrChanged,
    /// The policy is not satisfied.
    PolicyRefused,
    /// There is no connection to the TPM any more.
    ConnectionLost,
    /// Trying again would change nothing.
    Final,
}

impl ResponseCode {
    /// `TPM_RC_SUCCESS`
    pub const SUCCESS: Self = Self(0);
    /// `TPM_RC_VALUE`
    pub const VALUE: Self = Self(0x084);
    /// `TPM_RC_HANDLE`
    pub const HANDLE: Self = Self(0x08b);
    /// `TPM_RC_AUTH_FAIL`
    pub const AUTH_FAIL: Self = Self(0x08e);
    /// `TPM_RC_SIZE`
    pub const SIZE: Self = Self(0x095);
    /// `TPM_RC_POLICY_FAIL`
    pub const POLICY_FAIL: Self = Self(0x09d);
    /// `TPM_RC_BAD_AUTH`
    pub const BAD_AUTH: Self = Self(0x0a2);
    /// `TPM_RC_INITIALIZE`
    pub const INITIALIZE: Self = Self(0x100);
    /// `TPM_RC_FAILURE`: the TPM is not in a state to answer.
    pub const FAILURE: Self = Self(0x101);
    /// `TPM_RC_PCR_CHANGED`
    pub const PCR_CHANGED: Self = Self(0x128);
    /// `TPM_RC_COMMAND_SIZE`
    pub const COMMAND_SIZE: Self = Self(0x142);
    /// `TPM_RC_AUTH_CONTEXT`: a session where none is allowed.
    pub const AUTH_CONTEXT: Self = Self(0x145);
    /// `TPM_RC_NV_UNINITIALIZED`
    pub const NV_UNINITIALIZED: Self = Self(0x14a);
    /// `TPM_RC_NV_DEFINED`
    pub const NV_DEFINED: Self = Self(0x14c);
    /// `TPM_RC_NO_RESULT`
    pub const NO_RESULT: Self = Self(0x154);
    /// `TPM_RC_OBJECT_MEMORY`
    pub const OBJECT_MEMORY: Self = Self(0x902);
    /// `TPM_RC_SESSION_MEMORY`
    pub const SESSION_MEMORY: Self = Self(0x903);
    /// `TPM_RC_YIELDED`
    pub const YIELDED: Self = Self(0x908);
    /// `TPM_RC_CANCELED`
    pub const CANCELED: Self = Self(0x909);
    /// `TPM_RC_TESTING`
    pub const TESTING: Self = Self(0x90a);
    /// `TPM_RC_NV_RATE`
    pub const NV_RATE: Self = Self(0x920);
    /// `TPM_RC_LOCKOUT`
    pub const LOCKOUT: Self = Self(0x921);
    /// `TPM_RC_RETRY`
    pub const RETRY: Self = Self(0x922);
    /// `TPM_RC_NV_UNAVAILABLE`
    pub const NV_UNAVAILABLE: Self = Self(0x923);

    /// Wraps a raw code.
    pub const fn new(code: u32) -> Self {
        Self(code)
    }

    /// The raw code.
    pub const fn raw(self) -> u32 {
        self.0
    }

    /// Whether the command was carried out.
    pub const fn is_success(self) -> bool {
        self.0 == Self::SUCCESS.0
    }

    /// The TPM's code without the number of the handle, session or parameter it is about
    /// (TPM 2.0 Part 2 §6.6.2: bit 7 marks format one, whose bits 6 and 8 to 11 tell which).
    pub const fn without_position(self) -> Self {
        let code = self.0 & 0xfff;
        if code & 0x080 != 0 {
            Self(code & 0x0bf)
        } else {
            Self(code)
        }
    }

    /// The code with the number of the parameter that it is about, from 1 to 15.
    #[must_use]
    pub const fn of_parameter(self, number: u32) -> Self {
        Self(self.0 | 0x040 | (number << 8))
    }

    /// Whether the code tells of the connection, not of a TPM: it comes from the transmission
    /// interface, or from a software stack that waits for an answer which will never come.
    const fn is_transport(self) -> bool {
        matches!(
            ((self.0 >> 16) & 0xff, self.0 & 0xffff),
            (TCTI_LAYER, _) | (ESYS_LAYER | SYS_LAYER, BAD_SEQUENCE)
        )
    }

    /// Whether the software stack refused the TPM's answer; it takes no other command afterwards.
    const fn is_refused_answer(self) -> bool {
        self.0 == RESPONSE_AUTH_FAILED
    }

    /// What to do about it.
    pub fn disposition(self) -> Disposition {
        if self.is_transport() || self.is_refused_answer() {
            return Disposition::ConnectionLost;
        }
        match self.without_position() {
            Self::YIELDED
            | Self::TESTING
            | Self::NV_RATE
            | Self::RETRY
            | Self::NV_UNAVAILABLE
            | Self::OBJECT_MEMORY
            | Self::SESSION_MEMORY
            | MEMORY => Disposition::TryAgain,
            Self::PCR_CHANGED => Disposition::PcrChanged,
            Self::POLICY_FAIL | POLICY => Disposition::PolicyRefused,
            _ => Disposition::Final,
        }
    }

    fn explanation(self) -> (&'static str, &'static str) {
        if self.is_transport() {
            return (
                "no connection",
                "check that the TPM is there and that this user may open it",
            );
        }
        if self.is_refused_answer() {
            return (
                "the answer is not the TPM's",
                "something on the way to the TPM changes what passes: examine the host",
            );
        }
        for (code, name, remedy) in EXPLANATIONS {
            if *code == self.without_position().0 {
                return (name, remedy);
            }
        }
        ("", "see `tpm2_rc_decode` for its meaning")
    }
}

impl fmt::Display for ResponseCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, remedy) = self.explanation();
        write!(f, "0x{:x}", self.0)?;
        if !name.is_empty() {
            write!(f, " ({name})")?;
        }
        write!(f, ": {remedy}")
    }
}

/// `TSS2_ESYS_RC_LAYER`, `TSS2_SYS_RC_LAYER`, `TSS2_TCTI_RC_LAYER` (TSS 2.0 Overview table 2).
const ESYS_LAYER: u32 = 7;
const SYS_LAYER: u32 = 8;
const TCTI_LAYER: u32 = 10;
/// `TSS2_BASE_RC_BAD_SEQUENCE`: after a lost answer the stack takes no other command.
const BAD_SEQUENCE: u32 = 7;

/// `TSS2_ESYS_RC_RSP_AUTH_FAILED`: the HMAC of an answer is wrong.
const RESPONSE_AUTH_FAILED: u32 = 0x0007_001b;

/// `TPM_RC_POLICY`
const POLICY: ResponseCode = ResponseCode(0x126);
/// `TPM_RC_MEMORY`
const MEMORY: ResponseCode = ResponseCode(0x904);

const EXPLANATIONS: &[(u32, &str, &str)] = &[
    (
        0x084,
        "TPM_RC_VALUE",
        "a value was refused, or the object does not exist",
    ),
    (
        0x08b,
        "TPM_RC_HANDLE",
        "the object does not exist in this TPM",
    ),
    (
        0x08e,
        "TPM_RC_AUTH_FAIL",
        "an authorization value is set: the owner and endorsement hierarchies must have an empty one",
    ),
    (
        0x09d,
        "TPM_RC_POLICY_FAIL",
        "the policy is not satisfied: see `vtpmctl host policy show`",
    ),
    (
        0x09f,
        "TPM_RC_INTEGRITY",
        "the sealed data were made by another TPM, or this TPM was cleared",
    ),
    (
        0x0a2,
        "TPM_RC_BAD_AUTH",
        "an authorization value is set: the owner and endorsement hierarchies must have an empty one",
    ),
    (
        0x100,
        "TPM_RC_INITIALIZE",
        "the TPM was not started: its firmware, or swtpm with `--flags startup-clear`, does that",
    ),
    (
        0x101,
        "TPM_RC_FAILURE",
        "the TPM is in failure mode: a restart of the machine may end it",
    ),
    (
        0x120,
        "TPM_RC_DISABLED",
        "a hierarchy of the TPM is disabled: enable it in the firmware's set-up",
    ),
    (0x128, "TPM_RC_PCR_CHANGED", "a PCR changed meanwhile"),
    (
        0x143,
        "TPM_RC_COMMAND_CODE",
        "this TPM does not have the command",
    ),
    (
        0x14b,
        "TPM_RC_NV_SPACE",
        "the TPM's memory is full: remove objects or indices with `tpm2_evictcontrol` or `tpm2_nvundefine`",
    ),
    (0x14c, "TPM_RC_NV_DEFINED", "something is there already"),
    (
        0x902,
        "TPM_RC_OBJECT_MEMORY",
        "other programs hold all object slots: use /dev/tpmrm0, or `tpm2_flushcontext -t`",
    ),
    (
        0x903,
        "TPM_RC_SESSION_MEMORY",
        "other programs hold all sessions: use /dev/tpmrm0, or `tpm2_flushcontext -l`",
    ),
    (
        0x921,
        "TPM_RC_LOCKOUT",
        "the TPM is locked after wrong authorizations: wait, or `tpm2_dictionarylockout --clear-lockout`",
    ),
    (0x922, "TPM_RC_RETRY", "the TPM is busy: try again"),
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_is_understood_whatever_parameter_it_is_about() {
        // TPM_RC_POLICY_FAIL for session 1, TPM_RC_VALUE for parameter 2.
        assert_eq!(
            ResponseCode::new(0x99d).without_position(),
            ResponseCode::POLICY_FAIL
        );
        assert_eq!(
            ResponseCode::new(0x2c4).without_position(),
            ResponseCode::VALUE
        );
        assert_eq!(
            ResponseCode::VALUE.of_parameter(2),
            ResponseCode::new(0x2c4)
        );
        assert_eq!(
            ResponseCode::new(0x99d).disposition(),
            Disposition::PolicyRefused
        );
        assert_eq!(
            ResponseCode::RETRY.disposition(),
            Disposition::TryAgain,
            "libtpms answers so to a first P-256 quote"
        );
    }

    #[test]
    fn an_error_of_the_connection_is_not_taken_for_one_of_the_tpm() {
        // TSS2_TCTI_RC_IO_ERROR: its low bits are those of nothing in particular.
        let code = ResponseCode::new(0x000a_000a);
        assert_eq!(code.disposition(), Disposition::ConnectionLost);
        assert!(code.to_string().contains("no connection"));
        // TSS2_ESYS_RC_BAD_SEQUENCE: what every command gets after that one.
        let code = ResponseCode::new(0x0007_0007);
        assert_eq!(code.disposition(), Disposition::ConnectionLost);
        // The resource manager of the kernel speaks with the TPM's codes in its own layer.
        assert_eq!(
            ResponseCode::new(0x000b_0922).disposition(),
            Disposition::TryAgain
        );
    }

    #[test]
    fn an_answer_with_a_wrong_hmac_ends_the_connection_that_would_be_stuck() {
        let code = ResponseCode::new(0x0007_001b);
        assert_eq!(code.disposition(), Disposition::ConnectionLost);
        assert!(code.to_string().contains("examine the host"));
    }

    #[test]
    fn the_text_names_the_code_and_a_remedy() {
        let text = ResponseCode::new(0x921).to_string();
        assert!(text.starts_with("0x921 (TPM_RC_LOCKOUT): "), "{text}");
        assert!(text.contains("dictionarylockout"), "{text}");
        assert!(
            ResponseCode::new(0x155)
                .to_string()
                .contains("tpm2_rc_decode")
        );
    }
}
