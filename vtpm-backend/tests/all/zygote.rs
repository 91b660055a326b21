//! Backends that are forks of one process: alike, and yet each a TPM of its own.

use anyhow::{Result, bail, ensure};
use backend_link::admission::VmmAdmission;
use backend_link::frame::{receive, send};
use backend_link::transport::Transport;
use backend_link::zygote::{FromZygote, ToZygote};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::support::zygote::{Zygote, own_user};
use crate::support::{command, with_password};

const ENDORSEMENT: u32 = 0x4000_000b;

#[test]
fn two_backends_of_one_zygote_share_no_randomness_and_no_seed() -> Result<()> {
    let mut zygote = Zygote::start()?;
    let (one, two) = (zygote.spawn()?, zygote.spawn()?);
    // TPM2_GetRandom
    let random = command(0x17b, &[0, 32]);
    ensure!(one.execute(&random)? != two.execute(&random)?);
    let primary = create_primary();
    let (first, second) = (one.execute(&primary)?, two.execute(&primary)?);
    for response in [&first, &second] {
        ensure!(response.get(6..10) == Some(&[0; 4]), "{response:02x?}");
    }
    ensure!(first != second, "two TPMs with one endorsement seed");
    Ok(())
}

#[test]
fn the_end_of_a_backend_is_told_with_its_cause() -> Result<()> {
    let mut zygote = Zygote::start()?;
    let (killed, other) = (zygote.spawn()?, zygote.spawn()?);
    kill(Pid::from_raw(killed.process), Signal::SIGKILL)?;
    match receive(&mut zygote.manager)? {
        FromZygote::Ended { process, status } => {
            ensure!(process == killed.process);
            ensure!(status.contains("SIGKILL"), "{status}");
        }
        other => bail!("{other:?}"),
    }
    other.execute(&command(0x17b, &[0, 8]))?;
    Ok(())
}

#[test]
fn a_backend_without_a_folder_ends_and_the_next_one_is_spawned() -> Result<()> {
    let mut zygote = Zygote::start()?;
    let runtime = "/nonexistent/folder".to_owned();
    send(
        &mut zygote.manager,
        &ToZygote::Spawn {
            runtime,
            lock: None,
            admission: VmmAdmission::default(),
            uid: own_user(),
            transport: Transport::Emulator,
        },
    )?;
    let FromZygote::Spawned { process: unlucky } = receive(&mut zygote.manager)? else {
        bail!("not spawned");
    };
    match receive(&mut zygote.manager)? {
        FromZygote::Ended { process, status } => {
            ensure!(process == unlucky);
            ensure!(status == "exit status: 1", "{status}");
        }
        other => bail!("{other:?}"),
    }
    zygote.spawn()?;
    Ok(())
}

#[test]
fn a_zygote_ends_with_its_manager_and_backends_go_on() -> Result<()> {
    let mut zygote = Zygote::start()?;
    let backend = zygote.spawn()?;
    zygote.manager.shutdown(std::net::Shutdown::Both)?;
    ensure!(zygote.process.wait()?.success());
    backend.execute(&command(0x17b, &[0, 8]))?;
    Ok(())
}

/// TPM2_CreatePrimary of a P-256 storage key from the endorsement seed: the same seed gives the
/// same key.
fn create_primary() -> Vec<u8> {
    let sensitive = [0, 4, 0, 0, 0, 0];
    let ecc = [&[0, 0x23, 0, 0x0b][..], &0x0003_0072u32.to_be_bytes()].concat();
    // No policy; AES-128 CFB; no scheme; P-256; no derivation; no unique point.
    let rest = [
        0, 0, 0, 6, 0, 0x80, 0, 0x43, 0, 0x10, 0, 3, 0, 0x10, 0, 0, 0, 0,
    ];
    let public = [&ecc[..], &rest].concat();
    let length = [0, u8::try_from(public.len()).unwrap_or(u8::MAX)];
    let parameters = [&sensitive[..], &length, &public, &[0, 0], &[0; 4]].concat();
    with_password(0x131, &[ENDORSEMENT], &parameters)
}
