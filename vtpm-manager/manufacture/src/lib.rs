//! Manufacture of a vRoT: what a TPM's maker does to a hardware TPM.
//!
//! The manager does it before a guest ever sees the vRoT, and never on a guest's word:
//! endorsement keys, identity key (vIK) and TLS key, the templates of these two, and places for the
//! certificates of all four, where stock tools look ([`cert_chain::layout`]).
//!
//! A certificate takes a signature of the physical TPM, and a launch does not wait for that. So
//! manufacture signs nothing. It reserves an index of the certificate's exact length for each of
//! them: until that is written, reading it fails with `TPM_RC_NV_UNINITIALIZED`. The
//! certificates are [issued](issue_vik) afterwards, also beside the guest, and
//! [written](write_certificates).
//!
//! The NV indices belong to the platform, so the guest's owner can neither change nor remove
//! them, not even with `TPM2_Clear`; `TPMA_NV_POLICY_DELETE` keeps them from the platform's own
//! hands too, for the case that a guest's firmware leaves that hierarchy open. Everything in the
//! guest may read them: with the owner's authorization, with the platform's, or with the index's
//! own, which is empty. It takes the authorization value of [`NvIndex::WRITER`](cert_chain::layout::NvIndex::WRITER) to write
//! or remove them: their policy begins with `TPM2_PolicySecret` for that index. The value is
//! random and stays with the manager, which can so renew certificates while the VM runs, and
//! make room for longer ones before it runs.

mod authority;
mod banks;
mod bound_session;
mod channel;
mod command;
mod error;
mod handle;
mod issuance;
mod keys;
mod making;
mod nv;
mod order;
mod policy;
mod renewal;
mod restoration;
mod session;

pub use authority::{NV_AUTHORITY_LENGTH, NvAuthority};
pub use banks::activate_banks;
pub use channel::CommandChannel;
pub use error::ManufactureError;
pub use issuance::{
    Uncertified, check_ready, device, issue_eks, issue_tls, issue_vik, withdraw, write_certificates,
};
pub use keys::{tls_template, vik_template};
pub use making::{Manufactured, manufacture, take_over};
pub use order::{CertifiedSubject, Chain, ManufactureOrder};
pub use renewal::{Guest, RederivedVik, Renewed, RenewedBesides, rederive_vik_from_copy, renew};
pub use restoration::restore;

#[cfg(test)]
mod tests;
