//! The demo: one VM, from the physical TPM to a device's verdict, a connection to a service in it that
//! is attested, data that the VM signed and that are archived, and five attacks.

mod archiving;
mod attacks;
mod page;
mod relay;
mod stage;

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use test_support::programs::target_folder;
use test_support::tool::Tool;

use crate::device;
use crate::device_proxy::DeviceProxy;
use crate::guest::Guest;
use crate::narrator::Narrator;

use archiving::Archivist;
use page::Page;
use stage::Stage;

/// Runs the demo; yields the verdict on the genuine VM, which is always affirming: anything else
/// is an error.
pub fn run() -> Result<String> {
    let mut narrator = Narrator::new(14);
    let stage = Stage::prepare(&mut narrator)?;

    narrator.step(
        "A golden boot gives the reference values",
        "A VM is booted under observation: QEMU, OVMF firmware, a Debian kernel, our initramfs.\n\
         What it measured is what a device shall expect from now on.",
    );
    stage.take_reference_values(&narrator)?;

    narrator.step(
        "The VM starts",
        "Its vRoT has its own identity key (vIK), certified by the host's identity key (IK).",
    );
    let mut guest = stage.start_vm(&narrator)?;

    narrator.step(
        "A device challenges the service in the VM",
        "It sends a fresh nonce; the VM's quote covers the nonce, the host's quote covers the\n\
         VM's quote. The device checks both against its policy.",
    );
    let service = narrator.wait("waiting for vrot-service", || guest.service())?;
    let attestation = stage.attestation();
    let attest = device::attest_command(service, &stage.policy(), &attestation)?;
    narrator.quote(&narrator.run(attest)?);
    let verify = device::verify_command(
        &attestation.evidence,
        &attestation.nonce()?,
        &stage.policy(),
    )?;
    let (status, result) = device::judge(verify)?;
    fs::write(
        stage.output("result.json"),
        serde_json::to_vec_pretty(&result)?,
    )?;
    ensure!(
        status == 0,
        "the device refused the genuine VM: {}",
        stage.output("result.json").display()
    );

    narrator.step(
        "curl talks to a web server in the VM, over a connection that is attested",
        "Neither of them knows of that: before the web server is vrot-service proxy, before curl is\n\
         vrot-device proxy. Between those two is TLS 1.3; the evidence is bound to that connection,\n\
         and accepted before the first byte passes.",
    );
    let archivist = Archivist::open(&stage)?;
    fetch_a_page(&narrator, &stage, &mut guest, &archivist)?;

    narrator.step(
        "A reading that the VM signed is archived, and verified from the archive alone",
        "The VM signed a measured value with a key of its vRoT. An authority, here of OpenSSL, puts\n\
         time stamps over the signature and over the archive: years later, it still shows what\n\
         was signed, by which VM on which host, what had booted there, and before when.",
    );
    archivist.archive(&narrator, &stage)?;

    narrator.step(
        "An operator looks",
        "vtpmctl serves a page that shows hosts, vRoTs and events as they happen. It only looks, and\n\
         shows nothing to whoever does not know its token.",
    );
    let page = Page::serve(&narrator, &stage)?;
    page.take_pictures(&narrator, &stage)?;

    narrator.step(
        "Attack 1: old evidence is replayed",
        "An attacker recorded good evidence and answers a new challenge with it.",
    );
    attacks::stale_nonce(&narrator, &stage)?;

    narrator.step(
        "Attack 2: a relay between device and service",
        "Another genuine VM of the same host terminates TLS, and shows as its own what the service\n\
         answers to the device's nonce.",
    );
    attacks::relay(&narrator, &stage, &mut guest)?;
    guest.power_off()?;

    narrator.step(
        "Attack 3: the VM boots another kernel",
        "The kernel's file differs by one byte; everything else is as before.",
    );
    attacks::changed_kernel(&narrator, &stage)?;

    narrator.step(
        "Attack 4: evidence from another host",
        "A second, equally genuine and enrolled host runs the same image. The device's policy\n\
         does not list that host.",
    );
    attacks::another_host(&narrator, &stage)?;

    narrator.step(
        "Attack 5: a forged reading",
        "Somebody makes the archived reading warmer, computes the archive's checksum anew, and\n\
         presents it with the genuine time stamps.",
    );
    archivist.forge(&narrator, &stage)?;

    println!("\nLeft in {}:", stage.output("").display());
    for (file, meaning) in [
        ("evidence.cbor", "the evidence, as the device received it"),
        ("nonce.hex", "the nonce it answers"),
        ("policy.toml", "what the device expects"),
        ("roots.pem", "the identity issuer that it trusts"),
        ("result.json", "its attestation result"),
        (
            "reading.archive",
            "the reading, with everything that proves it",
        ),
        ("time-root.pem", "the root of the authority that said when"),
    ] {
        println!("  {file:15} {meaning}");
    }
    println!("Check it yourself, offline:");
    println!(
        "  vrot-device verify --evidence evidence.cbor --nonce $(cat nonce.hex) --policy policy.toml"
    );
    println!(
        "  vrot-device archive verify reading.archive --policy policy.toml --authority-root time-root.pem"
    );
    println!("  vrot-device explain --archive reading.archive --export reading/");
    page.tell(&stage)?;
    Ok("affirming".to_owned())
}

/// A stock client and a stock server, with the proxies between them.
fn fetch_a_page(
    narrator: &Narrator,
    stage: &Stage,
    guest: &mut Guest,
    archivist: &Archivist,
) -> Result<()> {
    let service = guest.attested()?;
    let folder = stage.run.join("device-proxy");
    fs::create_dir_all(&folder)?;
    narrator.note(&format!(
        "$ vrot-device proxy --listen 127.0.0.1:0 --connect {service} --policy {}",
        stage.policy().display()
    ));
    let mut proxy = DeviceProxy::start(&folder, "proxy", service, &stage.policy())?;
    let curl = Tool::new("curl")
        .args(["--silent", "--show-error", "--fail", "--max-time", "60"])
        .arg(format!("http://{}/", proxy.listen));
    let page = narrator.run(curl)?;
    narrator.quote(&page);
    ensure!(page.contains("Hello from the VM."), "another page: {page}");
    archivist.fetch(narrator, proxy.listen)?;
    let log = fs::read_to_string(&proxy.log)?;
    let attested = log
        .lines()
        .find_map(|line| line.split_once(" attested vm="));
    let (_, told) = attested.with_context(|| format!("nothing was attested: {log}"))?;
    narrator.note(&format!("vrot-device: attested vm={told}"));
    proxy.process.stop()?;
    Ok(())
}

/// Where the logs of the last demo are.
pub fn logs() -> Result<PathBuf> {
    Ok(output_folder()?.join("logs"))
}

fn output_folder() -> Result<PathBuf> {
    let folder = target_folder()?.join("demo");
    fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    Ok(folder)
}
