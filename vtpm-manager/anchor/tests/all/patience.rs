//! Busy TPMs, racing PCRs, lost connections, full queues: shown with a fake.

use std::path::Path;
use std::sync::mpsc;

use anyhow::{Context, Result};
use cert_chain::operator::PolicyKey;
use cert_chain::{Digest32, HashAlgorithm};
use trust_anchor::MAX_QUOTES;
use trust_anchor::{AnchorConfig, AnchorError, HardwareError, Tcti, TrustAnchor};

use crate::fake::Fake;

const RETRY: u32 = 0x922;
const PCR_CHANGED: u32 = 0x128;
const POLICY_FAIL: u32 = 0x99d;
const NO_CONNECTION: u32 = 0x000a_0008;

/// An anchor over a fake, provisioned and approved.
struct Bench {
    anchor: TrustAnchor,
    fake: Fake,
    key: PolicyKey,
    folder: tempfile::TempDir,
}

impl Bench {
    async fn new() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let fake = Fake::new()?;
        let anchor = start(&fake, folder.path())?;
        let key = PolicyKey::generate()?;
        anchor.provision(key.public()).await?;
        anchor
            .approve(key.approve("first", anchor.pcr_values().await?)?)
            .await?;
        anchor.make_root_secret().await?;
        fake.script().done.clear();
        Ok(Self {
            anchor,
            fake,
            key,
            folder,
        })
    }

    fn answers(&self, codes: impl IntoIterator<Item = u32>) {
        self.fake.script().codes = codes.into_iter().collect();
    }

    async fn loses_its_connection(&self) {
        self.answers([NO_CONNECTION]);
        assert!(self.anchor.quote(nothing()).await.is_err());
    }

    fn done(&self) -> Vec<&'static str> {
        self.fake.script().done.clone()
    }

    /// Makes the next command wait until the sender is used or dropped; the receiver says when
    /// the command has begun.
    fn gate(&self) -> (mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (begun, has_begun) = mpsc::channel();
        let (go_on, may_go_on) = mpsc::channel();
        self.fake.script().gate = Some((begun, may_go_on));
        (has_begun, go_on)
    }
}

fn start(fake: &Fake, folder: &Path) -> Result<TrustAnchor, AnchorError> {
    let config = AnchorConfig::new(Tcti::Device("fake".into()), folder.join("anchor.json"));
    let fake = fake.clone();
    TrustAnchor::over(
        &config,
        Box::new(move || {
            fake.script().connections += 1;
            Ok(Box::new(fake.clone()))
        }),
    )
}

fn nothing() -> Digest32 {
    Digest32::of(b"")
}

#[tokio::test]
async fn a_busy_tpm_is_asked_again() -> Result<()> {
    let bench = Bench::new().await?;
    bench.answers([RETRY, RETRY, RETRY]);
    bench.anchor.quote(nothing()).await?;
    assert_eq!(bench.done(), ["quote"; 4]);
    Ok(())
}

#[tokio::test]
async fn a_tpm_that_stays_busy_is_given_up_with_the_command_s_name() -> Result<()> {
    let bench = Bench::new().await?;
    bench.answers([RETRY; 100]);
    let error = bench
        .anchor
        .quote(nothing())
        .await
        .err()
        .context("quoted")?;
    assert!(
        error.to_string().starts_with("quote failed with 0x922"),
        "{error}"
    );
    assert_eq!(bench.done().len(), 8, "the number of attempts is bounded");
    Ok(())
}

#[tokio::test]
async fn an_error_that_stays_is_not_tried_twice() -> Result<()> {
    let bench = Bench::new().await?;
    // TPM_RC_LOCKOUT
    bench.answers([0x921]);
    let error = bench
        .anchor
        .quote(nothing())
        .await
        .err()
        .context("quoted")?;
    assert!(error.to_string().contains("--clear-lockout"), "{error}");
    assert_eq!(bench.done(), ["quote"]);
    Ok(())
}

#[tokio::test]
async fn a_racing_pcr_extend_is_survived() -> Result<()> {
    let bench = Bench::new().await?;
    bench.answers([PCR_CHANGED, PCR_CHANGED]);
    let secret = bench.anchor.root_secret().await?;
    assert_eq!(bench.done(), ["unseal"; 3]);
    assert_eq!(secret.expose(), bench.anchor.root_secret().await?.expose());
    Ok(())
}

#[tokio::test]
async fn pcrs_that_never_rest_are_given_up() -> Result<()> {
    let bench = Bench::new().await?;
    bench.answers([PCR_CHANGED; 100]);
    assert!(matches!(
        bench.anchor.root_secret().await,
        Err(AnchorError::PcrsUnsteady { attempts: 5 })
    ));
    assert_eq!(bench.done().len(), 5);
    Ok(())
}

#[tokio::test]
async fn a_policy_refused_with_the_right_pcrs_is_not_blamed_on_them() -> Result<()> {
    let bench = Bench::new().await?;
    bench.answers([POLICY_FAIL; 100]);
    let error = bench.anchor.root_secret().await.err().context("unsealed")?;
    assert!(
        matches!(error, AnchorError::Hardware(HardwareError::Tpm { .. })),
        "{error}"
    );
    assert_eq!(bench.done(), ["unseal"]);
    Ok(())
}

/// The TPM sees the new value where the manager has read the old one.
#[tokio::test]
async fn a_pcr_that_changes_to_another_approved_value_is_looked_at_anew() -> Result<()> {
    let bench = Bench::new().await?;
    let mut next = bench.anchor.pcr_values().await?;
    next.insert(4, HashAlgorithm::Sha256.hash(&[b"the next boot loader"]))?;
    bench
        .anchor
        .approve(bench.key.approve("next", next.clone())?)
        .await?;
    bench.fake.script().pcrs_then = Some(next);
    bench.answers([POLICY_FAIL]);
    bench.anchor.root_secret().await?;
    assert_eq!(bench.done(), ["unseal"; 2]);
    Ok(())
}

#[tokio::test]
async fn after_a_lost_connection_the_next_request_connects_anew() -> Result<()> {
    let bench = Bench::new().await?;
    bench.loses_its_connection().await;
    bench.anchor.quote(nothing()).await?;
    assert_eq!(bench.fake.script().connections, 2);
    Ok(())
}

#[tokio::test]
async fn another_tpm_behind_a_new_connection_is_refused() -> Result<()> {
    let bench = Bench::new().await?;
    bench.loses_its_connection().await;
    bench.fake.script().srk = format!("000b{}", "6".repeat(64)).parse()?;
    let error = bench
        .anchor
        .quote(nothing())
        .await
        .err()
        .context("quoted")?;
    assert!(matches!(error, AnchorError::TpmReplaced { .. }), "{error}");
    assert!(matches!(
        start(&bench.fake, bench.folder.path()),
        Err(AnchorError::TpmReplaced { .. })
    ));
    Ok(())
}

#[tokio::test]
async fn quotes_overtake_bulk_work() -> Result<()> {
    let bench = Bench::new().await?;
    let (begun, go_on) = bench.gate();
    let ik = bench.anchor.host_public().await?.ik_public;
    let signer = bench.anchor.ik_signer(&ik);
    let certificates: Vec<_> = (0..3)
        .map(|_| {
            let signer = signer.clone();
            tokio::task::spawn_blocking(move || rcgen::SigningKey::sign(&signer, b"tbs"))
        })
        .collect();
    begun.recv()?;
    // One certificate is being signed; wait until the other two are in the queue.
    while bench.anchor.waiting() < 2 {
        tokio::task::yield_now().await;
    }
    let quote = tokio::spawn({
        let anchor = bench.anchor.clone();
        async move { anchor.quote(nothing()).await }
    });
    while bench.anchor.waiting() < 3 {
        tokio::task::yield_now().await;
    }
    drop(go_on);
    quote.await??;
    for certificate in certificates {
        certificate.await??;
    }
    assert_eq!(bench.done(), ["sign", "quote", "sign", "sign"]);
    Ok(())
}

#[tokio::test]
async fn too_many_requests_are_refused_and_forgotten_ones_are_not_served() -> Result<()> {
    let bench = Bench::new().await?;
    let (begun, go_on) = bench.gate();
    let running = tokio::spawn({
        let anchor = bench.anchor.clone();
        async move { anchor.quote(nothing()).await }
    });
    tokio::task::spawn_blocking(move || begun.recv()).await??;

    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..MAX_QUOTES {
        let anchor = bench.anchor.clone();
        waiting.spawn(async move { anchor.quote(nothing()).await });
    }
    while bench.anchor.waiting() < MAX_QUOTES {
        tokio::task::yield_now().await;
    }
    let error = bench
        .anchor
        .quote(nothing())
        .await
        .err()
        .context("accepted")?;
    assert!(
        error.to_string().contains(&MAX_QUOTES.to_string()),
        "{error}"
    );

    // Those who asked go away before their turn comes.
    waiting.shutdown().await;
    drop(go_on);
    running.await??;
    bench.anchor.root_secret().await?;
    assert_eq!(bench.done(), ["quote", "unseal"]);
    Ok(())
}

#[tokio::test]
async fn the_thread_ends_with_the_last_handle() -> Result<()> {
    let bench = Bench::new().await?;
    assert!(bench.fake.holders() > 1);
    let other = bench.anchor.clone();
    drop(bench.anchor);
    other.quote(nothing()).await?;
    drop(other);
    // The thread had the connection: it was joined.
    assert_eq!(bench.fake.holders(), 1);
    drop(bench.key);
    Ok(())
}

#[tokio::test]
async fn all_who_wait_learn_that_the_thread_has_panicked() -> Result<()> {
    let bench = Bench::new().await?;
    let (begun, go_on) = bench.gate();
    bench.fake.script().panics = true;
    let asked = |anchor: TrustAnchor| tokio::spawn(async move { anchor.quote(nothing()).await });
    let served = asked(bench.anchor.clone());
    tokio::task::spawn_blocking(move || begun.recv()).await??;
    let queued = asked(bench.anchor.clone());
    while bench.anchor.waiting() < 1 {
        tokio::task::yield_now().await;
    }
    drop(go_on);
    assert!(matches!(served.await?, Err(AnchorError::Stopped)));
    assert!(matches!(queued.await?, Err(AnchorError::Stopped)));
    let later = bench.anchor.quote(nothing()).await;
    assert!(matches!(later, Err(AnchorError::Stopped)));
    Ok(())
}

#[tokio::test]
async fn a_signer_remembers_why_it_failed() -> Result<()> {
    let bench = Bench::new().await?;
    let ik = bench.anchor.host_public().await?.ik_public;
    let signer = bench.anchor.ik_signer(&ik);
    bench
        .fake
        .script()
        .pcrs
        .insert(4, HashAlgorithm::Sha256.hash(&[b"another boot loader"]))?;
    let signed = tokio::task::spawn_blocking(move || {
        let failed = rcgen::SigningKey::sign(&signer, b"tbs").is_err();
        (failed, signer.take_failure())
    })
    .await?;
    assert!(
        matches!(&signed, (true, Some(AnchorError::PcrsNotApproved { differences })) if differences.len() == 1),
        "{signed:?}"
    );
    Ok(())
}
