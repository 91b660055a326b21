//! `vtpmctl run`: VMs in the foreground, with a real manager and a real QEMU.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use test_support::deadline::wait_for;
use test_support::process::Process;
use test_support::programs::program;
use uuid::Uuid;
use vrot_tests::host::Host;
use vrot_tests::monitor::Monitor;
use vrot_tests::scene::{Scene, TENANT};

const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn a_vm_ends_as_its_vmm_did_and_its_vrot_is_stopped_or_deleted() -> Result<()> {
    let scene = Scene::set("run-statuses")?;
    let host = &scene.host;
    let vm = Uuid::new_v4();
    let known = vm.to_string();
    let ours = ["--vm", &known, "--tenant", TENANT];

    // What has no vRoT yet needs a tenant, and a number.
    let (status, _, said) = run(host, &["--vm", &known], &["true"])?;
    ensure!(status == 125 && said.contains("--tenant"), "{said}");
    let (status, _, said) = run(host, &["--tenant", TENANT], &["true"])?;
    ensure!(status == 125 && said.contains("--vm UUID"), "{said}");
    assert_eq!(vrots(host)?.len(), 0);

    // The VMM is given the TPM's arguments, and its status comes back.
    let (status, printed, said) = run(host, &ours, &["sh", "-c", "echo \"$*\"; exit 7", "sh"])?;
    ensure!(status == 7, "{said}");
    ensure!(printed.contains("-device tpm-crb,tpmdev=tpm0"), "{printed}");
    assert_eq!(state(host, vm)?, "stopped");
    let killed = ["sh", "-c", "kill -KILL $$", "sh", "-uuid", &known];
    let (status, _, said) = run(host, &["--device", "tpm-tis"], &killed)?;
    ensure!(status == 128 + 9, "{said}");
    let (status, _, said) = run(host, &ours, &["/etc/passwd"])?;
    ensure!(status == 126 && said.contains("/etc/passwd"), "{said}");
    let (status, _, said) = run(host, &ours, &["no-such-vmm"])?;
    ensure!(status == 127 && said.contains("no-such-vmm"), "{said}");
    assert_eq!(state(host, vm)?, "stopped");

    // What is refused starts nothing.
    for (options, arguments, why) in [
        (
            &ours[..],
            &["true", "-tpmdev", "emulator,id=t"][..],
            "have a TPM already",
        ),
        (&ours, &["true", "-daemonize"], "background"),
        (
            &["--vm", &known, "--tenant", "other"],
            &["true"],
            "belongs to tenant acme",
        ),
        (
            &["--vm", &known, "--delete"],
            &["true"],
            "has a vRoT already",
        ),
        (
            &ours,
            &["true", "-uuid", &Uuid::new_v4().to_string()],
            "two VMs",
        ),
    ] {
        let (status, _, said) = run(host, options, arguments)?;
        ensure!(status == 125 && said.contains(why), "{why}: {said}");
    }
    assert_eq!(state(host, vm)?, "stopped");

    // One that is run once leaves nothing, however its VMM ended.
    for (vmm, expected) in [("true", 0), ("false", 1), ("no-such-vmm", 127)] {
        let (status, _, said) = run(host, &["--tenant", TENANT, "--delete"], &[vmm])?;
        ensure!(status == expected, "{vmm}: {said}");
        assert_eq!(vrots(host)?.len(), 1, "{vmm}");
    }
    Ok(())
}

#[test]
fn a_vm_in_the_foreground_outlives_a_manager_and_its_launcher_and_ends_by_a_signal() -> Result<()> {
    let mut scene = Scene::set("run-qemu")?;
    let vm = Uuid::new_v4();
    let mut first = Foreground::start(&scene, "first", vm)?;
    wait_until_attached(&scene.host, vm)?;
    let launch = &show(&scene.host, vm)?["launch"];
    assert_eq!(launch["state"], "in-force", "{launch}");
    let machine = serde_json::json!({ "part": "machine", "value": "q35" });
    ensure!(
        launch["parts"]
            .as_array()
            .is_some_and(|parts| parts.contains(&machine)),
        "{launch}"
    );
    let (status, _, said) = run(&scene.host, &["--vm", &vm.to_string()], &["true"])?;
    ensure!(
        status == 125 && said.contains("a VMM is attached"),
        "{said}"
    );
    assert_eq!(state(&scene.host, vm)?, "running");

    // The manager is another one when the VM ends, and is not back yet.
    scene.host.without_manager(|| {
        first.signal(Signal::SIGTERM)?;
        first.wait_for_the_vmm()
    })?;
    let status = first.launcher.wait(PATIENCE)?;
    ensure!(
        status.success(),
        "{status}: {}",
        first.launcher.last_words()
    );
    assert_eq!(state(&scene.host, vm)?, "stopped");

    // A launcher that is killed takes nothing along; the next one begins anew.
    let mut second = Foreground::start(&scene, "second", vm)?;
    wait_until_attached(&scene.host, vm)?;
    second.launcher.kill()?;
    ensure!(is_there(second.vmm()?), "the VM died with its launcher");
    wait_until_attached(&scene.host, vm)?;
    kill(second.vmm()?, Signal::SIGTERM)?;
    second.wait_for_the_vmm()?;
    let (status, _, said) = run(&scene.host, &["--vm", &vm.to_string()], &["true"])?;
    ensure!(status == 0, "{said}");
    assert_eq!(state(&scene.host, vm)?, "stopped");
    Ok(())
}

/// A QEMU that `vtpmctl run` started; both end with this value.
struct Foreground {
    launcher: Process,
    pid_file: PathBuf,
}

impl Foreground {
    fn start(scene: &Scene, name: &str, vm: Uuid) -> Result<Self> {
        let pid_file = scene.run.join(format!("{name}.pid"));
        let monitor = scene.run.join(format!("{name}.monitor"));
        let mut command = Command::new(program("vtpmctl")?);
        command
            .arg("--socket")
            .arg(scene.host.folder().join("run").join("api.sock"))
            .args(["run", "--tenant", TENANT, "--", "qemu-system-x86_64"])
            .args(["-machine", "q35", "-nodefaults", "-display", "none", "-S"])
            .args(["-uuid", &vm.to_string(), "-pidfile"])
            .arg(&pid_file)
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()));
        let log = scene.run.log(&format!("{name}-run.log"));
        let mut launcher = Process::start(name, command, &log)?;
        // It takes signals then.
        launcher.wait_until("QEMU's monitor", PATIENCE, || Monitor::connect(&monitor))?;
        Ok(Self { launcher, pid_file })
    }

    fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(
            Pid::from_raw(i32::try_from(self.launcher.id())?),
            signal,
        )?)
    }

    fn vmm(&self) -> Result<Pid> {
        let text = fs::read_to_string(&self.pid_file)?;
        Ok(Pid::from_raw(text.trim().parse()?))
    }

    /// QEMU removes its pid file when it ends.
    fn wait_for_the_vmm(&self) -> Result<()> {
        wait_for("QEMU to end", PATIENCE, || {
            Ok((!self.pid_file.exists()).then_some(()))
        })
    }
}

impl Drop for Foreground {
    fn drop(&mut self) {
        if let Ok(vmm) = self.vmm() {
            let _ = kill(vmm, Signal::SIGKILL);
        }
    }
}

fn is_there(process: Pid) -> bool {
    kill(process, None).is_ok()
}

/// Exit status, standard output and standard error of `vtpmctl run`.
fn run(host: &Host, options: &[&str], vmm: &[&str]) -> Result<(i32, String, String)> {
    let tool = host.vtpmctl(["run"])?.args(options).arg("--").args(vmm);
    let output = tool.outcome()?;
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    Ok((
        output.status.code().context("it was killed")?,
        text(output.stdout),
        text(output.stderr),
    ))
}

fn show(host: &Host, vm: Uuid) -> Result<Value> {
    let shown = host.vtpmctl(["--output", "json", "show", &vm.to_string()])?;
    Ok(serde_json::from_slice(&shown.run()?)?)
}

fn state(host: &Host, vm: Uuid) -> Result<String> {
    let shown = show(host, vm)?;
    Ok(shown["state"].as_str().context("a state")?.to_owned())
}

fn wait_until_attached(host: &Host, vm: Uuid) -> Result<()> {
    wait_for("QEMU to attach", PATIENCE, || {
        let shown = show(host, vm);
        let attached = shown.is_ok_and(|shown| shown["backend"]["attached"] == true);
        Ok(attached.then_some(()))
    })
}

fn vrots(host: &Host) -> Result<Vec<Value>> {
    let list = host.vtpmctl(["--output", "json", "list"])?.run()?;
    let list: Value = serde_json::from_slice(&list)?;
    Ok(list["vrots"].as_array().context("a list")?.clone())
}
