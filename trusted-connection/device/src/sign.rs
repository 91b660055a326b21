//! `vrot-device sign`: data signed by this device's key for data.

use anyhow::Result;
use clap::Args;
use data_signing::{SignOptions, Signed};
use printable::Printable;
use program_output::log;
use tracing_subscriber::filter::LevelFilter;

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
        // A stream goes on for long, and tells what happens meanwhile.
        let is_stream = self.data.stream.stream;
        let _log = is_stream.then(|| log::start(LevelFilter::INFO, log::Format::Text));
        let signed = data_signing::sign(&self.data, || self.root_of_trust.signer())?;
        // Without a file, a stream is what standard output has.
        if let Some(to) = &self.data.to {
            let to = to.display().to_string();
            let what = match signed {
                Signed::Data(number) => format!("number {number}"),
                Signed::Stream(signed) => {
                    format!("{} readings in {} batches", signed.readings, signed.batches)
                }
            };
            say(&format!("{}: {what}\n", Printable(&to)))?;
        }
        Ok(Outcome::Good)
    }
}
