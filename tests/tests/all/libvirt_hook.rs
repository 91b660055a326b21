//! Domains of a real libvirt whose vRoTs come and go by the packaged hook: no command for a vRoT is
//! given, from definition to undefinition.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use serde_json::Value;
use test_support::deadline::wait_for;
use test_support::programs::program;
use test_support::tool::Tool;
use uuid::Uuid;
use vrot_tests::host::Host;
use vrot_tests::libvirt_daemon::{LibvirtDaemon, wait_for_state};
use vrot_tests::scene::{Scene, TENANT};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_domains_vrot_comes_with_its_first_start_and_goes_with_its_undefinition() -> Result<()> {
    let mut hooked = Hooked::set("libvirt-hook", "create = true\n")?;
    let vm = Uuid::new_v4();
    hooked.define("vm", vm, Some(TENANT))?;
    let libvirt = &hooked.libvirt;

    // Start, reset.
    libvirt.virsh(&["start", "vm"])?;
    let shown = hooked.attached(vm)?;
    assert_eq!(
        (&shown["tenant"], &shown["name"]),
        (&TENANT.into(), &"vm".into())
    );
    // What it was started with was measured; what it goes on with from a file was not.
    let launch = &shown["launch"];
    assert_eq!(launch["state"], "in-force", "{launch}");
    let memory = serde_json::json!({ "part": "memory-mib", "value": "64" });
    ensure!(
        launch["parts"]
            .as_array()
            .is_some_and(|parts| parts.contains(&memory)),
        "{launch}"
    );
    libvirt.virsh(&["reset", "vm"])?;
    wait_for_state(libvirt, "vm", "running")?;
    assert_eq!(
        hooked.attached(vm)?["backend"]["process"],
        shown["backend"]["process"]
    );

    // A copy of its definition is another VM, and has not its vRoT.
    let copy = hooked.xml("copy", Uuid::new_v4());
    let tpm = hooked
        .scene
        .host
        .vtpmctl(["libvirt-xml"])?
        .arg(vm.to_string());
    let tpm = tpm.arg("--config").arg(&hooked.config).text()?;
    fs::write(
        &hooked.file,
        copy.replace("</devices>", &format!("{tpm}</devices>")),
    )?;
    libvirt.virsh(&["define", hooked.file()?])?;
    let refused = libvirt.refused(&["start", "copy"])?;
    ensure!(refused.contains("is not its own"), "{refused}");

    // Save and restore.
    let saved = hooked.scene.run.join("saved");
    let saved = saved.to_str().context("a path of text")?;
    libvirt.virsh(&["save", "vm", saved])?;
    hooked.is_stopped(vm)?;
    libvirt.virsh(&["restore", saved])?;
    assert_eq!(hooked.attached(vm)?["launch"]["state"], "not-measured");

    // A snapshot can be made, and not gone back to: the VM boots then.
    libvirt.virsh(&["snapshot-create-as", "vm", "one"])?;
    let refused = libvirt.refused(&["snapshot-revert", "vm", "one"])?;
    ensure!(refused.contains("while loading VM state"), "{refused}");
    wait_for_state(libvirt, "vm", "shut off")?;
    hooked.is_stopped(vm)?;
    libvirt.virsh(&["start", "vm"])?;
    hooked.attached(vm)?;

    // A daemon that is restarted finds the domain as it is.
    hooked.libvirt.without(|| Ok(()))?;
    let libvirt = &hooked.libvirt;
    wait_for_state(libvirt, "vm", "running")?;
    hooked.attached(vm)?;

    // Put aside, and the host rebooted.
    libvirt.virsh(&["managedsave", "vm"])?;
    hooked.is_stopped(vm)?;
    let Hooked { libvirt, scene, .. } = &mut hooked;
    libvirt.without(|| scene.host.reboot(&scene.run))?;
    hooked.libvirt.virsh(&["start", "vm"])?;
    hooked.attached(vm)?;

    // A VMM that is killed, and one that ends while the manager is not there.
    let libvirt = &hooked.libvirt;
    kill(libvirt.vmm("vm")?, Signal::SIGKILL)?;
    wait_for_state(libvirt, "vm", "shut off")?;
    hooked.is_stopped(vm)?;
    libvirt.virsh(&["start", "vm"])?;
    hooked.attached(vm)?;
    let Hooked { libvirt, scene, .. } = &mut hooked;
    scene.host.without_manager(|| {
        libvirt.virsh(&["destroy", "vm"])?;
        Ok(())
    })?;
    hooked.libvirt.virsh(&["start", "vm"])?;
    hooked.attached(vm)?;

    // Undefined: nothing is deleted while it runs, or while libvirt does not answer.
    let undefine = ["undefine", "vm", "--managed-save", "--snapshots-metadata"];
    hooked.libvirt.virsh(&undefine)?;
    assert_eq!(hooked.sync(&[])?, [line(vm, "kept")]);
    hooked.libvirt.virsh(&["destroy", "vm"])?;
    hooked.is_stopped(vm)?;
    assert_eq!(hooked.sync(&[])?, [line(vm, "kept-by-configuration")]);
    hooked.configure("create = true\ndelete_undefined = true\n")?;
    assert_eq!(hooked.sync(&[])?, [line(vm, "waits")]);
    hooked.configure("create = true\ndelete_undefined = true\nundefined_for_s = 0\n")?;
    let out_of_reach = hooked.sync_command("qemu+unix:///system?socket=/none")?;
    ensure!(!out_of_reach.outcome()?.status.success());
    // Somebody else uses it.
    hooked.scene.host.start_vrot(vm)?;
    assert_eq!(hooked.sync(&[])?, [line(vm, "runs")]);
    hooked.scene.host.stop_vrot(vm)?;
    assert_eq!(hooked.sync(&["--dry-run"])?, [line(vm, "deleted")]);
    assert_eq!(vrots(&hooked.scene.host)?, [vm.to_string()]);
    assert_eq!(hooked.sync(&[])?, [line(vm, "deleted")]);
    assert_eq!(vrots(&hooked.scene.host)?, [""; 0]);
    assert_eq!(hooked.sync(&[])?, []);
    Ok(())
}

#[test]
fn a_domain_without_a_vrot_is_refused_with_the_remedy() -> Result<()> {
    let mut hooked = Hooked::set("libvirt-hook-refusals", "")?;
    let (vm, plain) = (Uuid::new_v4(), Uuid::new_v4());
    let libvirt = &hooked.libvirt;
    hooked.define("vm", vm, None)?;
    let refused = libvirt.refused(&["start", "vm"])?;
    ensure!(
        refused.contains(&format!("vtpmctl create --vm {vm}")),
        "{refused}"
    );
    hooked.configure("create = true\n")?;
    let refused = libvirt.refused(&["start", "vm"])?;
    ensure!(refused.contains("whose it is to be"), "{refused}");
    assert_eq!(vrots(&hooked.scene.host)?, [""; 0]);
    hooked.configure("create = true\ntenant = \"acme\"\n")?;
    libvirt.virsh(&["start", "vm"])?;
    hooked.attached(vm)?;
    // Once more by hand, while it runs.
    let (status, said) = hooked.hook("prepare", vm)?;
    ensure!(status == 1 && said.contains("a VMM is attached"), "{said}");
    let (status, said) = hooked.hook("migrate", vm)?;
    ensure!(
        status == 1 && said.contains("belongs to the host"),
        "{said}"
    );
    libvirt.virsh(&["destroy", "vm"])?;
    hooked.is_stopped(vm)?;

    // Of one that was deleted meanwhile, what was saved does not come back with an empty TPM.
    libvirt.virsh(&["start", "vm"])?;
    libvirt.virsh(&["managedsave", "vm"])?;
    hooked.is_stopped(vm)?;
    hooked
        .scene
        .host
        .vtpmctl(["delete", &vm.to_string()])?
        .run()?;
    let refused = libvirt.refused(&["start", "vm"])?;
    ensure!(refused.contains("managedsave-remove"), "{refused}");
    assert_eq!(vrots(&hooked.scene.host)?, [""; 0]);

    // One that has nothing to do with us starts without a manager.
    let file = hooked.scene.run.join("plain.xml");
    let disk = hooked.scene.run.join("plain.qcow2");
    fs::write(&file, xml("plain", plain, &disk))?;
    libvirt.virsh(&["define", file.to_str().context("a path of text")?])?;
    (hooked.scene.host).without_manager(|| hooked.libvirt.virsh(&["start", "plain"]))?;
    Ok(())
}

/// A host with a libvirt that calls the hook.
struct Hooked {
    // In the order in which they end.
    libvirt: LibvirtDaemon,
    scene: Scene,
    config: PathBuf,
    file: PathBuf,
}

impl Hooked {
    fn set(name: &str, config: &str) -> Result<Self> {
        let scene = Scene::set(name)?;
        let path = scene.run.join("libvirt.toml");
        let vtpmctl = format!(
            "#!/bin/sh\nexport VTPM_MANAGER_SOCKET='{}' VTPM_LIBVIRT_CONFIG='{}'\nexec '{}' \"$@\"\n",
            scene.host.folder().join("run/api.sock").display(),
            path.display(),
            program("vtpmctl")?.display()
        );
        let libvirt = LibvirtDaemon::start(&scene.run, &vtpmctl)?;
        let hooked = Self {
            libvirt,
            file: scene.run.join("domain.xml"),
            config: path,
            scene,
        };
        hooked.configure(config)?;
        Ok(hooked)
    }

    fn configure(&self, config: &str) -> Result<()> {
        let folders = format!(
            "links = \"{}\"\nnotes = \"{}\"\n",
            self.scene.run.join("links").display(),
            self.scene.run.join("notes").display()
        );
        Ok(fs::write(&self.config, format!("{config}{folders}"))?)
    }

    fn file(&self) -> Result<&str> {
        self.file.to_str().context("a path of text")
    }

    fn xml(&self, name: &str, vm: Uuid) -> String {
        xml(name, vm, &self.scene.run.join(format!("{name}.qcow2")))
    }

    /// Defines a domain, to which `vtpmctl libvirt-xml` gives its TPM.
    fn define(&self, name: &str, vm: Uuid, tenant: Option<&str>) -> Result<()> {
        let disk = self.scene.run.join(format!("{name}.qcow2"));
        let image = Tool::new("qemu-img").args(["create", "-q", "-f", "qcow2"]);
        image.arg(disk).arg("16M").run()?;
        fs::write(&self.file, self.xml(name, vm))?;
        let edit = self
            .scene
            .host
            .vtpmctl(["libvirt-xml", "--domain"])?
            .arg(&self.file);
        let edit = edit.arg("--config").arg(&self.config);
        let edited = match tenant {
            Some(tenant) => edit.args(["--tenant", tenant]).run()?,
            None => edit.run()?,
        };
        fs::write(&self.file, edited)?;
        self.libvirt
            .virsh(&["define", "--validate", self.file()?])?;
        Ok(())
    }

    /// Waits until the VMM is attached, and shows the vRoT.
    fn attached(&self, vm: Uuid) -> Result<Value> {
        let shown = wait_for("QEMU to attach", PATIENCE, || {
            let shown = show(&self.scene.host, vm)?;
            Ok((shown["backend"]["attached"] == true).then_some(shown))
        })?;
        ensure!(self.link(vm).exists(), "there is no link");
        Ok(shown)
    }

    /// That the vRoT is stopped: libvirt called the hook before its command ended, or is about to.
    fn is_stopped(&self, vm: Uuid) -> Result<()> {
        wait_for("the vRoT to be stopped", PATIENCE, || {
            let shown = show(&self.scene.host, vm)?;
            Ok((shown["state"] == "stopped" && !self.link(vm).exists()).then_some(()))
        })
    }

    fn link(&self, vm: Uuid) -> PathBuf {
        self.scene.run.join("links").join(format!("{vm}.sock"))
    }

    /// Calls the hook as libvirt does.
    fn hook(&self, operation: &str, vm: Uuid) -> Result<(i32, String)> {
        let xml = self.libvirt.virsh(&["dumpxml", &vm.to_string()])?;
        fs::write(&self.file, xml)?;
        let mut command = std::process::Command::new(program("vtpmctl")?);
        command
            .arg("--socket")
            .arg(self.scene.host.folder().join("run/api.sock"))
            .args(["libvirt-hook", "vm", operation, "begin", "-", "--config"])
            .arg(&self.config)
            .stdin(fs::File::open(&self.file)?);
        let output = command.output()?;
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        Ok((output.status.code().context("it was killed")?, said))
    }

    fn sync_command(&self, uri: &str) -> Result<Tool> {
        let command = [
            "--output",
            "json",
            "libvirt-sync",
            "--connect",
            uri,
            "--config",
        ];
        Ok(self.scene.host.vtpmctl(command)?.arg(&self.config))
    }

    fn sync(&self, arguments: &[&str]) -> Result<Vec<(Uuid, String)>> {
        let lines = self
            .sync_command(&self.libvirt.uri())?
            .args(arguments)
            .run()?;
        let lines: Vec<Value> = serde_json::from_slice(&lines)?;
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        lines
            .iter()
            .map(|line| Ok((text(&line["vm"])?.parse()?, text(&line["action"])?)))
            .collect()
    }
}

/// A domain without an operating system: its firmware measures what it finds, and that is nothing.
fn xml(name: &str, vm: Uuid, disk: &Path) -> String {
    let disk = if disk.exists() {
        format!(
            "<disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
             <source file='{}'/><target dev='vda' bus='virtio'/></disk>",
            disk.display()
        )
    } else {
        String::new()
    };
    format!(
        "<domain type='qemu'><name>{name}</name><uuid>{vm}</uuid><memory unit='MiB'>64</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/>\
         </features><devices>{disk}<memballoon model='none'/><controller type='usb' model='none'/>\
         </devices></domain>"
    )
}

fn show(host: &Host, vm: Uuid) -> Result<Value> {
    let shown = host.vtpmctl(["--output", "json", "show", &vm.to_string()])?;
    Ok(serde_json::from_slice(&shown.run()?)?)
}

fn line(vm: Uuid, action: &str) -> (Uuid, String) {
    (vm, action.to_owned())
}

/// The VMs that have a vRoT.
fn vrots(host: &Host) -> Result<Vec<String>> {
    let list = host.vtpmctl(["--output", "json", "list"])?.run()?;
    let list: Value = serde_json::from_slice(&list)?;
    let all = list["vrots"].as_array().context("a list")?.iter();
    all.map(|vrot| Ok(vrot["vm"].as_str().context("a VM")?.to_owned()))
        .collect()
}
