//! Whether guests run on KVM here, decided by running one.

use std::fs;
use std::time::Duration;

use anyhow::Result;
use test_support::programs::target_folder;
use test_support::run_folder::RunFolder;

use crate::guest::{Guest, GuestSpec, READY};
use crate::guest_image::{Contents, GuestImage};

/// How QEMU executes the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor's own virtualization.
    Kvm,
    /// QEMU's emulation: slower, and it works everywhere.
    Tcg,
}

impl Accelerator {
    /// The faster one that can carry a guest on this machine.
    ///
    /// `/dev/kvm` alone says nothing: there are machines where QEMU starts with it and a guest
    /// soon dies with an emulation failure. So a small guest is booted, and the answer is kept
    /// in `target/images/accelerator` (remove that file to have it asked again).
    pub fn choose() -> Result<Self> {
        let answer = target_folder()?.join("images").join("accelerator");
        match fs::read_to_string(&answer).as_deref().map(str::trim) {
            Ok("kvm") => return Ok(Self::Kvm),
            Ok("tcg") => return Ok(Self::Tcg),
            Ok(_) | Err(_) => {}
        }
        let chosen = if kvm_carries_a_guest()? {
            Self::Kvm
        } else {
            Self::Tcg
        };
        fs::write(&answer, format!("{}\n", chosen.name()))?;
        Ok(chosen)
    }

    /// QEMU's name for it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        }
    }

    /// The processor model that shows the guest what the accelerator can do.
    pub fn processor(self) -> &'static str {
        match self {
            Self::Kvm => "host",
            Self::Tcg => "max",
        }
    }
}

fn kvm_carries_a_guest() -> Result<bool> {
    if fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/kvm")
        .is_err()
    {
        return Ok(false);
    }
    let folder = RunFolder::create("accelerator")?;
    let spec = GuestSpec::new(&GuestImage::build(Contents::Bare)?);
    let Ok(mut guest) = Guest::start_with(&folder, "probe", &spec, Accelerator::Kvm) else {
        return Ok(false);
    };
    Ok(guest.wait_for_line(READY, PATIENCE).is_ok())
}

/// On KVM such a guest is up in two or three seconds.
const PATIENCE: Duration = Duration::from_secs(20);
