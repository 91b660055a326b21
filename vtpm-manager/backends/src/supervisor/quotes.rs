//! Quotes for the host: one at a time, so that the guest has its turn between two of them.

use std::collections::VecDeque;

use attestation::{BOOT_PCRS, Nonce, tenant_qualifying_data};
use backend_link::message::ToBackend;
use backend_link::quote::{QuoteOrder, QuoteOutcome};
use cert_chain::layout::VIK_HANDLE;
use cert_chain::pcr::BANKS;
use tokio::sync::oneshot;
use vrot_manufacture::vik_template;

use super::Supervisor;
use crate::BackendError;
use crate::order::Role;
use crate::quoting::{NotQuoted, QuotedVm};

type Answer = oneshot::Sender<Result<QuotedVm, NotQuoted>>;

/// Requests that wait behind the one that is being answered.
const MAX_WAITING: usize = 16;

/// Who waits for a quote of this vRoT.
#[derive(Default)]
pub(super) struct Quotes {
    /// By which number the backend answers, and who hears of it.
    asked: Option<(u64, Answer)>,
    waiting: VecDeque<(Nonce, Answer)>,
    last: u64,
}

impl Supervisor {
    /// Takes up a request.
    pub(super) async fn quote(&mut self, nonce: Nonce, answer: Answer) -> Result<(), BackendError> {
        if self.quotes.waiting.len() >= MAX_WAITING {
            // Who asked may be gone.
            let _ = answer.send(Err(NotQuoted::TooMany));
            return Ok(());
        }
        self.quotes.waiting.push_back((nonce, answer));
        self.ask_for_next_quote().await
    }

    /// What the backend answered, with what the host states now.
    pub(super) async fn quoted(
        &mut self,
        id: u64,
        outcome: QuoteOutcome,
    ) -> Result<(), BackendError> {
        let asked = self.quotes.asked.take_if(|(asked, _)| *asked == id);
        let Some((_, answer)) = asked else {
            return Ok(());
        };
        let quoted = match (outcome, self.statement()) {
            (QuoteOutcome::Quoted(quote), Some((subject, durability))) => Ok(QuotedVm {
                quote,
                subject,
                durability,
            }),
            (QuoteOutcome::Quoted(_), None) => Err(NotQuoted::NoGuest),
            (QuoteOutcome::NotQuoted(why), _) => Err(why.into()),
        };
        let _ = answer.send(quoted);
        self.ask_for_next_quote().await
    }

    /// Nobody is told any more what was asked over a connection that is over.
    pub(super) fn give_quotes_up(&mut self) {
        self.quotes = Quotes {
            last: self.quotes.last,
            ..Quotes::default()
        };
    }

    async fn ask_for_next_quote(&mut self) -> Result<(), BackendError> {
        while self.quotes.asked.is_none() {
            let Some((nonce, answer)) = self.quotes.waiting.pop_front() else {
                break;
            };
            if answer.is_closed() {
                continue;
            }
            let Role::Guest(role) = &self.role else {
                let _ = answer.send(Err(NotQuoted::NoGuest));
                continue;
            };
            let vik = &role.subject.vik;
            let order = QuoteOrder {
                handle: VIK_HANDLE,
                template: vik_template().into(),
                name: vik.as_bytes().to_vec().into(),
                pcrs: BOOT_PCRS.iter().fold(0, |mask, pcr| mask | 1 << pcr),
                banks: BANKS.iter().map(|bank| bank.identifier()).collect(),
                qualifying_data: (*tenant_qualifying_data(&nonce, vik).as_bytes()).into(),
            };
            self.quotes.last += 1;
            let id = self.quotes.last;
            self.quotes.asked = Some((id, answer));
            self.connection
                .send(&ToBackend::Quote { id, order })
                .await?;
        }
        Ok(())
    }
}
