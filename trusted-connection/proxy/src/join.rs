//! An attested connection and a plain one that are one connection to the applications at their far ends.

use std::sync::Arc;
use std::time::Instant;

use attested_tls::{AttestedStream, CloseReason, ConnectionError};
use printable::WithCauses;
use program_output::log::ACCEPTED;
use tokio::net::TcpStream;

use crate::forward::{Broken, Side, Traffic, forward};
use crate::stop::Stop;

/// What came of two connections that were joined.
#[derive(Debug)]
pub struct Joined {
    /// Why they ended.
    pub ending: Ending,
    /// Bytes of the application from the attested connection.
    pub from_attested: u64,
    /// Bytes of the application from the plain connection.
    pub from_plain: u64,
}

/// Why joined connections ended.
#[derive(Debug)]
pub enum Ending {
    /// Both directions came to their end.
    Complete,
    /// The attested connection failed.
    Attested(Arc<ConnectionError>),
    /// The plain connection failed, or the attested one in a way that it did not say.
    Broken(Broken),
    /// The proxy was stopped.
    Stopped,
}

/// Moves data between an attested connection and a plain one until both directions have ended, and
/// writes a line to the log then.
///
/// If one of them fails, so does the other: nobody can take data that were cut off for all there were.
/// A plain connection is reset then. Where both directions came to their end and the attested connection did
/// not, the far end of the plain one has seen the end of both, and only the outcome can say that the other
/// far end may not have got everything.
pub async fn join(mut attested: AttestedStream, mut plain: TcpStream, stop: &Stop) -> Joined {
    let begin = Instant::now();
    let mut traffic = Traffic::default();
    let broken = attested.broken();
    let ending = tokio::select! {
        biased;
        error = broken => Ending::Attested(error),
        () = stop.closing() => Ending::Stopped,
        forwarded = forward(&mut attested, &mut plain, &mut traffic) => match forwarded {
            Ok(()) => Ending::Complete,
            Err(broken) => Ending::Broken(broken),
        },
    };
    let (ending, left) = match ending {
        Ending::Complete => match attested.ended().await {
            Ok(()) => (Ending::Complete, None),
            Err(error) => (Ending::Attested(error), None),
        },
        cut_off => (cut_off, Some(attested)),
    };
    let joined = Joined {
        ending,
        from_attested: traffic.from_first,
        from_plain: traffic.from_second,
    };
    joined.tell(begin);
    if !matches!(joined.ending, Ending::Complete) {
        // If it cannot be reset, it is closed.
        let _ = plain.set_zero_linger();
    }
    drop(plain);
    if let Some(attested) = left {
        attested
            .give_up_because(match joined.ending {
                Ending::Stopped => CloseReason::Stopping,
                _ => CloseReason::Abandoned,
            })
            .await;
    }
    joined
}

impl Joined {
    fn tell(&self, begin: Instant) {
        let (from_attested, from_plain) = (self.from_attested, self.from_plain);
        let seconds = begin.elapsed().as_secs_f32();
        match &self.ending {
            Ending::Complete => {
                tracing::info!(
                    target: ACCEPTED,
                    from_attested,
                    from_plain,
                    seconds,
                    "closed: all data were sent"
                );
            }
            Ending::Attested(error) => tracing::warn!(
                target: ACCEPTED, from_attested, from_plain, seconds, error = %WithCauses(&**error),
                "closed: the attested connection failed"
            ),
            Ending::Broken(broken) => {
                let side = match broken.side {
                    Side::First => "attested",
                    Side::Second => "plain",
                };
                tracing::warn!(
                    target: ACCEPTED, from_attested, from_plain, seconds, side, error = %WithCauses(broken),
                    "closed: a connection failed"
                );
            }
            Ending::Stopped => tracing::info!(
                target: ACCEPTED,
                from_attested,
                from_plain,
                seconds,
                "closed: the proxy was stopped"
            ),
        }
    }
}
