//! The key with which a VM's service authenticates itself in TLS, and its certificate.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use attestation::KeyStatement;
use cert_chain::layout::{NvIndex, TLS_KEY_HANDLE, VIK_HANDLE};
use cert_chain::{AttestationKey, ObjectAttributes, PublicArea, TlsKey};
use serde_json::Value;
use test_support::tool::Tool;
use uuid::Uuid;

use crate::support::identity::der;
use crate::support::vmm::{Vmm, command, create_primary, evict_control, nv_read, with_sessions};
use crate::support::{Host, TENANT, wait_until};

const POOL: &str = "[pool]\nsize = 1\ntenants = [\"acme\"]\nrefill_per_minute = 6000\n";

#[test]
fn a_launched_vrot_has_a_tls_key_that_its_vik_certifies_and_openssl_accepts_below_the_root()
-> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.json(["create", "--tenant", TENANT, "--start"])?["vm"].clone();
    let vm = vm.as_str().context("a VM")?;
    certified(&host, vm)?;
    let identity = host.json(["identity", vm])?;
    let mut vmm = Vmm::attach(&host.control(vm)?)?;

    let (public, vik) = (
        public_area(&mut vmm, TLS_KEY_HANDLE)?,
        public_area(&mut vmm, VIK_HANDLE)?,
    );
    assert_eq!(identity["tls"]["public_area"], hex::encode(&public));
    let area = PublicArea::parse(&public)?;
    let expected = cert_chain::template::RESIDENT
        .with(ObjectAttributes::USER_WITH_AUTH)
        .with(ObjectAttributes::NO_DA)
        .with(ObjectAttributes::SIGN);
    assert_eq!(area.attributes(), expected);
    ensure!(area.auth_policy().is_empty());

    let (attest, signature) = certify(&mut vmm)?;
    let statement = KeyStatement {
        public: public.into(),
        attest: attest.into(),
        signature: attestation::quote::canonical_signature(&signature)?.into(),
    };
    let vik = AttestationKey::try_from(PublicArea::parse(&vik)?)?;
    assert_eq!(statement.verify::<TlsKey>(&vik)?, TlsKey::try_from(area)?);

    openssl_accepts(&host, &identity)?;
    guest_has_what_the_manager_says(&mut vmm, &identity)?;
    host.ctl(["audit", "verify"])?;
    Ok(())
}

/// The certificate of one that was made ahead names another VM.
#[test]
fn a_vm_with_a_number_of_its_own_never_finds_a_tls_certificate_with_another_one() -> Result<()> {
    let mut host = Host::enrolled_with(POOL)?;
    full(&host)?;
    let bus = host.put_bus_between()?;
    full(&host)?;
    let vm = Uuid::new_v4().to_string();
    bus.hold_signature_of(vm.as_bytes());
    host.json(["create", "--vm", &vm, "--tenant", TENANT, "--start"])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    assert_eq!(host.json(["show", &vm])?["tls_certificate"], "pending");
    let identity = host.json(["identity", &vm])?;
    assert_eq!(identity["tls"]["certificate_pem"], Value::Null);
    ensure!(nv_read(&mut vmm, NvIndex::TLS_CERTIFICATE.handle()).is_err());

    bus.let_signatures_go();
    certified(&host, &vm)?;
    let identity = host.json(["identity", &vm])?;
    openssl_accepts(&host, &identity)?;
    guest_has_what_the_manager_says(&mut vmm, &identity)?;
    drop(vmm);
    // It is the same after its next start.
    host.ctl(["stop", &vm])?;
    host.ctl(["start", &vm])?;
    assert_eq!(host.json(["identity", &vm])?, identity);
    guest_has_what_the_manager_says(&mut Vmm::attach(&host.control(&vm)?)?, &identity)
}

/// `id-kp-serverAuth` and `tcg-kp-EKCertificate` in DER.
const SERVER_AUTH: &[u8] = &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01];
const EK_PURPOSE: &[u8] = &[0x67, 0x81, 0x05, 0x08, 0x01];

#[test]
fn the_tls_key_is_certified_after_the_identity_key_and_before_the_endorsement_keys() -> Result<()> {
    for (held, tls) in [(SERVER_AUTH, "pending"), (EK_PURPOSE, "issued")] {
        let mut host = Host::enrolled()?;
        let bus = host.put_bus_between()?;
        bus.hold_signature_of(held);
        let vm = host.json(["create", "--tenant", TENANT, "--start"])?["vm"].clone();
        let vm = vm.as_str().context("a VM")?;
        let shown = |key: &str| anyhow::Ok(host.json(["show", vm])?[key].clone());
        let last = match tls {
            "pending" => "vik_certificate",
            _ => "tls_certificate",
        };
        wait_until("what comes before", || Ok(shown(last)? == "issued"))?;
        assert_eq!(shown("vik_certificate")?, "issued");
        assert_eq!(shown("tls_certificate")?, tls);
        assert_eq!(shown("ek_certificates")?, "pending");
        let waiting = f64::from(u8::from(tls == "pending"));
        assert_eq!(host.metric("vrot_tls_certificates_pending")?, waiting);
        ensure!(host.ctl(["show", vm])?.contains("TLS certificate") == (tls == "pending"));
        bus.let_signatures_go();
        wait_until("the others", || {
            Ok(shown("ek_certificates")? == "issued" && shown("tls_certificate")? == "issued")
        })?;
        openssl_accepts(&host, &host.json(["identity", vm])?)?;
    }
    Ok(())
}

#[test]
fn the_tls_certificate_is_renewed_with_that_of_the_identity_key_while_the_vm_runs() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.json(["create", "--tenant", TENANT, "--start"])?["vm"].clone();
    let vm = vm.as_str().context("a VM")?;
    certified(&host, vm)?;
    let before = host.json(["identity", vm])?;
    let mut vmm = Vmm::attach(&host.control(vm)?)?;
    host.ctl(["identity", vm, "--renew"])?;
    let after = host.json(["identity", vm])?;
    for key in ["vik", "tls"] {
        assert_eq!(after[key]["name"], before[key]["name"]);
        assert_ne!(
            after[key]["certificate_pem"],
            before[key]["certificate_pem"]
        );
    }
    assert_eq!(after["ek_rsa"], before["ek_rsa"]);
    openssl_accepts(&host, &after)?;
    guest_has_what_the_manager_says(&mut vmm, &after)?;
    let told = host.audit()?;
    let renewed = told
        .iter()
        .find(|line| line["event"] == "certificate-renewed");
    let digest = cert_chain::Digest32::of(&der(&after["tls"]["certificate_pem"])?);
    assert_eq!(
        renewed.context("a line")?["tls_certificate"],
        digest.to_string()
    );
    let restored = told
        .iter()
        .any(|line| line["event"] == "certificates-restored");
    ensure!(!restored, "it was renewed in its index at once");
    Ok(())
}

/// As with the identity key: a guest's administrator owns the guest's TPM.
#[test]
fn a_tls_key_that_the_guest_removed_is_certified_as_before_and_no_other() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.json(["create", "--tenant", TENANT, "--start"])?["vm"].clone();
    let vm = vm.as_str().context("a VM")?;
    certified(&host, vm)?;
    let before = host.json(["identity", vm])?;
    let mut vmm = Vmm::attach(&host.control(vm)?)?;
    vmm.succeed(&evict_control(TLS_KEY_HANDLE, TLS_KEY_HANDLE))?;
    let own = create_primary(&mut vmm, &vrot_manufacture::tls_template())?;
    vmm.succeed(&evict_control(own, TLS_KEY_HANDLE))?;
    let found = hex::encode(public_area(&mut vmm, TLS_KEY_HANDLE)?);
    assert_ne!(before["tls"]["public_area"], found, "it is another one");

    host.ctl(["identity", vm, "--renew"])?;
    let after = host.json(["identity", vm])?;
    assert_eq!(after["tls"]["public_area"], before["tls"]["public_area"]);
    assert_ne!(
        after["tls"]["certificate_pem"],
        before["tls"]["certificate_pem"]
    );
    openssl_accepts(&host, &after)?;
    guest_has_what_the_manager_says(&mut vmm, &after)
}

/// Waits until nothing is pending.
fn certified(host: &Host, vm: &str) -> Result<()> {
    wait_until("all certificates", || {
        let shown = host.json(["show", vm])?;
        Ok(shown["tls_certificate"] == "issued" && shown["ek_certificates"] == "issued")
    })
}

fn full(host: &Host) -> Result<()> {
    wait_until("a full pool", || Ok(host.metric("vrot_pool_ready")? == 1.0))
}

/// With both names and for both purposes, and without a word about vRoTs.
fn openssl_accepts(host: &Host, identity: &Value) -> Result<()> {
    let folder = tempfile::tempdir()?;
    let write = |name: &str, text: &Value| {
        fs::write(
            folder.path().join(name),
            text.as_str().context("a certificate")?,
        )
        .with_context(|| name.to_owned())
    };
    write("tls.pem", &identity["tls"]["certificate_pem"])?;
    write("host.pem", &identity["chain_pem"])?;
    let word = |key: &str| identity[key].as_str().with_context(|| key.to_owned());
    let dns_name = format!("{}.{}", word("vrot")?, word("host")?);
    for purpose in ["sslserver", "sslclient"] {
        let verdict = openssl(folder.path())
            .args(["verify", "-x509_strict", "-purpose", purpose])
            .args(["-verify_hostname", &dns_name, "-CAfile"])
            .arg(host.path("issuer/root.pem"))
            .args(["-untrusted", "host.pem", "tls.pem"])
            .text()?;
        ensure!(verdict.trim() == "tls.pem: OK", "{verdict}");
    }
    let key = openssl(folder.path())
        .args(["x509", "-in", "tls.pem", "-noout", "-pubkey"])
        .text()?;
    assert_eq!(key.trim(), public_key(identity)?.trim());
    let names = openssl(folder.path())
        .args(["x509", "-in", "tls.pem", "-noout", "-ext", "subjectAltName"])
        .text()?;
    let names: Vec<&str> = names.lines().skip(1).map(str::trim).collect();
    assert_eq!(
        names,
        [format!("URI:urn:uuid:{}, DNS:{dns_name}", word("vm")?)]
    );
    Ok(())
}

fn public_key(identity: &Value) -> Result<String> {
    let pem = identity["tls"]["public_key_pem"].as_str();
    Ok(pem.context("a key")?.replace('\r', ""))
}

fn openssl(folder: &Path) -> Tool {
    Tool::new("openssl").folder(folder)
}

fn guest_has_what_the_manager_says(vmm: &mut Vmm, identity: &Value) -> Result<()> {
    for (key, index) in [
        ("vik", NvIndex::VIK_CERTIFICATE),
        ("tls", NvIndex::TLS_CERTIFICATE),
    ] {
        let said = der(&identity[key]["certificate_pem"])?;
        let found = nv_read(vmm, index.handle())?;
        assert_eq!(found.get(..said.len()), Some(said.as_ref()), "{key}");
    }
    Ok(())
}

/// `TPM2_ReadPublic`: the `TPMT_PUBLIC` of a key.
fn public_area(vmm: &mut Vmm, handle: u32) -> Result<Vec<u8>> {
    let response = vmm.succeed(&command(0x173, &handle.to_be_bytes()))?;
    Ok(sized(&response)?.0.to_vec())
}

/// `TPM2_Certify` of the TLS key by the vIK, both with their empty authorization values, without
/// qualifying data and with the scheme of the vIK.
fn certify(vmm: &mut Vmm) -> Result<(Vec<u8>, Vec<u8>)> {
    const SESSION: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];
    let parameters = [
        &TLS_KEY_HANDLE.to_be_bytes()[..],
        &VIK_HANDLE.to_be_bytes(),
        &[0, 0, 0, 18],
        &SESSION,
        &SESSION,
        &[0, 0, 0x00, 0x10],
    ]
    .concat();
    let response = vmm.succeed(&with_sessions(command(0x148, &parameters)))?;
    // The parameters' size; what follows them is of the sessions.
    let (size, rest) = response.split_first_chunk().context("a size")?;
    let size = usize::try_from(u32::from_be_bytes(*size))?;
    let (attest, signature) = sized(rest.get(..size).context("parameters")?)?;
    Ok((attest.to_vec(), signature.to_vec()))
}

/// The content of a TPM2B, and what follows it.
fn sized(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (size, rest) = bytes.split_first_chunk().context("a size")?;
    rest.split_at_checked(u16::from_be_bytes(*size).into())
        .context("a content")
}
