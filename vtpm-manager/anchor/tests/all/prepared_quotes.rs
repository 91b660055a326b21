//! Quotes that were prepared while the TPM had nothing else to do.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::operator::PolicyKey;
use cert_chain::{Digest32, PcrSelection};
use test_support::Swtpm;
use test_support::deadline::wait_for;
use trust_anchor::{AnchorError, TrustAnchor};

use crate::config;
use crate::tap::{Change, Tap};

/// Command codes (TPM 2.0 Part 2 §6.5.2).
const QUOTE: u32 = 0x158;
const POLICY_AUTHORIZE: u32 = 0x16a;
const POLICY_PCR: u32 = 0x17f;
const START_AUTH_SESSION: u32 = 0x176;

/// Notes which commands pass.
#[derive(Clone, Default)]
struct Codes(Arc<Mutex<Vec<u32>>>);

impl Codes {
    fn all(&self) -> Vec<u32> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Waits until a quote is prepared; how many commands have passed by then.
    fn wait_until_prepared(&self, since: usize) -> Result<usize> {
        wait_for("a quote to be prepared", Duration::from_secs(20), || {
            let codes = self.all();
            let passed = codes.get(since..).unwrap_or_default();
            let quoted = passed.iter().position(|code| *code == QUOTE);
            let after = quoted.and_then(|at| passed.get(at..)).unwrap_or_default();
            let prepared = after.last() == Some(&POLICY_AUTHORIZE);
            Ok(prepared.then_some(codes.len()))
        })
    }
}

impl Change for Codes {
    fn response(&mut self, command: &[u8], _: &mut Vec<u8>) {
        let code = command.get(6..10).and_then(|code| code.try_into().ok());
        let mut codes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        codes.push(code.map_or(0, u32::from_be_bytes));
    }
}

/// An approved host that has made one quote and prepared the next one.
struct Host {
    anchor: TrustAnchor,
    codes: Codes,
    /// Commands so far.
    passed: usize,
    tpm: Swtpm,
}

impl Host {
    async fn new() -> Result<Self> {
        let host = Self::with_policy_over(0..8).await?;
        let passed = host.codes.wait_until_prepared(0)?;
        Ok(Self { passed, ..host })
    }

    /// The same with these PCRs under policy, whether or not the next quote is prepared.
    async fn with_policy_over(pcrs: impl IntoIterator<Item = u8>) -> Result<Self> {
        let tpm = Swtpm::of_a_host()?;
        let codes = Codes::default();
        let tap = Tap::changing(&tpm.path("tap"), &tpm.socket(), codes.clone())?;
        let mut config = config(&tpm);
        config.tpm = tap.tcti();
        config.policy_pcrs = PcrSelection::new(pcrs)?;
        let anchor = TrustAnchor::start(&config)?;
        let key = PolicyKey::generate()?;
        anchor.provision(key.public()).await?;
        let values = anchor.pcr_values().await?;
        anchor.approve(key.approve("first", values)?).await?;
        anchor.quote(Digest32::of(b"first")).await?;
        Ok(Self {
            anchor,
            codes,
            passed: 0,
            tpm,
        })
    }

    /// The commands since the quote was prepared.
    fn since(&self) -> Vec<u32> {
        let codes = self.codes.all();
        codes.get(self.passed..).unwrap_or_default().to_vec()
    }
}

#[tokio::test]
async fn whoever_waits_for_a_prepared_quote_waits_for_no_other_command() -> Result<()> {
    let host = Host::new().await?;
    let nonce = Digest32::of(b"second");
    let quote = host.anchor.quote(nonce).await?;
    assert_eq!(host.since().first(), Some(&QUOTE));
    let made = quote
        .attest
        .windows(32)
        .any(|part| part == nonce.as_bytes());
    assert!(made, "the quote is of another nonce");
    // The session is used again.
    host.codes.wait_until_prepared(host.passed)?;
    assert_eq!(host.since(), [QUOTE, POLICY_PCR, POLICY_AUTHORIZE]);
    Ok(())
}

#[tokio::test]
async fn a_host_whose_pcrs_change_after_a_quote_was_prepared_quotes_no_more() -> Result<()> {
    let host = Host::new().await?;
    host.tpm
        .tool(&format!("tpm2_pcrextend 4:sha256={}", "ab".repeat(32)))?;
    let refusal = host.anchor.quote(Digest32::of(b"second")).await.err();
    assert!(
        matches!(refusal, Some(AnchorError::PcrsNotApproved { .. })),
        "{refusal:?}"
    );
    assert_eq!(host.since().first(), Some(&QUOTE), "it was prepared");
    Ok(())
}

/// Extending PCR 16 leaves the counter as it is by which a TPM notices changes.
#[tokio::test]
async fn a_change_that_a_tpm_would_not_notice_is_not_passed_over() -> Result<()> {
    let host = Host::with_policy_over((0..8).chain([16])).await?;
    // What is prepared is prepared before this is answered.
    host.anchor.quoted_pcrs().await?;
    host.tpm
        .tool(&format!("tpm2_pcrextend 16:sha256={}", "ab".repeat(32)))?;
    let refusal = host.anchor.quote(Digest32::of(b"second")).await.err();
    assert!(
        matches!(refusal, Some(AnchorError::PcrsNotApproved { .. })),
        "{refusal:?}"
    );
    Ok(())
}

#[tokio::test]
async fn an_extend_and_a_reset_of_the_tpm_end_what_was_prepared_and_not_the_quotes() -> Result<()> {
    let host = Host::new().await?;
    // PCR 10 is neither approved nor quoted, but its extension ends every policy session that is prepared.
    host.tpm
        .tool(&format!("tpm2_pcrextend 10:sha256={}", "01".repeat(32)))?;
    host.anchor.quote(Digest32::of(b"second")).await?;
    assert_eq!(host.since().first(), Some(&QUOTE));
    assert!(host.since().contains(&START_AUTH_SESSION));

    let passed = host.codes.wait_until_prepared(host.passed)?;
    host.tpm.switch_off()?;
    host.tpm.switch_on()?;
    host.anchor
        .quote(Digest32::of(b"third"))
        .await
        .context("after the reset")?;
    assert!(host.codes.all().len() > passed);
    Ok(())
}

#[tokio::test]
async fn other_work_with_the_hosts_keys_gets_the_slot_of_a_prepared_session() -> Result<()> {
    let host = Host::new().await?;
    host.anchor.make_root_secret().await?;
    host.anchor.root_secret().await?;
    let left = host.tpm.tool("tpm2_getcap handles-loaded-session")?;
    assert_eq!(left, "");
    host.anchor.quote(Digest32::of(b"second")).await?;
    Ok(())
}
