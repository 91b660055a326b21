//! `vtpm-backend` without a manager, as a drop-in for other software TPMs.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, ensure};
use test_support::process::Process;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;
use vrot_tests::guest::{Guest, GuestSpec, TpmDevice};
use vrot_tests::guest_image::{Contents, GuestImage};

use crate::measured::measured;

/// A running backend.
struct Backend {
    process: Process,
    control: PathBuf,
    data: PathBuf,
}

impl Backend {
    fn start(folder: &RunFolder, number: u32) -> Result<Self> {
        let state = folder.join("state");
        fs::create_dir_all(&state)?;
        let data = folder.join("tpm");
        // Where tpm2-tss looks for the control channel of `swtpm:path=…/tpm`.
        let control = folder.join("tpm.ctrl");
        let mut command = Command::new(program("vtpm-backend")?);
        command
            .arg("--control")
            .arg(&control)
            .arg("--data")
            .arg(&data)
            .arg("--state")
            .arg(&state);
        let log = folder.log(&format!("backend-{number}.log"));
        let mut process = Process::start("vtpm-backend", command, &log)?;
        // The files of its sockets may be those of the one before, which could not remove them.
        process.wait_until("the backend", Duration::from_secs(60), || {
            let said = fs::read_to_string(&log).unwrap_or_default();
            Ok(said.contains("ready").then_some(()))
        })?;
        Ok(Self {
            process,
            control,
            data,
        })
    }

    fn tool(&self, name: &str) -> Tool {
        Tool::new(name).env(
            "TPM2TOOLS_TCTI",
            format!("swtpm:path={}", self.data.display()),
        )
    }
}

#[test]
fn a_guest_boots_measured_with_tpm_crb() -> Result<()> {
    let folder = RunFolder::create("backend-crb")?;
    let backend = Backend::start(&folder, 1)?;
    let image = GuestImage::build(Contents::ServiceAndTools)?;
    let spec = GuestSpec::new(&image)
        .tpm(TpmDevice::Crb.arguments(&backend.control))
        .with_shell();
    let mut guest = Guest::boot(&folder, "guest", &spec)?;
    let first = measured(&guest, &folder)?;

    // A reset starts the TPM anew: the same boot gives the same values.
    guest.reset()?;
    assert_eq!(measured(&guest, &folder)?, first);
    guest.power_off()
}

#[test]
fn stock_tools_on_the_host_use_it_and_its_state_lasts() -> Result<()> {
    let folder = RunFolder::create("backend-tools")?;
    let mut backend = Backend::start(&folder, 1)?;
    backend.tool("tpm2_startup").arg("-c").run()?;
    let pcrs = backend.tool("tpm2_pcrread").arg("sha256:0").text()?;
    ensure!(pcrs.contains("0x0000000000000000"), "{pcrs}");
    backend
        .tool("tpm2_nvdefine")
        .args(["-Q", "-C", "o", "-s", "8", "0x01500001"])
        .run()?;
    let content = folder.join("content");
    fs::write(&content, b"remember")?;
    backend
        .tool("tpm2_nvwrite")
        .args(["-Q", "-C", "o", "0x01500001", "-i"])
        .arg(&content)
        .run()?;
    backend.tool("tpm2_shutdown").arg("-c").run()?;
    backend.process.stop()?;

    let backend = Backend::start(&folder, 2)?;
    backend.tool("tpm2_startup").arg("-c").run()?;
    let read = backend
        .tool("tpm2_nvread")
        .args(["-C", "o", "0x01500001"])
        .run()?;
    assert_eq!(read, b"remember");
    Ok(())
}
