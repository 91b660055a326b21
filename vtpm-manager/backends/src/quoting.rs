//! What a vRoT quotes for its host, without its guest.

use std::time::Duration;

use attestation::{Durability, Nonce};
use backend_link::quote::{NoQuote, Quote};
use host_evidence::Subject;
use tokio::sync::oneshot;
use tokio::time::timeout;

use super::handle::Backend;
use super::order::Order;

/// A quote, and what the host states of the vRoT as it was then.
#[derive(Clone, Debug)]
pub struct QuotedVm {
    /// The quote. Nothing about it is verified.
    pub quote: Quote,
    /// What the host states.
    pub subject: Subject,
    /// Whether the vRoT's state was durable.
    pub durability: Durability,
}

/// Why a vRoT was not quoted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotQuoted {
    /// Its TPM did not.
    #[error(transparent)]
    Tpm(#[from] NoQuote),
    /// As many requests as may wait already do.
    #[error("too many requests for its quotes wait already")]
    TooMany,
    /// It serves no guest.
    #[error("it has no guest")]
    NoGuest,
    /// Its backend did not answer in time, or ended.
    #[error("its backend does not answer")]
    NoAnswer,
}

/// A guest can keep its TPM at a long command for a while.
const PATIENCE: Duration = Duration::from_secs(10);

impl Backend {
    /// Has the vRoT quote its PCRs with this nonce for its tenant, between two commands of its guest.
    pub async fn quote(&self, nonce: Nonce) -> Result<QuotedVm, NotQuoted> {
        let (done, answer) = oneshot::channel();
        let asked = async {
            let sent = self.orders.send(Order::Quote(nonce, done)).await;
            sent.map_err(|_| NotQuoted::NoAnswer)?;
            answer.await.unwrap_or(Err(NotQuoted::NoAnswer))
        };
        timeout(PATIENCE, asked)
            .await
            .unwrap_or(Err(NotQuoted::NoAnswer))
    }
}
