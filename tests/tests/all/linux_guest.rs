//! What Linux does with its TPM over the life of a VM, with a vRoT of a manager: IMA, trusted keys, a
//! secret under boot and PIN, suspend to RAM, another kernel without the firmware, a reset, and the end
//! of the backend under a guest that runs. None of it costs the owner an attempt but the last, which
//! is a loss of power.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};
use test_support::deadline::wait_for;
use uuid::Uuid;
use vrot_tests::guest::{Guest, GuestSpec, TpmDevice};
use vrot_tests::guest_image::GuestImage;
use vrot_tests::guest_shell::GuestShell;
use vrot_tests::scene::{Scene, TENANT};

const PATIENCE: Duration = Duration::from_secs(60);
/// Handles of the storage key below which all is sealed, and of what the PIN opens.
const STORAGE: &str = "0x81000001";
const SECRET: &str = "0x81000002";
/// What the boot measures, and what IMA does.
const BOOT: &str = "0,1,2,3,4,5,6,7,8,9";
const IMA_PCR: u32 = 10;
const IMA_LOG: &str = "/sys/kernel/security/ima/binary_runtime_measurements";

#[test]
fn what_linux_does_with_its_tpm_costs_its_owner_no_attempt_and_loses_nothing() -> Result<()> {
    let scene = Scene::set("linux-guest")?;
    let vm = Uuid::new_v4();
    scene.host.create(vm, TENANT)?;
    scene.host.start_vrot(vm)?;
    let spec = GuestSpec::new(&GuestImage::of_linux()?)
        .seabios()
        .tpm(scene.host.qemu_arguments(vm, TpmDevice::Crb)?)
        .with_shell();
    let mut guest = Guest::boot(&scene.run, "first", &spec)?;
    let mut shell = guest.shell()?;
    let boot = pcrs(&mut shell, BOOT)?;

    // IMA measures what is run, and its log accounts for its PCR.
    shell.run("echo 'measure func=BPRM_CHECK' > /sys/kernel/security/ima/policy; busybox true")?;
    ima_accounts_for_its_pcr(&mut shell, [0; 32])?;

    // A key that only this TPM opens, and a secret that takes this boot and a PIN.
    shell.run(&format!(
        "tpm2 createprimary -Q -C o -G ecc -c /tmp/storage && \
         tpm2 evictcontrol -Q -C o -c /tmp/storage {STORAGE}"
    ))?;
    let key = shell.text(&format!("linux-calls key 'new 32 keyhandle={STORAGE}'"))?;
    seal(&mut shell)?;
    ensure!(unseal(&mut shell, "1234")?);
    assert_eq!(failed_authorizations(&mut shell)?, 0);
    // A wrong PIN counts, so what is compared with is counted.
    ensure!(!unseal(&mut shell, "4321")?);
    assert_eq!(failed_authorizations(&mut shell)?, 1);
    shell.run("tpm2 dictionarylockout -c")?;
    let all_is_there = |shell: &mut GuestShell| -> Result<()> {
        let again = shell.text(&format!("linux-calls key 'load {key} keyhandle={STORAGE}'"))?;
        ensure!(again == key, "the trusted key is another one");
        ensure!(unseal(shell, "1234")?, "the PIN does not open it");
        assert_eq!(failed_authorizations(shell)?, 0);
        Ok(())
    };
    let (resets, restarts) = counts(&mut shell)?;

    // Linux orders TPM2_Shutdown(STATE), and the firmware TPM2_Startup(STATE).
    guest.sleep_and_wake_up(&mut shell)?;
    assert_eq!(pcrs(&mut shell, BOOT)?, boot);
    assert_eq!(counts(&mut shell)?, (resets, restarts + 1));
    all_is_there(&mut shell)?;

    let before = ima_accounts_for_its_pcr(&mut shell, [0; 32])?;

    // Linux orders TPM2_Shutdown(CLEAR), and finds a TPM that nobody has reset.
    guest.start_another_kernel(&mut shell)?;
    assert_eq!(pcrs(&mut shell, BOOT)?, boot);
    assert_eq!(counts(&mut shell)?, (resets, restarts + 1));
    ima_accounts_for_its_pcr(&mut shell, before)?;
    ensure!(unseal(&mut shell, "1234")?);
    assert_eq!(failed_authorizations(&mut shell)?, 0);

    // Nobody orders anything.
    guest.reset()?;
    assert_eq!(pcrs(&mut shell, BOOT)?, boot);
    assert_eq!(counts(&mut shell)?, (resets + 1, 0));
    ima_accounts_for_its_pcr(&mut shell, [0; 32])?;
    all_is_there(&mut shell)?;

    // Its backend dies: the guest goes on with a TPM that fails, until its VM is started anew.
    let dead = backend(&scene, vm)?;
    kill(Pid::from_raw(dead), Signal::SIGKILL)?;
    wait_for("another backend", PATIENCE, || {
        Ok(backend(&scene, vm).ok().filter(|process| *process != dead))
    })?;
    let (status, _, _) = shell.outcome("tpm2_getrandom -T device:/dev/tpm0 --hex 8")?;
    ensure!(status != 0, "a TPM that nobody started gave an answer");
    ensure!(shell.text("echo alive")? == "alive\n");
    guest.power_off()?;
    let guest = Guest::boot(&scene.run, "second", &spec)?;
    let mut shell = guest.shell()?;
    assert_eq!(pcrs(&mut shell, BOOT)?, boot);
    assert_eq!(failed_authorizations(&mut shell)?, 1);
    shell.run("tpm2 dictionarylockout -c")?;
    all_is_there(&mut shell)?;
    guest.power_off()
}

/// The process of a VM's backend.
fn backend(scene: &Scene, vm: Uuid) -> Result<i32> {
    let process = scene.host.show(vm)?["backend"]["process"].as_i64();
    Ok(process.context("it does not run")?.try_into()?)
}

fn pcrs(shell: &mut GuestShell, which: &str) -> Result<Vec<[u8; 32]>> {
    let said = shell.text(&format!("tpm2_pcrread sha256:{which}"))?;
    let values = said.lines().filter_map(|line| line.split_once("0x"));
    values
        .map(|(_, value)| {
            let value = hex::decode(value.trim())?;
            value.try_into().map_err(|_| anyhow::anyhow!("{said}"))
        })
        .collect()
}

/// Replays IMA's log from this value on, and compares with its PCR (TPM_IMA: each entry extends by the
/// digest of its template data).
fn ima_accounts_for_its_pcr(shell: &mut GuestShell, from: [u8; 32]) -> Result<[u8; 32]> {
    const SHA1: usize = 20;
    // What reads the PCR is measured before the log is read: each program once.
    pcrs(shell, BOOT)?;
    let log = shell.read_file(IMA_LOG)?;
    let mut rest = &log[..];
    let mut take = |length: usize| -> Result<&[u8]> {
        let (taken, others) = rest.split_at_checked(length).context("half an entry")?;
        rest = others;
        Ok(taken)
    };
    let mut entries = 0;
    let mut value = from;
    while let Ok(pcr) = take(4) {
        ensure!(pcr == IMA_PCR.to_le_bytes(), "another PCR: {pcr:?}");
        take(SHA1)?;
        for part in ["name", "data"] {
            let length = take(4)?.first_chunk().context("a length")?;
            let bytes = take(u32::from_le_bytes(*length).try_into()?)?;
            if part == "data" {
                let digest = Sha256::digest(bytes);
                value = Sha256::new()
                    .chain_update(value)
                    .chain_update(digest)
                    .finalize()
                    .into();
            }
        }
        entries += 1;
    }
    ensure!(entries > 0, "nothing was measured");
    let read = pcrs(shell, &IMA_PCR.to_string())?;
    ensure!(
        read == [value],
        "{entries} entries do not account for PCR {IMA_PCR}"
    );
    Ok(value)
}

/// Seals a secret under PCRs 4 and 7 and a PIN, as disks' keys are.
fn seal(shell: &mut GuestShell) -> Result<()> {
    shell.run(
        "tpm2 startauthsession -S /tmp/session && \
         tpm2 policypcr -Q -S /tmp/session -l sha256:4,7 && \
         tpm2 policyauthvalue -Q -S /tmp/session -L /tmp/policy && \
         tpm2 flushcontext /tmp/session",
    )?;
    shell.run(&format!(
        "printf secret | tpm2 create -Q -C {STORAGE} -u /tmp/public -r /tmp/private -L /tmp/policy \
             -p 1234 -i- && \
         tpm2 load -Q -C {STORAGE} -u /tmp/public -r /tmp/private -c /tmp/sealed && \
         tpm2 evictcontrol -Q -C o -c /tmp/sealed {SECRET}"
    ))?;
    Ok(())
}

/// Whether a PIN opens the secret in this boot.
fn unseal(shell: &mut GuestShell, pin: &str) -> Result<bool> {
    let (status, secret, errors) = shell.outcome(&format!(
        "tpm2 startauthsession --policy-session -S /tmp/session && \
         tpm2 policypcr -Q -S /tmp/session -l sha256:4,7 && \
         tpm2 policyauthvalue -Q -S /tmp/session && \
         tpm2 unseal -c {SECRET} -p session:/tmp/session+{pin}; \
         status=$?; tpm2 flushcontext /tmp/session; exit $status"
    ))?;
    match (status, &*secret) {
        (0, b"secret") => Ok(true),
        (0, _) => bail!("another secret: {secret:?}"),
        _ if String::from_utf8_lossy(&errors).contains("DA counter incremented") => Ok(false),
        _ => bail!("{}", String::from_utf8_lossy(&errors)),
    }
}

/// `TPM_PT_LOCKOUT_COUNTER`
fn failed_authorizations(shell: &mut GuestShell) -> Result<u32> {
    let said = shell.text("tpm2_getcap properties-variable")?;
    number(&said, "TPM2_PT_LOCKOUT_COUNTER:")
}

/// How often the TPM was reset, and resumed or restarted since.
fn counts(shell: &mut GuestShell) -> Result<(u32, u32)> {
    let said = shell.text("tpm2 readclock")?;
    Ok((
        number(&said, "reset_count:")?,
        number(&said, "restart_count:")?,
    ))
}

fn number(said: &str, name: &str) -> Result<u32> {
    let line = said.lines().find_map(|line| line.trim().strip_prefix(name));
    let value = line.with_context(|| said.to_owned())?.trim();
    Ok(match value.strip_prefix("0x") {
        Some(value) => u32::from_str_radix(value, 16)?,
        None => value.parse()?,
    })
}
