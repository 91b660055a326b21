//! Taking power from a TPM in an orderly way.
//!
//! A TPM that loses power without `TPM2_Shutdown` counts that as a failed authorization at its next
//! start, if an authorization that is protected against dictionary attacks was used (TPM 2.0 Part 1
//! §19.8.6): after a few resets of a VM that would lock its owner out. So a TPM that was not shut
//! down by its guest is shut down before it loses power.

use tpm_wire::{Command, Header, ResponseCode};

/// How it stands with a TPM that is on, should it lose power now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Departure {
    /// It was shut down like this and nothing happened since, or it was not started at all.
    Prepared(Shutdown),
    /// It is to be shut down like this before.
    Owed(Shutdown),
    /// It went on where it was, and nothing happened since. Whether its guest had prepared it cannot
    /// be seen from outside.
    Resumed,
    /// Its volatile state was given away, and nothing happened since: whoever has that goes on from
    /// there, with the permanent state as it is. If it starts here again instead, it is to be shut
    /// down like this first.
    GivenAway(Shutdown),
}

/// `TPM_SU`, as a `TPM2_Shutdown` names it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Shutdown {
    /// `TPM_SU_CLEAR`: the next start is a reset of the TPM.
    Clear,
    /// `TPM_SU_STATE`: the TPM can be resumed with `TPM2_Startup(TPM_SU_STATE)`.
    State,
}

const CC_STARTUP: u32 = 0x144;
const CC_SHUTDOWN: u32 = 0x145;

impl Shutdown {
    /// `TPM2_Shutdown`
    pub(super) const fn command(self) -> [u8; 12] {
        let kind = match self {
            Self::Clear => 0,
            Self::State => 1,
        };
        [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, kind]
    }
}

impl Departure {
    /// Of a TPM that has just been switched on, and is not started yet.
    pub(super) const SWITCHED_ON: Self = Self::Prepared(Shutdown::Clear);

    /// Notes a command and its response.
    ///
    /// Until the TPM is started again, it is shut down as its guest did it last: commands may come
    /// between a guest's `TPM2_Shutdown` and the loss of power, of its host for example, and a
    /// guest that sleeps goes on after that. Without one it is a reset, as of a machine that
    /// loses its power, and the state before it does not come back.
    pub(super) fn note(&mut self, command: &[u8], response: &[u8]) {
        let Ok(command) = Command::parse(command) else {
            return;
        };
        let succeeded = Header::parse(response)
            .is_some_and(|header| ResponseCode::new(header.code).is_success());
        *self = match command.code() {
            // The only parameter comes last, with sessions and without.
            CC_SHUTDOWN if succeeded => Self::Prepared(match command.parameters() {
                [.., 0, 1] => Shutdown::State,
                _ => Shutdown::Clear,
            }),
            CC_STARTUP if succeeded => Self::Owed(Shutdown::Clear),
            _ => Self::Owed(match *self {
                Self::Prepared(last) | Self::Owed(last) | Self::GivenAway(last) => last,
                Self::Resumed => Shutdown::Clear,
            }),
        }
    }

    /// Notes that the TPM's volatile state was given away.
    pub(super) fn give_away(&mut self) {
        *self = match *self {
            Self::Owed(kind) => Self::GivenAway(kind),
            Self::Resumed => Self::GivenAway(Shutdown::State),
            Self::Prepared(_) | Self::GivenAway(_) => return,
        }
    }

    /// Notes that the TPM goes on here, before it does.
    pub(super) fn go_on(&mut self) {
        if let Self::GivenAway(kind) = *self {
            *self = Self::Owed(kind);
        }
    }

    /// What the TPM is to be told before it loses power.
    pub(super) fn owed(self) -> Option<Shutdown> {
        match self {
            Self::Owed(kind) => Some(kind),
            // It stays resumable, if it was.
            Self::Resumed => Some(Shutdown::State),
            Self::Prepared(_) | Self::GivenAway(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
    const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];
    const SUCCESS: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 0, 0];
    const FAILURE: [u8; 10] = [0x80, 1, 0, 0, 0, 10, 0, 0, 1, 1];

    fn after(mut departure: Departure, commands: &[[u8; 12]]) -> Option<Shutdown> {
        for command in commands {
            departure.note(command, &SUCCESS);
        }
        departure.owed()
    }

    #[test]
    fn a_tpm_that_its_guest_shut_down_is_left_as_it_is() {
        let new = Departure::SWITCHED_ON;
        let (clear, state) = (Shutdown::Clear.command(), Shutdown::State.command());
        assert_eq!(after(new, &[]), None);
        assert_eq!(after(new, &[STARTUP, clear]), None);
        assert_eq!(after(new, &[STARTUP, state]), None);
        assert_eq!(after(new, &[STARTUP]), Some(Shutdown::Clear));
        let mut refused = new;
        refused.note(&STARTUP, &SUCCESS);
        refused.note(&state, &FAILURE);
        assert_eq!(refused.owed(), Some(Shutdown::Clear));
    }

    #[test]
    fn a_guest_that_sleeps_can_go_on_after_commands_of_its_host() {
        let slept = [STARTUP, Shutdown::State.command(), GET_RANDOM];
        let new = Departure::SWITCHED_ON;
        assert_eq!(after(new, &slept), Some(Shutdown::State));
        let started = [&slept[..], &[STARTUP]].concat();
        assert_eq!(after(new, &started), Some(Shutdown::Clear));
    }

    #[test]
    fn a_resumed_tpm_stays_resumable_until_it_is_used() {
        assert_eq!(after(Departure::Resumed, &[]), Some(Shutdown::State));
        assert_eq!(
            after(Departure::Resumed, &[GET_RANDOM]),
            Some(Shutdown::Clear)
        );
    }

    #[test]
    fn a_tpm_whose_state_was_given_away_is_left_as_it_is_until_it_goes_on() {
        let mut departure = Departure::SWITCHED_ON;
        departure.note(&STARTUP, &SUCCESS);
        departure.give_away();
        assert_eq!(departure, Departure::GivenAway(Shutdown::Clear));
        assert_eq!(departure.owed(), None);
        departure.note(&GET_RANDOM, &SUCCESS);
        assert_eq!(departure.owed(), Some(Shutdown::Clear));
    }
}
