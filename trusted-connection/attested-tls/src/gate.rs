//! What may pass on a connection just now.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use crate::clock;
use crate::error::{ConnectionError, ProtocolError};
use crate::message::MAX_SHORT;

/// Whether data may pass, and how long a control message may be just now.
#[derive(Debug)]
pub(crate) struct Gate(Mutex<GateState>);

#[derive(Clone, Copy, Debug)]
pub(crate) struct GateState {
    /// Each end has what it demands of the other.
    pub(crate) data: bool,
    /// When that ends, by [`clock::now`]. It is compared with each piece of data: after a suspend, timers are
    /// late by all of it.
    pub(crate) until: Option<Instant>,
    pub(crate) message_limit: usize,
}

impl Default for Gate {
    fn default() -> Self {
        Self(Mutex::new(GateState {
            data: false,
            until: None,
            message_limit: MAX_SHORT,
        }))
    }
}

impl Gate {
    fn get(&self) -> GateState {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set(&self, state: GateState) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    pub(crate) fn message_limit(&self) -> usize {
        self.get().message_limit
    }

    /// Whether data may pass now, and why not.
    pub(crate) fn data(&self) -> Result<(), ConnectionError> {
        let state = self.get();
        if !state.data {
            return Err(ProtocolError::EarlyData.into());
        }
        match state.until {
            Some(until) if clock::now() >= until => Err(ConnectionError::AppraisalEnded),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn data_pass_no_longer_than_the_appraisal_holds_whether_or_not_a_timer_has_rung() {
        let gate = Gate::default();
        assert!(matches!(
            gate.data(),
            Err(ConnectionError::Protocol(ProtocolError::EarlyData))
        ));
        let until = |until| GateState {
            data: true,
            until,
            message_limit: MAX_SHORT,
        };
        gate.set(until(None));
        assert!(gate.data().is_ok());
        gate.set(until(Some(clock::now() + Duration::from_secs(60))));
        assert!(gate.data().is_ok());
        gate.set(until(Some(clock::now())));
        assert!(matches!(gate.data(), Err(ConnectionError::AppraisalEnded)));
    }
}
