//! libvirt's own driver for QEMU, with a folder of its own: no daemon that others use as well.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use test_support::deadline::wait_for;
use test_support::process::tail;
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;
use uuid::Uuid;

use crate::guest::READY;
use crate::guest_image::GuestImage;
use crate::guest_shell::GuestShell;

/// The driver, embedded in each `virsh` that is run.
#[derive(Debug)]
pub struct Libvirt {
    root: PathBuf,
}

/// A domain that libvirt was told of; it ends with this value.
#[derive(Debug)]
pub struct Domain<'l> {
    libvirt: &'l Libvirt,
    name: String,
    console: PathBuf,
    shell: PathBuf,
}

/// QEMU as the user that runs the tests, without what systemd would have to set up.
pub(crate) const CONFIGURATION: &str = "user = \"root\"\ngroup = \"root\"\nsecurity_driver = \"none\"\n\
    stdio_handler = \"file\"\nremember_owner = 0\nnamespaces = []\ncgroup_controllers = []\n";
const BOOT_PATIENCE: std::time::Duration = std::time::Duration::from_secs(180);

impl Libvirt {
    /// The driver with its folder in that of a run.
    pub fn create(run: &RunFolder) -> Result<Self> {
        let root = run.join("lv");
        let configuration = root.join("etc");
        fs::create_dir_all(&configuration)?;
        fs::write(configuration.join("qemu.conf"), CONFIGURATION)?;
        Ok(Self { root })
    }

    fn virsh(&self, arguments: &[&str]) -> Tool {
        let uri = format!("qemu:///embed?root={}", self.root.display());
        virsh(&uri, arguments)
    }

    /// Defines a domain whose TPM is behind this control socket, and which boots this image with a
    /// shell.
    pub fn define(
        &self,
        name: &str,
        vm: Uuid,
        image: &GuestImage,
        control: &Path,
    ) -> Result<Domain<'_>> {
        let (console, shell) = (
            self.root.join(format!("{name}.console")),
            self.root.join(format!("{name}.shell")),
        );
        let xml = format!(
            "<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid>\
             <memory unit='MiB'>512</memory><vcpu>1</vcpu>\
             <os><type arch='x86_64' machine='q35'>hvm</type><kernel>{}</kernel>\
             <initrd>{}</initrd><cmdline>console=ttyS0 quiet vrot.shell=ttyS1</cmdline></os>\
             <features><acpi/></features><devices>\
             <tpm model='tpm-crb'><backend type='external'>\
             <source type='unix' mode='connect' path='{}'/></backend></tpm>\
             <memballoon model='none'/><controller type='usb' model='none'/>\
             <serial type='file'><source path='{}'/><target port='0'/></serial>\
             <serial type='unix'><source mode='bind' path='{}'/><target port='1'/></serial>\
             </devices></domain>",
            image.kernel.display(),
            image.initramfs.display(),
            control.display(),
            console.display(),
            shell.display(),
        );
        let file = self.root.join(format!("{name}.xml"));
        fs::write(&file, xml)?;
        self.virsh(&["define"]).arg(file).run()?;
        Ok(Domain {
            libvirt: self,
            name: name.to_owned(),
            console,
            shell,
        })
    }
}

impl Domain<'_> {
    /// Has `virsh` do something with the domain, which must succeed.
    pub fn virsh(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let before = [command, &self.name];
        self.libvirt
            .virsh(&before)
            .args(arguments)
            .text()
            .with_context(|| self.last_words())
    }

    /// Has `virsh` try something that must be refused: why it was.
    pub fn refused(&self, command: &str, arguments: &[&str]) -> Result<String> {
        let before = [command, &self.name];
        refused(self.libvirt.virsh(&before).args(arguments))
    }

    /// Boots the domain and waits until it is ready, also one that is booting already.
    pub fn wait_until_ready(&self) -> Result<()> {
        wait_for("the guest", BOOT_PATIENCE, || {
            let said = fs::read(&self.console).unwrap_or_default();
            let is_there = String::from_utf8_lossy(&said).contains(READY);
            Ok(is_there.then_some(()))
        })
        .with_context(|| self.last_words())
    }

    /// Presses the reset button and waits until the guest is ready again.
    pub fn reset(&self) -> Result<()> {
        fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.console)?;
        self.virsh("reset", &[])?;
        self.wait_until_ready()
    }

    /// Brings the domain back from a file.
    pub fn restore(&self, file: &Path) -> Result<()> {
        let restored = self.libvirt.virsh(&["restore"]).arg(file).run();
        restored.map(drop).with_context(|| self.last_words())
    }

    /// The same, when it must be refused: why it was. What QEMU said stands in libvirt's error or, where libvirt
    /// saw QEMU's end before, in the log alone.
    pub fn restore_refused(&self, file: &Path) -> Result<String> {
        let refused = refused(self.libvirt.virsh(&["restore"]).arg(file))?;
        Ok(format!("{refused}\n{}", self.last_words()))
    }

    /// The domain's state in libvirt's words.
    pub fn state(&self) -> Result<String> {
        Ok(self.virsh("domstate", &[])?.trim().to_owned())
    }

    /// The guest's shell.
    pub fn shell(&self) -> Result<GuestShell> {
        GuestShell::connect(&self.shell)
    }

    fn last_words(&self) -> String {
        let log = format!("log/qemu/{}.log", self.name);
        format!(
            "QEMU:\n{}\nconsole:\n{}",
            tail(&self.libvirt.root.join(log)),
            tail(&self.console)
        )
    }
}

impl Drop for Domain<'_> {
    fn drop(&mut self) {
        let before = ["destroy", &self.name];
        let _ = self.libvirt.virsh(&before).outcome();
    }
}

/// Has `virsh` do something where this leads to.
pub(crate) fn virsh(uri: &str, arguments: &[&str]) -> Tool {
    Tool::new("virsh")
        .args(["--quiet", "--connect", uri])
        .args(arguments)
}

/// Has a command fail: why it did.
pub(crate) fn refused(command: Tool) -> Result<String> {
    let line = command.line();
    let output = command.outcome()?;
    if output.status.success() {
        bail!("`{line}` was not refused");
    }
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}
