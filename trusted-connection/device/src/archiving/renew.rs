//! `vrot-device archive renew`.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use archive::{ArchiveError, ArchiveHash, DataHashes, EvidenceRecord, Form, VerifiedTimeStamp};
use clap::{Args, ValueEnum};
use durable_file::{Existing, OutputFile};
use rustls_pki_types::UnixTime;
use serde_json::json;
use signed_data::Content;

use super::authority::StampOptions;
use super::describe::{before, said, say_refusal, stamp_to_json};
use super::judgement::read_signed;
use super::progress::Watched;
use super::verify::open;
use crate::command_line::{say, say_json};
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::times::rfc3339;

/// What is renewed, and by whose time.
#[derive(Debug, Args)]
pub(crate) struct Renew {
    /// The archive.
    #[arg(value_name = "ARCHIVE")]
    archive: PathBuf,
    /// Where to write the renewed one; with --replace it may be the same file.
    #[arg(long, value_name = "ARCHIVE")]
    to: PathBuf,
    /// Take the place of a file that exists, once the new one is whole.
    #[arg(long)]
    replace: bool,
    /// Hash everything anew with this algorithm, before the one that was used is broken: not only the last time
    /// stamp is covered then.
    #[arg(long, value_name = "HASH")]
    rehash: Option<RehashWith>,
    #[command(flatten)]
    stamp: StampOptions,
    /// Print the result as JSON.
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum RehashWith {
    Sha256,
    Sha384,
    Sha512,
}

impl Renew {
    pub(super) fn run(&self, settings: &Settings) -> Result<Outcome> {
        let existing = Existing::replaced_if(self.replace);
        let mut output = OutputFile::create(&self.to, 0o666, existing)?;
        let stamping = self.stamp.open(settings)?;
        let mut reader = open(&self.archive)?;
        let length = reader.head().length;
        let rehash = self.rehash.map(ArchiveHash::from);
        if rehash.is_some() && reader.head().form == Form::Elsewhere {
            let (signed, _) = read_signed(&reader.head().signed)?;
            if matches!(signed.unverified_content(), Content::Hash(_)) {
                bail!(
                    "the data are not in the archive, and a new hash algorithm cannot cover them by a SHA-256 value \
                     of them: archive them with their data"
                );
            }
        }
        let also: Vec<_> = rehash.into_iter().collect();
        let checked = reader.check(&also, &mut Watched::new(std::io::sink(), "hashed", length));
        let checked = match checked {
            Ok(checked) => checked,
            Err(ArchiveError::Io(error)) => {
                return Err(error)
                    .with_context(|| format!("{} cannot be read", self.archive.display()));
            }
            Err(error) => return say_refusal(&error.into(), self.json),
        };
        let carried: Vec<Vec<u8>> = checked.head().crls().map(<[u8]>::to_vec).collect();
        let judged = stamping
            .believed
            .with_carried(carried.iter().map(Vec::as_slice));
        // What does not count any more is not made to count by another time stamp over it.
        if let Err(error) = checked.clone().verify(&judged, UnixTime::now()) {
            return say_refusal(&error.into(), self.json);
        }
        let lists: Vec<_> = (stamping.crls.lists())
            .iter()
            .map(|list| list.der().to_vec())
            .collect();
        let record = checked.record().clone().with_crls(&lists)?;
        let hashes = rehash.and_then(|hash| checked.hashes(hash));
        let imprint = match &hashes {
            Some(hashes) => record.rehash_imprint(hashes)?,
            None => record.renewal_imprint()?,
        };
        let name = format!("renewal-{}", record.stamps());
        let Some((token, stamp)) = stamping.stamp(&name, &imprint)? else {
            return Ok(Outcome::Waiting);
        };
        let record = match &hashes {
            Some(hashes) => record.rehashed(hashes, token)?,
            None => record.renewed(token)?,
        };
        reader.rewrite(&record, &mut Watched::new(&mut output, "written", length))?;
        output.finish()?;
        self.describe(&record, &stamp)?;
        Ok(Outcome::Good)
    }

    fn describe(&self, record: &EvidenceRecord, stamp: &VerifiedTimeStamp) -> Result<()> {
        let ends = rfc3339(stamp.authority().not_after().as_secs());
        let archive = self.to.display().to_string();
        if self.json {
            return say_json(&json!({
                "archive": archive,
                "renewed": stamp_to_json(stamp),
                "time_stamps": record.stamps(),
                "proof_ends": ends,
            }));
        }
        let mut text = String::new();
        said(&mut text, "archive", &archive);
        said(&mut text, "proven", &before("renewed", stamp));
        said(
            &mut text,
            "until",
            &format!("{ends}, unless it is renewed again before"),
        );
        say(&text)
    }
}

impl From<RehashWith> for ArchiveHash {
    fn from(named: RehashWith) -> Self {
        match named {
            RehashWith::Sha256 => Self::Sha256,
            RehashWith::Sha384 => Self::Sha384,
            RehashWith::Sha512 => Self::Sha512,
        }
    }
}
