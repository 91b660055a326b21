//! A person at a terminal, a service, and a TPM: swtpm is the device's, and a pseudoterminal stands for the
//! virtual terminal.

mod dialogue;
mod pins;
mod support;
mod virtual_terminal;
mod web_service;
