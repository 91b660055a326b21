//! The trusted user interface of a device (ISO/IEC 27071 §5.8): shows a text on a terminal of its own, takes a
//! person's PIN, and has the TPM sign what was shown.
//!
//! Root on the device can paint on every terminal and read every key that is pressed: this protects from
//! programs without such rights, and from whoever has the device's traffic or its other keys.

mod ask;
pub mod command_line;
mod device_certificate;
mod dialogue;
mod ending;
mod enrol;
mod font;
mod hardening;
pub mod key_file;
pub mod pin;
pub mod request;
mod screen;
mod server;
pub mod terminal;
pub mod tpm;
mod virtual_terminal;
