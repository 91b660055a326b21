//! Approvals: whose, of what, and what they do not open. Shown with a fake.

use anyhow::{Context, Result};
use cert_chain::policy::{HOST_POLICY_REF, authorize_digest, pcr_policy_digest};
use cert_chain::{HashAlgorithm, PcrValues};

use crate::anchor::fake::{Fake, pcr_values};
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

    let approval = again.approve("1.0", pcr_values(HashAlgorithm::Sha256, [0])?)?;
    let read = Approval::from_json(approval.to_json().as_bytes())?;
    assert_eq!(read, approval);
    assert!(read.is_signed_by(key.public()));
    assert_eq!(read.policy_digest(), pcr_policy_digest(&read.pcrs));
    Ok(())
}

#[test]
fn what_is_no_key_or_no_approval_is_refused() -> Result<()> {
    let key = PolicyKey::generate()?;
    assert!(PolicyKey::from_pem("").is_err());
    assert!(PolicyKey::from_pem(&key.to_pem().replace("PRIVATE", "PUBLIC")).is_err());
    let nothing = PcrValues::new(HashAlgorithm::Sha256);
    assert!(key.approve("nothing", nothing).is_err());
    let weak = pcr_values(HashAlgorithm::Sha1, 0..8)?;
    assert!(key.approve("SHA-1", weak).is_err());
    let json = key
        .approve("1", pcr_values(HashAlgorithm::Sha384, [0])?)?
        .to_json();
    for (from, to) in [
        ("\"version\": 2", "\"version\": 3"),
        // Version 1 names no bank, version 2 does.
        ("\"version\": 2", "\"version\": 1"),
        ("\"bank\": \"sha384\",", ""),
        // Of another bank these values have another length.
        ("sha384", "sha256"),
        ("sha384", "sha1"),
        ("sha384", "sm3"),
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

/// The bank is a part of what is signed: the same bytes under another bank's name are not approved.
#[test]
fn the_signature_of_an_approval_covers_its_bank() -> Result<()> {
    let key = PolicyKey::generate()?;
    let approval = key.approve("1", pcr_values(HashAlgorithm::Sha384, 0..8)?)?;
    assert!(approval.is_signed_by(key.public()));
    let digests = HashAlgorithm::ALL.map(|bank| {
        let mut values = PcrValues::new(bank);
        values.insert(0, bank.filled(7)).map(|()| values)
    });
    let mut policies = Vec::new();
    for values in digests {
        policies.push(pcr_policy_digest(&values?));
    }
    policies.dedup();
    assert_eq!(policies.len(), HashAlgorithm::ALL.len());
    Ok(())
}

/// A file of version 1, which says nothing of banks.
#[test]
fn an_approval_without_a_bank_is_one_of_sha256_and_stays_as_it_is() -> Result<()> {
    let key = PolicyKey::generate()?;
    let values = pcr_values(HashAlgorithm::Sha256, 0..8)?;
    let json = key.approve("old", values.clone())?.to_json();
    let old = json
        .replace("\"version\": 2", "\"version\": 1")
        .replace("  \"bank\": \"sha256\",\n", "");
    assert_ne!(old, json);
    let read = Approval::from_json(old.as_bytes())?;
    assert_eq!(read.pcrs, values);
    assert!(read.is_signed_by(key.public()));
    assert_eq!(read.to_json(), old);
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

#[test]
fn a_label_that_a_terminal_would_obey_is_neither_signed_nor_read() -> Result<()> {
    let key = PolicyKey::generate()?;
    let values = pcr_values(HashAlgorithm::Sha256, 0..8)?;
    let approve = |label: &str| key.approve(label, values.clone());
    let json = approve("release 7")?.to_json();
    for text in [
        "\u{1b}[2K\r",
        "\u{202e}7 esaeler",
        "a\nstate  approved",
        "\u{200b}",
    ] {
        assert!(approve(text).is_err(), "{text:?}");
        let changed = json.replace("\"release 7\"", &serde_json::to_string(text)?);
        let error = Approval::from_json(changed.as_bytes()).err();
        let error = error.with_context(|| format!("{text:?}"))?.to_string();
        assert!(error.contains("`label`"), "{error}");
    }
    assert!(approve(&"x".repeat(1000)).is_err());
    Ok(())
}

#[test]
fn a_damaged_approval_is_refused_or_reads_as_something_that_is_not_signed() -> Result<()> {
    let key = PolicyKey::generate()?;
    let values = pcr_values(HashAlgorithm::Sha256, 0..8)?;
    let approval = key.approve("release 7", values)?;
    let json = approval.to_json().into_bytes();
    for position in 0..json.len() {
        for change in [0x01, 0x02, 0x08, 0x20, 0x80] {
            let mut damaged = json.clone();
            if let Some(byte) = damaged.get_mut(position) {
                *byte ^= change;
            }
            let Ok(read) = Approval::from_json(&damaged) else {
                continue;
            };
            assert!(read.label.chars().all(printable::is_printable));
            // Nothing but the note can change under the signature.
            let same = read.pcrs == approval.pcrs;
            assert!(same || !read.is_signed_by(key.public()), "byte {position}");
        }
        let _ = PolicyKeyPublic::all_from_pem(json.get(position..).unwrap_or_default());
    }
    Ok(())
}
