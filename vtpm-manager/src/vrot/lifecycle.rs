//! The states of a vRoT's life and the ways between them.
//!
//! ```text
//! manufactured ──assign──► assigned ──start──► running ──stop/fail──► stopped
//!                              │               │ ▲  ▲                 │ │ ▲
//!                              │         suspend │  └──────start──────┘ │ │
//!                              │               │ resume                 │ │
//!                              │               ▼ │                      │ │
//!                              │           suspended ────────stop───────┼─┘
//!                              │               │                        │
//!                              └────delete─────┴──► deleted ◄───────────┘
//! ```

use std::fmt;

use minicbor::{Decode, Encode};

use api_types::Timestamp;

/// Where a vRoT is in its life, since when, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum Lifecycle {
    /// Keys and certificates are made.
    #[n(0)]
    Manufactured {
        /// Since when.
        #[n(0)]
        at: Timestamp,
    },
    /// It belongs to a VM and was never started.
    #[n(1)]
    Assigned {
        /// Since when.
        #[n(0)]
        at: Timestamp,
    },
    /// A backend serves it.
    #[n(2)]
    Running {
        /// Since when.
        #[n(0)]
        since: Timestamp,
        /// The backend's process, for people to look for.
        #[n(1)]
        process: u32,
    },
    /// It served, and can serve again.
    #[n(3)]
    Stopped {
        /// Since when.
        #[n(0)]
        since: Timestamp,
        /// Why.
        #[n(1)]
        cause: StopCause,
    },
    /// Its key is gone from the store, and with it all that could be done with its state.
    #[n(4)]
    Deleted {
        /// Since when.
        #[n(0)]
        at: Timestamp,
    },
    /// It served, and its volatile state is kept: it can go on as if nothing had happened.
    #[n(5)]
    Suspended {
        /// Since when.
        #[n(0)]
        since: Timestamp,
    },
}

/// Why a vRoT is not running any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Encode, Decode)]
pub enum StopCause {
    /// Somebody stopped it.
    #[n(0)]
    Ordered,
    /// Its backend ended by itself.
    #[n(1)]
    BackendEnded,
}

/// A transition that the present state does not allow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LifecycleError {
    /// Assigned once and for all.
    #[error("the vRoT is {state}: it was assigned to its VM before")]
    AlreadyAssigned {
        /// Name of the present state.
        state: &'static str,
    },
    /// One live instance at most.
    #[error("the vRoT is running already: a second instance of it is never started")]
    AlreadyRunning,
    /// Nothing comes after deletion.
    #[error("the vRoT is deleted: create a new one")]
    Deleted,
    /// There is nothing to stop.
    #[error("the vRoT is {state}, not running")]
    NotRunning {
        /// Name of the present state.
        state: &'static str,
    },
    /// There is no volatile state to go on with.
    #[error("the vRoT is {state}, not suspended: start it")]
    NotSuspended {
        /// Name of the present state.
        state: &'static str,
    },
    /// Its guest's TPM would lose what it holds.
    #[error(
        "the vRoT is suspended: resume it to go on where it was, or stop it to give its volatile \
         state up"
    )]
    Suspended,
    /// A running vRoT is not deleted under a guest's feet.
    #[error("the vRoT is running: stop it first")]
    StillRunning,
    /// It has no VM.
    #[error("the vRoT is not assigned to a VM yet")]
    Unassigned,
}

impl Lifecycle {
    /// Gives a manufactured vRoT to its VM.
    pub fn assign(self, now: Timestamp) -> Result<Self, LifecycleError> {
        match self {
            Self::Manufactured { .. } => Ok(Self::Assigned { at: now }),
            Self::Deleted { .. } => Err(LifecycleError::Deleted),
            other => Err(LifecycleError::AlreadyAssigned {
                state: other.name(),
            }),
        }
    }

    /// Whether [`Lifecycle::start`] would succeed, before anything is spawned.
    pub fn check_start(self) -> Result<(), LifecycleError> {
        match self {
            Self::Assigned { .. } | Self::Stopped { .. } => Ok(()),
            Self::Manufactured { .. } => Err(LifecycleError::Unassigned),
            Self::Running { .. } => Err(LifecycleError::AlreadyRunning),
            Self::Suspended { .. } => Err(LifecycleError::Suspended),
            Self::Deleted { .. } => Err(LifecycleError::Deleted),
        }
    }

    /// Its backend has ended, and its volatile state is kept.
    pub fn suspend(self, now: Timestamp) -> Result<Self, LifecycleError> {
        match self {
            Self::Running { .. } => Ok(Self::Suspended { since: now }),
            Self::Deleted { .. } => Err(LifecycleError::Deleted),
            other => Err(LifecycleError::NotRunning {
                state: other.name(),
            }),
        }
    }

    /// Whether [`Lifecycle::resume`] would succeed, before anything is spawned.
    pub fn check_resume(self) -> Result<(), LifecycleError> {
        match self {
            Self::Suspended { .. } => Ok(()),
            Self::Running { .. } => Err(LifecycleError::AlreadyRunning),
            Self::Deleted { .. } => Err(LifecycleError::Deleted),
            other => Err(LifecycleError::NotSuspended {
                state: other.name(),
            }),
        }
    }

    /// A backend serves it again, with the volatile state that was kept.
    pub fn resume(self, process: u32, now: Timestamp) -> Result<Self, LifecycleError> {
        self.check_resume()?;
        Ok(Self::Running {
            since: now,
            process,
        })
    }

    /// A backend serves it from now on.
    pub fn start(self, process: u32, now: Timestamp) -> Result<Self, LifecycleError> {
        self.check_start()?;
        Ok(Self::Running {
            since: now,
            process,
        })
    }

    /// Its backend has ended.
    pub fn stop(self, cause: StopCause, now: Timestamp) -> Result<Self, LifecycleError> {
        match self {
            Self::Running { .. } | Self::Suspended { .. } => {
                Ok(Self::Stopped { since: now, cause })
            }
            Self::Deleted { .. } => Err(LifecycleError::Deleted),
            other => Err(LifecycleError::NotRunning {
                state: other.name(),
            }),
        }
    }

    /// Destroys it.
    pub fn delete(self, now: Timestamp) -> Result<Self, LifecycleError> {
        match self {
            Self::Running { .. } => Err(LifecycleError::StillRunning),
            Self::Deleted { .. } => Err(LifecycleError::Deleted),
            _ => Ok(Self::Deleted { at: now }),
        }
    }

    /// Whether it has a backend that serves its guest, by what the store says.
    pub fn is_running(self) -> bool {
        matches!(self, Self::Running { .. })
    }

    /// The state in one word.
    pub fn name(self) -> &'static str {
        match self {
            Self::Manufactured { .. } => "manufactured",
            Self::Assigned { .. } => "assigned",
            Self::Running { .. } => "running",
            Self::Stopped { .. } => "stopped",
            Self::Deleted { .. } => "deleted",
            Self::Suspended { .. } => "suspended",
        }
    }

    /// Since when.
    pub fn since(self) -> Timestamp {
        match self {
            Self::Manufactured { at } | Self::Assigned { at } | Self::Deleted { at } => at,
            Self::Running { since, .. }
            | Self::Stopped { since, .. }
            | Self::Suspended { since } => since,
        }
    }
}

impl fmt::Display for Lifecycle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())?;
        match self {
            Self::Stopped {
                cause: StopCause::BackendEnded,
                ..
            } => f.write_str(" (its backend ended by itself)"),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::new(1);

    fn states() -> [Lifecycle; 6] {
        [
            Lifecycle::Manufactured { at: NOW },
            Lifecycle::Assigned { at: NOW },
            Lifecycle::Running {
                since: NOW,
                process: 7,
            },
            Lifecycle::Stopped {
                since: NOW,
                cause: StopCause::Ordered,
            },
            Lifecycle::Deleted { at: NOW },
            Lifecycle::Suspended { since: NOW },
        ]
    }

    /// Which state each transition leads to, from each state in the order of [`states`].
    #[test]
    fn every_transition_is_as_drawn() {
        let name = |result: Result<Lifecycle, LifecycleError>| result.map(Lifecycle::name).ok();
        let table = states().map(|state| {
            [
                name(state.assign(NOW)),
                name(state.start(7, NOW)),
                name(state.stop(StopCause::Ordered, NOW)),
                name(state.delete(NOW)),
                name(state.suspend(NOW)),
                name(state.resume(7, NOW)),
            ]
        });
        assert_eq!(
            table,
            [
                [Some("assigned"), None, None, Some("deleted"), None, None],
                [None, Some("running"), None, Some("deleted"), None, None],
                [None, None, Some("stopped"), None, Some("suspended"), None],
                [None, Some("running"), None, Some("deleted"), None, None],
                [None, None, None, None, None, None],
                [
                    None,
                    None,
                    Some("stopped"),
                    Some("deleted"),
                    None,
                    Some("running"),
                ],
            ]
        );
    }

    #[test]
    fn a_second_start_is_refused_as_such() {
        let [_, _, running, ..] = states();
        assert_eq!(running.start(8, NOW), Err(LifecycleError::AlreadyRunning));
    }
}
