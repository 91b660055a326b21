//! Identities made, travelled and verified, with swtpm, tpm2-tools and OpenSSL as peers. One binary,
//! so that the tests run beside each other on all processors.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]
#![expect(clippy::indexing_slicing, reason = "a panic is a failed test")]

mod devices;
mod ek_makers;
mod enrolment;
mod issuing;
mod keys;
mod operator;
mod path_validation;
mod peers_openssl;
mod peers_swtpm;
mod revocation;
mod root_files;
mod support;
mod tenants;
