//! Why there is no answer of a host.

use std::error::Error;
use std::io;
use std::time::Duration;

use api_types::Problem;
use attestation::evidence::EvidenceError;
use rustls::AlertDescription;

/// Why there is no answer of a host. What it holds of a host's own words is not fit for terminals yet.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HostError {
    /// Nobody there.
    #[error("{address} cannot be reached")]
    Unreachable {
        /// Where it should be.
        address: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The other end is not the host, or no connection came about.
    #[error("there is no trusted connection")]
    Tls(#[source] io::Error),
    /// The host ended the connection and said so: mostly because of this end's certificate.
    #[error(
        "the host refuses the connection ({0:?}): see whether the tenant's certificate is one of its \
         issuer, valid and not revoked"
    )]
    Alert(AlertDescription),
    /// No settings for TLS: mostly a root that has ended.
    #[error("no connection can be set up: {0}")]
    Setup(String),
    /// The host ended the connection without a word. Mostly its manager has ended, or the certificate counts no
    /// more.
    #[error("the host ended the connection")]
    Ended,
    /// The connection broke, or it is not HTTP.
    #[error("the connection failed")]
    Http(#[source] hyper::Error),
    /// Not within the deadline.
    #[error("there was no whole answer within {} s", .0.as_secs())]
    Deadline(Duration),
    /// A stream without a sign of life.
    #[error("the host has said nothing for {} s", .0.as_secs())]
    Silent(Duration),
    /// The host refuses the request.
    #[error("the host refuses the request: {} ({})", .0.detail, .0.code())]
    Refused(Problem),
    /// An answer of more bytes than it can have.
    #[error("the host's answer has more than {limit} bytes")]
    TooLong {
        /// The most that is accepted.
        limit: usize,
    },
    /// An answer that is not what was asked for.
    #[error("the host's answer is not {expected}: {reason}")]
    Answer {
        /// What it should be.
        expected: &'static str,
        /// Why it is not.
        reason: String,
    },
    /// No random numbers for a nonce.
    #[error("the operating system gave no random numbers")]
    Random,
}

impl HostError {
    /// A short name for programs, which stays the same from version to version.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Tls(_) => "tls",
            Self::Alert(_) => "refused-by-host",
            Self::Setup(_) => "setup",
            Self::Ended | Self::Http(_) => "connection",
            Self::Deadline(_) | Self::Silent(_) => "deadline",
            Self::Refused(_) => "request-refused",
            Self::TooLong { .. } => "answer-too-long",
            Self::Answer { .. } => "answer",
            Self::Random => "random",
        }
    }

    /// With everything that caused it, in the words of those who say so.
    pub fn explanation(&self) -> String {
        api_types::WithCauses(self).to_string()
    }

    pub(crate) fn of_handshake(error: io::Error) -> Self {
        match alert_in(&error) {
            Some(alert) => Self::Alert(alert),
            None => Self::Tls(error),
        }
    }

    /// In TLS 1.3 a client hears only after the handshake that its certificate was refused.
    pub(crate) fn of_http(error: hyper::Error) -> Self {
        match alert_in(&error) {
            Some(alert) => Self::Alert(alert),
            None if has_ended(&error) => Self::Ended,
            None => Self::Http(error),
        }
    }

    /// A body that could not be read, of which at most `limit` bytes are.
    pub(crate) fn of_body(error: Box<dyn Error + Send + Sync>, limit: usize) -> Self {
        match error.downcast::<hyper::Error>() {
            Ok(error) => Self::of_http(*error),
            Err(_) => Self::TooLong { limit },
        }
    }

    pub(crate) fn of_json(expected: &'static str, error: &serde_json::Error) -> Self {
        Self::Answer {
            expected,
            reason: error.to_string(),
        }
    }

    pub(crate) fn of_set(error: &EvidenceError) -> Self {
        Self::Answer {
            expected: "an evidence set",
            reason: error.to_string(),
        }
    }
}

/// The alert that the other end sent, somewhere below an error.
fn alert_in(error: &(dyn Error + 'static)) -> Option<AlertDescription> {
    io_errors(error).find_map(|error| {
        let inner = error.get_ref()?.downcast_ref::<rustls::Error>()?;
        match inner {
            rustls::Error::AlertReceived(alert) => Some(*alert),
            _ => None,
        }
    })
}

/// Whether the other end hung up: TLS calls it unexpected, since nobody signed that this was all.
fn has_ended(error: &(dyn Error + 'static)) -> bool {
    io_errors(error).any(|error| error.kind() == io::ErrorKind::UnexpectedEof)
}

fn io_errors<'e>(error: &'e (dyn Error + 'static)) -> impl Iterator<Item = &'e io::Error> {
    let mut next = Some(error);
    let errors = std::iter::from_fn(move || {
        let error = next?;
        next = error.source();
        Some(error)
    });
    errors.filter_map(|error| error.downcast_ref::<io::Error>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("something above it")]
    struct Above(#[source] io::Error);

    #[test]
    fn an_end_and_an_alert_are_found_below_other_errors() {
        let end = Above(io::ErrorKind::UnexpectedEof.into());
        assert!(has_ended(&end) && alert_in(&end).is_none());
        let alert = rustls::Error::AlertReceived(AlertDescription::CertificateRevoked);
        let alert = Above(io::Error::other(alert));
        assert!(!has_ended(&alert));
        assert_eq!(alert_in(&alert), Some(AlertDescription::CertificateRevoked));
    }
}
