//! Requests to the host that a guest has open.

use std::collections::VecDeque;

/// The open requests of one vRoT, oldest first. A guest that opens more loses its oldest.
#[derive(Debug, Default)]
pub struct Tickets {
    open: VecDeque<(u64, Layer)>,
    last: u64,
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The host has not answered yet.
    Pending,
    /// The host will not answer.
    Declined,
    /// The host's answer.
    Ready(Vec<u8>),
}

/// A guest asks once for each challenge; a few may overlap.
const MAX_OPEN: usize = 4;
/// The longest answer that is kept for a guest.
const MAX_LAYER: usize = 320 * 1024;

impl Tickets {
    /// Opens a request and names it.
    pub fn open(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back((self.last, Layer::Pending));
        self.last
    }

    /// Puts the host's answer to a request in place; `None` declines it. An answer to a request
    /// that is no longer open is dropped.
    pub fn answer(&mut self, ticket: u64, layer: Option<Vec<u8>>) {
        if let Some((_, state)) = self.open.iter_mut().find(|(open, _)| *open == ticket) {
            *state = match layer {
                Some(layer) if layer.len() <= MAX_LAYER => Layer::Ready(layer),
                _ => Layer::Declined,
            };
        }
    }

    /// Declines what the host has not answered: it is gone.
    pub fn decline_pending(&mut self) {
        for (_, layer) in &mut self.open {
            if *layer == Layer::Pending {
                *layer = Layer::Declined;
            }
        }
    }

    /// How far a request is.
    pub fn layer(&self, ticket: u64) -> Option<&Layer> {
        self.open
            .iter()
            .find(|(open, _)| *open == ticket)
            .map(|(_, layer)| layer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_request_makes_room_for_a_fifth() {
        let mut tickets = Tickets::default();
        let first = tickets.open();
        for _ in 0..MAX_OPEN {
            tickets.open();
        }
        assert_eq!(tickets.layer(first), None);
        tickets.answer(first, Some(vec![1]));
        assert_eq!(tickets.layer(first), None);
    }

    #[test]
    fn a_host_that_is_gone_declines_what_it_left_open() {
        let mut tickets = Tickets::default();
        let (answered, left) = (tickets.open(), tickets.open());
        tickets.answer(answered, Some(vec![1]));
        tickets.decline_pending();
        assert_eq!(tickets.layer(answered), Some(&Layer::Ready(vec![1])));
        assert_eq!(tickets.layer(left), Some(&Layer::Declined));
    }
}
