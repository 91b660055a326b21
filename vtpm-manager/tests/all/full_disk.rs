//! While the disk is full, a vRoT is stopped only if nothing is lost by it: its backend may have
//! the only copy of its state.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::support::vmm::{Vmm, command, define_index};
use crate::support::{Host, said, wait_until};

#[test]
fn on_a_full_disk_no_vrot_is_stopped_and_all_go_on_when_there_is_room() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vms = [host.create()?, host.create()?];
    let mut guests = Vec::new();
    for vm in &vms {
        host.ctl(["start", vm])?;
        guests.push((Vmm::attach(&host.control(vm)?)?, host.backend(vm)?));
    }
    let disk = SmallDisk::under_the_state_of(&mut host)?;

    disk.fill()?;
    for (vmm, _) in &mut guests {
        for index in INDICES {
            define_index(vmm, index)?;
        }
    }
    for (vm, (vmm, backend)) in vms.iter().zip(&mut guests) {
        for order in ["stop", "suspend"] {
            host.refused([order, vm])?;
            assert_eq!(host.json(["show", vm])?["state"], "running");
            assert_eq!(host.backend(vm)?, *backend);
            // TPM2_GetRandom: its guest does not wait any more.
            vmm.succeed(&command(0x17b, &[0, 8]))?;
        }
    }

    disk.make_room()?;
    for vm in &vms {
        wait_until("all state to be durable", || {
            Ok(host.json(["show", vm])?["backend"]["degraded"] == false)
        })?;
        host.ctl(["stop", vm])?;
        host.ctl(["start", vm])?;
        let mut vmm = Vmm::attach(&host.control(vm)?)?;
        for index in INDICES {
            // TPM2_NV_ReadPublic
            vmm.succeed(&command(0x169, &index.to_be_bytes()))?;
        }
    }
    Ok(())
}

const INDICES: std::ops::Range<u32> = 0x0150_0000..0x0150_0020;

/// A file system of its own for a host's state. It goes before the host does.
struct SmallDisk {
    at: PathBuf,
}

impl SmallDisk {
    fn under_the_state_of(host: &mut Host) -> Result<Self> {
        ensure!(
            nix::unistd::geteuid().is_root(),
            "this test mounts a file system: run it as root"
        );
        host.shut_down()?;
        let at = PathBuf::from(host.path("state"));
        let aside = host.path("state.aside");
        fs::rename(&at, &aside)?;
        fs::create_dir(&at)?;
        let mount = ["-t", "tmpfs", "-o", "size=64m,mode=700", "none"];
        let mounted = said(Command::new("mount").args(mount).arg(&at))?;
        ensure!(mounted.status == 0, "{}", mounted.err);
        let disk = Self { at };
        let copied = said(
            Command::new("cp")
                .arg("-a")
                .arg(format!("{aside}/."))
                .arg(&disk.at),
        )?;
        ensure!(copied.status == 0, "{}", copied.err);
        host.start_again()?;
        Ok(disk)
    }

    fn fill(&self) -> Result<()> {
        let mut filler = File::create(self.at.join("filler"))?;
        for size in [1 << 20, 1 << 12, 1] {
            while filler
                .write(&vec![0; size])
                .is_ok_and(|written| written == size)
            {}
        }
        let full = filler.write(&[0]).err().context("there is room still")?;
        assert_eq!(full.kind(), std::io::ErrorKind::StorageFull);
        Ok(())
    }

    fn make_room(&self) -> Result<()> {
        Ok(fs::remove_file(self.at.join("filler"))?)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}
