//! What tenants may ask the manager of their VMs' host, over mutual TLS 1.3.
//!
//! | file | what |
//! |---|---|
//! | `settings.rs` | what is configured |
//! | `listener.rs` | TCP connections |
//! | `server_key.rs` | the key that authenticates the host in TLS, and its certificate |
//! | `authorities.rs` | which certificates are a tenant's |
//! | `handshake.rs` | TLS as it is spoken here |
//! | `places.rs` | how many connections each may have |
//! | `connection.rs` | one connection, for as long as its certificate counts |
//! | `patient_stream.rs` | a peer that does not take what it asked for |
//! | `quotas.rs` | how often each tenant may ask |
//! | `requests.rs` | the requests, each within its tenant |
//! | `host.rs` | what all that needs of the manager |
//! | `counts.rs` | what is counted |
//!
//! A tenant is whom its certificate names, on each connection anew. Nothing here knows of a VM that is
//! not asked for by its tenant: the [`TenantHost`] looks tenants' VMs up, and what it does not find is
//! answered in one place, with one text.

mod answer;
mod authorities;
mod connection;
mod counts;
mod description;
mod handshake;
mod host;
mod listener;
mod patient_stream;
mod places;
mod problem;
mod quotas;
mod requests;
mod server_key;
mod settings;

pub use authorities::{Authorities, AuthorityError};
pub use counts::{CountedRequests, Counts, Refusal};
pub use description::description;
pub use host::{EvidenceRefusal, Notice, TenantHost};
pub use listener::{Bound, TenantApi, TenantApiError};
pub use server_key::{HostTlsKey, ServerKey, ServerKeyError};
pub use settings::{AuthoritySettings, Limits, Listen, ServerCertificate, Settings};
