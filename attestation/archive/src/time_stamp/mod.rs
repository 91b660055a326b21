//! Time stamps (RFC 3161): an authority's word that a hash value was there before a time.

mod asn1;
mod clock_time;
mod error;
mod request;
mod sets;
mod token;

pub use error::TimeStampError;
pub use request::{MAX_RESPONSE, Nonce, TimeStampRequest, token_from_response};
pub use token::{MAX_TOKEN, Token, VerifiedTimeStamp};
