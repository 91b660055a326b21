//! A real libvirt that knows swtpm and nothing of us: its domains get vRoTs because the programs that it
//! finds under swtpm's names hand over to the manager.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::deadline::wait_for;
use test_support::programs::{install_script, program};
use uuid::Uuid;
use vrot_tests::libvirt_daemon::{LibvirtDaemon, wait_for_state};
use vrot_tests::scene::Scene;

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn domains_of_a_libvirt_that_knows_only_swtpm_have_vrots_from_definition_to_undefinition()
-> Result<()> {
    let mut scene = Scene::set("libvirt-swtpm")?;
    // libvirt's hook is the packaged one, and has what its domains are started with measured.
    let settings = scene.run.join("libvirt.toml");
    let links = scene.run.join("links");
    fs::write(&settings, format!("links = \"{}\"\n", links.display()))?;
    let vtpmctl = format!(
        "#!/bin/sh\nexport VTPM_MANAGER_SOCKET='{}' VTPM_LIBVIRT_CONFIG='{}' VROT_SWTPM_CONFIG='{}'\n\
         exec '{}' \"$@\"\n",
        scene.host.folder().join("run/api.sock").display(),
        settings.display(),
        scene.run.join("swtpm.toml").display(),
        program("vtpmctl")?.display()
    );
    let mut libvirt = LibvirtDaemon::start(&scene.run, &vtpmctl)?;
    install_programs(&scene)?;
    let etc = scene.run.join("lv/etc/qemu.conf");
    let user = "swtpm_user = \"root\"\nswtpm_group = \"root\"\n";
    fs::write(&etc, fs::read_to_string(&etc)? + user)?;
    libvirt.without(|| Ok(()))?;

    let vm = Uuid::new_v4();
    let file = scene.run.join("domain.xml");
    let disk = scene.run.join("vm.qcow2");
    let image = test_support::tool::Tool::new("qemu-img");
    let image = image.args(["create", "-q", "-f", "qcow2"]).arg(&disk);
    image.arg("16M").run()?;
    let xml = format!(
        "<domain type='qemu'><name>vm</name><uuid>{vm}</uuid><memory unit='MiB'>64</memory>\
         <vcpu>1</vcpu><os><type arch='x86_64' machine='q35'>hvm</type></os><features><acpi/>\
         </features><devices><disk type='file' device='disk'><driver name='qemu' type='qcow2'/>\
         <source file='{}'/><target dev='vda' bus='virtio'/></disk>\
         <tpm model='tpm-crb'><backend type='emulator' version='2.0'/></tpm>\
         <memballoon model='none'/><controller type='usb' model='none'/></devices></domain>",
        disk.display()
    );
    fs::write(&file, xml)?;
    let file = file.to_str().context("a path of text")?.to_owned();
    libvirt.virsh(&["define", &file])?;
    libvirt.virsh(&["start", "vm"])?;
    let shown = attached(&scene, vm)?;
    assert_eq!(
        (&shown["name"], &shown["vik_certificate"]),
        (&"vm".into(), &"issued".into())
    );
    is_measured(&shown)?;
    let folder = scene.run.join(format!("lv/lib/swtpm/{vm}/tpm2"));
    ensure!(folder.join("vrot.json").exists(), "no vrot.json");
    ensure!(!folder.join("tpm2-00.permall").exists(), "a swtpm's state");

    // Reset, and a manager that is killed and started again beside it.
    libvirt.virsh(&["reset", "vm"])?;
    scene.host.crash_manager()?;
    wait_for_state(&libvirt, "vm", "running")?;
    let again = attached(&scene, vm)?;
    assert_eq!(again["backend"]["process"], shown["backend"]["process"]);

    is_measured(&again)?;

    // Put aside and brought back: the same vRoT goes on, with a VM that was not measured.
    libvirt.virsh(&["managedsave", "vm"])?;
    stopped(&scene, vm)?;
    libvirt.virsh(&["start", "vm"])?;
    let restored = attached(&scene, vm)?;
    assert_eq!(restored["vrot"], shown["vrot"]);
    assert_eq!(restored["launch"]["state"], "not-measured");

    // Destroyed and started: the same.
    libvirt.virsh(&["destroy", "vm"])?;
    stopped(&scene, vm)?;
    libvirt.virsh(&["start", "vm"])?;
    let again = attached(&scene, vm)?;
    assert_eq!(again["vrot"], shown["vrot"]);
    is_measured(&again)?;
    libvirt.virsh(&["destroy", "vm"])?;
    stopped(&scene, vm)?;

    // Undefined, it does not come back by the same number.
    libvirt.virsh(&["undefine", "vm"])?;
    ensure!(!folder.exists(), "libvirt keeps the folder");
    libvirt.virsh(&["define", &file])?;
    libvirt.refused(&["start", "vm"])?;
    let vrot = shown["vrot"].as_str().context("a vRoT")?;
    scene.host.vtpmctl(["delete", vrot])?.run()?;
    libvirt.virsh(&["start", "vm"])?;
    ensure!(attached(&scene, vm)?["vrot"] != shown["vrot"]);
    libvirt.virsh(&["destroy", "vm"])?;
    Ok(())
}

/// That the hook had measured what the domain was started with, before libvirt started its TPM.
fn is_measured(shown: &Value) -> Result<()> {
    let launch = &shown["launch"];
    assert_eq!(launch["state"], "in-force", "{launch}");
    let memory = serde_json::json!({ "part": "memory-mib", "value": "64" });
    let parts = launch["parts"].as_array().context("parts")?;
    ensure!(parts.contains(&memory), "{launch}");
    Ok(())
}

/// Ours under swtpm's names, where this libvirt finds them first.
fn install_programs(scene: &Scene) -> Result<()> {
    let config = scene.run.join("swtpm.toml");
    let socket = scene.host.folder().join("run/swtpm.sock");
    let anchored = format!("mode = \"anchored\"\nsocket = \"{}\"\n", socket.display());
    fs::write(&config, anchored)?;
    for name in ["swtpm", "swtpm_setup", "swtpm_ioctl"] {
        let script = format!(
            "#!/bin/sh\nexport VROT_SWTPM_CONFIG='{}'\nexec '{}' \"$@\"\n",
            config.display(),
            program(name)?.display()
        );
        let path: PathBuf = scene.run.join("lv/bin").join(name);
        install_script(&script, &path)?;
    }
    Ok(())
}

fn show(scene: &Scene, vm: Uuid) -> Result<Value> {
    let shown = scene
        .host
        .vtpmctl(["--output", "json", "show", &vm.to_string()])?;
    Ok(serde_json::from_slice(&shown.run()?)?)
}

fn attached(scene: &Scene, vm: Uuid) -> Result<Value> {
    wait_for("QEMU to attach", PATIENCE, || {
        let shown = show(scene, vm)?;
        Ok((shown["backend"]["attached"] == true).then_some(shown))
    })
}

fn stopped(scene: &Scene, vm: Uuid) -> Result<()> {
    wait_for("the vRoT to be stopped", PATIENCE, || {
        let shown = show(scene, vm)?;
        Ok((shown["state"] == "stopped").then_some(()))
    })
}
