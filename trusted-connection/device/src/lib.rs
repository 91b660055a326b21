//! The device: challenges a service, verifies what it answers, appraises it and explains it.

pub mod archiving;
mod authority_url;
pub mod by_hand;
pub mod challenge;
pub mod command_line;
mod confirmation;
pub mod connection;
pub mod connection_options;
pub mod crl_options;
pub mod event_log;
mod explaining;
pub mod export;
pub mod judgement;
pub mod outcome;
pub mod proxy;
mod reference;
pub mod root_of_trust;
mod settings;
mod sign;
pub mod spiffe;
mod times;
pub mod tpm;
pub mod tree;
mod verify;
mod verify_data;

pub use challenge::{ChallengeError, challenge};
pub use connection::Connector;
pub use judgement::Judgement;
pub use trusted_connection::policy_files;
