//! Domains of libvirt: their XML, the hook that libvirt calls, and what is left of undefined ones.

mod config;
mod domain;
mod edit;
mod error;
mod hook;
mod links;
mod measured;
mod notes;
mod sync;

use crate::arguments::LibvirtCommand;
use crate::client::Client;
use crate::error::CtlError;
use crate::output::Output;

pub(crate) use error::LibvirtError;

/// Carries a command out.
pub(crate) fn run(
    command: &LibvirtCommand,
    client: &Client,
    output: &Output,
) -> Result<(), CtlError> {
    match command {
        LibvirtCommand::Xml(arguments) => edit::run(arguments, output),
        LibvirtCommand::Hook(arguments) => hook::run(arguments, client),
        LibvirtCommand::Sync(arguments) => sync::run(arguments, client, output),
    }
}
