//! The trust anchor over a real TPM implementation, with stock tools as judges.

use std::time::Duration;

use anyhow::{Context, Result};
use cert_chain::enrolment::{Accepted, Answer, Request};
use cert_chain::operator::PolicyKey;
use cert_chain::policy::HOST_POLICY_REF;
use cert_chain::profile::Issuer;
use cert_chain::{Digest32, ObjectAttributes, TpmMakerRoots, Validity, make_credential};
use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use rustls_pki_types::UnixTime;
use test_support::Swtpm;
use test_support::deadline::wait_for;
use trust_anchor::{AnchorError, HostPublic, TrustAnchor};

use crate::config;

/// Fields in the order in which they must go: the connection before its peer.
struct Host {
    anchor: TrustAnchor,
    key: PolicyKey,
    public: HostPublic,
    tpm: Swtpm,
}

impl Host {
    /// Quotes, and waits until the next quote is being prepared: from then on, the TPM is not used until it
    /// is asked for something.
    async fn quote_and_prepare_the_next_one(&self) -> Result<()> {
        self.anchor.quote(Digest32::of(b"")).await?;
        wait_for("the next quote's session", Duration::from_secs(20), || {
            let sessions = self.tpm.tool("tpm2_getcap handles-loaded-session")?;
            Ok((!sessions.is_empty()).then_some(()))
        })
    }

    /// Provisioned, and approved as it stands.
    async fn new() -> Result<Self> {
        let tpm = Swtpm::of_a_host()?;
        let anchor = TrustAnchor::start(&config(&tpm))?;
        let key = PolicyKey::generate()?;
        let public = anchor.provision(key.public()).await?;
        anchor
            .approve(key.approve("first", anchor.pcr_values().await?)?)
            .await?;
        anchor.make_root_secret().await?;
        Ok(Self {
            anchor,
            key,
            public,
            tpm,
        })
    }
}

#[tokio::test]
async fn the_keys_are_what_stock_tools_find_at_their_handles() -> Result<()> {
    let host = Host::new().await?;
    host.tpm
        .tool("tpm2_readpublic -c 0x81000100 -o ik.tpm -n ik.name")?;
    assert_eq!(
        host.tpm.read("ik.name")?,
        host.public.ik_public.name().as_bytes()
    );
    let area = host.public.ik_public.public_area();
    assert_eq!(
        area.auth_policy(),
        host.key.public().policy_digest().as_bytes()
    );
    for absent in [
        ObjectAttributes::USER_WITH_AUTH,
        ObjectAttributes::ADMIN_WITH_POLICY,
    ] {
        assert!(!area.attributes().contains(absent));
    }
    host.tpm.tool("tpm2_readpublic -c 0x81000001 -n srk.name")?;
    assert_eq!(host.tpm.read("srk.name")?, host.public.srk_name.as_bytes());

    // The operator's key has the same name for us and for the TPM.
    host.tpm.write(
        "policy.pub",
        [
            &[0, host.key.public().as_bytes().len() as u8],
            host.key.public().as_bytes(),
        ]
        .concat(),
    )?;
    host.tpm
        .tool("tpm2_loadexternal -C o -u policy.pub -c policy.ctx -n policy.name")?;
    assert_eq!(
        host.tpm.read("policy.name")?,
        host.key.public().name().as_bytes()
    );
    host.tpm.tool("tpm2_flushcontext -t")?;
    Ok(())
}

#[tokio::test]
async fn provisioning_twice_changes_nothing() -> Result<()> {
    let host = Host::new().await?;
    let secret = host.anchor.root_secret().await?;
    let record = host.tpm.read("anchor.json")?;
    let config = config(&host.tpm);
    drop(host.anchor);

    let anchor = TrustAnchor::start(&config)?;
    let public = anchor.provision(host.key.public()).await?;
    assert_eq!(public.ik_public, host.public.ik_public);
    assert_eq!(public.ek_public, host.public.ek_public);
    assert_eq!(anchor.root_secret().await?.expose(), secret.expose());
    assert_eq!(host.tpm.read("anchor.json")?, record);
    Ok(())
}

#[tokio::test]
async fn the_issuer_enrols_the_host() -> Result<()> {
    let host = Host::new().await?;
    let now = UnixTime::now();
    let validity = Validity::starting(now, std::time::Duration::from_secs(3600))?;
    let issuer = Issuer::create("demo.example".parse()?, validity)?;
    let roots = TpmMakerRoots::from_pem(&host.tpm.maker_pem()?)?;
    let request = Request {
        host: "host-1".to_owned(),
        ek_certificate: host.public.ek_certificate.clone(),
        ek_chain: host.public.ek_chain.clone(),
        ek: host.public.ek_public.public_area().as_bytes().to_vec(),
        ik: host.public.ik_public.public_area().as_bytes().to_vec(),
        policy_key: host.key.public().as_bytes().to_vec(),
        policy_ref: HOST_POLICY_REF.to_vec(),
    };
    let operators = [host.key.public().name()].into_iter().collect();
    let accepted = Accepted {
        roots: &roots,
        operators: &operators,
    };
    let (challenge, mut pending) = issuer.challenge(&request, accepted, now)?;
    let secret = host
        .anchor
        .activate_credential(&challenge.credential)
        .await?;
    let answer = Answer {
        enrolment: challenge.enrolment,
        secret: secret.to_vec(),
    };
    let certificate = issuer.certify(&mut pending, &answer, accepted, validity, now)?;
    assert_eq!(certificate.host.to_string(), "host-1.demo.example");
    Ok(())
}

#[tokio::test]
async fn a_credential_for_another_key_is_not_opened() -> Result<()> {
    let host = Host::new().await?;
    let credential = make_credential(&host.public.ek_public, &host.public.srk_name, &[7; 32])?;
    let error = host.anchor.activate_credential(&credential).await.err();
    let text = error.context("opened")?.to_string();
    assert!(text.starts_with("TPM2_ActivateCredential failed"), "{text}");
    Ok(())
}

#[tokio::test]
async fn a_certificate_of_a_p256_ek_is_preferred_and_its_credential_opened() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    tpm.write("p256.crt", b"a certificate")?;
    tpm.tool("tpm2_nvdefine -C p 0x01c0000a -s 13 -a ownerread|authread|ppwrite|no_da|platformcreate|ppread")?;
    tpm.tool("tpm2_nvwrite -C p 0x01c0000a -i p256.crt")?;
    let anchor = TrustAnchor::start(&config(&tpm))?;
    let key = PolicyKey::generate()?;
    let public = anchor.provision(key.public()).await?;
    assert_eq!(public.ek_certificate, b"a certificate");
    let credential = make_credential(&public.ek_public, &public.ik_public.name(), &[7; 32])?;
    assert_eq!(*anchor.activate_credential(&credential).await?, [7; 32]);

    tpm.tool("tpm2_createek -G ecc -c ek.ctx -u ek.pub -f tpmt")?;
    let ek = tpm.read("ek.pub")?;
    assert!(
        ek.ends_with(public.ek_public.public_area().as_bytes()),
        "stock tools make the same EK"
    );
    Ok(())
}

#[tokio::test]
async fn a_tpm_without_an_ek_certificate_is_refused() -> Result<()> {
    let tpm = Swtpm::blank()?;
    tpm.tool("tpm2_startup -c")?;
    let anchor = TrustAnchor::start(&config(&tpm))?;
    let error = anchor
        .provision(PolicyKey::generate()?.public())
        .await
        .err();
    let text = error.context("provisioned")?.to_string();
    assert!(text.contains("swtpm_setup --create-ek-cert"), "{text}");
    Ok(())
}

#[tokio::test]
async fn stock_tools_accept_the_quote_and_refuse_it_for_another_nonce() -> Result<()> {
    let host = Host::new().await?;
    let nonce = Digest32::of(b"nonce");
    let quote = host.anchor.quote(nonce).await?;
    host.tpm.write("quote.attest", &quote.attest)?;
    host.tpm.write("quote.sig", &quote.signature)?;
    host.tpm
        .tool("tpm2_readpublic -c 0x81000100 -f pem -o ik.pem")?;
    let check = |nonce: &Digest32| {
        format!("tpm2_checkquote -u ik.pem -m quote.attest -s quote.sig -g sha256 -q {nonce}")
    };
    host.tpm.tool(&check(&nonce))?;
    host.tpm.tool_fails(&check(&Digest32::of(b"another")))?;

    // The statement ends with the digest over the values of the PCRs (Part 2 §10.12).
    host.tpm
        .tool("tpm2_pcrread sha256:0,1,2,3,4,5,6,7,8,9,11,12,13,14 -o pcrs.bin")?;
    let values = Digest32::of(&host.tpm.read("pcrs.bin")?);
    assert!(quote.attest.ends_with(values.as_bytes()));
    Ok(())
}

#[tokio::test]
async fn the_restricted_key_signs_certificates_of_up_to_1024_bytes() -> Result<()> {
    let host = Host::new().await?;
    let signer = host.anchor.ik_signer(&host.public.ik_public);
    tokio::task::spawn_blocking(move || {
        use rcgen::{PublicKeyData, SigningKey};
        for length in [1, 700, 1024] {
            let message = vec![0x30; length];
            let signature = signer.sign(&message)?;
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, signer.der_bytes())
                .verify(&message, &signature)
                .ok()
                .context("signature")?;
        }
        anyhow::ensure!(signer.sign(&[0x30; 1025]).is_err());
        let failure = signer.take_failure().context("no reason")?.to_string();
        anyhow::ensure!(failure.contains("1024 bytes, not 1025"), "{failure}");
        // What looks like something the TPM made itself is never signed (Part 3 §20.2).
        anyhow::ensure!(signer.sign(b"\xffTCG and more").is_err());
        Ok(())
    })
    .await?
}

#[tokio::test]
async fn without_an_approved_boot_nothing_works_and_with_one_all_does() -> Result<()> {
    let host = Host::new().await?;
    let secret = host.anchor.root_secret().await?;
    host.tpm
        .tool(&format!("tpm2_pcrextend 4:sha256={}", "ab".repeat(32)))?;

    let signer = host.anchor.ik_signer(&host.public.ik_public);
    let signed = tokio::task::spawn_blocking(move || {
        let signed = rcgen::SigningKey::sign(&signer, b"tbs");
        (signed.is_ok(), signer.take_failure())
    })
    .await?;
    assert!(!signed.0);
    for refusal in [
        signed.1,
        host.anchor.quote(Digest32::of(b"")).await.err(),
        host.anchor.root_secret().await.err(),
    ] {
        assert!(
            matches!(&refusal, Some(AnchorError::PcrsNotApproved { differences })
                if matches!(differences.as_slice(), [only] if only.pcr == 4)),
            "{refusal:?}"
        );
    }

    let values = host.anchor.pcr_values().await?;
    host.anchor
        .approve(host.key.approve("second", values)?)
        .await?;
    assert_eq!(host.anchor.root_secret().await?.expose(), secret.expose());
    host.anchor.quote(Digest32::of(b"")).await?;
    Ok(())
}

/// The policy is the TPM's, not the manager's: whoever goes around the manager gets no further.
#[tokio::test]
async fn the_tpm_itself_refuses_the_ik_without_its_policy() -> Result<()> {
    let host = Host::new().await?;
    let complaint = host
        .tpm
        .tool_fails("tpm2_quote -c 0x81000100 -l sha256:0 -m m -s s -o p")?;
    // TPM_RC_AUTH_UNAVAILABLE: no authorization value lets this key be used.
    assert!(complaint.contains("0x12F"), "{complaint}");
    host.tpm.write("digest", [0; 32])?;
    host.tpm
        .tool_fails("tpm2_sign -c 0x81000100 -g sha256 -d digest -o s")?;
    Ok(())
}

#[tokio::test]
async fn an_extend_while_keys_are_in_use_is_survived() -> Result<()> {
    let host = Host::new().await?;
    let anchor = host.anchor.clone();
    let quotes = tokio::spawn(async move {
        for _ in 0..20 {
            anchor.quote(Digest32::of(b"")).await?;
        }
        Ok::<_, AnchorError>(())
    });
    // PCR 10 is neither approved nor quoted, but its extension ends every policy session that is prepared.
    for _ in 0..5 {
        host.tpm
            .tool(&format!("tpm2_pcrextend 10:sha256={}", "01".repeat(32)))?;
        tokio::task::yield_now().await;
    }
    quotes.await??;
    Ok(())
}

#[tokio::test]
async fn a_record_on_another_host_opens_nothing() -> Result<()> {
    let host = Host::new().await?;
    let other = Swtpm::of_another_host()?;
    other.write("anchor.json", host.tpm.read("anchor.json")?)?;
    assert!(matches!(
        TrustAnchor::start(&config(&other)),
        Err(AnchorError::TpmReplaced { .. })
    ));
    Ok(())
}

/// Whoever may use the TPM can seal a secret that he knows under the host's policy, even while the
/// host runs what nobody approved; and the record is a file.
#[tokio::test]
async fn a_root_secret_that_somebody_put_there_is_refused_in_an_approved_boot_too() -> Result<()> {
    let host = Host::new().await?;
    let config = config(&host.tpm);
    drop(host.anchor);
    let policy = host.key.public().policy_digest();
    host.tpm
        .tool(&format!("tpm2_pcrextend 4:sha256={}", "ab".repeat(32)))?;
    host.tpm.write("policy", policy.as_bytes())?;
    host.tpm.write("secret", [7; 32])?;
    host.tpm.tool(
        "tpm2_create -C 0x81000001 -i secret -L policy -u planted.pub -r planted.priv \
         -a fixedtpm|fixedparent|adminwithpolicy|noda",
    )?;
    let without_length =
        |file: &[u8]| hex::encode(file.get(size_of::<u16>()..).unwrap_or_default());
    let original: serde_json::Value = serde_json::from_slice(&host.tpm.read("anchor.json")?)?;
    let mut planted = original.clone();
    let sealed = planted
        .pointer_mut("/root/sealed")
        .context("no sealed root secret in the record")?;
    *sealed = serde_json::json!({
        "public": without_length(&host.tpm.read("planted.pub")?),
        "private": without_length(&host.tpm.read("planted.priv")?),
    });
    host.tpm.write("anchor.json", planted.to_string())?;

    // The next boot is an approved one.
    host.tpm.switch_off()?;
    host.tpm.switch_on()?;
    let anchor = TrustAnchor::start(&config)?;
    assert!(anchor.policy().await?.is_satisfied());
    for opened in [anchor.root_secret().await, anchor.make_root_secret().await] {
        assert!(
            matches!(opened, Err(AnchorError::RootSecretForeign { .. })),
            "{opened:?}"
        );
    }
    drop(anchor);

    // Nor does a record without any get another one unasked.
    let mut bare = original;
    bare.as_object_mut().context("an object")?.remove("root");
    host.tpm.write("anchor.json", bare.to_string())?;
    let anchor = TrustAnchor::start(&config)?;
    assert!(matches!(
        anchor.root_secret().await,
        Err(AnchorError::RootSecretMissing)
    ));
    Ok(())
}

#[tokio::test]
async fn a_cleared_tpm_is_told_apart() -> Result<()> {
    let host = Host::new().await?;
    let config = config(&host.tpm);
    drop(host.anchor);
    host.tpm.tool("tpm2_clear -c p")?;
    assert!(matches!(
        TrustAnchor::start(&config),
        Err(AnchorError::TpmReplaced { .. })
    ));
    // And nothing was made in it.
    assert_eq!(host.tpm.tool("tpm2_getcap handles-persistent")?, "");
    Ok(())
}

#[tokio::test]
async fn persistent_keys_that_somebody_removed_come_back() -> Result<()> {
    let host = Host::new().await?;
    let config = config(&host.tpm);
    drop(host.anchor);
    host.tpm.tool("tpm2_evictcontrol -C o -c 0x81000001")?;
    host.tpm.tool("tpm2_evictcontrol -C o -c 0x81000100")?;
    let anchor = TrustAnchor::start(&config)?;
    anchor.root_secret().await?;
    let public = anchor.host_public().await?;
    assert_eq!(public.ik_public, host.public.ik_public);
    Ok(())
}

#[tokio::test]
async fn a_key_that_needs_no_policy_is_no_host_ik() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    let key = PolicyKey::generate()?;
    tpm.write("policy", key.public().policy_digest().as_bytes())?;
    tpm.tool(
        "tpm2_createprimary -C o -G ecc256:ecdsa-sha256:null -L policy -c weak.ctx -a \
         fixedtpm|fixedparent|sensitivedataorigin|userwithauth|noda|restricted|sign",
    )?;
    tpm.tool("tpm2_evictcontrol -C o -c weak.ctx 0x81000100")?;
    tpm.tool("tpm2_flushcontext -t")?;
    let anchor = TrustAnchor::start(&config(&tpm))?;
    let error = anchor.provision(key.public()).await.err();
    let text = error.context("accepted")?.to_string();
    assert!(text.contains("userWithAuth"), "{text}");
    Ok(())
}

#[tokio::test]
async fn after_a_reset_of_the_host_everything_is_as_before() -> Result<()> {
    let host = Host::new().await?;
    let secret = host.anchor.root_secret().await?;
    host.tpm.switch_off()?;
    assert!(host.anchor.pcr_values().await.is_err());
    host.tpm.switch_on()?;
    assert_eq!(host.anchor.root_secret().await?.expose(), secret.expose());
    host.anchor.quote(Digest32::of(b"")).await?;
    Ok(())
}

/// No object and no session.
fn assert_holds_nothing(tpm: &Swtpm) -> Result<()> {
    for kind in [
        "handles-transient",
        "handles-loaded-session",
        "handles-saved-session",
    ] {
        assert_eq!(tpm.tool(&format!("tpm2_getcap {kind}"))?, "", "{kind}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_left_behind_in_the_tpm() -> Result<()> {
    let host = Host::new().await?;
    host.quote_and_prepare_the_next_one().await?;
    host.anchor.root_secret().await?;
    let credential = make_credential(
        &host.public.ek_public,
        &host.public.ik_public.name(),
        &[7; 32],
    )?;
    host.anchor.activate_credential(&credential).await?;
    // A failed command, too, gives its slots back.
    let wrong = make_credential(&host.public.ek_public, &host.public.srk_name, &[7; 32])?;
    assert!(host.anchor.activate_credential(&wrong).await.is_err());
    assert_holds_nothing(&host.tpm)
}

#[tokio::test]
async fn the_session_of_the_next_quote_goes_with_the_connection() -> Result<()> {
    let host = Host::new().await?;
    host.quote_and_prepare_the_next_one().await?;
    drop(host.anchor);
    assert_holds_nothing(&host.tpm)
}

#[tokio::test]
async fn handles_with_other_things_in_them_are_left_alone() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    tpm.tool("tpm2_createprimary -C o -G ecc -c other.ctx")?;
    tpm.tool("tpm2_evictcontrol -C o -c other.ctx 0x81000100")?;
    tpm.tool("tpm2_flushcontext -t")?;
    let anchor = TrustAnchor::start(&config(&tpm))?;
    let error = anchor
        .provision(PolicyKey::generate()?.public())
        .await
        .err();
    let text = error.context("overwritten")?.to_string();
    assert!(text.contains("handle 0x81000100 holds"), "{text}");
    tpm.tool("tpm2_readpublic -c 0x81000100")?;
    Ok(())
}

#[tokio::test]
async fn a_storage_root_key_that_is_there_is_used() -> Result<()> {
    let tpm = Swtpm::of_a_host()?;
    // An RSA key, as other software makes it.
    tpm.tool("tpm2_createprimary -C o -G rsa2048 -c srk.ctx")?;
    tpm.tool("tpm2_evictcontrol -C o -c srk.ctx 0x81000001")?;
    tpm.tool("tpm2_flushcontext -t")?;
    tpm.tool("tpm2_readpublic -c 0x81000001 -n srk.name")?;
    let anchor = TrustAnchor::start(&config(&tpm))?;
    let key = PolicyKey::generate()?;
    let public = anchor.provision(key.public()).await?;
    assert_eq!(tpm.read("srk.name")?, public.srk_name.as_bytes());
    anchor
        .approve(key.approve("first", anchor.pcr_values().await?)?)
        .await?;
    anchor.make_root_secret().await?;
    Ok(())
}
