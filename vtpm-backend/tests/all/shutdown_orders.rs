//! Every order of `TPM2_Shutdown`, something after it, a loss of power and `TPM2_Startup`: what the TPM
//! answers and what is left of it, beside swtpm.

use anyhow::Result;

use crate::support::{
    Emulator, INIT, STARTUP, STOP, Vmm, code, command, extend, pcr, with_password, words,
};

/// Of what a state has to come back that is a PCR of the boot.
const BOOT_PCR: u32 = 7;
const STATE: u8 = 1;
const CLEAR: u8 = 0;

/// What a guest finds: the response code of its `TPM2_Startup`, PCR 7, PCR 16, and how often the TPM was
/// reset and restarted.
type Found = (u32, Vec<u8>, Vec<u8>, Vec<u8>);

#[test]
fn every_order_of_shutdown_and_startup_leaves_what_it_leaves_of_swtpm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let (mut ours, mut theirs) = (
        Emulator::ours(folder.path())?,
        Emulator::swtpm(folder.path())?,
    );
    let (mut our, mut their) = (ours.attach_and_init()?, theirs.attach_and_init()?);
    let mut different = Vec::new();
    for shutdown in [None, Some(CLEAR), Some(STATE)] {
        for between in ["nothing", "TPM2_GetRandom", "TPM2_PCR_Extend"] {
            for startup in [CLEAR, STATE] {
                let case = format!("Shutdown {shutdown:?}, {between}, Startup {startup}");
                let [our, their] =
                    [&mut our, &mut their].map(|vmm| order(vmm, shutdown, between, startup));
                if our? != their? {
                    different.push(case);
                }
            }
        }
    }
    // A guest that measures after it has said that it sleeps: where swtpm takes back what was said, and the
    // next start is a reset, ours keeps to it with what was measured. The host may use the TPM meanwhile.
    let after_measuring = |startup| format!("Shutdown Some(1), TPM2_PCR_Extend, Startup {startup}");
    assert_eq!(different, [CLEAR, STATE].map(after_measuring));
    Ok(())
}

fn order(vmm: &mut Vmm, shutdown: Option<u8>, between: &str, startup: u8) -> Result<Found> {
    // From the same beginning: a reset, and something measured.
    power(vmm)?;
    vmm.execute(&STARTUP)?;
    extend_boot(vmm)?;
    extend(vmm)?;
    let clock = counts(vmm)?;
    if let Some(kind) = shutdown {
        assert_eq!(code(&vmm.execute(&command(0x145, &[0, kind]))?), 0);
    }
    match between {
        "TPM2_GetRandom" => drop(vmm.execute(&command(0x17b, &[0, 8]))?),
        "TPM2_PCR_Extend" => extend_boot(vmm)?,
        _ => {}
    }
    power(vmm)?;
    let started = code(&vmm.execute(&command(0x144, &[0, startup]))?);
    if started != 0 {
        vmm.execute(&STARTUP)?;
    }
    let boot = vmm.execute(&command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 0x80, 0, 0]))?;
    let boot = boot.last_chunk::<32>().map(|digest| digest.to_vec());
    // How many more.
    let now = counts(vmm)?;
    let more = now
        .iter()
        .zip(&clock)
        .map(|(now, then)| now.wrapping_sub(*then));
    Ok((started, boot.unwrap_or_default(), pcr(vmm)?, more.collect()))
}

fn extend_boot(vmm: &mut Vmm) -> Result<()> {
    let digests = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    assert_eq!(
        code(&vmm.execute(&with_password(0x182, &[BOOT_PCR], &digests))?),
        0
    );
    Ok(())
}

/// As QEMU does it.
fn power(vmm: &mut Vmm) -> Result<()> {
    assert_eq!(vmm.control(&words(&[STOP]), 4)?, [0; 4]);
    assert_eq!(vmm.control(&words(&[INIT, 0]), 4)?, [0; 4]);
    Ok(())
}

/// The lowest bytes of resetCount and restartCount (`TPM2_ReadClock`: header, time, clock, both counts).
fn counts(vmm: &mut Vmm) -> Result<Vec<u8>> {
    let response = vmm.execute(&command(0x181, &[]))?;
    Ok([29, 33]
        .iter()
        .filter_map(|at| response.get(*at).copied())
        .collect())
}
