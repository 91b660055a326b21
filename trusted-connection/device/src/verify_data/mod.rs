//! `vrot-device verify-data`: data that the TPM of a VM or a device signed.

mod stream;
mod telling;

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use attestation::PolicyAbout;
use bounded_file::read_bounded;
use cert_chain::{Digest32, TrustAnchors};
use clap::Args;
use rustls_pki_types::UnixTime;
use signed_data::stream::ProvenReading;
use signed_data::{Demand, LabelText, MAX_SIGNED_DATA, SignedData, appraise, hash_of_data};
use trusted_connection::policy_files;

use crate::command_line::{say, say_json};
use crate::crl_options::CrlOptions;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::times::parse_time;
use stream::StreamOptions;
use telling::{Judged, Subject, to_json, to_text, verdict};
pub(crate) use telling::{result_to_json, result_to_text};

/// What is judged, and by what.
#[derive(Debug, Args)]
pub(crate) struct VerifyData {
    /// The signed data, or a reading with its proof that was taken out of a stream. With --stream, a stream; -
    /// is standard input.
    #[arg(value_name = "FILE")]
    signed: PathBuf,
    /// The data, unless they are in the signed file.
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// What is expected of their source: a policy about VMs and their hosts, or one about devices.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    demand: DemandOptions,
    /// The highest number seen so far of this source: data with this or a lower one are refused as replayed.
    #[arg(long, value_name = "NUMBER")]
    after: Option<u64>,
    /// The most seconds ago that they may say that they were signed: for who verifies data as they come.
    #[arg(long, value_name = "SECONDS")]
    max_delay: Option<u64>,
    #[command(flatten)]
    crls: CrlOptions,
    /// Judge as of this time (RFC 3339) instead of now. The time in the data is their source's word.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<UnixTime>,
    /// Print the result as JSON; of a stream, JSON lines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    stream: StreamOptions,
}

/// What is demanded of data beyond the policy.
#[derive(Debug, Args)]
pub(crate) struct DemandOptions {
    /// The stream that they must belong to.
    #[arg(long, value_name = "NAME")]
    stream_name: Option<LabelText>,
    /// The most seconds before the signature that their evidence may have been taken.
    #[arg(long, value_name = "SECONDS", conflicts_with = "identity_alone")]
    max_evidence_age: Option<u64>,
    /// Take data without evidence too: it is known who signed them, and not what had booted there.
    #[arg(long)]
    identity_alone: bool,
}

impl DemandOptions {
    pub(crate) fn demand(&self) -> Demand {
        Demand {
            stream: self.stream_name.clone(),
            max_evidence_age: self.max_evidence_age,
            identity_alone: self.identity_alone,
            ..Demand::default()
        }
    }
}

impl VerifyData {
    fn unusable(&self) -> String {
        format!("{} cannot be used", self.signed.display())
    }

    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        let policy = settings.policy(self.policy.as_deref())?;
        let policy = policy_files::load_about_either(policy)
            .with_context(|| format!("the policy {} cannot be used", policy.display()))?;
        let crls = self.crls.open(settings)?;
        if self.stream.stream {
            return stream::verify(self, &policy, &crls);
        }
        let anchors = anchors_of(&policy)?.with_lists(&crls.for_verification());
        let file = self.signed.display();
        let bytes = read_bounded(&self.signed, MAX_SIGNED_DATA.max(ProvenReading::MAX))
            .with_context(|| format!("{file} cannot be read"))?;
        let judged = match ProvenReading::begins(&bytes) {
            true => self.judge_reading(&bytes, &policy, &anchors),
            false => self.judge_data(&bytes, &policy, &anchors),
        };
        let judged = judged.with_context(|| self.unusable())?;
        if self.json {
            say_json(&to_json(&judged))?;
        } else {
            say(&to_text(&judged))?;
        }
        Ok(verdict(&judged).into())
    }

    fn judge_data(
        &self,
        bytes: &[u8],
        policy: &PolicyAbout,
        anchors: &TrustAnchors,
    ) -> Result<Judged> {
        let signed = SignedData::from_cbor(bytes)?;
        let data = self.data.as_deref().map(hash_of).transpose()?;
        Ok(signed
            .verify(data.as_ref(), anchors, self.at())
            .and_then(|verified| appraise(verified, policy, &self.demand()))
            .map(|result| (result, Subject::Data))
            .map_err(Into::into))
    }

    fn judge_reading(
        &self,
        bytes: &[u8],
        policy: &PolicyAbout,
        anchors: &TrustAnchors,
    ) -> Result<Judged> {
        if self.data.is_some() {
            bail!("it is a reading with its proof, which holds its data: leave out --data");
        }
        let reading = ProvenReading::from_cbor(bytes)?;
        let judge = || {
            let verified = reading.verify(anchors, self.at())?;
            let subject = Subject::Reading {
                number: verified.number(),
                reading: verified.reading().to_vec(),
                content_type: verified.statement().content_type.clone(),
            };
            let result = appraise(verified.into_data(), policy, &self.demand())?;
            Ok((result, subject))
        };
        Ok(judge())
    }

    fn at(&self) -> UnixTime {
        self.at.unwrap_or_else(UnixTime::now)
    }

    fn demand(&self) -> Demand {
        Demand {
            after: self.after,
            max_delay: self.max_delay,
            ..self.demand.demand()
        }
    }
}

/// The issuers that the policy trusts. One that exempts devices without a TPM and accepts no other is of no
/// use here: nothing that they sign proves who they are.
pub(crate) fn anchors_of(policy: &PolicyAbout) -> Result<&TrustAnchors> {
    match policy {
        PolicyAbout::Vms(policy) => Ok(policy.anchors()),
        PolicyAbout::Devices(policy) => policy.anchors().context(
            "the policy accepts no device with a TPM, and others sign nothing that can be verified",
        ),
    }
}

/// SHA-256 value of a file of any length.
fn hash_of(path: &Path) -> Result<Digest32> {
    File::open(path)
        .and_then(|mut file| hash_of_data(&mut file))
        .with_context(|| format!("{} cannot be read", path.display()))
}
