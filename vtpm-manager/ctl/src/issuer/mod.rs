//! The identity issuer as a folder: no daemon, no network.
//!
//! | File | What |
//! |---|---|
//! | `issuer-key.pem` | the private key, readable by its owner alone |
//! | `root.pem` | the root certificate that verifiers trust |
//! | `tpm-roots.pem` | certificates of the TPM makers that are accepted |
//! | `operator-keys.pem` | public keys of the operators whose approvals hosts may depend on |
//! | `pending/<enrolment>.json` | challenges that wait for their answer, or had it |
//! | `certificates/<serial>.json` | every certificate, and whether it was revoked |
//! | `last-crl.json` | the number of the last revocation list |
//! | `hosts/<label>.json` | who was certified under which name and which operator key |
//! | `pending-devices/`, `devices/` | the same of devices, which have no operator key |

mod certificates;
mod devices;
mod error;
mod files;
mod folder;
mod memory;
mod tenants;

pub(crate) use certificates::{CertificateRecord, Whose};
pub(crate) use error::IssuerError;
pub(crate) use folder::{IssuerFolder, OperatorKeyChange};
