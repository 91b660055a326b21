//! Launchers that know swtpm and no manager: a folder for each VM, and a process beside it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Command};

use anyhow::{Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use test_support::sockets::is_listened_at;
use vrot_handover::set_up::Existing;

use crate::support::stand_in::Domain;
use crate::support::vmm::{Vmm, command, define_index};
use crate::support::{Host, Said, TENANT, program, said, wait_until};

/// `TPM2_GetRandom` of one byte.
const GET_RANDOM: &str = "80010000000c0000017b0001";

fn host() -> Result<Host> {
    Host::enrolled_with(&format!("[swtpm]\ntenant = \"{TENANT}\"\n"))
}

fn state(host: &Host, vm: &str) -> Result<String> {
    let view = host.json(["show", vm])?;
    Ok(view["state"].as_str().unwrap_or_default().to_owned())
}

fn wait_for_state(host: &Host, vm: &str, expected: &str) -> Result<()> {
    wait_until(&format!("vRoT to be {expected}"), || {
        Ok(state(host, vm)? == expected)
    })
}

#[test]
fn a_folder_gets_a_certified_vrot_whose_life_is_that_of_its_process() -> Result<()> {
    let host = host()?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    ensure!(made.is_new && made.vm == domain.vm);
    let file = domain.folder.join("vrot.json");
    assert_eq!(fs::metadata(&file)?.permissions().mode() & 0o777, 0o600);
    let files: Vec<_> = fs::read_dir(&domain.folder)?.collect::<Result<_, _>>()?;
    assert_eq!(files.len(), 1, "{files:?}");
    let vm = domain.vm.to_string();
    let view = host.json(["show", &vm])?;
    assert_eq!(view["vrot"], made.vrot.to_string());
    assert_eq!(view["tenant"], TENANT);
    assert_eq!(view["name"], "a domain");
    assert_eq!(view["vik_certificate"], "issued");

    // Once more changes nothing.
    let again = domain.set_up(Existing::Keep)?;
    ensure!(!again.is_new && again.vrot == made.vrot);

    // A VMM of this process attaches, and its guest has a TPM.
    let mut process = domain.start()?;
    let mut vmm = Vmm::attach(&process.socket)?;
    vmm.succeed(&hex::decode(GET_RANDOM)?)?;
    assert_eq!(state(&host, &vm)?, "running");
    // The next one, after it has gone.
    drop(vmm);
    let mut vmm = Vmm::attach(&process.socket)?;
    vmm.succeed(&hex::decode(GET_RANDOM)?)?;

    // Told to end, it ends when all is durable.
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.ended()?.code(), Some(0));
    assert_eq!(state(&host, &vm)?, "stopped");

    // Killed, it is as good as told.
    let process = domain.start()?;
    process.signal(Signal::SIGKILL)?;
    wait_for_state(&host, &vm, "stopped")?;

    // And with its VMM, where the launcher has it so.
    let mut process = domain.start_ending_with_vmm()?;
    drop(Vmm::attach(&process.socket)?);
    assert_eq!(process.ended()?.code(), Some(0));
    assert_eq!(state(&host, &vm)?, "stopped");

    // A vRoT that is stopped by somebody else takes its process along.
    let mut process = domain.start()?;
    host.ctl(["stop", &vm])?;
    assert_eq!(process.ended()?.code(), Some(1));

    // All of it is in the audit log.
    let noted = host.audit()?.into_iter();
    let noted: Vec<_> = noted
        .filter(|line| line["event"] == "folder-noted")
        .collect();
    assert_eq!(noted.len(), 1, "{noted:?}");
    assert_eq!(noted[0]["folder"], domain.folder.display().to_string());
    Ok(())
}

#[test]
fn a_vm_and_its_process_go_on_while_the_manager_is_restarted() -> Result<()> {
    let mut host = host()?;
    let domain = Domain::new(&host, "web")?;
    domain.set_up(Existing::Keep)?;
    let vm = domain.vm.to_string();
    let mut process = domain.start()?;
    let mut vmm = Vmm::attach(&process.socket)?;

    host.crash()?;
    vmm.succeed(&hex::decode(GET_RANDOM)?)?;
    host.start_again()?;
    vmm.succeed(&hex::decode(GET_RANDOM)?)?;
    drop(vmm);
    // It asks the new manager for the next VMM's connection.
    let mut vmm = Vmm::attach(&process.socket)?;
    vmm.succeed(&hex::decode(GET_RANDOM)?)?;

    // As planned, too; and a VMM that comes meanwhile waits.
    drop(vmm);
    host.shut_down()?;
    let socket = process.socket.clone();
    let early = std::thread::spawn(move || Vmm::attach(&socket));
    host.start_again()?;
    let mut vmm = early.join().map_err(|_| anyhow::anyhow!("it panicked"))??;
    vmm.succeed(&hex::decode(GET_RANDOM)?)?;

    ensure!(process.is_alive()?);
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.ended()?.code(), Some(0));
    assert_eq!(state(&host, &vm)?, "stopped");
    Ok(())
}

#[test]
fn a_vrot_whose_process_was_killed_while_the_manager_was_away_is_stopped() -> Result<()> {
    let mut host = host()?;
    let domain = Domain::new(&host, "web")?;
    domain.set_up(Existing::Keep)?;
    let process = domain.start()?;
    host.crash()?;
    process.signal(Signal::SIGKILL)?;
    host.start_again()?;
    let vm = domain.vm.to_string();
    assert_eq!(state(&host, &vm)?, "running");
    wait_for_state(&host, &vm, "stopped")?;
    // The launcher need not wait for that.
    let process = domain.start()?;
    host.crash()?;
    process.signal(Signal::SIGKILL)?;
    host.start_again()?;
    let mut process = domain.start()?;
    Vmm::attach(&process.socket)?.succeed(&hex::decode(GET_RANDOM)?)?;
    process.signal(Signal::SIGTERM)?;
    assert_eq!(process.ended()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_folder_that_nobody_set_up_gets_a_vrot_at_its_first_start_and_never_a_second() -> Result<()> {
    let host = host()?;
    let domain = Domain::new(&host, "web")?;
    let mut process = domain.start()?;
    Vmm::attach(&process.socket)?;
    process.signal(Signal::SIGTERM)?;
    process.ended()?;
    fs::remove_file(domain.folder.join("vrot.json"))?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("`vrot.json` is missing"), "{refused}");
    // A swtpm's state is not passed over either.
    let other = Domain::new(&host, "other")?;
    fs::write(other.folder.join("tpm2-00.permall"), "state")?;
    let refused = other.start_refused()?;
    ensure!(refused.contains("holds the state of a swtpm"), "{refused}");
    let refused = other.refused(Existing::Keep)?;
    ensure!(refused.contains("holds the state of a swtpm"), "{refused}");
    Ok(())
}

#[test]
fn what_setup_is_told_about_a_vrot_that_is_there_is_done() -> Result<()> {
    let host = host()?;
    let domain = Domain::new(&host, "web")?;
    let first = domain.set_up(Existing::Refuse)?;
    let refused = domain.refused(Existing::Refuse)?;
    ensure!(refused.contains("--overwrite"), "{refused}");
    let second = domain.set_up(Existing::Replace)?;
    ensure!(second.is_new && second.vm == first.vm && second.vrot != first.vrot);
    let view = host.json(["show", &domain.vm.to_string()])?;
    assert_eq!(view["vrot"], second.vrot.to_string());
    // Not beside a VM that runs.
    let mut process = domain.start()?;
    let refused = domain.refused(Existing::Replace)?;
    ensure!(refused.contains("run"), "{refused}");
    ensure!(process.is_alive()?);
    Ok(())
}

/// What libvirt runs, word for word.
#[test]
fn libvirts_command_lines_set_up_start_and_end_a_vrot_and_what_cannot_be_is_refused() -> Result<()>
{
    let host = host()?;
    let domain = Domain::new(&host, "web")?;
    let folder = domain.folder.display().to_string();
    let at = |end: &str| domain.folder.with_extension(end).display().to_string();
    let (log, socket, vm) = (at("log"), at("sock"), domain.vm.to_string());
    let run = |name: &str, line: &str| -> Result<Said> {
        let mut command = Command::new(program(name)?);
        command.args(line.split_whitespace());
        command.env("VROT_SWTPM_CONFIG", domain.configuration()?);
        said(&mut command)
    };
    let set_up = format!(
        "--tpm2 --tpm-state {folder} --vmid web:{vm} --logfile {log} --createek --create-ek-cert \
         --create-platform-cert --lock-nvram --not-overwrite"
    );
    for says in ["made vRoT", "Not overwriting existing state file"] {
        let made = run("swtpm_setup", &set_up)?;
        assert_eq!(made.status, 0, "{}", made.err);
        let log = fs::read_to_string(&log)?;
        ensure!(log.contains(says), "{log}");
    }
    assert_eq!(host.json(["show", &vm])?["name"], "web");
    assert_eq!(state(&host, &vm)?, "assigned");
    // PCR banks, at each start; then those that it has not, and a VM that arrives.
    let reconfigured = format!("--tpm2 --tpm-state {folder} --logfile {log} --reconfigure");
    let changed = run("swtpm_setup", &format!("{reconfigured} --pcr-banks sha256"))?;
    assert_eq!(changed.status, 0, "{}", changed.err);
    ensure!(fs::read_to_string(&log)?.contains("Successfully activated PCR banks sha256 among"));
    for (line, says) in [
        (
            format!("--tpm2 --tpm-state {folder} --logfile {log} --overwrite"),
            "does not arrive",
        ),
        (
            format!("{reconfigured} --pcr-banks sha3-256"),
            "none of the PCR banks",
        ),
        (
            format!("{set_up} --tpm-state file://{folder}/state"),
            "one file (file://) is not offered",
        ),
    ] {
        let refused = run("swtpm_setup", &line)?;
        assert_eq!(refused.status, 1);
        ensure!(refused.err.contains(says), "{}", refused.err);
        let log = fs::read_to_string(&log)?;
        ensure!(log.contains(says) || says.contains("file://"), "{log}");
    }
    assert_eq!(state(&host, &vm)?, "assigned");
    // It would ask for a profile before each start, and not do without.
    let announced = run("swtpm", "socket --print-capabilities")?;
    assert_eq!(announced.status, 0, "{}", announced.err);
    ensure!(announced.out.contains("tpmstate-opt-lock"));
    ensure!(!announced.out.contains("cmdarg-print-info"));

    let serve = format!(
        "socket --ctrl type=unixio,path={socket},mode=0600 --tpmstate dir={folder},mode=0600 \
         --log file={log} --terminate --tpm2 --pid file={} --daemon",
        at("pid")
    );
    let started = run("swtpm", &serve)?;
    assert_eq!(started.status, 0, "{}", started.err);
    let mode = fs::metadata(&socket)?.permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let process = fs::read_to_string(at("pid"))?;
    let process: i32 = process.trim().parse()?;
    Vmm::attach(Path::new(&socket))?.succeed(&hex::decode(GET_RANDOM)?)?;
    // With its VMM, the process has gone, and what it had made with it.
    wait_for_state(&host, &vm, "stopped")?;
    wait_until("the process to end", || {
        Ok(kill(Pid::from_raw(process), None).is_err() && !Path::new(&socket).exists())
    })?;
    ensure!(!Path::new(&at("pid")).exists());

    // The order that libvirt gives when a domain is stopped.
    let started = run("swtpm", &serve)?;
    assert_eq!(started.status, 0, "{}", started.err);
    let ended = run("swtpm_ioctl", &format!("--unix {socket} -s"))?;
    assert_eq!(ended.status, 0, "{}", ended.err);
    wait_for_state(&host, &vm, "stopped")?;

    // A VM arrives whose folder did not come along.
    let other = Domain::new(&host, "other")?;
    let arrives = serve.replace(&folder, &other.folder.display().to_string());
    let refused = run("swtpm", &format!("{arrives} --migration incoming"))?;
    assert_eq!(refused.status, 1);
    ensure!(refused.err.contains("cannot follow"), "{}", refused.err);
    ensure!(fs::read_dir(&other.folder)?.next().is_none());
    Ok(())
}

/// `TPM2_GetCapability` of the PCR banks with their registers.
const GET_BANKS: &str = "8001000000160000017a000000050000000000000010";
const INDEX: u32 = 0x0180_0001;

/// The banks of the TPM behind this socket, and that it still has what its guest keeps there.
fn banks(socket: &Path) -> Result<Vec<u8>> {
    let mut vmm = Vmm::attach(socket)?;
    // TPM2_NV_ReadPublic
    vmm.succeed(&command(0x169, &INDEX.to_be_bytes()))?;
    vmm.succeed(&hex::decode(GET_BANKS)?)
}

#[test]
fn a_vrot_of_a_folder_has_the_pcr_banks_that_its_launcher_wants_as_a_swtpm_has() -> Result<()> {
    let host = host()?;
    let domain = Domain::new(&host, "web")?;
    let peer = Domain::new(&host, "peer")?;
    let set_up = |line: &str| -> Result<Said> {
        for (mut setup, folder) in [
            (Command::new(program("swtpm_setup")?), &domain.folder),
            (Command::new("swtpm_setup"), &peer.folder),
        ] {
            setup.args(["--tpm2", "--tpm-state"]).arg(folder);
            setup.args(line.split_whitespace());
            setup.env("VROT_SWTPM_CONFIG", domain.configuration()?);
            let said = said(&mut setup)?;
            if said.status != 0 {
                return Ok(said);
            }
        }
        let none = String::new();
        Ok(Said {
            status: 0,
            out: none.clone(),
            err: none,
        })
    };
    let socket = peer.folder.with_extension("sock");
    let start_peer = || -> Result<Child> {
        let process = Command::new("swtpm")
            .args(["socket", "--tpm2", "--terminate", "--tpmstate"])
            .arg(format!("dir={}", peer.folder.display()))
            .arg("--ctrl")
            .arg(format!("type=unixio,path={}", socket.display()))
            .spawn()?;
        wait_until("swtpm's socket", || Ok(is_listened_at(&socket)))?;
        Ok(process)
    };

    let mut found = Vec::new();
    for (line, is_first) in [
        ("--createek --pcr-banks sha384,sha256", true),
        ("--reconfigure --pcr-banks sha1", false),
        ("--reconfigure --pcr-banks sha256,sha512", false),
        ("--reconfigure --pcr-banks sha256,sha512", false),
    ] {
        let done = set_up(line)?;
        assert_eq!(done.status, 0, "{line}: {}", done.err);
        let mut process = domain.start_ending_with_vmm()?;
        let mut swtpm = start_peer()?;
        if is_first {
            define_index(&mut Vmm::attach(&process.socket)?, INDEX)?;
            define_index(&mut Vmm::attach(&socket)?, INDEX)?;
            process.ended()?;
            swtpm.wait()?;
            process = domain.start_ending_with_vmm()?;
            swtpm = start_peer()?;
        }
        let (ours, theirs) = (banks(&process.socket)?, banks(&socket)?);
        assert_eq!(hex::encode(&ours), hex::encode(&theirs), "{line}");
        process.ended()?;
        swtpm.wait()?;
        found.push(ours);
    }
    ensure!(found[0] != found[1] && found[1] != found[2] && found[2] == found[3]);
    // A line for each change, and none where nothing changed.
    let mut changes = host.audit()?;
    changes.retain(|line| line["event"] == "pcr-banks-changed");
    let told: Vec<_> = changes.iter().map(|line| &line["banks"]).collect();
    let expected = [
        json!(["sha384", "sha256"]),
        json!(["sha1"]),
        json!(["sha256", "sha512"]),
    ];
    assert_eq!(told, expected.iter().collect::<Vec<_>>());
    ensure!(
        changes
            .iter()
            .all(|line| line["vrot"] == changes[0]["vrot"])
    );

    // Not under a VM.
    let process = domain.start()?;
    let vmm = Vmm::attach(&process.socket)?;
    let refused = set_up("--reconfigure --pcr-banks sha1")?;
    assert_eq!(refused.status, 1);
    ensure!(refused.err.contains("stay as they are"), "{}", refused.err);
    drop(vmm);
    Ok(())
}
