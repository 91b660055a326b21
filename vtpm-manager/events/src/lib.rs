//! What happens to the vRoTs of a host, for those who follow it.
//!
//! [`EventLog`] owns the newest events: of the whole host, and of each tenant under numbers of the
//! tenant's own, so that nobody learns by counting what happens to others. Whoever tells of an event
//! never waits for a follower. A [`Follower`] reads where it is, and is told what it missed.

mod follower;
mod happening;
mod kept;
mod log;

pub use follower::Follower;
pub use happening::Place;
pub use log::{EventLog, Scope};
