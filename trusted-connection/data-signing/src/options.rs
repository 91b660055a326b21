//! The part of a command line that concerns what is signed.

use std::path::PathBuf;

use clap::Args;
use signed_data::LabelText;

/// Of a command that signs data.
#[derive(Args, Clone, Debug)]
pub struct SignOptions {
    /// The data. Without it, standard input.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Where to write the signed data (COSE_Sign1).
    #[arg(long, value_name = "FILE")]
    pub to: PathBuf,
    /// Take the place of a file that exists.
    #[arg(long)]
    pub replace: bool,
    /// Put the data into the signed file, which takes at most 1 MiB of them. Without it, their SHA-256 value
    /// is signed, and whoever verifies them needs the data as well.
    #[arg(long)]
    pub attached: bool,
    /// What the data are: a media type.
    #[arg(long, value_name = "TYPE", default_value = "application/octet-stream")]
    pub content_type: LabelText,
    /// Which of the streams from here they belong to.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub stream_name: LabelText,
    /// Take fresh evidence of what booted here, made for these data, and put it into the signed file.
    #[arg(long)]
    pub evidence: bool,
}
