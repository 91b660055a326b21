//! Forwarding, joining and accepting, with real sockets.

mod forwarding;
mod joining;
mod listening;
