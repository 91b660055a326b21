//! A tenant's client: which VMs it has on which hosts, whether their evidence is what a policy accepts,
//! and what happens to them.
//!
//! All hosts of a settings file are asked at the same time, each within one deadline, over TLS 1.3 that
//! authenticates both ends. What a host says is what its manager says; [`Tenant::attest`] believes nothing of
//! it but what evidence shows: it draws a nonce for each host, and [`judge`](attestations::judge) verifies the
//! answer, that it is the meant host's, and appraises each VM by its policy.
//!
//! | file | what |
//! |---|---|
//! | `settings.rs` | the settings file |
//! | `tls.rs` | connections to hosts |
//! | `host.rs` | requests to one host: bounded answers, one deadline |
//! | `error.rs` | why there is no answer |
//! | `tenant.rs` | all hosts at once |
//! | `policies.rs` | what is expected of which VM |
//! | `attestations.rs` | evidence and what it is worth |
//! | `events.rs`, `lines.rs` | one stream of events |
//! | `watching.rs` | the streams of all hosts, beyond their ends |
//! | `command_line.rs`, `watch.rs`, `show.rs`, `json.rs`, `outcome.rs` | the program |
//!
//! ```no_run
//! use std::path::Path;
//!
//! use vrot_tenant::{Settings, Tenant, Which};
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let settings = Settings::load(Path::new("tenant.toml"))?;
//! let policies = settings.policies()?;
//! let tenant = Tenant::open(&settings)?;
//! for from in tenant.vms().await {
//!     match from.answer {
//!         Ok(list) => println!("{}: {} VMs", from.host, list.vms.len()),
//!         Err(error) => println!("{}: {error}", from.host),
//!     }
//! }
//! let attestation = tenant.attest(&Which::All, &policies).await;
//! println!("{:?}", attestation.verdict());
//! # Ok(())
//! # }
//! ```

pub mod attestations;
pub mod command_line;
pub mod error;
pub mod events;
pub mod host;
mod json;
mod lines;
pub mod outcome;
pub mod policies;
pub mod settings;
mod show;
pub mod tenant;
mod tls;
mod watch;
pub mod watching;

pub use attestations::Attestation;
pub use error::HostError;
pub use host::Host;
pub use policies::{Policies, Which};
pub use settings::{Settings, SettingsError};
pub use tenant::{FromHost, Tenant};
