//! Keys of operators and approvals: as files, and what is refused.

use anyhow::{Context, Result};
use cert_chain::operator::{Approval, PolicyKey, PolicyKeyPublic, SealedData};
use cert_chain::policy::{HOST_POLICY_REF, authorize_digest, pcr_policy_digest};
use cert_chain::{HashAlgorithm, PcrValues};

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
        assert!(<Approval>::from_json(altered.as_bytes()).is_err(), "{to}");
    }
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

#[test]
fn an_approval_for_one_purpose_is_none_for_another() -> Result<()> {
    let key = PolicyKey::generate()?;
    let values = pcr_values(HashAlgorithm::Sha256, 0..8)?;
    let host = key.approve("1", values.clone())?;
    let data: Approval<SealedData> = key.approve_for("1", values)?;
    assert!(data.is_signed_by(key.public()));
    assert_ne!(host.signed_digest(), data.signed_digest());
    assert_ne!(
        key.public().policy_digest(),
        key.public().policy_digest_for::<SealedData>()
    );
    // Neither as it is, nor under the other's name.
    assert!(<Approval>::from_json(data.to_json().as_bytes()).is_err());
    let renamed = (data.to_json()).replace("sealed-data-approval", "host-policy-approval");
    let renamed = <Approval>::from_json(renamed.as_bytes())?;
    assert!(!renamed.is_signed_by(key.public()));
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
    let read = <Approval>::from_json(old.as_bytes())?;
    assert_eq!(read.pcrs, values);
    assert!(read.is_signed_by(key.public()));
    assert_eq!(read.to_json(), old);
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
        let error = <Approval>::from_json(changed.as_bytes()).err();
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
            let Ok(read) = <Approval>::from_json(&damaged) else {
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

/// Values of these PCRs after some boot.
fn pcr_values(bank: HashAlgorithm, pcrs: impl IntoIterator<Item = u8>) -> Result<PcrValues> {
    let mut values = PcrValues::new(bank);
    for pcr in pcrs {
        values.insert(pcr, bank.hash(&[&[pcr]]))?;
    }
    Ok(values)
}
