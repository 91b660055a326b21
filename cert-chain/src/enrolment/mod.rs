//! Enrolment of a host, in four messages that can travel as files.
//!
//! 1. The host sends a [`Request`]: its endorsement key with certificate, its IK, and the key
//!    that approves its PCR policies.
//! 2. The issuer checks all of it, also that it accepts that key ([`OperatorKeys`]), and answers with a [`Challenge`]: a secret that only the TPM
//!    with that endorsement key *and* that IK can read. It keeps a [`PendingEnrolment`].
//! 3. The host returns the secret in an [`Answer`].
//! 4. The issuer returns the [`Certificate`] of the IK.
//!
//! A [device](mod@device) enrols by four messages of its own kind.
//!
//! Every message is one JSON object whose `type` and `version` come first in the checks: an
//! unknown type, version or field is refused.

pub mod device;
mod error;
mod issuer;
mod message;
mod operator;
mod tpm;

pub use error::EnrolmentError;
pub use issuer::{Accepted, PendingEnrolment};
pub use message::{
    Answer, Certificate, Challenge, EnrolmentId, MAX_MESSAGE, Message, MessageError, Request,
};
pub use operator::{OperatorKeyError, OperatorKeys};
pub use tpm::{EnrolmentState, PENDING_LIFETIME};
