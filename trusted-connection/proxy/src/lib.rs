//! What the proxies at both ends of an attested connection share.
//!
//! [`serve`] accepts connections within [`Limits`], of all peers and of each, until it is told to
//! [stop](Stop). [`forward()`] moves data between two streams until both directions have ended, and
//! [`join()`] does so between an attested connection and a plain one, ends each as the other ended, and
//! says why. What a connection must show before that is not this crate's business.

mod forward;
mod held;
mod join;
mod keep_alive;
mod listen;
mod open_files;
mod peer;
mod places;
mod service_manager;
mod stop;

pub use forward::{Broken, Side, Traffic, forward};
pub use held::Held;
pub use join::{Ending, Joined, join};
pub use keep_alive::prepare;
pub use listen::{Accepted, Handler, serve};
pub use open_files::allow_open_files;
pub use peer::Peer;
pub use places::{Limits, Place, Places};
pub use service_manager::{ready, reload_at_hangup};
pub use stop::Stop;
