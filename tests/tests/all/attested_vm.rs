//! One VM on one host, attested by a device; and everybody else's tools looking at the result.
//!
//! All tests of this file share one booted VM: none of them changes it.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use attestation::{
    Evidence, Nonce, Policy, Purpose, Verdict, appraise, host_qualifying_data, vm_qualifying_data,
};
use cert_chain::{Digest32, PublicArea};
use rustls_pki_types::UnixTime;
use test_support::tool::Tool;
use vrot_tests::device::{self, Attestation};
use vrot_tests::format_judge::{described, understood_ear};
use vrot_tests::guest_shell::GuestShell;
use vrot_tests::scene::{AttestedVm, DOMAIN, TENANT};

static VM: LazyLock<Result<AttestedVm>> = LazyLock::new(|| AttestedVm::start("attested-vm"));

pub(crate) fn vm() -> Result<&'static AttestedVm> {
    VM.as_ref().map_err(|error| anyhow::anyhow!("{error:#}"))
}

#[test]
fn a_device_affirms_a_genuine_vm_on_its_host() -> Result<()> {
    let vm = vm()?;
    assert_eq!(vm.status, 0, "{:#}", vm.result);
    assert_eq!(vm.result["verdict"], "affirming");
    let told = vm.result.to_string();
    for fact in [&vm.vm.to_string(), TENANT, &format!("host-1.{DOMAIN}")] {
        ensure!(told.contains(fact), "{fact} is not in the result: {told}");
    }
    Ok(())
}

/// What others would read it by.
#[test]
fn the_evidence_of_a_real_vm_is_as_described_in_cddl() -> Result<()> {
    let description = include_str!("../../../attestation/evidence.cddl");
    let evidence = fs::read(&vm()?.attestation.evidence)?;
    described(description, &evidence)?.map_err(|fault| anyhow::anyhow!(fault))?;
    let mut longer = evidence;
    longer.push(0);
    longer.remove(0);
    ensure!(
        described(description, &longer)?.is_err(),
        "anything is as described"
    );
    Ok(())
}

#[test]
fn the_result_of_a_real_vm_is_an_ear_to_another_library() -> Result<()> {
    let result = &vm()?.result;
    let at = result["iat"].as_u64().context("a time")?;
    let understood = understood_ear(result, at)?;
    assert_eq!(understood["ear_status"], "affirming");
    assert_eq!(understood["submods"], result["submods"]);
    Ok(())
}

#[test]
fn reference_values_are_of_the_vm_that_was_meant_and_say_which_it_is() -> Result<()> {
    let vm = vm()?;
    let (host, own) = (format!("host-1.{DOMAIN}"), vm.vm.to_string());
    let roots = vm.policy.with_file_name("roots.pem");
    let reference = |option: &str, value: &str| -> Result<Tool> {
        Ok(device::reference_command(vm.service, &roots)?.args([option, value]))
    };
    for (option, value) in [("--vm", &*own), ("--tenant", TENANT), ("--host", &*host)] {
        let text = reference(option, value)?.text()?;
        ensure!(text.contains(&format!("# Measured by VM {own} of tenant {TENANT}")));
        ensure!(
            text.contains(&format!("# on host {host}, which ")),
            "{text}"
        );
    }
    let other = uuid::Uuid::new_v4().to_string();
    for (option, value) in [
        ("--vm", &*other),
        ("--tenant", "another"),
        ("--host", "host-2.demo.example"),
    ] {
        let output = reference(option, value)?.outcome()?;
        assert_eq!(output.status.code(), Some(2), "{option}");
        ensure!(output.stdout.is_empty());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        ensure!(
            said.contains(value) && said.contains("was asked for"),
            "{said}"
        );
    }
    Ok(())
}

#[test]
fn the_evidence_of_a_real_vm_is_refused_by_the_list_on_which_its_host_is() -> Result<()> {
    let vm = vm()?;
    let folder = tempfile::tempdir()?;
    // Other tests need the host.
    let issuer = vm.scene.issuer.copy_to(&folder.path().join("issuer"))?;
    let list = folder.path().join("issuer.crl");
    let nonce = vm.attestation.nonce()?;
    let judge = || -> Result<_> {
        let verify = device::verify_command(&vm.attestation.evidence, &nonce, &vm.policy)?;
        device::judge(verify.arg("--crl").arg(&list))
    };
    issuer.crl_command(&list)?.run()?;
    let (status, result) = judge()?;
    assert_eq!(status, 0, "{result:#}");
    let found = &result["submods"]["host"]["ear_verifier_claims"];
    assert_eq!(found["revocation"][0], "not revoked");
    issuer.revoke_command("host-1", &list)?.run()?;
    let (status, result) = judge()?;
    assert_eq!(status, 1, "{result:#}");
    assert_eq!(result["refusal"]["code"], "revoked");
    Ok(())
}

#[test]
fn kept_evidence_is_affirmed_offline() -> Result<()> {
    let vm = vm()?;
    let verify = device::verify_command(
        &vm.attestation.evidence,
        &vm.attestation.nonce()?,
        &vm.policy,
    )?;
    let (status, result) = device::judge(verify)?;
    assert_eq!(status, 0, "{result:#}");
    Ok(())
}

#[test]
fn evidence_for_another_nonce_is_refused() -> Result<()> {
    let vm = vm()?;
    let verify = device::verify_command(&vm.attestation.evidence, &"5a".repeat(32), &vm.policy)?;
    let (status, result) = device::judge(verify)?;
    assert_eq!(status, 1, "{result:#}");
    ensure!(result.to_string().contains("nonce"), "{result:#}");
    Ok(())
}

#[test]
fn every_changed_byte_of_the_evidence_keeps_it_from_being_affirmed() -> Result<()> {
    let vm = vm()?;
    let evidence = fs::read(&vm.attestation.evidence)?;
    let nonce = Nonce::new(hex::decode(vm.attestation.nonce()?)?)?;
    let roots =
        |path: &Path| Ok(fs::read_to_string(vm.policy.with_file_name(path)).unwrap_or_default());
    let policy = Policy::parse(&fs::read_to_string(&vm.policy)?, roots)?;
    let at = now()?;
    let verdict = |bytes: &[u8]| -> Option<Verdict> {
        let evidence = Evidence::from_cbor(bytes).ok()?;
        let verified = evidence
            .verify(&nonce, &Purpose::Challenge, policy.anchors(), at)
            .ok()?;
        Some(appraise(verified, &policy).verdict())
    };
    assert_eq!(verdict(&evidence), Some(Verdict::Affirming));
    let mut changed = evidence.clone();
    for (position, original) in evidence.iter().enumerate() {
        // A different bit in each place: over the whole, each bit of a byte gets its turn.
        let bit = 1u8 << (position % 8);
        if let Some(byte) = changed.get_mut(position) {
            *byte = original ^ bit;
        }
        ensure!(
            verdict(&changed) != Some(Verdict::Affirming),
            "byte {position} of {} can change",
            evidence.len()
        );
        if let Some(byte) = changed.get_mut(position) {
            *byte = *original;
        }
    }
    Ok(())
}

#[test]
fn the_device_program_ends_with_1_or_2_on_changed_evidence() -> Result<()> {
    let vm = vm()?;
    let evidence = fs::read(&vm.attestation.evidence)?;
    let changed = vm.scene.run.join("changed-evidence.cbor");
    for sample in 0..24 {
        let position = sample * evidence.len() / 24;
        let mut bytes = evidence.clone();
        if let Some(byte) = bytes.get_mut(position) {
            *byte ^= 0x10;
        }
        fs::write(&changed, bytes)?;
        let verify = device::verify_command(&changed, &vm.attestation.nonce()?, &vm.policy)?;
        let (status, result) = device::judge(verify)?;
        ensure!(
            matches!(status, 1 | 2),
            "byte {position}: exit status {status}: {result:#}"
        );
    }
    Ok(())
}

#[test]
fn openssl_accepts_the_chain_against_the_roots_and_no_others() -> Result<()> {
    let vm = vm()?;
    let export = export("openssl")?;
    let chain = export.join("chain.pem");
    let leaf = export.join("leaf.pem");
    fs::write(&leaf, first_certificate(&fs::read_to_string(&chain)?)?)?;
    let verify = |roots: &Path| {
        Tool::new("openssl")
            .args(["verify", "-x509_strict", "-purpose", "any"])
            .arg("-CAfile")
            .arg(roots)
            .arg("-untrusted")
            .arg(&chain)
            .arg(&leaf)
    };
    let roots = vm.policy.with_file_name("roots.pem");
    verify(&roots).run()?;

    let (key, other) = (export.join("other.key"), export.join("other.pem"));
    Tool::new("openssl")
        .args(["req", "-x509", "-nodes", "-newkey", "rsa:2048", "-subj"])
        .arg("/CN=Another issuer")
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&other)
        .run()?;
    ensure!(verify(&other).run().is_err());
    Ok(())
}

#[test]
fn tpm2_checkquote_accepts_both_quotes_and_no_other_qualifier() -> Result<()> {
    let vm = vm()?;
    let export = export("checkquote")?;
    let evidence = Evidence::from_cbor(&fs::read(&vm.attestation.evidence)?)?;
    let nonce = Nonce::new(hex::decode(vm.attestation.nonce()?)?)?;
    let host_ik = PublicArea::parse(&evidence.host.host_ik_public)?.name();
    assert_eq!(evidence.vm.nonce, nonce);
    let vm_qualifier = vm_qualifying_data(
        &evidence.vm.request_root()?,
        evidence.vm.tree_size,
        &evidence.vm.boot,
    );
    let host_qualifier = host_qualifying_data(
        &evidence.host.root,
        evidence.host.tree_size,
        &host_ik,
        &Digest32::of(&evidence.host.event_log),
    );
    for (layer, key, qualifier) in [
        ("vm", "vik.pem", vm_qualifier),
        ("host", "host-ik.pem", host_qualifier),
    ] {
        let check = |qualifier: &str| {
            Tool::new("tpm2_checkquote")
                .arg("-u")
                .arg(export.join(key))
                .arg("-m")
                .arg(export.join(format!("{layer}-quote.attest")))
                .arg("-s")
                .arg(export.join(format!("{layer}-quote.sig")))
                .args(["-g", "sha256", "-q", qualifier])
        };
        check(&qualifier.to_string()).run()?;
        ensure!(
            check(&"00".repeat(32)).run().is_err(),
            "{layer}: a wrong qualifier was accepted"
        );
    }
    Ok(())
}

#[test]
fn tpm2_eventlog_replays_the_exported_logs_to_our_values() -> Result<()> {
    let export = export("eventlog")?;
    for layer in ["vm", "host"] {
        let log = export.join(format!("{layer}-eventlog.bin"));
        let theirs = Tool::new("tpm2_eventlog").arg(&log).text()?;
        let ours = Tool::new(test_support::programs::program("vrot-device")?)
            .arg("event-log")
            .arg(&log)
            .arg("--json")
            .run()?;
        let ours: serde_json::Value = serde_json::from_slice(&ours)?;
        let pcrs = ours["pcrs"]["sha256"].as_object().context("PCR values")?;
        ensure!(!pcrs.is_empty());
        for (pcr, value) in pcrs {
            let value = value.as_str().context("a value in hexadecimal")?;
            ensure!(
                theirs.contains(value),
                "{layer}: tpm2_eventlog has another value for PCR {pcr} than {value}"
            );
        }
    }
    Ok(())
}

#[test]
fn stock_tools_in_the_guest_find_certificates_and_quote_with_the_vik() -> Result<()> {
    let vm = vm()?;
    let folder = vm.scene.run.join("from-guest");
    fs::create_dir_all(&folder)?;
    let mut shell = vm.guest.shell()?;

    for (index, what) in [
        ("0x01C00002", "EK RSA-2048"),
        ("0x01C0000A", "EK P-256"),
        ("0x01C10002", "vIK"),
    ] {
        let path = folder.join(index);
        fs::write(&path, shell.run(&format!("tpm2_nvread {index}"))?)?;
        let text = Tool::new("openssl")
            .args(["x509", "-inform", "DER", "-noout", "-text", "-in"])
            .arg(&path)
            .text()
            .with_context(|| format!("the {what} certificate at {index}"))?;
        ensure!(text.contains(DOMAIN), "{what}: {text}");
    }

    // The key behind the certificate at 0x01C10002 is the one at 0x81000003.
    let certified = Tool::new("openssl")
        .args(["x509", "-inform", "DER", "-noout", "-pubkey", "-in"])
        .arg(folder.join("0x01C10002"))
        .text()?;
    let quote = "cd /tmp && tpm2_readpublic -Q -c 0x81000003 -f pem -o vik.pem && \
                 tpm2_quote -Q -c 0x81000003 -l sha256:0,4,9 -q 0badc0de -m quote -s signature \
                 -o pcrs -g sha256 && cat vik.pem";
    assert_eq!(shell.text(quote)?.trim(), certified.trim());
    for file in ["vik.pem", "quote", "signature", "pcrs"] {
        fs::write(folder.join(file), shell.read_file(&format!("/tmp/{file}"))?)?;
    }
    Tool::new("tpm2_checkquote")
        .args(["-u", "vik.pem", "-m", "quote", "-s", "signature"])
        .args(["-f", "pcrs", "-g", "sha256", "-q", "0badc0de"])
        .folder(&folder)
        .run()?;

    guest_cannot_change_its_certificate(&mut shell)
}

/// Through the kernel's driver and resource manager, beside the service that runs there.
#[test]
fn a_program_in_a_real_guest_gets_evidence_and_seals_data_to_its_boot() -> Result<()> {
    let vm = vm()?;
    let mut shell = vm.guest.shell()?;
    let nonce = "a5".repeat(16);
    let evidence = vm.scene.run.join("by-command.cbor");
    let command = format!("vrot-service evidence --nonce {nonce} --output /tmp/evidence");
    shell.run(&command)?;
    fs::write(&evidence, shell.read_file("/tmp/evidence")?)?;
    let verify = device::verify_command(&evidence, &nonce, &vm.policy)?;
    let (status, result) = device::judge(verify)?;
    assert_eq!(status, 0, "{result:#}");

    shell.run("echo the disk\\'s key | vrot-service seal --boot --to /tmp/sealed")?;
    let opened = shell.text("vrot-service unseal --from /tmp/sealed")?;
    assert_eq!(opened, "the disk's key\n");
    // One that is sealed to what this VM did not boot.
    let other = "vrot-service boot-values --pcrs 23";
    let (status, ..) = shell.outcome(other)?;
    ensure!(status != 0, "PCR 23 is no boot");
    Ok(())
}

fn guest_cannot_change_its_certificate(shell: &mut GuestShell) -> Result<()> {
    for command in [
        "echo forged > /tmp/forged && tpm2_nvwrite -Q -C o -i /tmp/forged 0x01C10002",
        "tpm2_nvundefine -Q -C o 0x01C10002",
    ] {
        let (status, ..) = shell.outcome(command)?;
        ensure!(status != 0, "in the guest, this succeeded: {command}");
    }
    Ok(())
}

/// The evidence as files that others' tools read.
fn export(name: &str) -> Result<PathBuf> {
    let vm = vm()?;
    let folder = vm.scene.run.join(format!("export-{name}"));
    let Attestation { evidence, .. } = &vm.attestation;
    device::explain_command(evidence, &folder)?.run()?;
    Ok(folder)
}

fn first_certificate(pem: &str) -> Result<&str> {
    const END: &str = "-----END CERTIFICATE-----";
    let end = pem.find(END).context("a certificate in PEM")? + END.len();
    pem.get(..end).context("a certificate in PEM")
}

fn now() -> Result<UnixTime> {
    Ok(UnixTime::since_unix_epoch(
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?,
    ))
}
