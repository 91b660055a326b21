//! The part "launch", once more: what libvirt's hook adds to the start and the end of a domain.

use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use test_support::programs::{program, workspace_folder};
use test_support::run_folder::RunFolder;
use uuid::Uuid;

use super::host::BenchHost;
use super::launch::TENANT;
use super::peer::Peer;
use super::pool::Pool;
use super::report::Report;
use super::samples::Samples;

/// Calls of the packaged hook, as libvirt makes them.
struct Hook<'h> {
    host: &'h BenchHost,
    folder: PathBuf,
    config: PathBuf,
    path: String,
}

/// Times the hook for so many domains, each at its first start, which creates its vRoT, at another
/// start, and at the end between them. The peer is what libvirt does without us at a first start.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &BenchHost,
    pool: &Pool,
    peer: &Peer<'_>,
    count: u32,
) -> Result<()> {
    let hook = Hook::set(run, host)?;
    let (mut first, mut again, mut end) = Default::default();
    let mut peers = Samples::default();
    for number in 0..count {
        pool.wait_until_full(host.api())?;
        let vm = Uuid::new_v4();
        let domain = hook.domain(vm)?;
        hook.timed(&mut first, &domain, "prepare", "begin")?;
        hook.timed(&mut end, &domain, "release", "end")?;
        hook.timed(&mut again, &domain, "prepare", "begin")?;
        hook.timed(&mut end, &domain, "release", "end")?;
        host.api().ask("DELETE", &format!("/v1/vrots/{vm}"), "")?;
        let name = format!("hook-{number}");
        let launched = peer.launch(&name)?;
        peers.add_ms(launched.took);
        peer.remove(&name, launched)?;
    }
    let name = "libvirt_hook_first_start_p50_ms";
    report.beside(name, first.median()?, peers.median()?, "ms", first.count());
    report.spread(&first)?;
    for (name, samples) in [
        ("libvirt_hook_start_p50_ms", &again),
        ("libvirt_hook_end_p50_ms", &end),
    ] {
        report.alone(name, samples.median()?, "ms", samples.count());
        report.spread(samples)?;
    }
    Ok(())
}

impl<'h> Hook<'h> {
    fn set(run: &RunFolder, host: &'h BenchHost) -> Result<Self> {
        let folder = run.join("hook");
        fs::create_dir_all(&folder)?;
        let config = folder.join("libvirt.toml");
        let (links, notes) = (folder.join("links"), folder.join("notes"));
        let text = format!(
            "create = true\nlinks = \"{}\"\nnotes = \"{}\"\n",
            links.display(),
            notes.display()
        );
        fs::write(&config, text)?;
        let vtpmctl = program("vtpmctl")?;
        let programs = vtpmctl.parent().context("a folder")?;
        let others = std::env::var("PATH").unwrap_or_default();
        Ok(Self {
            host,
            folder,
            config,
            path: format!("{}:{others}", programs.display()),
        })
    }

    /// A domain whose TPM is its vRoT.
    fn domain(&self, vm: Uuid) -> Result<PathBuf> {
        let file = self.folder.join("domain.xml");
        let socket = self.folder.join("links").join(format!("{vm}.sock"));
        let text = format!(
            "<domain type='kvm'><name>vm</name><uuid>{vm}</uuid><metadata>\
             <vrot:vrot xmlns:vrot='urn:vrot:libvirt:1' tenant='{TENANT}'/></metadata><devices>\
             <tpm model='tpm-crb'><backend type='external'><source type='unix' mode='connect' \
             path='{}'/></backend></tpm></devices></domain>",
            socket.display()
        );
        fs::write(&file, text)?;
        Ok(file)
    }

    fn timed(
        &self,
        samples: &mut Samples,
        domain: &PathBuf,
        operation: &str,
        part: &str,
    ) -> Result<()> {
        let packaged = "vtpm-manager/packaging/vrot-host/libvirt-hook";
        let mut command = Command::new("sh");
        command
            .arg(workspace_folder()?.join(packaged))
            .args(["vm", operation, part, "-"])
            .env("PATH", &self.path)
            .env("VTPM_MANAGER_SOCKET", self.host.api().socket())
            .env("VTPM_LIBVIRT_CONFIG", &self.config)
            .stdin(File::open(domain)?);
        let begin = Instant::now();
        let output = command.output()?;
        samples.add_ms(begin.elapsed());
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{operation} {part}: {said}");
        Ok(())
    }
}
