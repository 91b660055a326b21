//! Revocation lists that a device is given.

use std::path::PathBuf;

use clap::Args;
use trusted_connection::crl_files::{CrlFiles, CrlFilesError};

use crate::settings::Settings;

/// Revocation lists that a device is given.
#[derive(Clone, Debug, Args)]
pub struct CrlOptions {
    /// A revocation list of the issuer (`vtpmctl issuer crl`), PEM or DER. Of those that the device is
    /// given and the evidence carries, the newest counts. Read anew when it changes. Can be given
    /// several times.
    #[arg(long = "crl", value_name = "FILE")]
    files: Vec<PathBuf>,
}

impl CrlOptions {
    /// Reads them, and those of the settings.
    pub(crate) fn open(&self, settings: &Settings) -> Result<CrlFiles, CrlFilesError> {
        CrlFiles::open(&[&self.files, settings.crls()].concat())
    }
}
