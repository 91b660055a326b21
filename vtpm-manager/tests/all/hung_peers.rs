//! Peers that hang, neither gone nor answering: backends and the physical TPM, stopped in the middle
//! of whatever they do. Nobody waits for them but who needs them, and that not for ever.

use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use vrot_handover::set_up::Existing;

use crate::support::records::differences;
use crate::support::stand_in::Domain;
use crate::support::vmm::Vmm;
use crate::support::{Host, Said, TENANT, wait_until};

const RENEWED_AT_ONCE: &str = "vik_renew_after_s = 1\nbackend_restarts_per_hour = 0\n";
const RENEWALS: &str = "vrot_certificate_renewals_total";
/// What is bounded ends in far less, on any machine; what waits for a peer that hangs does not.
const BOUND: Duration = Duration::from_secs(30);

/// A process that hangs until this is dropped.
struct Hung(Pid);

impl Hung {
    fn process(process: i32) -> Result<Self> {
        let process = Pid::from_raw(process);
        kill(process, Signal::SIGSTOP)?;
        Ok(Self(process))
    }
}

impl Drop for Hung {
    fn drop(&mut self) {
        // It may have been killed meanwhile.
        let _ = kill(self.0, Signal::SIGCONT);
    }
}

/// A host with so many running VMs.
fn running(more: &str, vms: usize) -> Result<(Host, Vec<String>)> {
    let host = Host::enrolled_with(more)?;
    let vms = (0..vms).map(|_| {
        let vm = host.create()?;
        host.ctl(["start", &vm])?;
        Ok(vm)
    });
    let vms = vms.collect::<Result<_>>()?;
    Ok((host, vms))
}

/// Runs a command of `vtpmctl`, which has to end whatever hangs.
fn ended<const N: usize>(host: &Host, arguments: [&str; N]) -> Result<Said> {
    let mut command = host.vtpmctl(arguments);
    let line = format!("{command:?}");
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    let deadline = Instant::now() + BOUND;
    while child.try_wait()?.is_none() {
        if Instant::now() > deadline {
            child.kill()?;
            child.wait()?;
            anyhow::bail!("{line}: no answer within {BOUND:?}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    let output = child.wait_with_output()?;
    Ok(Said {
        status: output.status.code().context("ended by a signal")?,
        out: String::from_utf8(output.stdout)?,
        err: String::from_utf8(output.stderr)?,
    })
}

/// The same with one that succeeds.
fn done<const N: usize>(host: &Host, arguments: [&str; N]) -> Result<String> {
    let said = ended(host, arguments)?;
    ensure!(said.status == 0, "{arguments:?}: {}", said.err);
    Ok(said.out)
}

/// The same with one that is refused because of the TPM, which it names.
fn refused_for_the_tpm<const N: usize>(host: &Host, arguments: [&str; N]) -> Result<()> {
    let said = ended(host, arguments)?;
    ensure!(said.status == 1, "{arguments:?}: {}", said.out);
    ensure!(said.err.contains("has not answered for"), "{}", said.err);
    ensure!(said.err.contains(&host.path("tpm.sock")), "{}", said.err);
    Ok(())
}

#[test]
fn a_backend_that_hangs_keeps_no_other_vrot_waiting_and_can_be_stopped() -> Result<()> {
    let (host, vms) = running(RENEWED_AT_ONCE, 2)?;
    let guests = vms.iter().map(|vm| Vmm::attach(&host.control(vm)?));
    let _guests = guests.collect::<Result<Vec<_>>>()?;
    wait_until("renewals", || Ok(host.metric(RENEWALS)? >= 4.0))?;
    let _hung = Hung::process(host.backend(&vms[0])?)?;

    // Its own renewal is due within a second, and it is the one that has waited longest from then
    // on: the other's goes on all the same.
    let before = host.metric(RENEWALS)?;
    let begun = Instant::now();
    wait_until("renewals of the other", || {
        Ok(host.metric(RENEWALS)? >= before + 5.0)
    })?;
    ensure!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    done(&host, ["list"])?;
    done(&host, ["show", &vms[0]])?;
    done(&host, ["host", "show"])?;
    done(&host, ["create", "--tenant", TENANT, "--start"])?;
    done(&host, ["stop", &vms[1]])?;

    // Even while a renewal of it waits for its answer.
    done(&host, ["stop", &vms[0]])?;
    ensure!(host.json(["show", &vms[0]])?["state"] == "stopped");
    ensure!(host.instances_of(&vms[0])?.is_empty());
    ensure!(host.log().contains("does not answer and is killed"));
    done(&host, ["start", &vms[0]])?;
    Ok(())
}

#[test]
fn the_manager_ends_soon_whatever_hangs_and_the_next_takes_over_what_does_not() -> Result<()> {
    let (mut host, vms) = running(RENEWED_AT_ONCE, 4)?;
    let guests = vms.iter().map(|vm| Vmm::attach(&host.control(vm)?));
    let _guests = guests.collect::<Result<Vec<_>>>()?;
    wait_until("renewals", || Ok(host.metric(RENEWALS)? >= 4.0))?;
    let hung = vms[..3].iter().map(|vm| Hung::process(host.backend(vm)?));
    let hung = hung.collect::<Result<Vec<_>>>()?;
    // By now renewals wait for them.
    std::thread::sleep(Duration::from_secs(2));
    let begun = Instant::now();
    ensure!(host.shut_down()?.success());
    ensure!(begun.elapsed() < BOUND / 3, "{:?}", begun.elapsed());

    host.start_again()?;
    ensure!(host.json(["show", &vms[3]])?["backend"]["process"].is_number());
    done(&host, ["stop", &vms[3]])?;
    // They come to themselves.
    drop(hung);
    for vm in &vms[..3] {
        wait_until("it to be taken over", || {
            Ok(host.json(["show", vm])?["backend"]["process"].is_number())
        })?;
    }
    Ok(())
}

#[test]
fn a_tpm_that_hangs_is_named_to_whoever_needs_it_and_all_goes_on_when_it_does() -> Result<()> {
    let (host, vms) = running("", 1)?;
    let vm = &vms[0];
    done(&host, ["host", "show"])?;
    let audit = host.audit()?.len();
    let hung = Hung::process(host.tpm()?)?;

    done(&host, ["host", "show"])?;
    refused_for_the_tpm(&host, ["create", "--tenant", TENANT, "--start"])?;
    refused_for_the_tpm(&host, ["create", "--tenant", TENANT])?;
    refused_for_the_tpm(&host, ["stop", vm])?;
    refused_for_the_tpm(&host, ["start", vm])?;
    refused_for_the_tpm(&host, ["host", "policy", "show"])?;
    let key = host.path("operator.pem");
    let approve = [
        "host",
        "policy",
        "sign",
        "--from-host",
        "--approve",
        "--key",
        &key,
    ];
    refused_for_the_tpm(&host, approve)?;
    let issuer = host.path("issuer");
    let enrol = ["host", "enrol", "--name", "host-1", "--issuer", &issuer];
    refused_for_the_tpm(&host, enrol)?;

    let shown: serde_json::Value =
        serde_json::from_str(&done(&host, ["--output", "json", "host", "show"])?)?;
    let problem = shown["tpm_problem"].as_str().context("a problem")?;
    ensure!(problem.contains("has not answered for"), "{problem}");
    ensure!(shown["keys"]["ik"].is_string(), "{shown}");
    ensure!(done(&host, ["host", "show"])?.contains("has not answered for"));
    ensure!(host.metric("vrot_tpm_silent_seconds")? > 1.0);
    ensure!(host.metric("vrot_tpm_requests_given_up_total")? >= 1.0);
    ensure!(host.json(["show", vm])?["state"] == "running");

    drop(hung);
    wait_until("the TPM to answer", || {
        Ok(host.json(["host", "show"])?["tpm_problem"].is_null())
    })?;
    ensure!(host.metric("vrot_tpm_silent_seconds")? == 0.0);
    // The order during which the TPM was found to hang was begun, as its caller was told, and is
    // finished now. Nothing is left of what was refused after that.
    wait_until("what was begun", || Ok(differences(&host)?.is_empty()))?;
    let list = host.json(["list"])?;
    let vrots = list["vrots"].as_array().context("a list")?;
    let is_running = |vrot: &serde_json::Value| vrot["state"] == "running";
    ensure!(vrots.len() <= 2 && vrots.iter().all(is_running), "{list}");
    wait_until("certificates", || {
        Ok(host.metric("vrot_identities_pending")? == 0.0)
    })?;
    let lines = host.audit()?;
    let created = lines[audit..]
        .iter()
        .filter(|line| line["event"] == "vrot-created");
    ensure!(created.count() <= 1, "{lines:?}");
    let changes = ["policy-approved", "vrot-stopped", "host-enrolled"];
    let changed = lines[audit..]
        .iter()
        .find(|line| changes.iter().any(|change| line["event"] == *change));
    ensure!(changed.is_none(), "{changed:?}");
    host.create()?;
    host.ctl(["stop", vm])?;
    Ok(())
}

#[test]
fn a_set_up_of_a_folder_that_goes_on_without_its_caller_is_the_only_one_of_that_folder()
-> Result<()> {
    // One that is made already needs the TPM for nothing but to become durable.
    let host = Host::enrolled_with(&format!(
        "[swtpm]\ntenant = \"{TENANT}\"\n[pool]\nsize = 1\ntenants = [\"{TENANT}\"]\n"
    ))?;
    wait_until("the pool to be full", || {
        Ok(host.metric("vrot_pool_ready")? == 1.0)
    })?;
    let domain = Domain::new(&host, "web")?;
    let hung = Hung::process(host.tpm()?)?;
    let unfinished = domain.refused(Existing::Keep)?;
    ensure!(unfinished.contains("has not answered for"), "{unfinished}");
    let second = domain.refused(Existing::Keep)?;
    ensure!(
        second.contains("is being set up at this moment"),
        "{second}"
    );
    drop(hung);
    wait_until("the first one to be done", || {
        Ok(domain.set_up(Existing::Keep).is_ok())
    })?;
    let vrots = host.json(["list"])?;
    assert_eq!(vrots["vrots"].as_array().map(Vec::len), Some(1));
    Ok(())
}

#[test]
fn a_daemon_ends_and_does_not_start_for_ever_while_its_tpm_hangs() -> Result<()> {
    let (mut host, vms) = running("", 1)?;
    let hung = Hung::process(host.tpm()?)?;
    // Switching the TPM on changes its permanent state, which waits for the physical TPM.
    let guest = Vmm::attach(&host.control(&vms[0])?)?;
    wait_until("the store to be stalled", || {
        Ok(host.metric("vrot_store_stalled_seconds")? > 0.0)
    })?;
    let begun = Instant::now();
    ensure!(host.shut_down()?.success(), "it is not cut off");
    ensure!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    drop(guest);

    let begun = Instant::now();
    let refused = host.start_again().err().context("it started")?;
    ensure!(
        refused.to_string().contains("has not answered for"),
        "{refused}"
    );
    ensure!(begun.elapsed() < BOUND, "{:?}", begun.elapsed());
    drop(hung);
    host.start_again()?;
    host.ctl(["stop", &vms[0]])?;
    Ok(())
}
