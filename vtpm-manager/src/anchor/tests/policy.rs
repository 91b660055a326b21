//! Approvals: whose, of what, and what they do not open. Shown with a fake.

use anyhow::{Context, Result};
use cert_chain::Digest32;
use cert_chain::policy::{HOST_POLICY_REF, authorize_digest, pcr_policy_digest};

use crate::anchor::fake::Fake;
use crate::anchor::{
    AnchorConfig, AnchorError, Approval, PolicyKey, PolicyKeyPublic, Tcti, TrustAnchor,
};

fn start(fake: &Fake, folder: &tempfile::TempDir) -> Result<TrustAnchor, AnchorError> {
    let record = folder.path().join("anchor.json");
    let fake = fake.clone();
    TrustAnchor::start_with(
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

    let changed = Digest32::of(b"another boot loader");
    fake.script().pcrs.insert(4, changed);
    let text = anchor
        .root_secret()
        .await
        .err()
        .context("opened on an altered host")?
        .to_string();
    let before = approved.get(&4).context("PCR 4")?;
    for part in [
        "PCR 4 is",
        &changed.to_string(),
        &before.to_string(),
        "vtpmctl host policy sign",
    ] {
        assert!(text.contains(part), "{part} in: {text}");
    }
    assert!(!text.contains("PCR 5"), "{text}");

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

    let mut fewer = values.clone();
    fewer.remove(&7);
    let error = anchor.approve(key.approve("fewer", fewer)?).await.err();
    let text = error.context("accepted")?.to_string();
    assert!(text.contains("PCRs 0,1,2,3,4,5,6,"), "{text}");
    assert!(text.contains("over PCRs 0,1,2,3,4,5,6,7"), "{text}");

    // The same signature under other values.
    let mut forged = key.approve("forged", values)?;
    forged.pcrs.insert(0, Digest32::of(b"other firmware"));
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

#[test]
fn keys_and_approvals_travel_as_files() -> Result<()> {
    let key = PolicyKey::generate()?;
    let again = PolicyKey::from_pem(&key.to_pem())?;
    assert_eq!(again.public(), key.public());
    let public = PolicyKeyPublic::from_bytes(key.public().as_bytes())?;
    assert_eq!(&public, key.public());
    assert_eq!(
        public.policy_digest(),
        authorize_digest(&key.public().name(), HOST_POLICY_REF)
    );

    let approval = again.approve("1.0", [(0, Digest32::of(b"0"))].into())?;
    let read = Approval::from_json(approval.to_json().as_bytes())?;
    assert_eq!(read, approval);
    assert!(read.is_signed_by(key.public()));
    assert_eq!(read.policy_digest()?, pcr_policy_digest(&read.pcrs)?);
    Ok(())
}

#[test]
fn what_is_no_key_or_no_approval_is_refused() -> Result<()> {
    let key = PolicyKey::generate()?;
    assert!(PolicyKey::from_pem("").is_err());
    assert!(PolicyKey::from_pem(&key.to_pem().replace("PRIVATE", "PUBLIC")).is_err());
    assert!(key.approve("nothing", [].into()).is_err());
    assert!(
        key.approve("PCR 24", [(24, Digest32::of(b""))].into())
            .is_err()
    );
    let json = key.approve("1", [(0, Digest32::of(b""))].into())?.to_json();
    for (from, to) in [
        ("\"version\": 1", "\"version\": 2"),
        ("host-policy-approval", "host-something-else"),
        ("\"label\"", "\"lebal\""),
        ("\"0\":", "\"24\":"),
    ] {
        let altered = json.replace(from, to);
        assert_ne!(altered, json, "{from}");
        assert!(Approval::from_json(altered.as_bytes()).is_err(), "{to}");
    }
    Ok(())
}
