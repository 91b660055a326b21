//! Turns at the physical TPM: whose certificate is waited for comes first.

use std::collections::VecDeque;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

use crate::manager::registry::Vrot;

/// Who waits for a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Need {
    /// No VM is there yet.
    Nobody,
    /// A VM runs that may be asked who it is.
    Vm,
    /// Somebody who has asked, or an order.
    Asker,
}

/// So many at a time. Who needs it most when a turn becomes free gets it, and of those, who has waited longest.
#[derive(Clone)]
pub(super) struct Turns(Arc<Mutex<State>>);

/// A turn; the next one's when it is dropped.
#[derive(Debug)]
pub(super) struct Turn(Option<Turns>);

struct State {
    free: usize,
    /// In the order in which they came.
    waiting: VecDeque<Waiting>,
}

struct Waiting {
    need: Box<dyn Fn() -> Need + Send>,
    turn: oneshot::Sender<Turn>,
}

impl Need {
    /// Who waits for a certificate of this vRoT at present.
    pub(super) fn of(vrot: &Vrot) -> Self {
        let is_attached = || vrot.observed().is_some_and(|observed| observed.attached);
        match vrot.is_asked_for() {
            true => Self::Asker,
            false if is_attached() => Self::Vm,
            false => Self::Nobody,
        }
    }
}

impl Turns {
    pub(super) fn new(at_a_time: usize) -> Self {
        Self(Arc::new(Mutex::new(State {
            free: at_a_time,
            waiting: VecDeque::new(),
        })))
    }

    /// Waits for a turn. `need` is looked at whenever one becomes free.
    pub(super) async fn turn(&self, need: impl Fn() -> Need + Send + 'static) -> Turn {
        let waiting = {
            let mut state = self.state();
            if state.free > 0 {
                state.free -= 1;
                return Turn(Some(self.clone()));
            }
            let (turn, waiting) = oneshot::channel();
            let need = Box::new(need);
            state.waiting.push_back(Waiting { need, turn });
            waiting
        };
        // Nobody forgets one who waits but with all turns.
        waiting.await.unwrap_or(Turn(None))
    }

    fn pass_on(&self) {
        let next = {
            let mut state = self.state();
            state.waiting.retain(|waiting| !waiting.turn.is_closed());
            let needs = state.waiting.iter().map(|waiting| (waiting.need)());
            // Of those that need it as much, `max_by_key` takes the last.
            let most = needs.enumerate().rev().max_by_key(|(_, need)| *need);
            let next = most.and_then(|(place, _)| state.waiting.remove(place));
            if next.is_none() {
                state.free += 1;
            }
            next
        };
        if let Some(next) = next {
            // If it has gone meanwhile, this one is passed on when it is dropped here.
            let _ = next.turn.send(Turn(Some(self.clone())));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Turns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Turns")
            .field("free", &self.state().free)
            .finish_non_exhaustive()
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if let Some(turns) = self.0.take() {
            turns.pass_on();
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

    use std::pin::Pin;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::task::{Context, Poll, Waker};

    use super::*;

    type Taken = Pin<Box<dyn Future<Output = Turn>>>;

    fn came(turns: &Turns, need: impl Fn() -> Need + Send + 'static) -> Taken {
        let turns = turns.clone();
        let mut taken: Taken = Box::pin(async move { turns.turn(need).await });
        assert!(turn_of(&mut taken).is_none());
        taken
    }

    fn turn_of(taken: &mut Taken) -> Option<Turn> {
        match taken.as_mut().poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(turn) => Some(turn),
            Poll::Pending => None,
        }
    }

    #[test]
    fn who_is_asked_for_comes_before_who_only_runs_and_that_before_the_others() {
        let turns = Turns::new(1);
        let mut first: Taken = Box::pin({
            let turns = turns.clone();
            async move { turns.turn(|| Need::Nobody).await }
        });
        let first = turn_of(&mut first).unwrap();
        let is_asked_for = Arc::new(AtomicBool::new(false));
        let asked = Arc::clone(&is_asked_for);
        let mut idle = came(&turns, || Need::Nobody);
        let mut vm = came(&turns, || Need::Vm);
        let mut other_vm = came(&turns, || Need::Vm);
        let gone = came(&turns, || Need::Asker);
        let mut later = came(&turns, move || match asked.load(Ordering::SeqCst) {
            true => Need::Asker,
            false => Need::Nobody,
        });
        // It is asked for while it waits, and somebody else gives up.
        is_asked_for.store(true, Ordering::SeqCst);
        drop(gone);
        drop(first);
        let mut order = Vec::new();
        for _ in 0..4 {
            let all = [&mut idle, &mut vm, &mut other_vm, &mut later];
            let mut turns: Vec<_> = (all.into_iter().enumerate())
                .filter(|(place, _)| !order.contains(place))
                .filter_map(|(place, taken)| Some((place, turn_of(taken)?)))
                .collect();
            let (place, turn) = turns.pop().unwrap();
            assert!(turns.is_empty(), "one at a time");
            order.push(place);
            drop(turn);
        }
        assert_eq!(order, [3, 1, 2, 0]);
        assert_eq!(turns.state().free, 1);
    }
}
