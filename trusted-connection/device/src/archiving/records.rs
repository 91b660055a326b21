//! Many records as one: `vrot-device archive records`, and what the other commands do with records.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write, sink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use archive::records::{
    CONTENT_TYPE, MAX_SINGLE_RECORD, RecordName, RecordScanner, RecordWriter, Records, SingleRecord,
};
use archive::{ArchiveError, CheckedArchive, EvidenceRecord, Head, Reader};
use bounded_file::read_bounded;
use clap::Args;
use durable_file::{Existing, OutputFile};
use record_files::{NewFolder, RecordFilesError, read_folder};
use serde_json::json;

use super::describe::{records_to_json, said};
use super::progress::Watched;
use crate::command_line::{say, say_json};
use crate::outcome::Outcome;

/// What is to be signed about which records.
#[derive(Debug, Args)]
pub(crate) struct ListRecords {
    /// The directory: every file in it, and in those below it, is a record.
    #[arg(value_name = "DIR")]
    folder: PathBuf,
    /// Where to write what is to be signed.
    #[arg(long, value_name = "FILE")]
    to: PathBuf,
    /// Take the place of a file that exists.
    #[arg(long)]
    replace: bool,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

/// An archive, or a record that was taken out of one.
pub(super) enum Opened {
    Archive(Box<Reader<File>>),
    Record(Box<SingleRecord>),
}

/// Records are small, and written to a file one by one.
const PIECE: usize = 256 * 1024;

impl ListRecords {
    pub(super) fn run(&self) -> Result<Outcome> {
        let output = OutputFile::create(&self.to, 0o666, Existing::replaced_if(self.replace))?;
        let mut writer = RecordWriter::new(sink());
        read_folder(&self.folder, |name, content| writer.record(name, content))?;
        let none = || format!("{} has no files", self.folder.display());
        let records = writer.finish().with_context(none)?.records;
        output.finish_with(&records.to_cbor())?;
        let to = self.to.display().to_string();
        if self.json {
            say_json(&json!({
                "records": records_to_json(&records),
                "to": to,
                "content_type": CONTENT_TYPE,
            }))?;
        } else {
            let mut text = String::new();
            said(&mut text, "records", &records.count().to_string());
            said(&mut text, "bytes", &records.length().to_string());
            said(&mut text, "root", &records.root().to_string());
            said(
                &mut text,
                "to sign",
                &format!("{to}, attached, as {CONTENT_TYPE}"),
            );
            say(&text)?;
        }
        Ok(Outcome::Good)
    }
}

impl Opened {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let unread = || format!("{} cannot be read", path.display());
        let unusable = || format!("{} cannot be used", path.display());
        let mut file = File::open(path).with_context(unread)?;
        let mut first = [0];
        let read = file.read(&mut first).with_context(unread)?;
        if SingleRecord::begins(first.get(..read).unwrap_or_default()) {
            let bytes = read_bounded(path, MAX_SINGLE_RECORD).with_context(unread)?;
            let record = SingleRecord::from_cbor(&bytes).with_context(unusable)?;
            return Ok(Self::Record(Box::new(record)));
        }
        file.seek(SeekFrom::Start(0)).with_context(unread)?;
        let reader = Reader::open(file).with_context(unusable)?;
        Ok(Self::Archive(Box::new(reader)))
    }

    pub(super) fn head(&self) -> &Head {
        match self {
            Self::Archive(reader) => reader.head(),
            Self::Record(record) => record.head(),
        }
    }

    pub(super) fn record(&self) -> &EvidenceRecord {
        match self {
            Self::Archive(reader) => reader.record(),
            Self::Record(record) => record.record(),
        }
    }

    /// Of a record.
    pub(super) fn unverified_name(&self) -> Result<Option<&str>> {
        match self {
            Self::Archive(_) => Ok(None),
            Self::Record(record) => Ok(Some(record.unverified_name()?)),
        }
    }
}

/// Reads an archive of records: that it is whole, and which they are.
pub(super) fn scan(reader: &mut Reader<File>) -> Result<(CheckedArchive, Records), ArchiveError> {
    let mut scanner = RecordScanner::new(|_: RecordName<'_>, _: &[u8]| Ok(()));
    let length = reader.head().length;
    let checked = reader.check(&[], &mut Watched::new(&mut scanner, "verified", length))?;
    Ok((checked, scanner.finish()?.records))
}

/// Writes the records to a new directory, which has its name once it is sure that they are still these.
pub(super) fn unpack(reader: &mut Reader<File>, folder: &Path, records: &Records) -> Result<()> {
    let mut files = NewFolder::create(folder)?;
    let mut failed = None;
    let mut scanner = RecordScanner::new(|name: RecordName<'_>, content: &[u8]| {
        files.write(name, content).map_err(|error| {
            failed = Some(error);
            io::Error::other("a record was not written")
        })
    });
    let length = reader.head().length;
    let read = reader.check(&[], &mut Watched::new(&mut scanner, "written", length));
    let found = scanner.finish();
    if let Some(error) = failed {
        return Err(error.into());
    }
    let unwritten = || format!("{} was not written", folder.display());
    read.with_context(unwritten)?;
    let found = found.with_context(unwritten)?.records;
    ensure!(
        found == *records,
        "the archive changed while it was read; {}",
        unwritten()
    );
    Ok(files.finish()?)
}

/// Writes the files of a directory as the data of an archive; which records they were.
pub(super) fn pack(
    folder: &Path,
    to: &mut impl Write,
    length: u64,
) -> Result<Records, RecordFilesError> {
    let watched = Watched::new(to, "archived", length);
    let mut writer = RecordWriter::new(BufWriter::with_capacity(PIECE, watched));
    read_folder(folder, |name, content| writer.record(name, content))?;
    let mut written = writer.finish().map_err(ArchiveError::from)?;
    written.out.flush().map_err(ArchiveError::from)?;
    Ok(written.records)
}
