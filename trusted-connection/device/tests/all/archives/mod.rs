//! `vrot-device archive`, with `openssl ts` as the authority and a clock that the tests set.

mod authorities;
mod devices;
mod explained;
mod program;
mod records;
mod scene;
mod settings;
mod years;
