//! `vrot-device archive extract`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use archive::records::{RecordName, RecordScanner, SingleRecord};
use archive::{ArchiveError, Form};
use clap::Args;
use durable_file::{Existing, OutputFile};
use serde_json::json;

use super::describe::{records_to_json, said, say_refusal};
use super::judgement::{ArchiveRefusal, read_signed, signed_records};
use super::progress::Watched;
use super::verify::open;
use crate::command_line::{say, say_json};
use crate::outcome::Outcome;

/// Which record is taken out of which archive.
#[derive(Debug, Args)]
pub(crate) struct Extract {
    /// The archive.
    #[arg(value_name = "ARCHIVE")]
    archive: PathBuf,
    /// The record's name: its path below the directory.
    #[arg(long, value_name = "NAME")]
    record: String,
    /// Where to write it, with what proves it.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Take the place of a file that exists.
    #[arg(long)]
    replace: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl Extract {
    pub(super) fn run(&self) -> Result<Outcome> {
        let file = self.archive.display();
        let name = RecordName::parse(&self.record)
            .with_context(|| format!("no record is called {:?}", self.record))?;
        let mut reader = open(&self.archive)?;
        if reader.head().form != Form::Records {
            bail!("{file} is no archive of records: `archive verify --to` writes its data");
        }
        let output = OutputFile::create(&self.to, 0o666, Existing::replaced_if(self.replace))?;
        let (signed, _) = read_signed(&reader.head().signed)?;
        let mut scanner = RecordScanner::new(|_: RecordName<'_>, _: &[u8]| Ok(())).wanting(name);
        let length = reader.head().length;
        let checked = reader.check(&[], &mut Watched::new(&mut scanner, "read", length));
        let checked = match checked {
            Err(ArchiveError::Io(error)) => {
                return Err(error).with_context(|| format!("{file} cannot be read"));
            }
            other => other.map_err(ArchiveRefusal::from),
        };
        // Whoever gets the record finds out whether it is genuine. That it can be is found out here.
        let found = checked.and_then(|checked| {
            let found = scanner.finish().map_err(ArchiveError::from)?;
            let content_type = signed.unverified_label().content_type.as_str();
            let stated = signed_records(content_type, signed.unverified_content())?;
            (found.records.must_be(&stated)).map_err(ArchiveError::from)?;
            Ok((checked, found))
        });
        let (checked, found) = match found {
            Ok(found) => found,
            Err(refusal) => return say_refusal(&refusal, self.json),
        };
        let records = found.records;
        let Some(place) = found.wanted else {
            bail!(
                "{file} has no record {:?} among its {}",
                self.record,
                records.count()
            );
        };
        let single = SingleRecord::take(&checked, place).to_cbor()?;
        output.finish_with(&single)?;
        let to = self.to.display().to_string();
        if self.json {
            say_json(&json!({
                "record": self.record,
                "records": records_to_json(&records),
                "to": to,
                "verified": false,
            }))?;
        } else {
            let mut text = String::new();
            said(
                &mut text,
                "record",
                &format!("{} of {}", self.record, records.count()),
            );
            said(
                &mut text,
                "to",
                &format!("{to}, with what proves it; nothing was verified"),
            );
            say(&text)?;
        }
        Ok(Outcome::Good)
    }
}
