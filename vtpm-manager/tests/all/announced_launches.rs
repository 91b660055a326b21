//! What a VM is launched with whose launcher knows swtpm and nothing of us: libvirt's hook tells it before
//! libvirt sets the VM's TPM up and starts it.

use std::fs::{self, File};

use anyhow::{Context, Result, ensure};
use attestation::LaunchMeasurement;
use nix::sys::signal::Signal;
use vrot_handover::set_up::Existing;

use crate::support::evidence::leaf;
use crate::support::stand_in::{Domain, Process};
use crate::support::vmm::Vmm;
use crate::support::{Host, TENANT};

const PARTS: [&str; 2] = ["cpus=2", "memory-mib=64"];

/// libvirt, as its hook sees it.
struct Hook<'h> {
    host: &'h Host,
    config: String,
}

impl<'h> Hook<'h> {
    fn new(host: &'h Host) -> Result<Self> {
        let config = host.path("libvirt.toml");
        let hook = Self { host, config };
        hook.configure("")?;
        Ok(hook)
    }

    fn configure(&self, config: &str) -> Result<()> {
        let links = self.host.path("links");
        Ok(fs::write(
            &self.config,
            format!("{config}links = \"{links}\"\n"),
        )?)
    }

    /// Is called before a domain does something.
    fn call(&self, domain: &Domain, operation: &str) -> Result<()> {
        let file = domain.folder.with_extension("xml");
        let xml = format!(
            "<domain><name>web</name><uuid>{}</uuid><memory unit='KiB'>65536</memory><vcpu>2</vcpu>\
             <devices><tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm></devices>\
             </domain>",
            domain.vm
        );
        fs::write(&file, xml)?;
        let hook = ["libvirt-hook", "web", operation, "begin", "-", "--config"];
        let mut hook = self.host.vtpmctl(hook);
        hook.arg(&self.config)
            .env("VROT_SWTPM_CONFIG", domain.configuration()?);
        let output = hook.stdin(File::open(&file)?).output()?;
        let said = String::from_utf8(output.stderr)?;
        ensure!(output.status.success(), "{operation}: {said}");
        Ok(())
    }
}

/// What evidence tells of the launch, part by part.
fn told(process: &Process) -> Result<Option<Vec<String>>> {
    let mut vmm = Vmm::attach(&process.socket)?;
    Ok(match leaf(&mut vmm)?.launch {
        LaunchMeasurement::NotMeasured => None,
        LaunchMeasurement::Measured(launch) => {
            Some(launch.parts().iter().map(ToString::to_string).collect())
        }
    })
}

fn end(mut process: Process) -> Result<()> {
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.ended()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_launch_that_the_hook_announced_is_told_of_the_start_that_follows_and_of_no_other() -> Result<()>
{
    let host = Host::enrolled_with(&format!("[swtpm]\ntenant = \"{TENANT}\"\n"))?;
    let (hook, domain) = (Hook::new(&host)?, Domain::new(&host, "web")?);
    let parts = PARTS.map(str::to_owned).to_vec();
    // Before there is a vRoT.
    hook.call(&domain, "prepare")?;
    domain.set_up(Existing::Keep)?;
    let process = domain.start()?;
    assert_eq!(told(&process)?, Some(parts.clone()));
    end(process)?;
    // The next start is another launch, and a domain that goes on from a file was not measured.
    let process = domain.start()?;
    assert_eq!(told(&process)?, None);
    end(process)?;
    hook.call(&domain, "prepare")?;
    hook.call(&domain, "restore")?;
    hook.call(&domain, "prepare")?;
    let process = domain.start()?;
    assert_eq!(told(&process)?, None);
    end(process)?;
    hook.call(&domain, "prepare")?;
    let process = domain.start()?;
    assert_eq!(told(&process)?, Some(parts));
    end(process)?;

    // Not where the host has it so.
    hook.configure("measure = false\n")?;
    hook.call(&domain, "prepare")?;
    let process = domain.start()?;
    assert_eq!(told(&process)?, None);
    end(process)?;
    let lines = host.audit()?;
    let measured = lines
        .iter()
        .filter(|line| line["event"] == "launch-measured");
    assert_eq!(measured.count(), 2);
    Ok(())
}

#[test]
fn a_vrot_of_a_folder_is_not_started_without_a_launch_that_is_required() -> Result<()> {
    let config = "[launch]\nrequired = true\n";
    let mut host = Host::enrolled_with(&format!("[swtpm]\ntenant = \"{TENANT}\"\n{config}"))?;
    let domain = Domain::new(&host, "web")?;
    let other = Domain::new(&host, "other")?;
    domain.set_up(Existing::Keep)?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("was measured"), "{refused}");
    // Another VM's is of no use, nor is one that the manager has lost.
    Hook::new(&host)?.call(&other, "prepare")?;
    domain.start_refused()?;
    Hook::new(&host)?.call(&domain, "prepare")?;
    host.crash()?;
    host.start_again()?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("start the VM again"), "{refused}");
    Hook::new(&host)?.call(&domain, "prepare")?;
    let process = domain.start()?;
    assert_eq!(told(&process)?.context("a launch")?, PARTS);
    end(process)?;
    domain.start_refused()?;
    Ok(())
}

#[test]
fn a_domain_whose_tpm_is_a_swtpms_needs_no_manager() -> Result<()> {
    let mut host = Host::enrolled()?;
    let domain = Domain::new(&host, "web")?;
    host.shut_down()?;
    let file = domain.folder.with_extension("xml");
    let xml = format!(
        "<domain><name>web</name><uuid>{}</uuid><devices><tpm model='tpm-crb'>\
         <backend type='emulator' version='2.0'/></tpm></devices></domain>",
        domain.vm
    );
    fs::write(&file, xml)?;
    let plain = domain.folder.with_extension("plain");
    fs::write(&plain, "mode = \"plain\"\n")?;
    for (config, succeeds) in [(plain.clone(), true), (domain.configuration()?, false)] {
        for operation in ["prepare", "release"] {
            let part = if operation == "release" {
                "end"
            } else {
                "begin"
            };
            let mut hook = host.vtpmctl(["libvirt-hook", "web", operation, part, "-"]);
            hook.arg("--config").arg(host.path("none"));
            hook.env("VROT_SWTPM_CONFIG", &config);
            let output = hook.stdin(File::open(&file)?).output()?;
            let is_start = operation == "prepare";
            ensure!(
                output.status.success() == (succeeds || !is_start),
                "{operation}: {output:?}"
            );
        }
    }
    Ok(())
}
