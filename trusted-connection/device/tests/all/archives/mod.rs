//! `vrot-device archive`, with `openssl ts` as the authority and a clock that the tests set.

mod authorities;
mod devices;
mod program;
mod scene;
mod years;
