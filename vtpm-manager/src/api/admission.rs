//! How many connections each user has at a time.
//!
//! Root and the manager's own user have a limit of their own that no other user can use up, so that
//! an administrator can always connect. Other users have a limit each and a limit together.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::caller::{Caller, CallerClass};

/// Each launch hook of a host holds one.
const OF_ADMINISTRATORS: ConnectionLimits = ConnectionLimits {
    each: 2048,
    all: 4096,
};
const OF_ALLOWED_USERS: ConnectionLimits = ConnectionLimits {
    each: 256,
    all: 2048,
};
/// Strangers are told why they are not served.
const OF_STRANGERS: ConnectionLimits = ConnectionLimits { each: 4, all: 32 };

/// How many connections users of one kind may have.
#[derive(Clone, Copy, Debug)]
struct ConnectionLimits {
    each: usize,
    all: usize,
}

/// The connections that are open.
#[derive(Debug, Default)]
pub(super) struct Admission {
    open: Mutex<HashMap<Caller, (CallerClass, usize)>>,
}

/// One of the connections of a caller, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Admitted {
    admission: Arc<Admission>,
    caller: Caller,
}

impl Admission {
    /// Takes a connection into account, if the limits allow it.
    pub(super) fn admit(self: &Arc<Self>, caller: Caller, class: CallerClass) -> Option<Admitted> {
        let limits = match class {
            CallerClass::Administrator => OF_ADMINISTRATORS,
            CallerClass::Allowed => OF_ALLOWED_USERS,
            CallerClass::Stranger => OF_STRANGERS,
        };
        let mut open = self.open();
        let of_kind = open.values().filter(|(kind, _)| *kind == class);
        let all: usize = of_kind.map(|(_, count)| count).sum();
        let (_, own) = open.entry(caller).or_insert((class, 0));
        if *own >= limits.each || all >= limits.all {
            if *own == 0 {
                open.remove(&caller);
            }
            return None;
        }
        *own = own.saturating_add(1);
        drop(open);
        Some(Admitted {
            admission: Arc::clone(self),
            caller,
        })
    }

    fn open(&self) -> MutexGuard<'_, HashMap<Caller, (CallerClass, usize)>> {
        self.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        let mut open = self.admission.open();
        if let Some((_, count)) = open.get_mut(&self.caller) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                open.remove(&self.caller);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_user_takes_what_belongs_to_root_or_to_another_user() {
        let admission = Arc::new(Admission::default());
        let all_of = |uid, class| {
            let admit = || admission.admit(Caller::with_uid(uid), class);
            std::iter::from_fn(admit).collect::<Vec<_>>()
        };
        let greedy = all_of(1000, CallerClass::Allowed);
        assert_eq!(greedy.len(), OF_ALLOWED_USERS.each);
        let others: Vec<_> = (1001..1100)
            .map(|uid| all_of(uid, CallerClass::Allowed))
            .collect();
        let held = greedy.len() + others.iter().map(Vec::len).sum::<usize>();
        assert_eq!(held, OF_ALLOWED_USERS.all);
        assert!(
            others
                .first()
                .is_some_and(|o| o.len() == OF_ALLOWED_USERS.each),
            "what one user has is not in another's way"
        );
        let strangers: Vec<_> = (2000..2100)
            .map(|uid| all_of(uid, CallerClass::Stranger).len())
            .collect();
        assert!(strangers.iter().all(|count| *count <= OF_STRANGERS.each));
        let root = all_of(0, CallerClass::Administrator);
        assert_eq!(root.len(), OF_ADMINISTRATORS.each);
        drop(greedy);
        assert_eq!(
            all_of(1000, CallerClass::Allowed).len(),
            OF_ALLOWED_USERS.each
        );
    }

    #[test]
    fn nothing_is_remembered_of_callers_that_are_gone() {
        let admission = Arc::new(Admission::default());
        for uid in 0..1000 {
            drop(admission.admit(Caller::with_uid(uid), CallerClass::Stranger));
        }
        assert!(admission.open().is_empty());
    }
}
