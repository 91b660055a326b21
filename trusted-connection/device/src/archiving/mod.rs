//! `vrot-device archive`: signed data in one file that proves for decades what was signed, by whom, and before
//! when.
//!
//! The format and the proof of time are in the crate `archive`, signed data in `signed-data`; here they meet:
//! [`judge`] reads the signed data of an archive as of the time that its time stamp proves.

mod authority;
mod client;
mod create;
mod describe;
mod extract;
mod judgement;
mod progress;
mod records;
mod renew;
mod requests;
mod show;
mod verify;

use anyhow::Result;
use clap::Subcommand;

use crate::outcome::Outcome;
use crate::settings::Settings;

pub use crate::authority_url::AuthorityUrl;
pub use client::{AuthorityClient, AuthorityError};
pub use judgement::{ArchiveRefusal, ArchivedData, Judge, judge, judge_record, judge_records};

/// What is done with an archive.
#[derive(Debug, Subcommand)]
pub(crate) enum Archive {
    /// Archive signed data, once they are verified, with time stamps over the signature and over the whole.
    ///
    /// Without a connection to the authority, give a folder for requests instead (`--requests`): each run
    /// writes the next request there and ends with status 3, until the answers lie beside the requests.
    Create(create::Create),
    /// Write what is to be signed about the files of a directory, so that they can be archived as one.
    ///
    /// Sign it (`vrot-service sign --attached --content-type application/vnd.vrot.records+cbor`), and archive
    /// the directory with it (`archive create --records`).
    Records(records::ListRecords),
    /// Take a record out of an archive of many, with what proves it: `archive verify` judges it by itself.
    Extract(extract::Extract),
    /// Show what an archive says. Verifies nothing.
    Show(show::Show),
    /// Judge an archive by trust anchors of your own alone: what was signed, by whom, and before when.
    Verify(verify::Verify),
    /// Renew the proof of time, before the certificate of the last time stamp's authority ends or its
    /// algorithms are broken.
    ///
    /// Revocation lists (`--crl`) are put beside the last time stamp: they show later that its authority had not
    /// been revoked.
    Renew(renew::Renew),
}

impl Archive {
    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        match self {
            Self::Create(create) => create.run(settings),
            Self::Records(records) => records.run(),
            Self::Extract(extract) => extract.run(),
            Self::Show(show) => show.run(),
            Self::Verify(verify) => verify.run(settings),
            Self::Renew(renew) => renew.run(settings),
        }
    }
}
