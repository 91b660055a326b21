//! Data that a VM signs with its vRoT, and what a device makes of them.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::Value;
use tempfile::TempDir;
use test_support::programs::program;
use test_support::time_authority::{TimeAuthority, at_time};
use test_support::tool::Tool;
use vrot_tests::device;
use vrot_tests::proxied_vm::ProxiedVm;
use vrot_tests::scene::Scene;

const DATA: &str = r#"{"celsius":21.5}"#;
const COUNTER: &str = "0x01807664";

static SCENE: LazyLock<Result<Scene>> = LazyLock::new(|| Scene::set("signed-data"));

fn scene() -> Result<&'static Scene> {
    SCENE.as_ref().map_err(|error| anyhow!("{error:#}"))
}

/// A VM, what it has on its disk, and a policy that accepts it.
pub(crate) struct Vm {
    pub(crate) booted: ProxiedVm,
    pub(crate) policy: PathBuf,
    pub(crate) disk: TempDir,
}

impl Vm {
    pub(crate) fn boot() -> Result<Self> {
        let disk = tempfile::tempdir()?;
        let booted = ProxiedVm::boot(&scene()?.host, disk.path())?;
        let nobody = "127.0.0.1:9".parse()?;
        let proxy = booted.proxy("proxy", nobody, &["--any-device"])?;
        let policy = booted.policy(scene()?, &proxy)?;
        fs::write(disk.path().join("data"), DATA)?;
        Ok(Self {
            booted,
            policy,
            disk,
        })
    }

    /// Switched off and on.
    fn boot_again(self) -> Result<Self> {
        let Self {
            booted,
            policy,
            disk,
        } = self;
        let vm = booted.vm;
        drop(booted);
        scene()?.host.stop_vrot(vm)?;
        Ok(Self {
            booted: ProxiedVm::boot_again(&scene()?.host, vm, disk.path())?,
            policy,
            disk,
        })
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.disk.path().join(name)
    }

    fn signing(&self, to: &str, options: &[&str]) -> Result<Tool> {
        Ok(Tool::new(program("vrot-service")?)
            .args(["sign", "--from", "data", "--to", to, "--replace"])
            .args(["--content-type", "application/json"])
            .args(["--stream-name", "room-1/temperature"])
            .args(options)
            .args(["--tpm", &self.booted.bare.tpm()])
            .arg("--event-log")
            .arg(self.booted.bare.event_log())
            .folder(self.disk.path()))
    }

    fn sign(&self, to: &str, options: &[&str]) -> Result<()> {
        self.signing(to, options)?.run().map(drop)
    }

    pub(crate) fn verify(&self, signed: &str, options: &[&str]) -> Result<(i32, Value)> {
        let command = Tool::new(program("vrot-device")?)
            .args(["verify-data", signed, "--policy"])
            .arg(&self.policy)
            .args(options)
            .folder(self.disk.path());
        device::judge(command)
    }

    /// The number under which something was signed.
    fn number(&self, signed: &str) -> Result<u64> {
        let (status, result) = self.verify(signed, &["--data", "data", "--identity-alone"])?;
        assert_eq!(status, 0, "{result:#}");
        result["number"].as_u64().context("a number")
    }

    pub(crate) fn tool(&self, line: &str) -> Result<Vec<u8>> {
        let mut words = line.split_whitespace();
        Tool::new(words.next().context("a program")?)
            .args(words)
            .env("TPM2TOOLS_TCTI", self.booted.bare.tpm())
            .folder(self.disk.path())
            .run()
    }
}

fn refused(found: &(i32, Value)) -> (i32, &str) {
    (
        found.0,
        found.1["refusal"]["code"].as_str().unwrap_or("none"),
    )
}

#[test]
fn a_vm_signs_data_and_a_device_tells_them_from_forged_ones() -> Result<()> {
    let vm = Vm::boot()?;
    vm.sign("signed", &["--attached", "--evidence"])?;
    let (status, result) = vm.verify("signed", &["--max-evidence-age", "600"])?;
    assert_eq!(
        (status, &result["verdict"]),
        (0, &"affirming".into()),
        "{result:#}"
    );
    assert_eq!(result["source"]["vm"], vm.booted.vm.to_string());
    assert_eq!(result["stream"], "room-1/temperature");
    assert_eq!(result["content_type"], "application/json");
    ensure!(result["evidence_age_s"].is_u64(), "{result:#}");
    // Forged: warmer by one degree.
    let mut forged = fs::read(vm.path("signed"))?;
    let at = (forged
        .windows(DATA.len())
        .position(|part| part == DATA.as_bytes()))
    .context("the data travel along")?;
    *forged.get_mut(at + 12).context("a digit")? = b'2';
    fs::write(vm.path("forged"), &forged)?;
    assert_eq!(refused(&vm.verify("forged", &[])?), (1, "signature"));
    // Another stream, and a number that was seen.
    let other = vm.verify("signed", &["--stream-name", "room-2/temperature"])?;
    assert_eq!(refused(&other), (1, "stream"));
    let number = result["number"].to_string();
    let again = vm.verify("signed", &["--after", &number])?;
    assert_eq!(refused(&again), (1, "replayed"));
    // Cut off: nothing to judge.
    forged.truncate(forged.len() - 1);
    fs::write(vm.path("cut"), &forged)?;
    assert_eq!(vm.verify("cut", &[])?.0, 2);
    Ok(())
}

#[test]
fn what_a_vm_signed_is_verified_from_its_archive_alone_two_years_later() -> Result<()> {
    let vm = Vm::boot()?;
    vm.sign("signed", &["--evidence"])?;
    let authority = Arc::new(TimeAuthority::new()?);
    let served = authority.serve()?;
    let (root, url) = (authority.root(), served.url());
    let create = Tool::new(program("vrot-device")?)
        .args([
            "archive", "create", "signed", "--data", "data", "--to", "archive",
        ])
        .args(["--authority", &url, "--authority-root"])
        .arg(&root)
        .arg("--policy")
        .arg(&vm.policy)
        .folder(vm.disk.path());
    let (status, created) = device::judge(create)?;
    assert_eq!(status, 0, "{created:#}");
    drop(served);
    fs::remove_file(vm.path("data"))?;
    let later = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs() + 2 * 366 * 86_400;
    let verify = || -> Result<_> {
        let command = at_time(program("vrot-device")?, later)
            .args(["archive", "verify", "archive", "--authority-root"])
            .arg(&root)
            .arg("--policy")
            .arg(&vm.policy)
            .folder(vm.disk.path());
        device::judge(command)
    };
    let (status, found) = verify()?;
    assert_eq!(
        (status, &found["verdict"]),
        (0, &"affirming".into()),
        "{found:#}"
    );
    assert_eq!(found["time"]["signed"], created["time"]["signed"]);
    assert_eq!(found["data"]["source"]["vm"], vm.booted.vm.to_string());
    // Warmer by one degree.
    let mut forged = fs::read(vm.path("archive"))?;
    let at = (forged.windows(DATA.len())).position(|part| part == DATA.as_bytes());
    let at = at.context("the data are in the archive")?;
    *forged.get_mut(at + 12).context("a digit")? = b'2';
    fs::write(vm.path("archive"), &forged)?;
    assert_eq!(refused(&verify()?), (1, "damaged"));
    Ok(())
}

#[test]
fn data_of_any_length_are_signed_by_their_hash_and_verified_beside_it() -> Result<()> {
    let vm = Vm::boot()?;
    fs::write(vm.path("data"), vec![0x55; 3 * 1024 * 1024])?;
    vm.sign("signed", &[])?;
    let alone = ["--identity-alone"];
    assert_eq!(refused(&vm.verify("signed", &alone)?), (1, "data-missing"));
    let given = ["--data", "data", "--identity-alone"];
    let (status, result) = vm.verify("signed", &given)?;
    assert_eq!(status, 0, "{result:#}");
    // It is not known what had booted, and that is not good enough unless it is said to be.
    let (status, result) = vm.verify("signed", &["--data", "data"])?;
    assert_eq!(
        (status, &result["reasons"][0]["code"]),
        (1, &"evidence-missing".into())
    );
    let too_long = vm
        .sign("long", &["--attached"])
        .err()
        .context("3 MiB travel")?;
    ensure!(
        format!("{too_long:#}").contains("leave out"),
        "{too_long:#}"
    );
    ensure!(!vm.path("long").exists(), "half of something was written");
    fs::write(vm.path("data"), DATA)?;
    assert_eq!(refused(&vm.verify("signed", &given)?), (1, "data"));
    Ok(())
}

#[test]
fn no_number_comes_twice_or_goes_back_whatever_happens_to_who_signs() -> Result<()> {
    let vm = Vm::boot()?;
    // Two at a time, from the first number on: a TPM without a resource manager has room for no more keys.
    let names: Vec<String> = (0..6).map(|number| format!("signed-{number}")).collect();
    thread::scope(|scope| {
        let signers: Vec<_> = (names.chunks(3))
            .map(|names| scope.spawn(|| names.iter().try_for_each(|name| vm.sign(name, &[]))))
            .collect();
        (signers.into_iter()).try_for_each(|signer| match signer.join() {
            Ok(signed) => signed,
            Err(_) => bail!("a signer panicked"),
        })
    })?;
    let numbers = (names.iter()).map(|name| vm.number(name));
    let numbers = numbers.collect::<Result<BTreeSet<u64>>>()?;
    assert_eq!(numbers.len(), names.len(), "{numbers:?}");
    let mut highest = *numbers.last().context("numbers")?;
    // Killed at any point.
    for wait in [5, 20, 40, 60, 80, 120] {
        let mut signer = Command::new(program("vrot-service")?)
            .args(["sign", "--from", "data", "--to", "killed", "--replace"])
            .args(["--tpm", &vm.booted.bare.tpm()])
            .current_dir(vm.disk.path())
            .stderr(Stdio::null())
            .spawn()?;
        thread::sleep(Duration::from_millis(wait));
        signer.kill()?;
        signer.wait()?;
        // As a resource manager does for who has gone.
        vm.tool("tpm2_flushcontext -t")?;
        if vm.path("killed").exists() {
            highest = highest.max(vm.number("killed")?);
        }
    }
    vm.sign("signed", &[])?;
    let number = vm.number("signed")?;
    ensure!(number > highest, "{number} after {highest}");
    // Switched off and on, and with the counter removed.
    let vm = vm.boot_again()?;
    vm.sign("signed", &[])?;
    let booted = vm.number("signed")?;
    ensure!(booted > number, "{booted} after {number}");
    vm.tool(&format!("tpm2_nvundefine {COUNTER} -C o"))?;
    vm.sign("signed", &[])?;
    let removed = vm.number("signed")?;
    ensure!(removed > booted, "{removed} after {booted}");
    // What does not count gives no numbers.
    vm.tool(&format!("tpm2_nvundefine {COUNTER} -C o"))?;
    vm.tool(&format!(
        "tpm2_nvdefine {COUNTER} -C o -s 8 -a authread|authwrite"
    ))?;
    let refused = vm
        .sign("signed", &[])
        .err()
        .context("an index that does not count")?;
    ensure!(
        format!("{refused:#}").contains("is no counter"),
        "{refused:#}"
    );
    Ok(())
}
