//! `vrot-device archive create`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use archive::cose_time_stamp::{StampedSign1, signature_imprint};
use archive::file::MAX_CRLS;
use archive::records::Records;
use archive::time_stamp::MAX_TOKEN;
use archive::{ArchiveError, ArchiveHash, EvidenceRecord, Form, Head, VerifiedTimeStamp, Writer};
use attestation::Verdict;
use attestation::policy::MAX_POLICY;
use bounded_file::{read_bounded, read_bounded_text};
use cert_chain::TrustAnchors;
use cert_chain::crl::Crl;
use clap::Args;
use durable_file::OutputFile;
use rustls_pki_types::UnixTime;
use serde_json::json;
use signed_data::{Content, DataResult, MAX_SIGNED_DATA, SignedData, appraise};
use trusted_connection::policy_files;

use super::authority::{Authority, AuthorityOptions, TimeRoots};
use super::describe::{before, said, say_refusal, stamp_to_json};
use super::judgement::{
    ArchiveRefusal, Judge, digest_of, judge_signed, read_signed, signed_records,
};
use super::progress::Watched;
use super::records::pack;
use super::verify::{DemandOptions, existing, hash_of};
use crate::command_line::{say, say_json};
use crate::crl_options::CrlOptions;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::verify_data::{anchors_of, result_to_json, result_to_text, rfc3339};

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
    authority: AuthorityOptions,
    #[command(flatten)]
    authorities: TimeRoots,
    #[command(flatten)]
    crls: CrlOptions,
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
}

/// What was archived.
struct Created {
    result: DataResult,
    signed: VerifiedTimeStamp,
    archived: VerifiedTimeStamp,
}

impl Create {
    pub(super) fn run(&self, settings: &Settings) -> Result<Outcome> {
        match self.create(settings)? {
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
        }
    }

    fn create(&self, settings: &Settings) -> Result<Result<Created, Stopped>> {
        let mut output = OutputFile::create(&self.to, 0o666, existing(self.replace))?;
        let policy_file = settings.policy(self.policy.as_deref())?;
        let policy = policy_files::load_about_either(policy_file)
            .with_context(|| format!("the policy {} cannot be used", policy_file.display()))?;
        let file = self.signed.display();
        let bytes = read_bounded(&self.signed, MAX_SIGNED_DATA + MAX_TOKEN)
            .with_context(|| format!("{file} cannot be read"))?;
        let (signed, stamped) =
            read_signed(&bytes).with_context(|| format!("{file} cannot be used"))?;
        let data = self.data.as_deref().map(hash_of).transpose()?;
        let crls = self.crls.open(settings)?;
        let lists = crls.for_verification();
        let kept = distinct(crls.lists())?;
        let authority = self.authority.open(settings)?;
        let authorities = self.authorities.open(settings)?.with_lists(&lists);
        let by = Judge {
            policy: &policy,
            issuers: &anchors_of(&policy)?.with_lists(&lists),
            authorities: &authorities,
            demand: &self.demand.demand(),
        };
        let attached = matches!(signed.unverified_content(), Content::Attached(_));
        let records = match self.stated_records(&signed).transpose() {
            Ok(records) => records,
            Err(refusal) => return Ok(Err(Stopped::Refused(refusal))),
        };
        // What is not genuine now costs no authority a time stamp.
        if stamped.token.is_none() {
            let verified = signed.verify(data.as_ref(), by.issuers, UnixTime::now());
            match verified.and_then(|verified| appraise(verified, by.policy, by.demand)) {
                Err(refusal) => return Ok(Err(Stopped::Refused(refusal.into()))),
                Ok(result) if !self.takes(result.verdict()) => {
                    return Ok(Err(Stopped::NotAffirmed(Box::new(result))));
                }
                Ok(_) => {}
            }
        }
        let Some((stamped, stamp)) = stamp_signature(stamped, &authority, by.authorities)? else {
            return Ok(Err(Stopped::Waiting));
        };
        let now = UnixTime::now();
        let result = match judge_signed(&stamped.sign1, data.as_ref(), &by, &stamp, now) {
            Err(refusal) => return Ok(Err(Stopped::Refused(refusal))),
            Ok(result) if !self.takes(result.verdict()) => {
                return Ok(Err(Stopped::NotAffirmed(Box::new(result))));
            }
            Ok(result) => result,
        };
        let taken = (self.data.as_deref()).filter(|_| !attached && !self.without_data);
        let mut source = taken.map(open_regular).transpose()?;
        let (form, length) = match (&source, &records) {
            (Some((_, length)), _) => (Form::File, *length),
            (None, Some((_, stated))) => (Form::Records, stated.length()),
            (None, None) => (Form::Elsewhere, 0),
        };
        let mut head = Head::new(stamped.to_cbor()?, form, length);
        let kept: Vec<_> = (kept.iter())
            .map(|list| list.der().to_vec().into())
            .collect();
        head.crls = (!kept.is_empty()).then_some(kept);
        head.policy = Some(read_policy(policy_file)?);
        head.verdict = Some(result_to_json(&result).to_string());
        let mut writer = Writer::new(&mut output, &head)?;
        if let (Some((file, length)), Some(path)) = (&mut source, taken) {
            copy(file, &mut Watched::new(&mut writer, "archived", *length))
                .with_context(|| format!("{} cannot be archived", path.display()))?;
        }
        if let Some((folder, stated)) = &records {
            let found = pack(folder, &mut writer, length)
                .with_context(|| format!("{} cannot be archived", folder.display()))?;
            if let Err(other) = found.must_be(stated) {
                return Ok(Err(Stopped::Refused(ArchiveError::from(other).into())));
            }
        }
        let unstamped = writer.finish().map_err(|error| changed(error, taken))?;
        let archived = unstamped
            .hashes()
            .get(1)
            .map(|hash| digest_of(hash.value()));
        if let (Some(archived), Some(path)) = (archived.transpose()?, taken) {
            let same = data == Some(archived);
            ensure!(same, "{} changed while it was archived", path.display());
        }
        let imprint = unstamped.imprint()?;
        let Some(token) = authority.stamp("archive", imprint.clone())? else {
            return Ok(Err(Stopped::Waiting));
        };
        let archived = (token.verify(&imprint, by.authorities, UnixTime::now()))
            .context("the authority's time stamp over the archive is not believed")?;
        let record = EvidenceRecord::new(unstamped.hashes(), token)?;
        unstamped.finish(&record)?;
        output.finish()?;
        Ok(Ok(Created {
            result,
            signed: stamp,
            archived,
        }))
    }

    fn takes(&self, verdict: Verdict) -> bool {
        verdict == Verdict::Affirming || self.any_verdict
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

/// With a time stamp over the signature, if it has none yet; `None` while that is waited for.
fn stamp_signature(
    mut stamped: StampedSign1,
    authority: &Authority,
    authorities: &TrustAnchors,
) -> Result<Option<(StampedSign1, VerifiedTimeStamp)>> {
    let algorithm =
        (stamped.token.as_ref()).map_or(ArchiveHash::Sha256, |token| token.imprint().algorithm());
    let imprint = signature_imprint(&stamped.sign1, algorithm)?;
    let token = match stamped.token.take() {
        Some(token) => Some(token),
        None => authority.stamp("signature", imprint.clone())?,
    };
    let Some(token) = token else {
        return Ok(None);
    };
    let verified = (token.verify(&imprint, authorities, UnixTime::now()))
        .context("the time stamp over the signature is not believed")?;
    stamped.token = Some(token);
    Ok(Some((stamped, verified)))
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

fn changed(error: ArchiveError, taken: Option<&Path>) -> anyhow::Error {
    match (&error, taken) {
        (ArchiveError::Length { .. }, Some(path)) => anyhow::Error::new(error)
            .context(format!("{} changed while it was archived", path.display())),
        _ => error.into(),
    }
}
