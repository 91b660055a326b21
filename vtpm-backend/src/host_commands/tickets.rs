//! Requests to the host that a guest has open.
//!
//! A host layer can have several MiB, most of it the host's event log, which is the same for all
//! guests of the host. So a backend keeps only the part of a layer that its guest is reading, and
//! asks its manager for the next one.

use std::collections::VecDeque;

use backend_link::message::LayerPart;

/// The open requests of one vRoT, oldest first. A guest that opens more loses its oldest.
#[derive(Debug, Default)]
pub struct Tickets {
    open: VecDeque<Ticket>,
    last: u64,
}

#[derive(Debug)]
struct Ticket {
    number: u64,
    layer: Layer,
    /// Whether the manager was asked for a part and has not answered.
    asked: bool,
}

/// How far a request is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Layer {
    /// The host has not answered yet.
    Pending,
    /// The host will not answer.
    Declined,
    /// A part of the host's answer.
    Ready(LayerPart),
}

/// What a READ finds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Found<'t> {
    /// There is no such request.
    NoTicket,
    /// The guest has to ask again.
    NotYet,
    /// The guest has to ask again, once the manager has given the part from here on.
    Elsewhere,
    /// There will be no answer.
    Declined,
    /// The offset lies behind the end.
    BehindEnd,
    /// The bytes from the offset on, as far as they are here, and the size of the whole.
    Bytes(&'t [u8], u32),
}

/// A guest asks once for each challenge; a few may overlap.
const MAX_OPEN: usize = 4;

impl Tickets {
    /// Opens a request and names it.
    pub fn open(&mut self) -> u64 {
        self.last = self.last.wrapping_add(1);
        if self.open.len() == MAX_OPEN {
            self.open.pop_front();
        }
        self.open.push_back(Ticket {
            number: self.last,
            layer: Layer::Pending,
            asked: true,
        });
        self.last
    }

    /// Puts a part of the host's answer in place, instead of the one before; `None` declines the
    /// request. An answer to a request that is no longer open is dropped.
    pub fn answer(&mut self, ticket: u64, part: Option<LayerPart>) {
        if let Some(open) = self.open.iter_mut().find(|open| open.number == ticket) {
            open.asked = false;
            open.layer = match part {
                Some(part) if part.is_possible() => Layer::Ready(part),
                _ => Layer::Declined,
            };
        }
    }

    /// Declines what the host has not answered as a whole: it is gone.
    pub fn decline_pending(&mut self) {
        for open in &mut self.open {
            open.asked = false;
            let is_whole = matches!(&open.layer, Layer::Ready(part) if part.is_whole());
            if !is_whole {
                open.layer = Layer::Declined;
            }
        }
    }

    /// What is there of an answer from `offset` on.
    pub fn find(&self, ticket: u64, offset: u32) -> Found<'_> {
        let Some(open) = self.open.iter().find(|open| open.number == ticket) else {
            return Found::NoTicket;
        };
        match &open.layer {
            Layer::Pending => Found::NotYet,
            Layer::Declined => Found::Declined,
            Layer::Ready(part) if offset > part.total => Found::BehindEnd,
            Layer::Ready(part) if offset == part.total => Found::Bytes(&[], part.total),
            Layer::Ready(part) => match part.from(offset) {
                Some(bytes) => Found::Bytes(bytes, part.total),
                None if open.asked => Found::NotYet,
                None => Found::Elsewhere,
            },
        }
    }

    /// Notes that the manager was asked for another part.
    pub fn asked(&mut self, ticket: u64) {
        if let Some(open) = self.open.iter_mut().find(|open| open.number == ticket) {
            open.asked = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(total: u32, offset: u32, bytes: &[u8]) -> Option<LayerPart> {
        Some(LayerPart {
            total,
            offset,
            bytes: bytes.to_vec().into(),
        })
    }

    #[test]
    fn the_oldest_request_makes_room_for_a_fifth() {
        let mut tickets = Tickets::default();
        let first = tickets.open();
        for _ in 0..MAX_OPEN {
            tickets.open();
        }
        assert_eq!(tickets.find(first, 0), Found::NoTicket);
        tickets.answer(first, part(1, 0, &[1]));
        assert_eq!(tickets.find(first, 0), Found::NoTicket);
    }

    #[test]
    fn a_host_that_is_gone_declines_what_it_left_open() {
        let mut tickets = Tickets::default();
        let (whole, begun, left) = (tickets.open(), tickets.open(), tickets.open());
        tickets.answer(whole, part(1, 0, &[1]));
        tickets.answer(begun, part(2, 0, &[1]));
        tickets.decline_pending();
        assert_eq!(tickets.find(whole, 0), Found::Bytes(&[1], 1));
        assert_eq!(tickets.find(begun, 0), Found::Declined);
        assert_eq!(tickets.find(left, 0), Found::Declined);
    }

    #[test]
    fn a_part_that_is_not_here_is_asked_for_once() {
        let mut tickets = Tickets::default();
        let ticket = tickets.open();
        assert_eq!(tickets.find(ticket, 0), Found::NotYet);
        tickets.answer(ticket, part(5, 0, &[1, 2, 3]));
        assert_eq!(tickets.find(ticket, 1), Found::Bytes(&[2, 3], 5));
        assert_eq!(tickets.find(ticket, 3), Found::Elsewhere);
        tickets.asked(ticket);
        assert_eq!(tickets.find(ticket, 3), Found::NotYet);
        tickets.answer(ticket, part(5, 3, &[4, 5]));
        assert_eq!(tickets.find(ticket, 3), Found::Bytes(&[4, 5], 5));
        assert_eq!(tickets.find(ticket, 5), Found::Bytes(&[], 5));
        assert_eq!(tickets.find(ticket, 6), Found::BehindEnd);
        assert_eq!(tickets.find(ticket, 0), Found::Elsewhere);
    }

    #[test]
    fn a_part_that_cannot_be_declines_the_request() {
        for bad in [part(2, 0, &[1, 2, 3]), part(2, 3, &[]), part(2, 1, &[])] {
            let mut tickets = Tickets::default();
            let ticket = tickets.open();
            tickets.answer(ticket, bad);
            assert_eq!(tickets.find(ticket, 0), Found::Declined);
        }
    }
}
