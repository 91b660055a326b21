//! What other programs in a VM get by one command of `vrot-service`: evidence, and who the VM is.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use anyhow::{Context, Result, anyhow, ensure};
use cert_chain::pem::encode_public_key;
use cert_chain::{AttestationKey, DataKey, Digest32, PcrSelection, PublicArea, TlsKey};
use serde_json::Value;
use test_support::programs::program;
use test_support::tool::Tool;
use vrot_service::attester::{EsysTpm, VmTpm};
use vrot_service::data_key::TpmDataKey;
use vrot_tests::device;
use vrot_tests::proxied_vm::{ProxiedVm, Proxy};
use vrot_tests::scene::{DOMAIN, Scene, TENANT};

/// A host, a VM on it with a service that goes on running, and a policy that accepts both.
struct Stage {
    _proxy: Proxy,
    vm: ProxiedVm,
    policy: PathBuf,
    scene: Scene,
}

static STAGE: LazyLock<Result<Stage>> = LazyLock::new(|| {
    let scene = Scene::set("commands-in-vm")?;
    let vm = ProxiedVm::boot(&scene.host, &scene.run.join("vm"))?;
    let nobody = "127.0.0.1:9".parse()?;
    let proxy = vm.proxy("proxy", nobody, &["--any-device"])?;
    let policy = vm.policy(&scene, &proxy)?;
    Ok(Stage {
        _proxy: proxy,
        vm,
        policy,
        scene,
    })
});

fn stage() -> Result<&'static Stage> {
    STAGE.as_ref().map_err(|error| anyhow!("{error:#}"))
}

impl Stage {
    /// A command of `vrot-service` that makes evidence.
    fn attesting(&self, command: &[&str]) -> Result<Tool> {
        Ok(self
            .command(command)?
            .arg("--event-log")
            .arg(self.vm.bare.event_log()))
    }

    fn command(&self, command: &[&str]) -> Result<Tool> {
        Ok(Tool::new(program("vrot-service")?)
            .args(command)
            .args(["--tpm", &self.vm.bare.tpm()]))
    }

    /// A step of the authority of a trust domain, with the policy that accepts the VM.
    fn spiffe(&self, step: &[&str], policy: &Path) -> Result<Tool> {
        Ok(Tool::new(program("vrot-device")?)
            .arg("spiffe")
            .args(step)
            .arg("--policy")
            .arg(policy))
    }

    fn verify(&self, evidence: &Path, nonce: &str) -> Result<(i32, Value)> {
        device::judge(device::verify_command(evidence, nonce, &self.policy)?)
    }
}

#[test]
fn a_program_in_the_vm_gets_fresh_evidence_with_one_command() -> Result<()> {
    let stage = stage()?;
    let folder = tempfile::tempdir()?;
    let nonce = "c3".repeat(20);
    let file = folder.path().join("evidence.cbor");
    stage
        .attesting(&["evidence", "--nonce", &nonce])?
        .arg("--output")
        .arg(&file)
        .run()?;
    let (status, result) = stage.verify(&file, &nonce)?;
    assert_eq!(status, 0, "{result:#}");
    let (status, result) = stage.verify(&file, &"c4".repeat(20))?;
    assert_eq!((status, &result["refusal"]["code"]), (1, &"nonce".into()));
    // The same on standard output, which is binary.
    let printed = stage.attesting(&["evidence", "--nonce", &nonce])?.run()?;
    fs::write(&file, printed)?;
    assert_eq!(stage.verify(&file, &nonce)?.0, 0);
    Ok(())
}

#[test]
fn evidence_that_cannot_be_made_is_told_with_what_to_do() -> Result<()> {
    let stage = stage()?;
    let nonce = "c3".repeat(20);
    for (command, said) in [
        (stage.command(&["evidence", "--nonce", "c3c3"])?, "16 to 64"),
        (
            stage
                .command(&["evidence", "--nonce", &nonce])?
                .args(["--event-log", "/nonexistent"]),
            "/nonexistent",
        ),
        (
            Tool::new(program("vrot-service")?).args([
                "evidence",
                "--nonce",
                &nonce,
                "--tpm",
                "/nonexistent",
            ]),
            "does the VM have a TPM",
        ),
    ] {
        let output = command.outcome()?;
        ensure!(!output.status.success() && output.stdout.is_empty());
        let errors = String::from_utf8_lossy(&output.stderr);
        ensure!(errors.contains(said), "{said}: {errors}");
    }
    Ok(())
}

#[test]
fn a_program_in_the_vm_learns_who_the_vm_is_and_openssl_accepts_the_certificates() -> Result<()> {
    let stage = stage()?;
    let folder = tempfile::tempdir()?;
    for key in ["vik", "tls"] {
        let told = stage
            .command(&["identity", "--json", "--key", key])?
            .run()?;
        let told: Value = serde_json::from_slice(&told)?;
        assert_eq!(told["vm"], stage.vm.vm.to_string());
        assert_eq!(told["uri"], format!("urn:uuid:{}", stage.vm.vm));
        assert_eq!(told["host"]["name"], format!("host-1.{DOMAIN}"));
        let pem = stage.command(&["identity", "--key", key])?.text()?;
        let certificates = told["certificates"].as_array().context("certificates")?;
        let joined: String = certificates.iter().filter_map(Value::as_str).collect();
        assert_eq!(joined, pem);
        let file = folder.path().join("chain.pem");
        fs::write(&file, pem)?;
        Tool::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "any", "-CAfile"])
            .arg(stage.scene.issuer.root())
            .arg("-untrusted")
            .args([&file, &file])
            .run()?;
    }
    let told = stage.command(&["identity", "--json"])?.run()?;
    let told: Value = serde_json::from_slice(&told)?;
    assert_eq!(
        (&told["tenant"], &told["generation"]),
        (&TENANT.into(), &1.into())
    );
    let shown = stage.scene.host.identity(stage.vm.vm)?;
    assert_eq!(told["vik"], shown["vik"]["name"]);
    Ok(())
}

/// The exchange of SPIRE's node attestation (`docs/spiffe.md`): payload, challenge, answer, attributes.
#[test]
fn a_vm_is_attested_as_a_node_of_a_spiffe_trust_domain_by_one_exchange() -> Result<()> {
    let stage = stage()?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let (payload, answer) = (file("payload"), file("answer"));
    fs::write(&payload, stage.command(&["identity"])?.run()?)?;
    let challenge = |policy: &Path| -> Result<Tool> {
        Ok(stage
            .spiffe(&["challenge"], policy)?
            .arg("--payload")
            .arg(&payload))
    };
    let nonce = challenge(&stage.policy)?.text()?.trim().to_owned();
    assert_eq!(nonce.len(), 64);
    assert_ne!(challenge(&stage.policy)?.text()?.trim(), nonce);
    let respond = |domain: &[&str]| -> Result<()> {
        let evidence = stage.attesting(&["evidence", "--nonce", &nonce])?;
        let evidence = evidence.args(domain).arg("--output").arg(&answer);
        evidence.run().map(drop)
    };
    let verify = |nonce: &str, domain: &str| -> Result<Tool> {
        let step = ["verify", "--nonce", nonce, "--trust-domain", domain];
        Ok(stage
            .spiffe(&step, &stage.policy)?
            .arg("--evidence")
            .arg(&answer))
    };
    let refused = |command: Tool| -> Result<String> {
        let output = command.outcome()?;
        ensure!(output.status.code() == Some(1), "{}", output.status);
        ensure!(output.stdout.is_empty(), "attributes were given");
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    };
    respond(&["--spiffe", "example.org"])?;
    let attributes = verify(&nonce, "example.org")?.run()?;
    let attributes: Value = serde_json::from_slice(&attributes)?;
    let vm = stage.vm.vm;
    assert_eq!(
        attributes["spiffe_id"],
        format!("spiffe://example.org/spire/agent/vrot/{TENANT}/{vm}")
    );
    assert_eq!(attributes["can_reattest"], true);
    let selectors = attributes["selector_values"]
        .as_array()
        .context("selectors")?;
    for selector in [
        format!("vm:{vm}"),
        format!("tenant:{TENANT}"),
        format!("host:host-1.{DOMAIN}"),
        "generation:1".to_owned(),
    ] {
        ensure!(selectors.contains(&selector.into()), "{selectors:?}");
    }

    // It answers one nonce, in one trust domain, and is no service's answer.
    ensure!(refused(verify(&"5a".repeat(32), "example.org")?)?.contains("nonce"));
    ensure!(refused(verify(&nonce, "example.com")?)?.contains("binding"));
    let (status, result) = stage.verify(&answer, &nonce)?;
    assert_eq!((status, &result["refusal"]["code"]), (1, &"binding".into()));
    // What a service answers to anybody, a relay included, makes nobody a node.
    respond(&[])?;
    ensure!(refused(verify(&nonce, "example.org")?)?.contains("binding"));

    // A VM of a stranger's host gets no challenge, and one that is not expected no name.
    let strangers = tempfile::tempdir()?;
    let policy = fs::read_to_string(&stage.policy)?;
    fs::write(strangers.path().join("policy.toml"), &policy)?;
    Tool::new("openssl")
        .args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj"])
        .arg("/CN=Another issuer")
        .args(["-keyout", "key.pem", "-out", "roots.pem"])
        .folder(strangers.path())
        .run()?;
    let said = refused(challenge(&strangers.path().join("policy.toml"))?)?;
    ensure!(said.contains("is refused"), "{said}");
    let other = policy.replace(&vm.to_string(), &uuid::Uuid::new_v4().to_string());
    let other_policy = stage.policy.with_file_name("other-vm.toml");
    fs::write(&other_policy, other)?;
    respond(&["--spiffe", "example.org"])?;
    let step = ["verify", "--nonce", &nonce, "--trust-domain", "example.org"];
    let judged = stage.spiffe(&step, &other_policy)?;
    let said = refused(judged.arg("--evidence").arg(&answer))?;
    ensure!(said.contains("contraindicated"), "{said}");
    Ok(())
}

#[test]
fn a_vrot_makes_one_key_for_data_and_certifies_it_and_openssl_accepts_what_it_signs() -> Result<()>
{
    let stage = stage()?;
    let tpm = stage.vm.bare.tpm().parse()?;
    let mut key = TpmDataKey::make(&tpm)?;
    let folder = tempfile::tempdir()?;
    let file = |name: &str| folder.path().join(name);
    let hash = Digest32::of(b"21.5 degrees");
    let signature = key.sign(&hash)?;
    let (r, s) = signature.split_at(32);
    let scalars = [integer(r), integer(s)].concat();
    let length = u8::try_from(scalars.len())?;
    fs::write(
        file("signature"),
        [&[0x30, length], scalars.as_slice()].concat(),
    )?;
    fs::write(file("hash"), hash.as_bytes())?;
    let spki = key.public().subject_public_key_info();
    fs::write(file("key.pem"), encode_public_key(&spki))?;
    let verify = || {
        Tool::new("openssl")
            .args(["pkeyutl", "-verify", "-pubin", "-inkey", "key.pem"])
            .args(["-sigfile", "signature", "-in", "hash"])
            .folder(folder.path())
            .run()
    };
    verify()?;
    fs::write(file("hash"), Digest32::of(b"12.5 degrees").as_bytes())?;
    ensure!(verify().is_err(), "openssl accepts anything");
    // The same key again, and the vIK's word about it, which says nothing of TLS.
    let name = key.public().name();
    let statement = key.statement().clone();
    drop(key);
    assert_eq!(TpmDataKey::make(&tpm)?.public().name(), name);
    let vik = EsysTpm::open(&tpm, PcrSelection::default(), None)?.vik_public()?;
    let vik = AttestationKey::try_from(PublicArea::parse(&vik)?)?;
    assert_eq!(statement.verify::<DataKey>(&vik)?.name(), name);
    let for_tls = statement.verify::<TlsKey>(&vik);
    ensure!(for_tls.is_err(), "a key for data is one for TLS");
    Ok(())
}

/// INTEGER in DER, of a number that is not negative.
fn integer(bytes: &[u8]) -> Vec<u8> {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    let mut digits = bytes.get(zeros..).unwrap_or_default().to_vec();
    if digits.first().is_none_or(|first| *first >= 0x80) {
        digits.insert(0, 0);
    }
    let length = u8::try_from(digits.len()).unwrap_or(u8::MAX);
    [&[0x02, length], digits.as_slice()].concat()
}
