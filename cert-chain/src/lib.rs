//! Identity of hosts and virtualized roots of trust (vRoTs).
//!
//! Public areas of TPM keys, the certificates that chain a vRoT's identity key (vIK) to its
//! host's identity key (host IK) and on to the identity issuer, their validation, and the
//! enrolment by which a host proves that its IK lives beside a certified endorsement key.
//!
//! The crate is pure: bytes in, verdict out. It opens no file and no connection, and a private
//! key may sit in a TPM: everything that signs takes an [`rcgen::SigningKey`].

pub mod attestation_key;
pub mod claims;
pub mod client_certificate;
pub mod confirmation_key;
pub mod credential;
pub mod crl;
pub mod data_key;
pub mod device_certificate;
pub mod device_name;
mod digest;
pub mod ek_certificate;
pub mod ek_chain;
mod ek_issuer;
pub mod ek_memory;
pub mod ek_template;
pub mod endorsement_key;
pub mod enrolment;
pub mod hash;
pub mod hash_text;
pub mod hexadecimal;
pub mod identifiers;
pub mod json_texts;
pub mod kdf;
mod known_signatures;
pub mod layout;
pub mod name;
pub mod operator;
pub mod path;
pub mod pcr;
pub mod pem;
pub mod policy;
pub mod profile;
pub mod public_area;
pub mod revocation;
pub mod serial;
pub mod template;
pub mod tenant_certificate;
pub mod time_stamp_authority;
mod times;
pub mod tls_key;
pub mod trust_anchors;

#[cfg(feature = "schema")]
mod schema;
mod signature_algorithms;

pub use attestation_key::AttestationKey;
pub use claims::{DeviceClaims, HostClaims, VikClaims};
pub use client_certificate::VerifiedClientCertificate;
pub use confirmation_key::ConfirmationKey;
pub use credential::{CredentialBlob, make_credential};
pub use crl::{Crl, RevocationReason};
pub use data_key::DataKey;
pub use device_certificate::VerifiedDeviceCertificate;
pub use device_name::DeviceName;
pub use digest::Digest32;
pub use ek_certificate::{CertifiedEndorsementKey, TpmMakerRoots};
pub use endorsement_key::EndorsementKey;
pub use hash::{HashAlgorithm, HashValue};
pub use hash_text::NamedHash;
pub use identifiers::{Domain, Generation, HostName, Tenant, VmId, VrotId};
pub use known_signatures::Remembering;
pub use name::TpmName;
pub use path::{ChainError, VerifiedVikChain, VikChain};
pub use pcr::{PcrSelection, PcrValues};
pub use profile::{
    DeviceSpec, EkSpec, HostIkSpec, IssueError, IssuedCertificate, Issuer, TenantKey, TenantSpec,
    TpmDevice, Validity, VikSpec, issue_host_tls_certificate, issue_vrot_certificate,
};
pub use public_area::{ObjectAttributes, PublicArea};
pub use revocation::{RevocationDemand, RevocationError, RevocationLists, RevocationStatus};
pub use serial::CertificateSerial;
pub use tenant_certificate::{TenantAuthority, TenantNaming, VerifiedTenantCertificate};
pub use time_stamp_authority::VerifiedTimeStampAuthority;
pub use tls_key::TlsKey;
pub use trust_anchors::{TrustAnchorError, TrustAnchors};
