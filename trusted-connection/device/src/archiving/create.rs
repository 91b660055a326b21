//! `vrot-device archive create`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Error, Result, bail, ensure};
use archive::cose_time_stamp::{StampedSign1, signature_imprint};
use archive::file::{MAX_CRLS, Unstamped};
use archive::records::Records;
use archive::time_stamp::MAX_TOKEN;
use archive::{ArchiveError, ArchiveHash, EvidenceRecord, Form, Head, VerifiedTimeStamp, Writer};
use attestation::Verdict;
use attestation::policy::MAX_POLICY;
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::Digest32;
use cert_chain::crl::Crl;
use clap::Args;
use durable_file::{Existing, OutputFile};
use rustls_pki_types::UnixTime;
use serde_json::json;
use signed_data::{Content, DataResult, MAX_SIGNED_DATA, SignedData, appraise};
use trusted_connection::policy_files;

use super::authority::{StampOptions, Stamping};
use super::describe::{before, said, say_refusal, stamp_to_json};
use super::judgement::{
    ArchiveRefusal, Judge, digest_of, judge_signed, read_signed, signed_records,
};
use super::progress::Watched;
use super::records::pack;
use super::verify::hash_of;
use crate::command_line::{say, say_json};
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::times::rfc3339;
use crate::verify_data::{DemandOptions, anchors_of, result_to_json, result_to_text};

/// What is archived, and by whose time.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// The signed data (`vrot-service sign`, `vrot-device sign`).
    #[arg(value_name = "FILE")]
    signed: PathBuf,
    /// Where to write the archive.
    #[arg(long, value_name = "ARCHIVE")]
    to: PathBuf,
    /// Take the place of a file that exists.
    #[arg(long)]
    replace: bool,
    /// The data, unless they are in the signed file. They are archived too.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The directory whose files were signed (`archive records`). They are archived too.
    #[arg(long, value_name = "DIR", conflicts_with = "data")]
    records: Option<PathBuf>,
    /// Leave the data where they are: the archive has their SHA-256 value alone. It cannot be renewed with
    /// another hash algorithm then.
    #[arg(long, requires = "data")]
    without_data: bool,
    /// What is expected of their source: a policy about VMs and their hosts, or one about devices. It is
    /// archived too, and so is the verdict.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    demand: DemandOptions,
    /// Archive data that are genuine whatever the policy says of them. The exit status tells.
    #[arg(long)]
    any_verdict: bool,
    #[command(flatten)]
    stamp: StampOptions,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

/// Ended without an archive.
enum Stopped {
    /// The data are not archived.
    Refused(ArchiveRefusal),
    /// The policy does not affirm them.
    NotAffirmed(Box<DataResult>),
    /// A request has to be answered first.
    Waiting,
    /// There is nothing to judge, or nothing could be written.
    Failed(Error),
}

/// What was archived.
struct Created {
    result: DataResult,
    signed: VerifiedTimeStamp,
    archived: VerifiedTimeStamp,
}

/// What an archive has of the data.
enum Source<'a> {
    /// A file.
    File {
        path: &'a Path,
        file: File,
        length: u64,
    },
    /// The files of a directory, about which this was signed.
    Records { folder: &'a Path, stated: Records },
    /// None: they stand with their signature, or stay where they are.
    Elsewhere,
}

impl Create {
    pub(super) fn run(&self, settings: &Settings) -> Result<Outcome> {
        match self.create(settings) {
            Ok(created) => {
                self.describe(&created)?;
                Ok(created.result.verdict().into())
            }
            Err(Stopped::Refused(refusal)) => say_refusal(&refusal, self.json),
            Err(Stopped::NotAffirmed(result)) => {
                match self.json {
                    true => say_json(&result_to_json(&result))?,
                    false => say(&format!(
                        "{}\nverdict: {}\nnothing was archived; --any-verdict archives genuine data that the policy \
                         does not affirm\n",
                        result_to_text(&result),
                        result.verdict()
                    ))?,
                }
                Ok(Outcome::NotAffirming)
            }
            Err(Stopped::Waiting) => Ok(Outcome::Waiting),
            Err(Stopped::Failed(error)) => Err(error),
        }
    }

    fn create(&self, settings: &Settings) -> Result<Created, Stopped> {
        let existing = Existing::replaced_if(self.replace);
        let mut output = OutputFile::create(&self.to, 0o666, existing)?;
        let policy_file = settings.policy(self.policy.as_deref())?;
        let policy = policy_files::load_about_either(policy_file)
            .with_context(|| format!("the policy {} cannot be used", policy_file.display()))?;
        let file = self.signed.display();
        let bytes = read_bounded(&self.signed, MAX_SIGNED_DATA + MAX_TOKEN)
            .with_context(|| format!("{file} cannot be read"))?;
        let (signed, stamped) =
            read_signed(&bytes).with_context(|| format!("{file} cannot be used"))?;
        let data = self.data.as_deref().map(hash_of).transpose()?;
        let stamping = self.stamp.open(settings)?;
        let kept = distinct(stamping.crls.lists())?;
        let by = Judge {
            policy: &policy,
            issuers: &anchors_of(&policy)?.with_lists(&stamping.crls.for_verification()),
            authorities: &stamping.believed,
            demand: &self.demand.demand(),
        };
        let records = (self.stated_records(&signed).transpose()).map_err(Stopped::Refused)?;
        let taken = self.archived_file(&signed);
        // What is not genuine now costs no authority a time stamp.
        if stamped.token.is_none() {
            let verified = signed.verify(data.as_ref(), by.issuers, UnixTime::now());
            let judged = verified.and_then(|verified| appraise(verified, by.policy, by.demand));
            self.accept(judged.map_err(ArchiveRefusal::from))?;
        }
        let (stamped, stamp) = stamp_signature(stamped, &stamping)?;
        let now = UnixTime::now();
        let result = self.accept(judge_signed(
            &stamped.sign1,
            data.as_ref(),
            &by,
            &stamp,
            now,
        ))?;
        let source = Source::open(taken, records)?;
        let mut head = Head::new(stamped.to_cbor()?, source.form(), source.length());
        let kept: Vec<_> = (kept.iter())
            .map(|list| list.der().to_vec().into())
            .collect();
        head.crls = (!kept.is_empty()).then_some(kept);
        head.policy = Some(read_policy(policy_file)?);
        head.verdict = Some(result_to_json(&result).to_string());
        let unstamped = source.write(Writer::new(&mut output, &head)?, data.as_ref())?;
        let stamped = stamping.stamp("archive", &unstamped.imprint()?)?;
        let (token, archived) = stamped.ok_or(Stopped::Waiting)?;
        let record = EvidenceRecord::new(unstamped.hashes(), token)?;
        unstamped.finish(&record)?;
        output.finish()?;
        Ok(Created {
            result,
            signed: stamp,
            archived,
        })
    }

    /// Data that the policy affirms, or that are archived whatever it says of them.
    fn accept(&self, judged: Result<DataResult, ArchiveRefusal>) -> Result<DataResult, Stopped> {
        let result = judged.map_err(Stopped::Refused)?;
        match result.verdict() == Verdict::Affirming || self.any_verdict {
            true => Ok(result),
            false => Err(Stopped::NotAffirmed(Box::new(result))),
        }
    }

    /// The directory of records, and what was signed about it.
    fn stated_records(
        &self,
        signed: &SignedData,
    ) -> Option<Result<(&Path, Records), ArchiveRefusal>> {
        let folder = self.records.as_deref()?;
        let content_type = signed.unverified_label().content_type.as_str();
        let stated = signed_records(content_type, signed.unverified_content());
        Some(stated.map(|stated| (folder, stated)))
    }

    /// The file of the data, if it goes into the archive.
    fn archived_file(&self, signed: &SignedData) -> Option<&Path> {
        let attached = matches!(signed.unverified_content(), Content::Attached(_));
        (self.data.as_deref()).filter(|_| !attached && !self.without_data)
    }

    fn describe(&self, created: &Created) -> Result<()> {
        let Created {
            result,
            signed,
            archived,
        } = created;
        let ends = rfc3339(archived.authority().not_after().as_secs());
        if self.json {
            return say_json(&json!({
                "verdict": result.verdict(),
                "archive": self.to.display().to_string(),
                "time": {
                    "signed": stamp_to_json(signed),
                    "archived": stamp_to_json(archived),
                    "proof_ends": ends,
                },
                "data": result_to_json(result),
            }));
        }
        let mut text = String::new();
        said(&mut text, "archive", &self.to.display().to_string());
        said(&mut text, "proven", &before("signed", signed));
        said(&mut text, "proven", &before("archived", archived));
        said(
            &mut text,
            "until",
            &format!("{ends}, unless it is renewed before"),
        );
        say(&format!(
            "{text}\n{}\nverdict: {}\n",
            result_to_text(result),
            result.verdict()
        ))
    }
}

/// With a time stamp over the signature, if it has none yet.
fn stamp_signature(
    mut stamped: StampedSign1,
    stamping: &Stamping,
) -> Result<(StampedSign1, VerifiedTimeStamp), Stopped> {
    let algorithm =
        (stamped.token.as_ref()).map_or(ArchiveHash::Sha256, |token| token.imprint().algorithm());
    let imprint = signature_imprint(&stamped.sign1, algorithm)?;
    if let Some(token) = &stamped.token {
        let verified = (token.verify(&imprint, &stamping.believed, UnixTime::now()))
            .context("the time stamp over the signature is not believed")?;
        return Ok((stamped, verified));
    }
    let made = stamping.stamp("signature", &imprint)?;
    let (token, verified) = made.ok_or(Stopped::Waiting)?;
    stamped.token = Some(token);
    Ok((stamped, verified))
}

impl<'a> Source<'a> {
    fn open(file: Option<&'a Path>, records: Option<(&'a Path, Records)>) -> Result<Self> {
        match (file, records) {
            (_, Some((folder, stated))) => Ok(Self::Records { folder, stated }),
            (Some(path), None) => {
                let (file, length) = open_regular(path)?;
                Ok(Self::File { path, file, length })
            }
            (None, None) => Ok(Self::Elsewhere),
        }
    }

    fn form(&self) -> Form {
        match self {
            Self::File { .. } => Form::File,
            Self::Records { .. } => Form::Records,
            Self::Elsewhere => Form::Elsewhere,
        }
    }

    fn length(&self) -> u64 {
        match self {
            Self::File { length, .. } => *length,
            Self::Records { stated, .. } => stated.length(),
            Self::Elsewhere => 0,
        }
    }

    /// Writes the data behind the head, and makes sure that they are still those with the SHA-256 value `data`,
    /// or about which was signed.
    fn write<W: Write>(
        self,
        mut writer: Writer<W>,
        data: Option<&Digest32>,
    ) -> Result<Unstamped<W>, Stopped> {
        let expected = self.length();
        match self {
            Self::File { path, mut file, .. } => {
                let changed = || format!("{} changed while it was archived", path.display());
                copy(
                    &mut file,
                    &mut Watched::new(&mut writer, "archived", expected),
                )
                .with_context(|| format!("{} cannot be archived", path.display()))?;
                let unstamped = writer.finish().with_context(changed)?;
                let archived = (unstamped.hashes().get(1)).map(|hash| digest_of(hash.value()));
                match archived.transpose()?.as_ref() == data {
                    true => Ok(unstamped),
                    false => Err(Stopped::Failed(Error::msg(changed()))),
                }
            }
            Self::Records { folder, stated } => {
                let found = pack(folder, &mut writer, expected)
                    .with_context(|| format!("{} cannot be archived", folder.display()))?;
                (found.must_be(&stated))
                    .map_err(|other| Stopped::Refused(ArchiveError::from(other).into()))?;
                Ok(writer.finish()?)
            }
            Self::Elsewhere => Ok(writer.finish()?),
        }
    }
}

impl<E: Into<Error>> From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

/// Each list once, and no more than an archive has.
fn distinct(lists: Vec<Arc<Crl>>) -> Result<Vec<Arc<Crl>>> {
    let mut distinct: Vec<Arc<Crl>> = Vec::new();
    for list in lists {
        if !distinct.iter().any(|known| known.der() == list.der()) {
            distinct.push(list);
        }
    }
    let found = distinct.len();
    ensure!(
        found <= MAX_CRLS,
        "{found} revocation lists are too many for an archive: {MAX_CRLS} is the most (--crl)"
    );
    Ok(distinct)
}

fn read_policy(path: &Path) -> Result<String> {
    read_bounded_text(path, MAX_POLICY)
        .with_context(|| format!("{} cannot be read", path.display()))
}

/// A file whose length is known before it is read.
fn open_regular(path: &Path) -> Result<(File, u64)> {
    let file = File::open(path).with_context(|| format!("{} cannot be read", path.display()))?;
    let metadata = file
        .metadata()
        .with_context(|| format!("{} cannot be read", path.display()))?;
    if !metadata.is_file() {
        bail!("{} is no regular file: it is read twice", path.display());
    }
    Ok((file, metadata.len()))
}

fn copy(from: &mut impl Read, to: &mut impl Write) -> io::Result<()> {
    let mut piece = vec![0; 256 * 1024];
    loop {
        match from.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(read) => to.write_all(piece.get(..read).unwrap_or_default())?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}
