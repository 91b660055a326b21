//! `vrot-device explain`: evidence and archives, drawn and taken apart for others' tools. Nothing is verified here.

mod archive_parts;
mod archive_tree;

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use archive::cose_time_stamp::StampedSign1;
use archive::{ArchiveError, Reader};
use attestation::Evidence;
use attestation::evidence::MAX_EVIDENCE;
use bounded_file::read_bounded;
use clap::Args;
use printable::Printable;
use serde_json::json;
use signed_data::SignedData;

use crate::command_line::{say, say_json};
use crate::export::{ExportError, Part, export, qualifying_data, write_parts};
use crate::outcome::Outcome;

use archive_tree::{Archive, Tree};

/// What is explained.
#[derive(Debug, Args)]
pub(crate) struct Explain {
    /// The evidence.
    #[arg(long, value_name = "FILE", required_unless_present = "archive")]
    evidence: Option<PathBuf>,
    /// An archive (`vrot-device archive`): it is drawn, from the issuer down to the data.
    #[arg(long, value_name = "ARCHIVE", conflicts_with = "evidence")]
    archive: Option<PathBuf>,
    /// The folder for the files.
    #[arg(long, value_name = "DIR", required_unless_present = "archive")]
    export: Option<PathBuf>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl Explain {
    pub(crate) fn run(&self) -> Result<Outcome> {
        match (&self.evidence, &self.archive, &self.export) {
            (_, Some(archive), export) => self.archive(archive, export.as_deref()),
            (Some(evidence), None, Some(export)) => {
                self.evidence(&load_evidence(evidence)?, export)
            }
            (_, None, _) => anyhow::bail!("name evidence and a folder, or an archive"),
        }
    }

    fn evidence(&self, evidence: &Evidence, folder: &Path) -> Result<Outcome> {
        let files = export(evidence, folder)?;
        let quotes = qualifying_data(evidence)?;
        if self.json {
            say_json(&json!({
                "files": names(&files),
                "vm_qualifying_data": quotes.vm,
                "host_qualifying_data": quotes.host,
                "verified": false,
            }))?;
        } else {
            let mut text = String::from("Nothing was verified. Written:\n");
            list(&mut text, &files);
            text.push_str(&format!(
                "Qualifying data for tpm2_checkquote -q:\n  VM   {}\n  host {}\n",
                quotes.vm, quotes.host
            ));
            say(&text)?;
        }
        Ok(Outcome::Good)
    }

    fn archive(&self, path: &Path, folder: Option<&Path>) -> Result<Outcome> {
        let file = path.display();
        let opened = std::fs::File::open(path).with_context(|| format!("{file} cannot be read"))?;
        let mut reader = Reader::open(opened).with_context(|| format!("{file} cannot be used"))?;
        let stamped = StampedSign1::read(&reader.head().signed)
            .map_err(ArchiveError::from)
            .with_context(|| format!("{file} cannot be used"))?;
        let signed = SignedData::from_cbor(&stamped.sign1)
            .with_context(|| format!("what is signed in {file} cannot be read"))?;
        let tree = Tree::of(&Archive {
            head: reader.head(),
            signed: &signed,
            stamp: stamped.token.as_ref(),
            record: reader.record(),
        });
        let parts: Vec<Part> = match folder {
            Some(_) => archive_parts::parts(&mut reader, &signed, &stamped)
                .with_context(|| format!("{file} cannot be taken apart"))?,
            None => Vec::new(),
        };
        let mut files = match folder {
            Some(folder) => write_parts(parts, folder)?,
            None => Vec::new(),
        };
        if let Some(folder) = folder {
            files.extend(evidence_parts(&signed, folder)?);
        }
        if self.json {
            say_json(&json!({
                "archive": tree.to_json(),
                "files": names(&files),
                "verified": false,
            }))?;
        } else {
            let mut text = format!("Nothing was verified. The archive says:\n{}", tree.draw());
            if !files.is_empty() {
                text.push_str("Written:\n");
                list(&mut text, &files);
                text.push_str(&archive_parts::by_hand(&reader, &signed));
            }
            say(&text)?;
        }
        Ok(Outcome::Good)
    }
}

/// The parts of a VM's evidence go to a folder of their own: some have the names of the archive's.
fn evidence_parts(signed: &SignedData, folder: &Path) -> Result<Vec<PathBuf>, ExportError> {
    let evidence = signed.credentials().evidence.as_ref();
    let evidence = evidence.and_then(|bytes| Evidence::from_cbor(bytes).ok());
    match evidence {
        Some(evidence) => export(&evidence, &folder.join("evidence")),
        None => Ok(Vec::new()),
    }
}

fn names(files: &[PathBuf]) -> Vec<String> {
    files
        .iter()
        .map(|file| file.display().to_string())
        .collect()
}

fn list(text: &mut String, files: &[PathBuf]) {
    for file in names(files) {
        text.push_str(&format!("  {}\n", Printable(&file)));
    }
}

fn load_evidence(path: &Path) -> Result<Evidence> {
    let bytes = read_bounded(path, MAX_EVIDENCE)
        .with_context(|| format!("{} cannot be read", path.display()))?;
    Evidence::from_cbor(&bytes).with_context(|| format!("{} cannot be used", path.display()))
}
