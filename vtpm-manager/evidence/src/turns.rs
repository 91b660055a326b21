//! Whose requests go under the next quote: each vRoT's in turn, so that none that asks a lot is before
//! others, and none waits because of it.

use std::collections::{HashMap, VecDeque};

use cert_chain::VrotId;

/// Requests that wait, by vRoT.
#[derive(Debug)]
pub(super) struct Turns<R> {
    waiting: HashMap<VrotId, VecDeque<R>>,
    /// The vRoTs that have requests waiting, the next one first.
    order: VecDeque<VrotId>,
}

/// Requests of one vRoT that may wait. A backend keeps no more open.
pub(super) const OF_A_VROT: usize = 4;

impl<R> Turns<R> {
    pub(super) fn new() -> Self {
        Self {
            waiting: HashMap::new(),
            order: VecDeque::new(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Takes a request up, or gives it back if too many of its vRoT wait.
    pub(super) fn push(&mut self, vrot: VrotId, request: R) -> Result<(), R> {
        let waiting = self.waiting.entry(vrot).or_default();
        if waiting.len() >= OF_A_VROT {
            return Err(request);
        }
        if waiting.is_empty() {
            self.order.push_back(vrot);
        }
        waiting.push_back(request);
        Ok(())
    }

    /// The requests whose turn it is, at most `most`: first one of each vRoT, then its next.
    pub(super) fn take(&mut self, most: usize) -> Vec<R> {
        let mut taken = Vec::new();
        while taken.len() < most
            && let Some(vrot) = self.order.pop_front()
        {
            let Some(waiting) = self.waiting.get_mut(&vrot) else {
                continue;
            };
            taken.extend(waiting.pop_front());
            if waiting.is_empty() {
                self.waiting.remove(&vrot);
            } else {
                self.order.push_back(vrot);
            }
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_vrot_has_its_turn_before_any_has_its_second() {
        let [floods, one, other] = [(); 3].map(|()| VrotId::random());
        let mut turns = Turns::new();
        for number in 0..OF_A_VROT {
            assert_eq!(turns.push(floods, ("floods", number)), Ok(()));
        }
        assert_eq!(turns.push(floods, ("floods", 99)), Err(("floods", 99)));
        assert_eq!(turns.push(one, ("one", 0)), Ok(()));
        assert_eq!(turns.take(2), [("floods", 0), ("one", 0)]);
        assert_eq!(turns.push(other, ("other", 0)), Ok(()));
        assert_eq!(turns.push(one, ("one", 1)), Ok(()));
        assert_eq!(
            turns.take(3),
            [("floods", 1), ("other", 0), ("one", 1)],
            "who waited longest is first"
        );
        assert_eq!(turns.take(99), [("floods", 2), ("floods", 3)]);
        assert!(turns.is_empty() && turns.waiting.is_empty());
    }
}
