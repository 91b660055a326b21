//! Evidence of a device, for the server of an attested connection.
//!
//! A device with a TPM has an identity key in it, which the identity issuer certifies as it does a
//! host's, under a profile of its own. Its evidence has one layer: a quote of what the device booted,
//! over the verifier's nonce and the connection. [`DeviceEvidence::verify`] is the only source of a
//! [`VerifiedDevice`].
//!
//! A device whose identity is a key in software has no root of trust (ISO/IEC 27071 §5.1), and so no
//! evidence: its client certificate is all there is. It is accepted by a policy that exempts it in so
//! many words, and by no other; the result says so.

mod appraisal;
mod evidence;
#[cfg(feature = "fixture")]
pub mod fixture;
mod policy;
mod result;
mod verification;

pub use appraisal::{appraise_device, appraise_software_key, check_device_identity};
pub use evidence::{DeviceEvidence, DeviceQuote, MAX_DEVICE_EVIDENCE};
pub use policy::{DevicePattern, DevicePolicy, SoftwareKeyExemption};
pub use result::{DeviceIdentity, DeviceResult};
pub use verification::VerifiedDevice;
