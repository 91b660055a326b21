//! How far a vRoT's state is durable, and what its guest waits for.
//!
//! The states are numbered as they change. The manager is sent one at a time, and acknowledges what
//! is on stable storage; then it is sent the newest.

use std::time::Duration;

/// What was pushed, sent and acknowledged.
#[derive(Debug, Default)]
pub(super) struct DurabilityState {
    /// Number of the newest state.
    pushed: u64,
    /// Number of the last state that this manager was sent.
    sent: u64,
    /// Number of the last state that is durable.
    persisted: u64,
    /// The newest state, sealed, until it is durable.
    unsaved: Option<Vec<u8>>,
    /// Whether a command was answered before its state was durable.
    degraded: bool,
    /// Whether the manager acknowledged anything since it was last waited for in vain.
    commits_again: bool,
    /// Whether the manager ended as planned, and the next one is not here yet.
    between_managers: bool,
}

/// What follows from an acknowledgement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Acknowledged {
    /// All state is durable.
    All,
    /// The newest state is to be sent.
    SendNewest,
    /// A later acknowledgement is under way.
    More,
}

/// What a change waits for a manager that is known not to commit: a guest hardly notices, and cannot
/// flood a manager that takes nothing.
const SHORT_PATIENCE: Duration = Duration::from_millis(20);

impl DurabilityState {
    pub(super) fn pushed(&self) -> u64 {
        self.pushed
    }

    pub(super) fn persisted(&self) -> u64 {
        self.persisted
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.degraded
    }

    pub(super) fn set_degraded(&mut self, degraded: bool) {
        self.degraded = degraded;
    }

    /// Whether the newest state is durable.
    pub(super) fn is_durable(&self) -> bool {
        self.persisted == self.pushed
    }

    /// Takes a changed state. True if it is to be sent now: a manager that has not answered is not
    /// sent more than it has room for, because a full socket would have the guest wait.
    pub(super) fn changed(&mut self, sealed: Vec<u8>) -> bool {
        self.pushed += 1;
        self.unsaved = Some(sealed);
        self.persisted >= self.sent
    }

    /// The newest state and its number, unless it is durable. It counts as sent from now on.
    pub(super) fn send_newest(&mut self) -> Option<(u64, Vec<u8>)> {
        let sealed = self.unsaved.clone()?;
        self.sent = self.pushed;
        Some((self.pushed, sealed))
    }

    /// Whether this manager was sent the newest state.
    pub(super) fn is_sent(&self) -> bool {
        self.sent == self.pushed
    }

    /// Notes that a state is durable. The number may be any: it comes from outside.
    pub(super) fn acknowledged(&mut self, sequence: u64) -> Acknowledged {
        self.persisted = self.persisted.max(sequence.min(self.pushed));
        self.commits_again = true;
        if self.is_durable() {
            self.unsaved = None;
            Acknowledged::All
        } else if self.persisted >= self.sent {
            Acknowledged::SendNewest
        } else {
            Acknowledged::More
        }
    }

    /// How long a change waits to be durable, where the manager's deadline is this.
    pub(super) fn patience(&self, deadline: Duration) -> Duration {
        if self.between_managers || (self.degraded && !self.commits_again) {
            deadline.min(SHORT_PATIENCE)
        } else {
            deadline
        }
    }

    /// A change was waited for in vain. True if that makes the vRoT degraded.
    pub(super) fn gave_up(&mut self) -> bool {
        self.commits_again = false;
        !self.degraded
    }

    /// The manager is gone. One that did not say that it would be may be back at once, or have
    /// lost its connection alone: it is waited for.
    pub(super) fn lost(&mut self) {
        self.commits_again = false;
    }

    /// The manager ends as planned.
    pub(super) fn left(&mut self) {
        self.between_managers = true;
    }

    /// A manager is here.
    pub(super) fn dialled(&mut self) {
        self.between_managers = false;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(1);

    #[test]
    fn a_manager_that_does_not_answer_is_sent_one_state_and_then_the_newest() {
        let mut state = DurabilityState::default();
        assert!(state.changed(vec![1]), "nothing is under way");
        assert_eq!(state.send_newest(), Some((1, vec![1])));
        assert!(!state.changed(vec![2]));
        assert!(!state.changed(vec![3]));
        assert!(!state.is_sent());
        assert_eq!(state.acknowledged(1), Acknowledged::SendNewest);
        assert_eq!(state.send_newest(), Some((3, vec![3])));
        assert!(state.is_sent() && !state.is_durable());
        assert_eq!(state.acknowledged(2), Acknowledged::More);
        assert_eq!(state.acknowledged(3), Acknowledged::All);
        assert!(state.is_durable());
        assert_eq!(state.send_newest(), None);
    }

    #[test]
    fn no_acknowledgement_makes_durable_what_was_never_pushed() {
        let mut state = DurabilityState::default();
        state.changed(vec![1]);
        state.send_newest();
        assert_eq!(state.acknowledged(u64::MAX), Acknowledged::All);
        assert_eq!(state.persisted(), 1);
        assert!(state.changed(vec![2]));
        assert!(!state.is_durable());
        // An old one takes nothing back.
        state.send_newest();
        state.acknowledged(0);
        assert_eq!(state.persisted(), 1);
    }

    #[test]
    fn a_degraded_vrot_waits_for_a_moment_until_its_manager_commits_again() {
        let mut state = DurabilityState::default();
        state.changed(vec![1]);
        assert_eq!(state.patience(DEADLINE), DEADLINE);
        assert!(state.gave_up(), "for the first time");
        state.set_degraded(true);
        assert_eq!(state.patience(DEADLINE), SHORT_PATIENCE);
        assert!(!state.gave_up());
        state.send_newest();
        state.changed(vec![2]);
        assert_eq!(state.acknowledged(1), Acknowledged::SendNewest);
        assert_eq!(state.patience(DEADLINE), DEADLINE, "it commits");
        state.lost();
        assert_eq!(state.patience(DEADLINE), SHORT_PATIENCE);
    }

    #[test]
    fn between_two_managers_a_change_waits_for_a_moment_and_for_the_next_one_as_before() {
        let mut state = DurabilityState::default();
        state.lost();
        assert_eq!(
            state.patience(DEADLINE),
            DEADLINE,
            "it did not say that it ends"
        );
        state.left();
        state.lost();
        state.changed(vec![1]);
        assert_eq!(state.patience(DEADLINE), SHORT_PATIENCE);
        assert_eq!(state.patience(SHORT_PATIENCE / 2), SHORT_PATIENCE / 2);
        state.dialled();
        assert_eq!(state.patience(DEADLINE), DEADLINE);
    }
}
