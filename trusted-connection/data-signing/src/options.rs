//! The part of a command line that concerns what is signed.

use std::path::PathBuf;

use clap::Args;
use signed_data::LabelText;

use crate::stream::StreamOptions;

/// Of a command that signs data.
#[derive(Args, Clone, Debug)]
pub struct SignOptions {
    /// The data. Without it, standard input.
    #[arg(long, value_name = "FILE")]
    pub from: Option<PathBuf>,
    /// Where to write the signed data (COSE_Sign1). A stream goes to standard output without it.
    #[arg(long, value_name = "FILE", required_unless_present = "stream")]
    pub to: Option<PathBuf>,
    /// Take the place of a file that exists.
    #[arg(long)]
    pub replace: bool,
    /// Put the data into the signed file, which takes at most 1 MiB of them. Without it, their SHA-256 value
    /// is signed, and whoever verifies them needs the data as well.
    #[arg(long)]
    pub attached: bool,
    /// What the data are: a media type. By default application/octet-stream; of a stream's readings
    /// application/json, or what fits their framing.
    #[arg(long, value_name = "TYPE", default_value = "application/octet-stream", hide_default_value = true,
        default_value_ifs = [
            ("framing", "lines", "text/plain"),
            ("framing", "length", "application/octet-stream"),
            ("stream", "true", "application/json"),
        ])]
    pub content_type: LabelText,
    /// Which of the streams from here they belong to.
    #[arg(long, value_name = "NAME", default_value = "default")]
    pub stream_name: LabelText,
    /// Take fresh evidence of what booted here, made for these data, and put it into the signed file.
    #[arg(long)]
    pub evidence: bool,
    /// Of a stream.
    #[command(flatten)]
    pub stream: StreamOptions,
}
