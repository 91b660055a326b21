//! `vrot-device sign`: data signed by this device's key for data.

use anyhow::Result;
use clap::Args;
use data_signing::SignOptions;
use printable::Printable;

use crate::command_line::say;
use crate::outcome::Outcome;
use crate::root_of_trust::RootOfTrustOptions;

/// What is signed, and as which device.
#[derive(Debug, Args)]
#[command(mut_arg("identity", |identity| identity.required(true)))]
pub(crate) struct Sign {
    #[command(flatten)]
    data: SignOptions,
    #[command(flatten)]
    root_of_trust: RootOfTrustOptions,
}

impl Sign {
    pub(crate) fn run(&self) -> Result<Outcome> {
        let number = data_signing::sign(&self.data, || self.root_of_trust.signer())?;
        let to = self.data.to.display().to_string();
        say(&format!("{}: number {number}\n", Printable(&to)))?;
        Ok(Outcome::Good)
    }
}
