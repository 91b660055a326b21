//! `vrot-device spiffe`: the server's part of SPIRE's node attestation, for a plug-in or a test to call.
//!
//! The agent's part is `vrot-service identity`, which is the payload, and `vrot-service evidence --spiffe`, which
//! answers the challenge. `docs/spiffe.md` draws the exchange.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use attestation::evidence::MAX_EVIDENCE;
use attestation::spiffe::{NodeAttributes, TrustDomain};
use attestation::{Evidence, Nonce};
use bounded_file::read_bounded;
use cert_chain::VikChain;
use cert_chain::pem::certificates;
use clap::{Args, Subcommand};
use printable::{WithCauses, printable_json};
use program_output::console::{complain, print};
use rustls_pki_types::UnixTime;
use serde_json::json;

use crate::challenge::fresh_nonce;
use crate::connection_options::load_policy;
use crate::crl_options::CrlOptions;
use crate::judgement::Judgement;
use crate::outcome::Outcome;
use crate::settings::Settings;
use crate::tree::{Colour, draw};

/// A step of the exchange.
#[derive(Debug, Subcommand)]
pub enum Spiffe {
    /// Print a nonce, in hexadecimal, for a VM whose certificates lead to a root of the policy. It serves
    /// one answer.
    Challenge {
        /// The payload: what `vrot-service identity` printed.
        #[arg(long, value_name = "FILE")]
        payload: PathBuf,
        /// What the VM is held against.
        #[command(flatten)]
        trust: Trust,
    },
    /// Judge the answer to a challenge, and print the node's SPIFFE ID and selectors as JSON. Nothing is
    /// printed unless the verdict is affirming.
    Verify {
        /// The answer: what `vrot-service evidence --spiffe` made.
        #[arg(long, value_name = "FILE")]
        evidence: PathBuf,
        /// The nonce of the challenge, in hexadecimal.
        #[arg(long, value_name = "HEX")]
        nonce: Nonce,
        /// The trust domain that the node is to be in.
        #[arg(long, value_name = "DOMAIN")]
        trust_domain: TrustDomain,
        /// What the VM is held against.
        #[command(flatten)]
        trust: Trust,
    },
}

/// What nodes are held against.
#[derive(Debug, Args)]
pub struct Trust {
    /// What is expected of them.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    #[command(flatten)]
    crls: CrlOptions,
}

/// A vIK's certificate and its host's have at most 2 KiB each.
const MAX_PAYLOAD: usize = 16 * 1024;

impl Spiffe {
    /// Carries the step out.
    pub(crate) fn run(&self, settings: &Settings) -> Result<Outcome> {
        match self {
            Self::Challenge { payload, trust } => challenge(payload, trust, settings),
            Self::Verify {
                evidence,
                nonce,
                trust_domain,
                trust,
            } => verify(evidence, nonce, trust_domain, trust, settings),
        }
    }
}

/// Strangers get no challenge. That the VM has the key, its answer shows.
fn challenge(payload: &Path, trust: &Trust, settings: &Settings) -> Result<Outcome> {
    let shown = payload.display();
    let policy = load_policy(settings.policy(trust.policy.as_deref())?)?;
    let anchors = policy
        .anchors()
        .with_lists(&trust.crls.open(settings)?.for_verification());
    let pem = read_bounded(payload, MAX_PAYLOAD);
    let pem = pem.with_context(|| format!("{shown} cannot be read"))?;
    let found = certificates(&pem).with_context(|| format!("{shown} cannot be used"))?;
    let chain: Vec<_> = found.into_iter().map(|found| found.der).collect();
    let chain =
        VikChain::from_der_list(&chain).with_context(|| format!("{shown} cannot be used"))?;
    if let Err(error) = chain.verify(&anchors, UnixTime::now()) {
        let error = WithCauses(&error);
        complain(format_args!("vrot-device: {shown} is refused: {error}"));
        return Ok(Outcome::NotAffirming);
    }
    say(&format!("{}\n", fresh_nonce()?))?;
    Ok(Outcome::Good)
}

fn verify(
    path: &Path,
    nonce: &Nonce,
    domain: &TrustDomain,
    trust: &Trust,
    settings: &Settings,
) -> Result<Outcome> {
    let policy = load_policy(settings.policy(trust.policy.as_deref())?)?;
    let crls = trust.crls.open(settings)?.for_verification();
    let shown = path.display();
    let bytes =
        read_bounded(path, MAX_EVIDENCE).with_context(|| format!("{shown} cannot be read"))?;
    let evidence =
        Evidence::from_cbor(&bytes).with_context(|| format!("{shown} cannot be used"))?;
    let purpose = domain.purpose();
    let judgement = Judgement::of(&evidence, nonce, &purpose, &policy, &crls, UnixTime::now());
    let Judgement::Appraised(result) = &judgement else {
        return refuse(&judgement);
    };
    let Some(attributes) = NodeAttributes::of(result, domain) else {
        return refuse(&judgement);
    };
    say(&printable_json(&format!("{:#}\n", json!(attributes))))?;
    Ok(Outcome::Good)
}

/// Says why, where no program takes it for attributes.
fn refuse(judgement: &Judgement) -> Result<Outcome> {
    for line in draw(judgement, Colour::Plain).lines() {
        complain(format_args!("{line}"));
    }
    Ok(Outcome::NotAffirming)
}

fn say(text: &str) -> Result<()> {
    print(text).context("the result cannot be written to standard output")
}
