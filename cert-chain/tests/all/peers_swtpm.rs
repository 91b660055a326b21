//! Held against a real TPM implementation and the stock tools.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cert_chain::ek_chain::EkChain;
use cert_chain::enrolment::{Accepted, Answer, Certificate, EnrolmentError, Message, Request};
use cert_chain::policy::{HOST_POLICY_REF, approval_digest, authorize_digest, pcr_policy_digest};
use cert_chain::profile::host_ik::HostCertificate;
use cert_chain::{
    AttestationKey, CertifiedEndorsementKey, CredentialBlob, Digest32, EndorsementKey,
    HashAlgorithm, HashValue, HostIkSpec, HostName, Issuer, PcrValues, PublicArea, TpmMakerRoots,
    TrustAnchors, Validity, VikChain, issue_vrot_certificate, make_credential,
};
use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::UnixTime;

use crate::support::swtpm::Swtpm;

/// Opens a credential as a host does, with stock tools.
fn activate(tpm: &Swtpm, blob: &CredentialBlob, ek: &str, key: &str) -> Result<Vec<u8>> {
    // The tools' own file format: magic, version, then both structures.
    let mut file = 0xbadc_c0de_u32.to_be_bytes().to_vec();
    file.extend_from_slice(&1u32.to_be_bytes());
    file.extend_from_slice(&blob.id_object);
    file.extend_from_slice(&blob.encrypted_secret);
    tpm.write("credential", &file)?;
    tpm.tool("tpm2_startauthsession --policy-session -S session")?;
    let opened = tpm
        .tool("tpm2_policysecret -S session -c e")
        .and_then(|()| {
            tpm.tool(&format!(
                "tpm2_activatecredential -c {key} -C {ek} -i credential -o secret -P session:session"
            ))
        });
    tpm.tool("tpm2_flushcontext session")?;
    opened?;
    tpm.read("secret")
}

fn real_now() -> UnixTime {
    UnixTime::now()
}

#[test]
fn a_tpm_opens_our_credential_for_the_named_key_only() -> Result<()> {
    let tpm = Swtpm::manufactured()?;
    for algorithm in ["rsa", "ecc"] {
        tpm.tool(&format!("tpm2_createek -G {algorithm} -c ek.ctx -u ek.pub"))?;
        tpm.tool("tpm2_createak -C ek.ctx -G ecc -g sha256 -s ecdsa -c ak.ctx -u ak.pub")?;
        tpm.tool("tpm2_flushcontext -t")?;
        let ek = EndorsementKey::try_from(PublicArea::parse(&tpm.public_area("ek.pub")?)?)?;
        let ak = AttestationKey::try_from(PublicArea::parse(&tpm.public_area("ak.pub")?)?)?;

        for secret in [&b"x"[..], &[0x5a; 32]] {
            let blob = make_credential(&ek, &ak.name(), secret)?;
            let opened = activate(&tpm, &blob, "ek.ctx", "ak.ctx")?;
            ensure!(opened == secret, "{algorithm}");
            tpm.tool("tpm2_flushcontext -t")?;
        }
        let for_another = make_credential(&ek, &crate::support::name_of(b"another"), b"x")?;
        ensure!(activate(&tpm, &for_another, "ek.ctx", "ak.ctx").is_err());
        tpm.tool("tpm2_flushcontext -t")?;
        ensure!(AttestationKey::try_from(ek.public_area().clone()).is_err());
        ensure!(EndorsementKey::try_from(ak.public_area().clone()).is_err());
    }
    Ok(())
}

#[test]
fn names_are_those_the_tpm_computes() -> Result<()> {
    let tpm = Swtpm::manufactured()?;
    tpm.tool("tpm2_createek -G rsa -c ek.ctx -u ek.pub")?;
    tpm.tool("tpm2_readpublic -c ek.ctx -n ek.name -f der -o ek.der")?;
    let area = PublicArea::parse(&tpm.public_area("ek.pub")?)?;
    ensure!(area.name().as_bytes() == tpm.read("ek.name")?);
    ensure!(area.subject_public_key_info() == tpm.read("ek.der")?);
    Ok(())
}

#[test]
fn a_real_ek_certificate_leads_to_its_maker_and_to_its_key() -> Result<()> {
    let tpm = Swtpm::manufactured()?;
    tpm.tool("tpm2_nvread 0x01c00002 -o ek.crt")?;
    tpm.tool("tpm2_createek -G rsa -c ek.ctx -u ek.pub")?;
    let ek = EndorsementKey::try_from(PublicArea::parse(&tpm.public_area("ek.pub")?)?)?;
    let roots = TpmMakerRoots::from_pem(&tpm.maker_pem()?)?;
    let certificate = tpm.read("ek.crt")?;

    let certified = CertifiedEndorsementKey::verify(
        &certificate,
        &EkChain::default(),
        &ek,
        &roots,
        real_now(),
    )?;
    ensure!(certified.issuer() == "CN=swtpm-localca");
    let make = certified.device().context("no make")?;
    ensure!(make.manufacturer == "id:00001014" && make.model == "swtpm");

    let padded = [&certificate[..], &[0xff; 100]].concat();
    CertifiedEndorsementKey::verify(&padded, &EkChain::default(), &ek, &roots, real_now())?;

    let neighbour = Swtpm::of_another_maker()?;
    let other_roots = TpmMakerRoots::from_pem(&neighbour.maker_pem()?)?;
    ensure!(
        CertifiedEndorsementKey::verify(
            &certificate,
            &EkChain::default(),
            &ek,
            &other_roots,
            real_now()
        )
        .is_err(),
        "another maker of the same name"
    );
    neighbour.tool("tpm2_createek -G rsa -c ek.ctx -u ek.pub")?;
    let other = EndorsementKey::try_from(PublicArea::parse(&neighbour.public_area("ek.pub")?)?)?;
    ensure!(
        CertifiedEndorsementKey::verify(
            &certificate,
            &EkChain::default(),
            &other,
            &roots,
            real_now()
        )
        .is_err(),
        "another TPM's key"
    );
    Ok(())
}

/// A host IK in a TPM, used through the stock tools.
struct TpmSigner<'a> {
    tpm: &'a Swtpm,
    ik: PublicArea,
}

impl PublicKeyData for TpmSigner<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.ik.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.ik.algorithm()
    }
}

impl SigningKey for TpmSigner<'_> {
    fn sign(&self, tbs: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let sign = || -> Result<Vec<u8>> {
            self.tpm.write("tbs", tbs)?;
            self.tpm
                .tool("tpm2_hash -C o -g sha256 -o digest -t ticket tbs")?;
            self.tpm.tool(
                "tpm2_sign -c ik.ctx -g sha256 -s ecdsa -d -t ticket -f plain -o signed digest",
            )?;
            self.tpm.read("signed")
        };
        sign().map_err(|_| rcgen::Error::RemoteKeyError)
    }
}

#[test]
fn a_restricted_key_in_a_tpm_issues_certificates_with_the_longest_names() -> Result<()> {
    let tpm = Swtpm::manufactured()?;
    tpm.tool(
        "tpm2_createprimary -C o -G ecc256:ecdsa-sha256:null -c ik.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign",
    )?;
    tpm.tool("tpm2_readpublic -c ik.ctx -o ik.pub")?;
    tpm.tool("tpm2_flushcontext -t")?;
    let ik = PublicArea::parse(&tpm.public_area("ik.pub")?)?;

    let domain = format!("{}.example", "d".repeat(40)).parse()?;
    let issuer = Issuer::create(domain, crate::support::years(10))?;
    let host = issuer.certify_host(&HostIkSpec {
        host: HostName::new(&"h".repeat(15), issuer.domain())?,
        ik: ik.clone().try_into()?,
        ek: crate::support::name_of(b"ek"),
        policy_key: crate::support::name_of(b"policy key"),
        validity: crate::support::years(1),
    })?;
    let mut spec = crate::support::vik_spec(&KeyPair::generate()?);
    spec.tenant = "t".repeat(64).parse()?;
    let vik = issue_vrot_certificate(&spec, &TpmSigner { tpm: &tpm, ik }, &host)?;
    let chain = VikChain::from_der_list(&[vik, host])?;
    let anchors = TrustAnchors::from_pem(&issuer.certificate_pem())?;
    ensure!(chain.verify(&anchors, crate::support::now())?.claims().vm == spec.vm);
    Ok(())
}

/// Loads an operator's software key as policy key: `operator.ctx`, `operator.pub`.
fn load_operator(tpm: &Swtpm) -> Result<PublicArea> {
    tpm.tool("openssl ecparam -name prime256v1 -genkey -noout -out operator.pem")?;
    tpm.tool("openssl ec -in operator.pem -pubout -out operator.pub.pem")?;
    tpm.tool("tpm2_loadexternal -C o -G ecc -u operator.pub.pem -c operator.ctx -n operator.name")?;
    tpm.tool("tpm2_readpublic -c operator.ctx -o operator.pub")?;
    tpm.tool("tpm2_flushcontext -t")?;
    let area = PublicArea::parse(&tpm.public_area("operator.pub")?)?;
    ensure!(area.name().as_bytes() == tpm.read("operator.name")?);
    Ok(area)
}

/// The policy of PCRs 0 and 7 as they are, which the stock tools compute as well.
fn approved_policy(tpm: &Swtpm, bank: HashAlgorithm) -> Result<Digest32> {
    tpm.tool(&format!("tpm2_pcrread {bank}:0,7 -o values"))?;
    let read = tpm.read("values")?;
    let mut values = PcrValues::new(bank);
    for (pcr, value) in [0, 7].into_iter().zip(read.chunks(bank.digest_length())) {
        values.insert(pcr, HashValue::new(bank, value).context("length")?)?;
    }
    let policy = pcr_policy_digest(&values);
    tpm.tool(&format!(
        "tpm2_createpolicy --policy-pcr -l {bank}:0,7 -L theirs"
    ))?;
    ensure!(tpm.read("theirs")? == policy.as_bytes(), "{bank}");
    Ok(policy)
}

#[test]
fn a_host_is_enrolled_and_its_key_signs_only_in_an_approved_state() -> Result<()> {
    let tpm = Swtpm::manufactured()?;
    let operator = load_operator(&tpm)?;
    let policy_ref = HOST_POLICY_REF.to_vec();
    let policy = authorize_digest(&operator.name(), &policy_ref);
    tpm.write("policy", policy.as_bytes())?;
    tpm.write("policy-ref", &policy_ref)?;

    // The host makes its keys and asks.
    tpm.tool("tpm2_createek -G rsa -c ek.ctx -u ek.pub")?;
    tpm.tool("tpm2_flushcontext -t")?;
    tpm.tool("tpm2_nvread 0x01c00002 -o ek.crt")?;
    tpm.tool(
        "tpm2_createprimary -C o -G ecc256:ecdsa-sha256:null -L policy -c ik.ctx \
         -a fixedtpm|fixedparent|sensitivedataorigin|restricted|sign",
    )?;
    tpm.tool("tpm2_readpublic -c ik.ctx -o ik.pub")?;
    tpm.tool("tpm2_flushcontext -t")?;
    let request = Request {
        host: "host-1".to_owned(),
        ek_certificate: tpm.read("ek.crt")?,
        ek_chain: Vec::new(),
        ek: tpm.public_area("ek.pub")?,
        ik: tpm.public_area("ik.pub")?,
        policy_key: operator.as_bytes().to_vec(),
        policy_ref: policy_ref.clone(),
    };
    let request = Request::from_json(request.to_json().as_bytes())?;

    // The issuer challenges, the host answers, the issuer certifies.
    let year = Duration::from_secs(365 * 24 * 60 * 60);
    let validity = Validity::starting(real_now(), year)?;
    let issuer = Issuer::create("demo.example".parse()?, validity)?;
    let roots = TpmMakerRoots::from_pem(&tpm.maker_pem()?)?;
    let operators = [operator.name()].into_iter().collect();
    let accepted = Accepted {
        roots: &roots,
        operators: &operators,
    };
    let (challenge, mut pending) = issuer.challenge(&request, accepted, real_now())?;
    let answer = Answer {
        enrolment: challenge.enrolment,
        secret: activate(&tpm, &challenge.credential, "ek.ctx", "ik.ctx")?,
    };
    let certificate = issuer.certify(&mut pending, &answer, accepted, validity, real_now())?;
    let certificate = Certificate::from_json(certificate.to_json().as_bytes())?;
    let host = HostCertificate::read(&certificate.certificate)?;
    ensure!(host.host().to_string() == "host-1.demo.example");
    ensure!(host.claims().policy_key == operator.name());
    ensure!(matches!(
        issuer.certify(&mut pending, &answer, accepted, validity, real_now()),
        Err(EnrolmentError::AlreadyAnswered)
    ));

    // The operator approves the present state; the certified key quotes in it.
    tpm.tool("tpm2_flushcontext -t")?;
    let approved = approved_policy(&tpm, HashAlgorithm::Sha256)?;
    ensure!(approved != approved_policy(&tpm, HashAlgorithm::Sha384)?);
    tpm.write("approved", approved.as_bytes())?;
    let message = [&approved.as_bytes()[..], &policy_ref].concat();
    ensure!(approval_digest(&approved, &policy_ref) == Digest32::of(&message));
    tpm.write("message", &message)?;
    tpm.write("digest", approval_digest(&approved, &policy_ref).as_bytes())?;
    tpm.tool("openssl pkeyutl -sign -inkey operator.pem -in digest -out signature")?;
    let quote = || -> Result<()> {
        tpm.tool("tpm2_loadexternal -C o -G ecc -u operator.pub.pem -c operator.ctx")?;
        tpm.tool(
            "tpm2_verifysignature -c operator.ctx -g sha256 -m message -f ecdsa -s signature \
             -t ticket",
        )?;
        tpm.tool("tpm2_flushcontext -t")?;
        tpm.tool("tpm2_startauthsession --policy-session -S session")?;
        let quoted = tpm
            .tool("tpm2_policypcr -S session -l sha256:0,7")
            .and_then(|()| {
                tpm.tool(
                    "tpm2_policyauthorize -S session -i approved -q policy-ref -n operator.name \
                     -t ticket",
                )
            })
            .and_then(|()| tpm.tool("tpm2_quote -c ik.ctx -l sha256:0,7 -p session:session"));
        tpm.tool("tpm2_flushcontext session")?;
        tpm.tool("tpm2_flushcontext -t")?;
        quoted
    };
    quote()?;
    tpm.tool(
        "tpm2_pcrextend 7:sha256=0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef",
    )?;
    ensure!(
        quote().is_err(),
        "the key signed in a state nobody approved"
    );
    Ok(())
}
