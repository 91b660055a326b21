//! A place for state is swtpm's and ours in turn, never at once: a folder, or one file; plain, or
//! encrypted; permanent and volatile state.

use std::path::Path;
use std::process::{Command, Stdio};

use anyhow::{Result, ensure};

use crate::support::{
    Emulator, SHUTDOWN, STARTUP, Vmm, code, command, extend, pcr, with_password, words,
};

const STORE_VOLATILE: u32 = 10;
const OWNER: u32 = 0x4000_0001;
/// TPM2B_AUTH, TPM2B_NV_PUBLIC: eight bytes at 0x01500000 for the owner.
const INDEX: &[u8] = &[
    0, 0, 0, 14, 0x01, 0x50, 0, 0, 0, 0x0b, 0x02, 0x02, 0, 0x02, 0, 0, 0, 8,
];

fn ours(folder: &Path, place: &str, key: Option<&str>) -> Result<Emulator> {
    let control = folder.join("ours.sock");
    let mut command = Command::new(env!("CARGO_BIN_EXE_vtpm-backend"));
    command.args(["--state", place, "--control"]).arg(&control);
    if let Some(key) = key {
        command.args(["--state-key", key]);
    }
    Emulator::start(&mut command, control)
}

fn swtpm(folder: &Path, place: &str, key: Option<&str>) -> Result<Emulator> {
    let control = folder.join("swtpm.sock");
    let mut command = Command::new("swtpm");
    command
        .args(["socket", "--tpm2", "--tpmstate"])
        .arg(format!("backend-uri={place}"))
        .arg("--ctrl")
        .arg(format!("type=unixio,path={}", control.display()));
    if let Some(key) = key {
        command.args(["--key", key]);
    }
    Emulator::start(&mut command, control)
}

/// PCR 16, and the public area of the index with its name.
fn look(vmm: &mut Vmm) -> Result<(Vec<u8>, Vec<u8>)> {
    let public = vmm.execute(&command(0x169, &words(&[0x0150_0000])))?;
    ensure!(code(&public) == 0, "{public:02x?}");
    Ok((pcr(vmm)?, public))
}

/// The state is kept, volatile state too, and the VMM is done.
fn put_aside(vmm: &mut Vmm) -> Result<()> {
    for request in [STORE_VOLATILE, SHUTDOWN] {
        assert_eq!(vmm.control(&words(&[request]), 4)?, [0; 4]);
    }
    Ok(())
}

#[test]
fn swtpm_goes_on_where_we_were_and_we_where_swtpm_was() -> Result<()> {
    for scheme in ["dir", "file"] {
        for encrypted in [false, true] {
            let folder = tempfile::tempdir()?;
            let place = format!("{scheme}://{}", folder.path().join("state").display());
            if scheme == "dir" {
                std::fs::create_dir(folder.path().join("state"))?;
            }
            let passphrase = folder.path().join("passphrase");
            std::fs::write(&passphrase, "it is long enough")?;
            let key = format!("pwdfile={},mode=aes-256-cbc", passphrase.display());
            let key = encrypted.then_some(key.as_str());
            let case = format!("{scheme}, encrypted: {encrypted}");

            let mut first = ours(folder.path(), &place, key)?;
            let mut vmm = first.attach_and_init()?;
            assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
            let define = with_password(0x12a, &[OWNER], INDEX);
            assert_eq!(code(&vmm.execute(&define)?), 0, "{case}");
            extend(&mut vmm)?;
            let seen = look(&mut vmm)?;
            put_aside(&mut vmm)?;
            // SIGKILL
            drop((vmm, first));

            let mut second = swtpm(folder.path(), &place, key)?;
            let mut vmm = second.attach_and_init()?;
            assert_eq!(look(&mut vmm)?, seen, "{case}");
            extend(&mut vmm)?;
            let seen = look(&mut vmm)?;
            // swtpm locks a file only if it is asked to.
            if scheme == "dir" {
                let refused = Command::new(env!("CARGO_BIN_EXE_vtpm-backend"))
                    .args(["--state", &place, "--control"])
                    .arg(folder.path().join("refused.sock"))
                    .stdin(Stdio::null())
                    .output()?;
                let says = String::from_utf8_lossy(&refused.stderr);
                ensure!(
                    !refused.status.success() && says.contains("in use"),
                    "{says}"
                );
            }
            put_aside(&mut vmm)?;
            drop((vmm, second));

            let mut third = ours(folder.path(), &place, key)?;
            let mut vmm = third.attach_and_init()?;
            assert_eq!(look(&mut vmm)?, seen, "{case}");
            if encrypted {
                drop((vmm, third));
                let mut without = ours(folder.path(), &place, None)?;
                ensure!(without.connect().is_err(), "it is opened without its key");
            }
        }
    }
    Ok(())
}
