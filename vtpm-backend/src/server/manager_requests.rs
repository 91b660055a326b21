//! What the manager orders.

use std::time::{Duration, Instant};

use minicbor::bytes::ByteVec;
use tpm_wire::{Command, ResponseCode};

use super::Server;
use crate::engine::{Engine, StateKind};
use crate::host_quote;
use backend_link::message::{FromBackend, MAX_HOLD, ToBackend};
use backend_link::quote::{NoQuote, Quote, QuoteOrder, QuoteOutcome};

/// A guest that was suspended waits for its end, and not for ever.
const LONGEST_SUSPENSION: Duration = Duration::from_secs(60 * 60);

impl<E: Engine> Server<E> {
    pub(super) fn serve_manager(&mut self) {
        let Some(link) = self.keeper.manager_mut() else {
            return;
        };
        // Before anybody is accepted: a manager that was restarted may have ended its old
        // connection and dialled in anew while the engine was at work.
        let messages = link.read();
        link.accept();
        if link.take_loss() {
            self.tickets.decline_pending();
            self.held_until = None;
        }
        for message in messages {
            self.follow(message);
        }
    }

    fn follow(&mut self, message: ToBackend) {
        let Some(link) = self.keeper.manager_mut() else {
            return;
        };
        match message {
            ToBackend::Hello => link.send_status(),
            ToBackend::Open(open) => match link.open(&open) {
                Ok(state) => {
                    let parts = [
                        (StateKind::Permanent, state.permanent),
                        (StateKind::Volatile, state.volatile),
                    ];
                    let accepted = parts.iter().try_for_each(|(kind, state)| match state {
                        Some(state) => self.engine.set_state(*kind, state),
                        None => Ok(()),
                    });
                    self.engine.changed_permanent_state();
                    match accepted {
                        Ok(()) => link.send(&FromBackend::Opened),
                        Err(error) => self.fail(format!("the TPM refuses its state: {error}")),
                    }
                }
                Err(error) => self.fail(error.to_string()),
            },
            ToBackend::Persisted { sequence } => link.persisted(sequence),
            ToBackend::HostEvidence { ticket, part } => self.tickets.answer(ticket, part),
            ToBackend::Execute { id, command } => {
                if !link.is_open() {
                    self.fail("a command came before key and state".to_owned());
                    return;
                }
                let response = if self.is_put_aside() || self.engine.is_measuring() {
                    // Switched on by anybody but its VMM, the TPM would forget where it was; and a
                    // command would cut a measurement of the VMM's off.
                    ResponseCode::RETRY.response()
                } else {
                    self.give_up_for_others();
                    self.on_for_manager |= !self.engine.is_on();
                    self.start_for_host();
                    match Command::parse(&command) {
                        Ok(_) => self.execute(&command),
                        Err(_) => ResponseCode::COMMAND_SIZE.response(),
                    }
                };
                let response = response.into();
                self.keeper.send(&FromBackend::Executed { id, response });
            }
            ToBackend::Hold { held } => {
                if !held && !self.is_put_aside() {
                    self.engine.go_on();
                }
                self.held_until = held.then(|| Instant::now() + MAX_HOLD);
            }
            ToBackend::Reset { id } => {
                let response = self.reset_for_host().into();
                self.keeper.send(&FromBackend::Executed { id, response });
            }
            ToBackend::Quote { id, order } => {
                let outcome = match self.quote_for_host(&order) {
                    Ok(quote) => QuoteOutcome::Quoted(quote),
                    Err(why) => QuoteOutcome::NotQuoted(why),
                };
                self.keeper.send(&FromBackend::Quoted { id, outcome });
            }
            ToBackend::Stop => self.end(),
            // The link has noted it.
            ToBackend::Leaving => {}
            ToBackend::Suspend => {
                self.give_up_for_others();
                let volatile = self.volatile_state();
                // What the guest did from now on would not be in it.
                self.held_until = Some(Instant::now() + LONGEST_SUSPENSION);
                if let Some(link) = self.keeper.manager_mut() {
                    link.push_rest();
                    link.send(&FromBackend::Suspended { volatile });
                }
            }
        }
    }

    /// Has the TPM quote without its guest, if it is on for that: what the guest has it do comes first,
    /// and a state that is somebody's to go on from stays as it is.
    fn quote_for_host(&mut self, order: &QuoteOrder) -> Result<Quote, NoQuote> {
        if self.engine.is_at_work() || self.engine.is_measuring() {
            return Err(NoQuote::Busy);
        }
        if self.held_until.is_some() || self.is_put_aside() {
            return Err(NoQuote::Aside);
        }
        if !self.engine.is_on() || self.on_for_manager {
            return Err(NoQuote::Off);
        }
        let quote = host_quote::quote(&mut self.engine, order);
        self.keeper.save(&mut self.engine);
        quote
    }

    /// Ends in an orderly way: all state is saved before the manager hears of it.
    pub(super) fn end(&mut self) {
        self.give_up_for_others();
        self.engine.power_off();
        self.keeper.save(&mut self.engine);
        if let Some(link) = self.keeper.manager_mut() {
            link.push_rest();
            link.send(&FromBackend::Stopped);
        }
        self.ended = true;
    }

    /// The volatile state, sealed for the manager: of a TPM that is on for its VMM, or the one with
    /// which it waits for it. Otherwise there is none.
    fn volatile_state(&mut self) -> Option<ByteVec> {
        if self.on_for_manager {
            return None;
        }
        let state = self.engine.state(StateKind::Volatile);
        let state = state.inspect_err(|error| {
            tracing::warn!(%error, "there is no volatile state to suspend");
        });
        let state = state.ok().flatten()?;
        self.engine.give_away();
        let state = zeroize::Zeroizing::new(state);
        let sealed = self.keeper.manager()?.seal_volatile(&state)?;
        Some(sealed.into())
    }

    /// A vRoT that cannot be opened is of no use: it says why, and ends.
    fn fail(&mut self, reason: String) {
        tracing::error!(reason, "the backend ends");
        self.keeper.send(&FromBackend::Failed { reason });
        self.ended = true;
    }
}
