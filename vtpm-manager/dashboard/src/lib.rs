//! A page that shows what the managers of one or several hosts tell: vRoTs, their states and
//! certificates, how the host's store stands, events. It only looks.
//!
//! [`Page::serve`] serves it on a loopback address or a Unix socket, to browsers that know the token
//! (`access.rs`). One task for each manager asks its API over the Unix socket (`follow.rs`), as long as
//! anybody looks; what has changed since goes to every page (`hub.rs`), one JSON value a line. What
//! the page is made of is compiled in (`assets.rs`), and it speaks to its own origin only.

mod access;
mod assets;
mod chain;
mod follow;
mod happening;
mod host_card;
mod hub;
mod listen;
mod manager;
mod metrics;
mod places;
mod response;
mod row;
mod server;
mod stream;
mod text;
mod token;

pub use listen::{Listen, ListenError, NotLoopback};
pub use server::Page;
pub use token::{Token, TokenError};
