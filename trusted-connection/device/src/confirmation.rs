//! `vrot-device verify-confirmation`: whether a person confirmed what a service asked.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attestation::Nonce;
use attestation::policy::{MAX_POLICY, MAX_ROOTS};
use bounded_file::{read_bounded, read_bounded_text};
use clap::Args;
use confirmation::{
    ConfirmableText, ConfirmationPolicy, Expected, MAX_CONFIRMATION, ServiceName,
    VerifiedConfirmation, judge,
};
use printable::{Printable, WithCauses};
use rustls_pki_types::UnixTime;
use serde_json::json;

use crate::command_line::{say, say_json};
use crate::crl_options::CrlOptions;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::times::parse_time;

/// More than a text has.
const MAX_TEXT_FILE: usize = 64 * 1024;

/// What was asked, and what came.
#[derive(Debug, Args)]
pub(crate) struct VerifyConfirmation {
    /// The confirmation. Without it, the policy must do without one.
    #[arg(long, value_name = "FILE")]
    confirmation: Option<PathBuf>,
    /// The text that the service asked to be confirmed.
    #[arg(long, value_name = "FILE")]
    text: PathBuf,
    /// The service that asked.
    #[arg(long, value_name = "NAME")]
    service: ServiceName,
    /// The nonce that it drew for this request, in hexadecimal. It must accept each once.
    #[arg(long, value_name = "HEX")]
    nonce: Nonce,
    /// Which devices and keys are accepted, and whether a confirmation is demanded.
    #[arg(long, value_name = "FILE")]
    policy: PathBuf,
    #[command(flatten)]
    crls: CrlOptions,
    /// Judge as of this time (RFC 3339) instead of now.
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    at: Option<UnixTime>,
    /// Print as JSON.
    #[arg(long)]
    json: bool,
}

impl VerifyConfirmation {
    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        let lists = self.crls.open(settings)?.for_verification();
        let policy = load_policy(&self.policy)?.with_lists(&lists);
        let text = read_bounded_text(&self.text, MAX_TEXT_FILE)
            .with_context(|| format!("{} cannot be read", self.text.display()))?;
        // As `vrot-confirm ask` takes it.
        let text = ConfirmableText::new(text.trim_end_matches('\n'))
            .with_context(|| format!("{} is no text to confirm", self.text.display()))?;
        let confirmation = self.confirmation.as_deref().map(|file| {
            read_bounded(file, MAX_CONFIRMATION)
                .with_context(|| format!("{} cannot be read", file.display()))
        });
        let confirmation = confirmation.transpose()?;
        let expected = Expected {
            service: &self.service,
            nonce: &self.nonce,
            text: &text,
        };
        let at = self.at.unwrap_or_else(UnixTime::now);
        match judge(confirmation.as_deref(), &expected, &policy, at) {
            Ok(verified) => {
                self.accepted(verified.as_ref())?;
                Ok(Outcome::Good)
            }
            Err(refused) => {
                let reason = WithCauses(&refused).to_string();
                match self.json {
                    true => say_json(&json!({ "accepted": false, "reason": reason }))?,
                    false => say(&format!("not accepted: {}\n", Printable(&reason)))?,
                }
                Ok(Outcome::NotAffirming)
            }
        }
    }

    fn accepted(&self, verified: Option<&VerifiedConfirmation>) -> Result<()> {
        match (verified, self.json) {
            (Some(verified), true) => say_json(&json!({
                "accepted": true,
                "confirmed": true,
                "device": verified.device().to_string(),
                "key": verified.key().to_string(),
                "time": verified.time(),
                "lines": verified.lines(),
            })),
            (Some(verified), false) => say(&format!(
                "confirmed on {}\nwith key {}\n",
                verified.device(),
                verified.key()
            )),
            (None, true) => say_json(&json!({ "accepted": true, "confirmed": false })),
            (None, false) => say("accepted without a confirmation, which the policy allows\n"),
        }
    }
}

fn load_policy(path: &Path) -> Result<ConfirmationPolicy> {
    let file = path.display();
    let text =
        read_bounded_text(path, MAX_POLICY).with_context(|| format!("{file} cannot be read"))?;
    let folder = path.parent().unwrap_or(Path::new(""));
    ConfirmationPolicy::parse(&text, |roots| {
        read_bounded_text(&folder.join(roots), MAX_ROOTS)
    })
    .with_context(|| format!("{file} is no policy about confirmations"))
}
