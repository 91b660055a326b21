//! `vrot-device archive verify`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use archive::records::SingleRecord;
use archive::{ArchiveError, CheckedArchive, Form, Head, Reader};
use attestation::policy::{MAX_POLICY, MAX_ROOTS};
use attestation::{PolicyAbout, Verdict};
use bounded_file::read_bounded_text;
use cert_chain::Digest32;
use clap::Args;
use durable_file::{Existing, OutputFile};
use rustls_pki_types::UnixTime;
use signed_data::{Content, hash_of_data};
use trusted_connection::policy_files;

use super::authority::TimeRoots;
use super::describe::{PolicyOf, to_json, to_text, verdict};
use super::judgement::{ArchiveRefusal, ArchivedData, Judge, judge, judge_record, judge_records};
use super::progress::Watched;
use super::records::{Opened, scan, unpack};
use crate::command_line::{say, say_json};
use crate::crl_options::CrlOptions;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::times::parse_time;
use crate::verify_data::{DemandOptions, anchors_of};

/// What is judged, and by what.
#[derive(Debug, Args)]
pub(crate) struct Verify {
    /// The archive, or a record that was taken out of one.
    #[arg(value_name = "ARCHIVE")]
    archive: PathBuf,
    /// What is expected of the source of the data: a policy about VMs and their hosts, or one about devices.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// Roots of issuers that are trusted, in PEM, where nothing else is known of the source: the policy in the
    /// archive decides with them, which is that of whoever made it.
    #[arg(long, value_name = "FILE", conflicts_with = "policy")]
    issuer_root: Option<PathBuf>,
    #[command(flatten)]
    authorities: TimeRoots,
    /// The data, if they are not in the archive.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    #[command(flatten)]
    demand: DemandOptions,
    #[command(flatten)]
    crls: CrlOptions,
    /// Write the data here if the verdict is affirming; records to a new directory.
    #[arg(long, value_name = "PATH")]
    to: Option<PathBuf>,
    /// Take the place of a file that exists.
    #[arg(long, requires = "to")]
    replace: bool,
    /// Judge as of this time (RFC 3339) instead of now.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<UnixTime>,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

type Judged = Result<ArchivedData, ArchiveRefusal>;

impl Verify {
    pub(super) fn run(&self, settings: &Settings) -> Result<Outcome> {
        let opened = Opened::open(&self.archive)?;
        let (policy, policy_of) = self.policy(opened.head(), settings)?;
        let lists = self.crls.open(settings)?.for_verification();
        let issuers = anchors_of(&policy)?.with_lists(&lists);
        let authorities = self.authorities.open(settings)?.with_lists(&lists);
        if opened.head().form != Form::Elsewhere && self.data.is_some() {
            bail!("the data are in the archive: leave --data out");
        }
        let by = Judge {
            policy: &policy,
            issuers: &issuers,
            authorities: &authorities,
            demand: &self.demand.demand(),
        };
        let at = self.at.unwrap_or_else(UnixTime::now);
        let judged = match opened {
            Opened::Record(record) => self.judge_record(&record, &by, at)?,
            Opened::Archive(reader) if reader.head().form == Form::Records => {
                self.judge_records(*reader, &by, at)?
            }
            Opened::Archive(reader) => self.judge(*reader, &by, at)?,
        };
        match self.json {
            true => say_json(&to_json(&judged, policy_of))?,
            false => say(&to_text(&judged, policy_of))?,
        }
        Ok(verdict(&judged).into())
    }

    fn judge(&self, mut reader: Reader<File>, by: &Judge<'_>, at: UnixTime) -> Result<Judged> {
        let form = reader.head().form;
        let elsewhere = self.data.as_deref().map(hash_of).transpose()?;
        let mut output = self.output()?;
        let checked = match (&mut output, form) {
            (Some(output), Form::File) => check(&mut reader, output),
            _ => check(&mut reader, &mut io::sink()),
        };
        let judged = match self.read_to_its_end(checked)? {
            Err(error) => Err(error.into()),
            Ok(checked) => judge(checked, elsewhere.as_ref(), by, at),
        };
        if let (Some(output), Ok(archived)) = (output, &judged)
            && archived.result().verdict() == Verdict::Affirming
        {
            finish(output, form, archived)?;
        }
        Ok(judged)
    }

    fn judge_record(&self, record: &SingleRecord, by: &Judge<'_>, at: UnixTime) -> Result<Judged> {
        let output = self.output()?;
        let judged = judge_record(record, by, at);
        if let (Some(output), Ok(archived)) = (output, &judged)
            && archived.result().verdict() == Verdict::Affirming
            && let Some(record) = archived.record()
        {
            output.finish_with(record.content())?;
        }
        Ok(judged)
    }

    fn judge_records(
        &self,
        mut reader: Reader<File>,
        by: &Judge<'_>,
        at: UnixTime,
    ) -> Result<Judged> {
        if self.replace {
            bail!("records are written to a new directory: leave --replace out");
        }
        let judged = match self.read_to_its_end(scan(&mut reader))? {
            Err(error) => Err(error.into()),
            Ok((checked, found)) => judge_records(checked, &found, by, at),
        };
        if let (Some(folder), Ok(archived)) = (&self.to, &judged)
            && archived.result().verdict() == Verdict::Affirming
            && let Some(records) = archived.records()
        {
            unpack(&mut reader, folder, records)?;
        }
        Ok(judged)
    }

    /// What was not read to its end is neither good nor bad.
    fn read_to_its_end<T>(&self, read: Result<T, ArchiveError>) -> Result<Result<T, ArchiveError>> {
        match read {
            Err(ArchiveError::Io(error)) => {
                let file = self.archive.display();
                Err(error)
                    .with_context(|| format!("{file} cannot be read, or its data not be written"))
            }
            other => Ok(other),
        }
    }

    fn policy(&self, head: &Head, settings: &Settings) -> Result<(PolicyAbout, PolicyOf)> {
        match &self.issuer_root {
            None => {
                let path = (settings.policy(self.policy.as_deref()))
                    .context("neither a policy nor an issuer's root (--issuer-root) is named")?;
                let policy = policy_files::load_about_either(path)
                    .with_context(|| format!("the policy {} cannot be used", path.display()))?;
                Ok((policy, PolicyOf::Verifier))
            }
            Some(path) => {
                let text = (head.policy.as_ref())
                    .context("there is no policy in the archive: give one (--policy)")?;
                let most = MAX_POLICY;
                ensure!(
                    text.len() <= most,
                    "the policy in the archive has more than {most} bytes"
                );
                let roots = read_bounded_text(path, MAX_ROOTS)
                    .with_context(|| format!("{} cannot be read", path.display()))?;
                let policy = PolicyAbout::parse(text, |_| Ok(roots.clone()))
                    .context("the policy in the archive cannot be used: give one (--policy)")?;
                Ok((policy, PolicyOf::Archiver))
            }
        }
    }

    fn output(&self) -> Result<Option<OutputFile>> {
        let existing = Existing::replaced_if(self.replace);
        let output = (self.to.as_deref()).map(|path| OutputFile::create(path, 0o666, existing));
        Ok(output.transpose()?)
    }
}

fn finish(output: OutputFile, form: Form, archived: &ArchivedData) -> Result<()> {
    if form != Form::Elsewhere {
        return Ok(output.finish()?);
    }
    match archived.result().data().content() {
        Content::Attached(data) => Ok(output.finish_with(data)?),
        Content::Hash(_) => bail!("the data are not in the archive: nothing was written"),
    }
}

pub(super) fn open(path: &Path) -> Result<Reader<File>> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    Reader::open(file).with_context(|| format!("{} cannot be used", path.display()))
}

fn check(reader: &mut Reader<File>, to: &mut impl Write) -> Result<CheckedArchive, ArchiveError> {
    let length = reader.head().length;
    reader.check(&[], &mut Watched::new(to, "verified", length))
}

/// SHA-256 value of a file of any length.
pub(super) fn hash_of(path: &Path) -> Result<Digest32> {
    let hashed = File::open(path).and_then(|file| {
        let length = file.metadata()?.len();
        hash_of_data(&mut Watched::new(file, "hashed", length))
    });
    hashed.with_context(|| format!("{} cannot be read", path.display()))
}
