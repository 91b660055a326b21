//! Approvals: whose, of what, and what they do not open. Shown with a fake.

use anyhow::{Context, Result};
use cert_chain::operator::{Approval, PolicyKey};
use cert_chain::{HashAlgorithm, PcrValues};
use trust_anchor::{AnchorConfig, AnchorError, Tcti, TrustAnchor};

use crate::fake::{Fake, pcr_values};

fn start(fake: &Fake, folder: &tempfile::TempDir) -> Result<TrustAnchor, AnchorError> {
    let record = folder.path().join("anchor.json");
    let fake = fake.clone();
    TrustAnchor::over(
        &AnchorConfig::new(Tcti::Device("fake".into()), record),
        Box::new(move || Ok(Box::new(fake.clone()))),
    )
}

#[tokio::test]
async fn before_init_and_before_an_approval_the_remedy_is_named() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let anchor = start(&Fake::new()?, &folder)?;
    let error = anchor.root_secret().await.err().context("no record")?;
    assert!(error.to_string().contains("vtpmctl host init"), "{error}");

    anchor.provision(PolicyKey::generate()?.public()).await?;
    let error = anchor.make_root_secret().await.err();
    let error = error.context("no approval")?.to_string();
    assert!(error.contains("host policy sign"), "{error}");
    // Nothing was made on a host that nobody approved.
    let error = anchor.root_secret().await.err();
    let error = error.context("no secret")?.to_string();
    assert!(error.contains("vtpmctl host init"), "{error}");
    Ok(())
}

#[tokio::test]
async fn a_changed_pcr_is_named_with_both_values() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fake = Fake::new()?;
    let anchor = start(&fake, &folder)?;
    let key = PolicyKey::generate()?;
    anchor.provision(key.public()).await?;
    let approved = anchor.pcr_values().await?;
    anchor
        .approve(key.approve("now", approved.clone())?)
        .await?;
    anchor.make_root_secret().await?;

    let changed = HashAlgorithm::Sha256.hash(&[b"another boot loader"]);
    fake.script().pcrs.insert(4, changed)?;
    let text = anchor
        .root_secret()
        .await
        .err()
        .context("opened on an altered host")?
        .to_string();
    let before = approved.get(4).context("PCR 4")?;
    for part in [
        "PCR 4 (sha256) is",
        &changed.to_string(),
        &before.to_string(),
        "vtpmctl host policy sign",
    ] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert!(!text.contains("PCR 5 "), "{text}");

    let policy = anchor.policy().await?;
    assert!(!policy.is_satisfied());
    anchor
        .approve(key.approve("next", anchor.pcr_values().await?)?)
        .await?;
    assert!(anchor.policy().await?.is_satisfied());
    anchor.root_secret().await?;
    Ok(())
}

#[tokio::test]
async fn approvals_and_root_secret_outlive_the_manager() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fake = Fake::new()?;
    let key = PolicyKey::generate()?;
    let first = start(&fake, &folder)?;
    first.provision(key.public()).await?;
    first
        .approve(key.approve("now", first.pcr_values().await?)?)
        .await?;
    let secret = first.make_root_secret().await?;
    drop(first);

    let second = start(&fake, &folder)?;
    second.provision(key.public()).await?;
    assert_eq!(second.root_secret().await?.expose(), secret.expose());
    let approvals = second.policy().await?.approvals;
    assert_eq!(approvals.len(), 1);
    assert_eq!(format!("{secret:?}"), "RootSecret");
    Ok(())
}

#[tokio::test]
async fn an_approval_by_another_key_or_of_other_pcrs_is_refused() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let anchor = start(&Fake::new()?, &folder)?;
    let key = PolicyKey::generate()?;
    anchor.provision(key.public()).await?;
    let values = anchor.pcr_values().await?;

    let stranger = PolicyKey::generate()?.approve("evil", values.clone())?;
    assert!(matches!(
        anchor.approve(stranger).await,
        Err(AnchorError::ApprovalSignature { .. })
    ));

    let fewer = pcr_values(HashAlgorithm::Sha256, 0..7)?;
    let error = anchor.approve(key.approve("fewer", fewer)?).await.err();
    let text = error.context("accepted")?.to_string();
    assert!(text.contains("PCRs 0,1,2,3,4,5,6,"), "{text}");
    assert!(text.contains("over PCRs 0,1,2,3,4,5,6,7"), "{text}");

    // The same signature under other values.
    let mut forged = key.approve("forged", values)?;
    let other = HashAlgorithm::Sha256.hash(&[b"other firmware"]);
    forged.pcrs.insert(0, other)?;
    assert!(matches!(
        anchor.approve(forged).await,
        Err(AnchorError::ApprovalSignature { .. })
    ));
    Ok(())
}

#[tokio::test]
async fn another_operator_does_not_take_a_host_over() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let anchor = start(&Fake::new()?, &folder)?;
    anchor.provision(PolicyKey::generate()?.public()).await?;
    assert!(matches!(
        anchor.provision(PolicyKey::generate()?.public()).await,
        Err(AnchorError::PolicyKeyMismatch { .. })
    ));
    Ok(())
}

#[tokio::test]
async fn a_damaged_record_is_refused_and_left_alone() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let fake = Fake::new()?;
    drop(start(&fake, &folder)?);
    let record = folder.path().join("anchor.json");
    for damaged in ["", "{}", r#"{"type":"vrot-host-anchor","version":2}"#] {
        std::fs::write(&record, damaged)?;
        let error = start(&fake, &folder).err().context("accepted")?;
        assert!(error.to_string().contains("anchor.json"), "{error}");
        assert_eq!(std::fs::read_to_string(&record)?, damaged);
    }
    Ok(())
}

/// Approvals of one bank, in a host that goes by another or by none.
fn host_with(bank: HashAlgorithm, folder: &tempfile::TempDir) -> Result<(Fake, TrustAnchor)> {
    let fake = Fake::new()?;
    fake.script().pcrs = pcr_values(bank, 0..8)?;
    let anchor = start(&fake, folder)?;
    Ok((fake, anchor))
}

#[tokio::test]
async fn an_approval_names_its_bank_and_opens_nothing_in_another() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (_, anchor) = host_with(HashAlgorithm::Sha384, &folder)?;
    let key = PolicyKey::generate()?;
    anchor.provision(key.public()).await?;
    let other = pcr_values(HashAlgorithm::Sha256, 0..8)?;
    let error = anchor.approve(key.approve("other", other)?).await.err();
    let text = error.context("accepted")?.to_string();
    assert!(text.contains("in the sha256 bank"), "{text}");
    assert!(text.contains("its sha384 bank"), "{text}");
    let error = anchor.make_root_secret().await.err();
    let text = error.context("opened")?.to_string();
    assert!(text.contains("of the sha384 bank"), "{text}");

    let approval = key.approve("this", anchor.pcr_values().await?)?;
    let json = approval.to_json();
    assert!(json.contains("\"bank\": \"sha384\""), "{json}");
    anchor
        .approve(Approval::from_json(json.as_bytes())?)
        .await?;
    anchor.make_root_secret().await?;
    Ok(())
}

#[tokio::test]
async fn the_state_before_any_measurement_is_not_approved_where_a_boot_was_measured() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    let (fake, anchor) = host_with(HashAlgorithm::Sha384, &folder)?;
    let key = PolicyKey::generate()?;
    anchor.provision(key.public()).await?;
    let mut blank = PcrValues::new(HashAlgorithm::Sha384);
    for pcr in 0..8 {
        blank.insert(pcr, HashAlgorithm::Sha384.filled(0))?;
    }
    let approval = key.approve("blank", blank.clone())?;
    let error = anchor.approve(approval.clone()).await.err();
    let text = error.context("accepted")?.to_string();
    assert!(text.contains("PCRs 0 to 7 (sha384)"), "{text}");

    // A software TPM on trial, into which nothing was measured at all.
    fake.script().pcrs = blank;
    anchor.approve(approval).await?;
    Ok(())
}
