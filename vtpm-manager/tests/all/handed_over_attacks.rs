//! Folders that are copied, moved, lost or another's, and users who have no business with them.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::os::unix::process::CommandExt;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use test_support::programs::install;
use vrot_handover::channel::Channel;
use vrot_handover::message::{FromManager, ToManager, Wanted};
use vrot_handover::set_up::Existing;

use crate::support::stand_in::Domain;
use crate::support::vmm::{Vmm, command};
use crate::support::{Host, Said, TENANT, program, said};

/// A user that nobody is.
const STRANGER: u32 = 54_012;

fn host(more: &str) -> Result<Host> {
    Host::enrolled_with(&format!("[swtpm]\ntenant = \"{TENANT}\"\n{more}"))
}

fn ask(domain: &Domain, message: &ToManager, shown: &File) -> Result<FromManager> {
    let channel = Channel::connect(&domain.manager)?;
    channel.send(message, Some(shown.as_fd()))?;
    Ok(channel.receive()?.context("no answer")?.message()?)
}

fn copy(domain: &Domain, name: &str) -> Result<Domain> {
    let folder = domain.folder.with_file_name(name);
    let copied = said(Command::new("cp").arg("-a").args([&domain.folder, &folder]))?;
    ensure!(copied.status == 0, "{}", copied.err);
    Ok(domain.in_folder(&folder))
}

#[test]
fn a_copy_of_a_folder_is_refused_and_a_folder_that_was_renamed_is_not() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    let clone = copy(&domain, "clone")?;
    for refused in [clone.start_refused()?, clone.refused(Existing::Keep)?] {
        ensure!(refused.contains("is a copy"), "{refused}");
        ensure!(refused.contains("vtpmctl accept-folder"), "{refused}");
    }
    let moved = domain.in_folder(&domain.folder.with_file_name("moved"));
    fs::rename(&domain.folder, &moved.folder)?;
    let mut process = moved.start()?;
    process.signal(Signal::SIGTERM)?;
    process.ended()?;
    // By a symbolic link it is the same folder.
    symlink(&moved.folder, &domain.folder)?;
    assert_eq!(domain.set_up(Existing::Keep)?.vrot, made.vrot);
    // The file is another matter: a link would show another VM's.
    let thief = Domain::new(&host, "thief")?;
    symlink(
        moved.folder.join("vrot.json"),
        thief.folder.join("vrot.json"),
    )?;
    let refused = thief.start_refused()?;
    ensure!(refused.contains("vrot.json` cannot be used"), "{refused}");
    fs::remove_file(thief.folder.join("vrot.json"))?;
    fs::hard_link(
        moved.folder.join("vrot.json"),
        thief.folder.join("vrot.json"),
    )?;
    let refused = thief.start_refused()?;
    ensure!(refused.contains("no file of its own"), "{refused}");
    Ok(())
}

#[test]
fn a_restored_folder_is_served_once_an_operator_says_so_and_then_the_other_is_not() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let vrot = domain.set_up(Existing::Keep)?.vrot.to_string();
    let restored = copy(&domain, "restored")?;
    host.ctl(["accept-folder", &vrot])?;
    let mut process = restored.start()?;
    process.signal(Signal::SIGTERM)?;
    process.ended()?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("is a copy"), "{refused}");
    Ok(())
}

#[test]
fn a_set_up_does_not_take_the_vrot_whose_restored_folder_is_awaited() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    let mut process = domain.start()?;
    process.signal(Signal::SIGTERM)?;
    process.ended()?;
    let restored = copy(&domain, "restored")?;
    host.ctl(["accept-folder", &made.vrot.to_string()])?;
    // Whoever has the path has no token.
    fs::remove_file(domain.folder.join("vrot.json"))?;
    let refused = domain.refused(Existing::Keep)?;
    ensure!(refused.contains("is kept"), "{refused}");
    ensure!(!domain.folder.join("vrot.json").exists());
    // The folder that was restored has it.
    restored.start()?;
    Ok(())
}

#[test]
fn a_vrot_is_not_deleted_for_one_that_cannot_be_made() -> Result<()> {
    let host = host("")?;
    let mut domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    let taken = host.create()?;
    domain.vm = taken.parse()?;
    let refused = domain.refused(Existing::Replace)?;
    ensure!(refused.contains("has vRoT"), "{refused}");
    assert_eq!(
        host.json(["show", &made.vrot.to_string()])?["state"],
        "assigned"
    );
    domain.start()?;
    Ok(())
}

#[test]
fn a_vrot_with_a_vmm_is_not_started_anew_though_its_process_is_not_back_yet() -> Result<()> {
    let mut host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    let process = domain.start()?;
    let mut vmm = Vmm::attach(&process.socket)?;
    let backend = host.backend(&made.vm.to_string())?;
    host.crash()?;
    process.signal(Signal::SIGSTOP)?;
    host.start_again()?;
    let refused = domain.start_refused();
    process.signal(Signal::SIGCONT)?;
    let refused = refused?;
    ensure!(refused.contains("a VMM is attached"), "{refused}");
    assert_eq!(host.backend(&made.vm.to_string())?, backend);
    // TPM2_GetRandom
    vmm.succeed(&command(0x17b, &[0, 8]))?;
    Ok(())
}

#[test]
fn a_folder_of_another_host_or_of_a_deleted_vrot_is_refused_and_nothing_is_reset() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    let file = domain.folder.join("vrot.json");
    let before = fs::read_to_string(&file)?;
    host.ctl(["delete", &made.vrot.to_string()])?;
    for refused in [domain.start_refused()?, domain.refused(Existing::Keep)?] {
        ensure!(refused.contains("was deleted on this host"), "{refused}");
    }
    let foreign = before.replace("host-1.test.example", "host-2.test.example");
    ensure!(foreign != before, "{before}");
    fs::write(&file, &foreign)?;
    for refused in [domain.start_refused()?, domain.refused(Existing::Keep)?] {
        ensure!(
            refused.contains("on host `host-2.test.example`"),
            "{refused}"
        );
        ensure!(refused.contains("nothing was reset"), "{refused}");
    }
    assert_eq!(fs::read_to_string(&file)?, foreign);
    let vrots = host.json(["list"])?;
    assert_eq!(vrots["vrots"], serde_json::json!([]));
    // Refusals are in the audit log.
    let refused = host.audit()?.into_iter();
    ensure!(refused.filter(|line| line["event"] == "refused").count() >= 2);
    Ok(())
}

#[test]
fn a_wrong_token_opens_nothing() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    domain.set_up(Existing::Keep)?;
    let file = domain.folder.join("vrot.json");
    let mut content: serde_json::Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
    content["token"] = "00".repeat(32).into();
    // In its place: the same file with another content.
    fs::write(&file, content.to_string())?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("is not the file of vRoT"), "{refused}");
    // Nor does the number of a vRoT that was not made for a folder.
    let vm = host.create()?;
    content["vrot"] = host.json(["show", &vm])?["vrot"].clone();
    fs::write(&file, content.to_string())?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("is not the file of vRoT"), "{refused}");
    Ok(())
}

#[test]
fn a_secret_that_the_launcher_gave_is_a_lock_of_its_folder() -> Result<()> {
    let host = host("")?;
    let mut domain = Domain::new(&host, "web")?;
    domain.secret = Some("the launcher's");
    domain.set_up(Existing::Keep)?;
    let mut process = domain.start()?;
    process.signal(Signal::SIGTERM)?;
    process.ended()?;
    for wrong in [None, Some("another")] {
        domain.secret = wrong;
        for refused in [domain.start_refused()?, domain.refused(Existing::Keep)?] {
            ensure!(refused.contains("or the secret"), "{refused}");
        }
    }
    // Where there was none, one that comes is none of it either.
    let mut open = Domain::new(&host, "open")?;
    open.set_up(Existing::Keep)?;
    open.secret = Some("another");
    let refused = open.start_refused()?;
    ensure!(refused.contains("or the secret"), "{refused}");
    Ok(())
}

#[test]
fn the_vrot_of_a_removed_folder_never_comes_back_and_is_kept_until_it_is_deleted() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    let mut process = domain.start()?;
    process.signal(Signal::SIGTERM)?;
    process.ended()?;
    fs::remove_dir_all(&domain.folder)?;
    fs::create_dir(&domain.folder)?;
    let refused = domain.refused(Existing::Keep)?;
    ensure!(refused.contains("is kept"), "{refused}");
    ensure!(!domain.folder.join("vrot.json").exists());
    host.ctl(["delete", &made.vrot.to_string()])?;
    let anew = domain.set_up(Existing::Keep)?;
    ensure!(anew.is_new && anew.vrot != made.vrot);
    // Nor does a VM get a second one, in another folder.
    let second = domain.in_folder(&domain.folder.with_file_name("second"));
    fs::create_dir(&second.folder)?;
    let refused = second.refused(Existing::Keep)?;
    ensure!(refused.contains("has vRoT"), "{refused}");
    Ok(())
}

/// libvirt removes the folder when the first start of a domain fails.
#[test]
fn a_vrot_that_never_ran_goes_with_its_folder_and_the_next_set_up_has_another() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    fs::remove_dir_all(&domain.folder)?;
    fs::create_dir(&domain.folder)?;
    // Not by a mere start.
    let refused = domain.start_refused()?;
    ensure!(refused.contains("`vrot.json` is missing"), "{refused}");
    let anew = domain.set_up(Existing::Keep)?;
    ensure!(anew.is_new && anew.vrot != made.vrot && anew.vm == made.vm);
    host.refused(["show", &made.vrot.to_string()])?;
    domain.start()?;
    Ok(())
}

#[test]
fn the_vrot_of_a_removed_folder_is_deleted_where_the_host_has_it_so() -> Result<()> {
    let host = host("vanished = \"delete\"\n")?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    fs::remove_dir_all(&domain.folder)?;
    fs::create_dir(&domain.folder)?;
    // Not by a mere start.
    let refused = domain.start_refused()?;
    ensure!(refused.contains("`vrot.json` is missing"), "{refused}");
    let anew = domain.set_up(Existing::Keep)?;
    ensure!(anew.is_new && anew.vrot != made.vrot && anew.vm == made.vm);
    host.refused(["show", &made.vrot.to_string()])?;
    let audit = host.audit()?;
    ensure!(audit.iter().any(|line| {
        line["event"] == "folder-vanished" && line["vrot"] == made.vrot.to_string()
    }));
    Ok(())
}

#[test]
fn a_set_up_that_was_cut_short_is_finished_by_the_next() -> Result<()> {
    let mut host = host("")?;
    let domain = Domain::new(&host, "web")?;
    let wanted = Wanted {
        vm: Some(domain.vm.into_bytes().into()),
        name: None,
        unasked: false,
    };
    let folder = File::open(&domain.folder)?;
    let answer = ask(&domain, &ToManager::SetUp { wanted, lock: None }, &folder)?;
    ensure!(matches!(answer, FromManager::Made { .. }), "{answer:?}");
    // The program has gone before it wrote the file, and then the manager.
    host.crash()?;
    host.start_again()?;
    domain.set_up(Existing::Keep)?;
    let vrots = host.json(["list"])?;
    assert_eq!(vrots["vrots"].as_array().map(Vec::len), Some(1));
    domain.start()?;
    Ok(())
}

#[test]
fn one_folder_has_one_process_at_a_time() -> Result<()> {
    let host = host("")?;
    let domain = Domain::new(&host, "web")?;
    domain.set_up(Existing::Keep)?;
    let mut first = domain.start()?;
    let refused = domain.start_refused()?;
    ensure!(refused.contains("another process stands for"), "{refused}");
    ensure!(first.is_alive()?);
    // One that is killed in the middle of its start is no hindrance.
    first.signal(Signal::SIGTERM)?;
    first.ended()?;
    for _ in 0..5 {
        let hasty = domain.begin(false)?;
        hasty.signal(Signal::SIGKILL)?;
    }
    domain.start()?;
    Ok(())
}

#[test]
fn only_users_that_are_named_hand_over_and_only_what_is_theirs() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let host = host(&format!("users = [{STRANGER}]\n"))?;
    let domain = Domain::new(&host, "web")?;
    let theirs = Domain::new(&host, "theirs")?;
    chown(&theirs.folder, Some(STRANGER), Some(STRANGER))?;
    // Who is not named is turned away before a word.
    let stranger = Domain::new(&host, "stranger")?;
    chown(&stranger.folder, Some(STRANGER + 1), None)?;
    let turned_away = stranger.start_refused_to(STRANGER + 1)?;
    ensure!(turned_away.contains("may not hand over"), "{turned_away}");
    // Who is named hands over no folder of another user, nor one in which others can write.
    fs::set_permissions(&domain.folder, fs::Permissions::from_mode(0o755))?;
    let refused = domain.start_refused_to(STRANGER)?;
    ensure!(refused.contains("another user's folder"), "{refused}");
    fs::set_permissions(&theirs.folder, fs::Permissions::from_mode(0o777))?;
    let refused = theirs.start_refused_to(STRANGER)?;
    ensure!(refused.contains("others can write"), "{refused}");
    // A folder of its own it does: all but the VMM's socket is made, for which it has no place.
    fs::set_permissions(&theirs.folder, fs::Permissions::from_mode(0o700))?;
    let served = theirs.start_refused_to(STRANGER)?;
    ensure!(served.contains("cannot be listened on"), "{served}");
    let vrots = host.json(["list"])?;
    assert_eq!(vrots["vrots"].as_array().map(Vec::len), Some(1));
    // A file that others can read is nobody's in particular.
    let file = theirs.folder.join("vrot.json");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644))?;
    let refused = theirs.start_refused_to(STRANGER)?;
    ensure!(refused.contains("others can read"), "{refused}");
    Ok(())
}

#[test]
fn users_who_hand_over_do_not_get_at_each_others_vrots_by_the_path_or_the_vms_number() -> Result<()>
{
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let host = host(&format!("users = [{STRANGER}]\nvanished = \"delete\"\n"))?;
    let domain = Domain::new(&host, "web")?;
    let made = domain.set_up(Existing::Keep)?;
    // The kernel names the same path to a user who has mounted something else there.
    fs::remove_dir_all(&domain.folder)?;
    fs::create_dir(&domain.folder)?;
    fs::set_permissions(&domain.folder, fs::Permissions::from_mode(0o700))?;
    chown(&domain.folder, Some(STRANGER), Some(STRANGER))?;
    let refused = set_up_as_stranger(&domain, &["--vmid", &format!("web:{}", made.vm)])?;
    assert_eq!(refused.status, 1);
    ensure!(refused.err.contains("is taken"), "{}", refused.err);
    // Whose it is, is none of the user's business.
    ensure!(
        !refused.err.contains(&made.vrot.to_string()),
        "{}",
        refused.err
    );
    let served = set_up_as_stranger(&domain, &[])?;
    assert_eq!(served.status, 0, "{}", served.err);
    let kept = host.json(["show", &made.vrot.to_string()])?;
    assert_eq!(kept["state"], "assigned");
    let vrots = host.json(["list"])?;
    assert_eq!(vrots["vrots"].as_array().map(Vec::len), Some(2));
    Ok(())
}

fn set_up_as_stranger(domain: &Domain, more: &[&str]) -> Result<Said> {
    let reached = domain.folder.with_extension("setup");
    install(&program("swtpm_setup")?, &reached)?;
    let mut command = Command::new(&reached);
    command.args(["--tpm2", "--createek", "--create-ek-cert", "--tpm-state"]);
    command.arg(&domain.folder);
    command
        .args(more)
        .env("VROT_SWTPM_CONFIG", domain.configuration()?);
    said(command.uid(STRANGER).gid(STRANGER).current_dir("/"))
}
