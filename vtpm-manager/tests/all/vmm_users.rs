//! VMMs of users other than the manager's: libvirt's QEMU is one.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::support::vmm::Vmm;
use crate::support::{Host, said, wait_until};

/// Users and groups that nobody is.
const LISTED: u32 = 54_001;
const UNLISTED: u32 = 54_002;
const VMM_GROUP: u32 = 54_003;
const OTHER_GROUP: u32 = 54_004;

#[test]
fn vmms_of_listed_users_attach_and_nobody_else_and_nowhere_else() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let host = Host::enrolled_with(&format!(
        "vmm_users = [{LISTED}, \"daemon\"]\nvmm_group = {VMM_GROUP}\n"
    ))?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let control = host.control(&vm)?;
    let manager = control.with_file_name("manager.sock");
    let capabilities = "0000000000017fff";
    assert_eq!(capability(&control, LISTED, VMM_GROUP)?, capabilities);
    let daemon = nix::unistd::User::from_name("daemon")?.context("a user of every Linux")?;
    assert_eq!(
        capability(&control, daemon.uid.as_raw(), VMM_GROUP)?,
        capabilities
    );
    // The group alone does not do, nor does the user alone.
    assert_eq!(capability(&control, UNLISTED, VMM_GROUP)?, "");
    let refused = capability(&control, LISTED, OTHER_GROUP)?;
    ensure!(refused.contains("Permission denied"), "{refused}");
    // Nor is there anything else to be had.
    let refused = capability(&manager, LISTED, VMM_GROUP)?;
    ensure!(refused.contains("Permission denied"), "{refused}");
    let folder = control.parent().context("a folder")?.metadata()?;
    assert_eq!(folder.permissions().mode() & 0o777, 0o710);
    wait_until("the log to tell of it", || {
        Ok(host.log().contains("was refused at the VMM's socket"))
    })?;
    // Who was turned away takes nobody's place.
    Vmm::attach(&control)?;
    Ok(())
}

#[test]
fn nobody_attaches_to_a_vrot_that_waits_for_its_vm() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let host = Host::enrolled_with(&format!(
        "vmm_users = [{LISTED}]\nvmm_group = {VMM_GROUP}\n[pool]\nsize = 1\ntenants = [\"acme\"]\n"
    ))?;
    let mut waiting = None;
    wait_until("a vRoT made ahead", || {
        let folders = fs::read_dir(host.path("run"))?.flatten();
        waiting = folders
            .map(|folder| folder.path().join("control.sock"))
            .find(|socket| socket.exists());
        Ok(waiting.is_some())
    })?;
    let refused = capability(&waiting.context("a socket")?, LISTED, VMM_GROUP)?;
    ensure!(refused.contains("Permission denied"), "{refused}");
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let control = host.control(&vm)?;
    assert_eq!(capability(&control, LISTED, VMM_GROUP)?, "0000000000017fff");
    Ok(())
}

/// What a VMM of this user and group hears of CMD_GET_CAPABILITY: the reply in hexadecimal, nothing
/// if it is turned away, or why it cannot connect.
fn capability(socket: &Path, uid: u32, gid: u32) -> Result<String> {
    let script = "$SIG{PIPE} = 'IGNORE'; socket(S, PF_UNIX, SOCK_STREAM, 0); \
                  connect(S, sockaddr_un($ARGV[0])) or die $!; \
                  syswrite(S, pack('N', 1)); sysread(S, $reply, 8); print unpack('H*', $reply // '')";
    let client = said(
        Command::new("perl")
            .args(["-MSocket", "-e", script])
            .arg(socket)
            .uid(uid)
            .gid(gid)
            .current_dir("/"),
    )
    .context("perl is needed for this test")?;
    Ok(client.out + &client.err)
}
