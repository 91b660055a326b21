//! PCR banks of a real TPM implementation: which one approvals and quotes are of, and which are
//! refused. Stock tools are the judges.

use anyhow::{Context, Result};
use cert_chain::HashAlgorithm::{self, Sha1, Sha256, Sha384, Sha512};
use cert_chain::operator::PolicyKey;
use cert_chain::{Digest32, PcrSelection};
use test_support::Swtpm;
use trust_anchor::{AnchorError, TrustAnchor};

use crate::config;

async fn provisioned(
    tpm: &Swtpm,
    configured: Option<HashAlgorithm>,
) -> Result<(TrustAnchor, PolicyKey)> {
    let mut config = config(tpm);
    config.pcr_bank = configured;
    let anchor = TrustAnchor::start(&config)?;
    let key = PolicyKey::generate()?;
    anchor.provision(key.public()).await?;
    Ok((anchor, key))
}

#[tokio::test]
async fn a_tpm_without_a_sha256_bank_is_approved_and_quotes_in_the_bank_that_it_has() -> Result<()>
{
    for bank in [Sha384, Sha512] {
        let tpm = with_banks(&[bank], &[bank])?;
        let (anchor, key) = provisioned(&tpm, None).await?;
        let values = anchor.pcr_values().await?;
        assert_eq!(values.bank(), bank);
        tpm.tool(&format!("tpm2_pcrread {bank}:0,1,2,3,4,5,6,7 -o pcrs"))?;
        assert_eq!(values.digest(), Digest32::of(&tpm.read("pcrs")?));

        anchor.approve(key.approve("first", values)?).await?;
        let secret = anchor.make_root_secret().await?;
        let nonce = Digest32::of(b"nonce");
        let quote = anchor.quote(nonce).await?;
        tpm.write("quote.attest", &quote.attest)?;
        tpm.write("quote.sig", &quote.signature)?;
        tpm.tool("tpm2_readpublic -c 0x81000100 -f pem -o ik.pem")?;
        tpm.tool(&format!(
            "tpm2_checkquote -u ik.pem -m quote.attest -s quote.sig -g sha256 -q {nonce}"
        ))?;
        let quoted = "0,1,2,3,4,5,6,7,8,9,11,12,13,14";
        tpm.tool(&format!("tpm2_pcrread {bank}:{quoted} -o quoted"))?;
        let quoted = Digest32::of(&tpm.read("quoted")?);
        assert!(quote.attest.ends_with(quoted.as_bytes()));
        drop(anchor);

        // The same boot again opens the same secret; another one does not.
        tpm.switch_off()?;
        tpm.switch_on()?;
        let anchor = TrustAnchor::start(&config(&tpm))?;
        assert_eq!(anchor.root_secret().await?.expose(), secret.expose());
        let other = bank.hash(&[b"another boot loader"]);
        tpm.tool(&format!("tpm2_pcrextend 4:{bank}={other}"))?;
        let error = anchor.root_secret().await.err().context("opened")?;
        let text = error.to_string();
        assert!(text.contains(&format!("PCR 4 ({bank})")), "{text}");
    }
    Ok(())
}

#[tokio::test]
async fn of_several_banks_the_first_that_the_firmware_measures_into_is_taken() -> Result<()> {
    for (active, measured, configured, taken) in [
        (&[Sha256, Sha384][..], &[Sha256, Sha384][..], None, Sha256),
        (&[Sha256, Sha384], &[Sha384], None, Sha384),
        (&[Sha256, Sha384], &[Sha256, Sha384], Some(Sha384), Sha384),
        (
            &[Sha1, Sha256, Sha384, Sha512],
            &[Sha1, Sha512],
            None,
            Sha512,
        ),
    ] {
        let tpm = with_banks(active, measured)?;
        let (anchor, key) = provisioned(&tpm, configured).await?;
        let values = anchor.pcr_values().await?;
        assert_eq!(values.bank(), taken, "{active:?} {measured:?}");
        anchor.approve(key.approve("first", values)?).await?;
        anchor.make_root_secret().await?;
        anchor.quote(Digest32::of(b"")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_bank_that_nothing_was_measured_into_is_neither_approved_nor_quoted() -> Result<()> {
    for (active, measured, configured) in [
        (&[Sha1, Sha256][..], Sha1, None),
        (&[Sha256, Sha384], Sha384, Some(Sha256)),
    ] {
        let tpm = with_banks(active, &[measured])?;
        let (anchor, _) = provisioned(&tpm, configured).await?;
        for refusal in [
            anchor.pcr_values().await.err(),
            anchor.policy().await.err(),
            anchor.quote(Digest32::of(b"")).await.err(),
            anchor.make_root_secret().await.err(),
        ] {
            let refusal = refusal.context("not refused")?;
            assert!(
                matches!(refusal, AnchorError::BankUnextended { bank: Sha256, extended } if extended == measured),
                "{refusal}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_tpm_without_any_usable_bank_is_told_what_it_has() -> Result<()> {
    let tpm = with_banks(&[Sha1], &[Sha1])?;
    let (anchor, _) = provisioned(&tpm, None).await?;
    let error = anchor.pcr_values().await.err().context("read")?;
    let text = error.to_string();
    assert!(text.contains("active are sha1"), "{text}");
    Ok(())
}

/// A TPM with two banks was approved in one. Where its firmware no longer measures into that one, its
/// values prove nothing, whoever approved them.
#[tokio::test]
async fn an_approval_of_one_bank_opens_nothing_where_only_the_other_is_measured() -> Result<()> {
    let both = &[Sha256, Sha384];
    let tpm = with_banks(both, both)?;
    let (anchor, key) = provisioned(&tpm, None).await?;
    let values = anchor.pcr_values().await?;
    anchor.approve(key.approve("sha256", values)?).await?;
    anchor.make_root_secret().await?;
    drop(anchor);

    tpm.switch_off()?;
    tpm.switch_on_measuring(&[Sha384.name()])?;
    let anchor = TrustAnchor::start(&config(&tpm))?;
    let error = anchor.root_secret().await.err().context("opened")?;
    assert!(
        matches!(error, AnchorError::NoApproval { bank: Sha384 }),
        "{error}"
    );
    let policy = anchor.policy().await?;
    assert!(!policy.is_satisfied());
    assert_eq!(policy.current.bank(), Sha384);
    let approval = policy.approvals.first().context("approval")?;
    assert_eq!(approval.bank, Sha256);
    let all = PcrSelection::of_firmware().iter().count();
    assert_eq!(approval.differences.len(), all);
    Ok(())
}

/// A host's TPM with these active banks, of which the firmware measures into some.
fn with_banks(active: &[HashAlgorithm], measured: &[HashAlgorithm]) -> Result<Swtpm> {
    let names =
        |banks: &[HashAlgorithm]| -> Vec<&str> { banks.iter().map(|bank| bank.name()).collect() };
    Swtpm::with_banks(&names(active), &names(measured))
}
