//! Forwarding and accepting, with real sockets.

mod forwarding;
mod listening;
