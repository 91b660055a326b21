//! VMMs that die, hang and lie, and hosts that remove what is in use: the TPM goes on, and nothing is left
//! behind. `VROT_ATTACHMENTS` sets how often VMMs come and go.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::random_commands::number;
use crate::support::i2c::I2cChannel;
use crate::support::rings::{BUFFER, Channel, Guest, NEXT, Vmm, WRITE};
use crate::support::{Commands, Emulator, STARTUP, code, command, extend, pcr, words};

const VIRTIO: [&str; 2] = ["virtio-tpm", "virtio-i2c"];
/// How often VMMs come and go in a run of `make test`.
const ATTACHMENTS: u64 = 300;
/// What allocators keep, in KiB: less than a page for each.
const KEPT: u64 = 1024;
const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];
const PATIENCE: Duration = Duration::from_secs(60);

/// A guest's command by whichever device.
fn execute(device: &str, guest: &mut Guest, vmm: &Vmm, command: &[u8]) -> Result<Vec<u8>> {
    match device {
        "virtio-tpm" => Channel(guest, vmm).execute(command),
        _ => I2cChannel(guest, vmm).execute(command),
    }
}

#[test]
fn vmms_that_come_and_go_leave_no_descriptor_and_no_memory_behind() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut half = 0;
    nothing_is_left(&mut emulator, |emulator| {
        let mut vmm = emulator.attach_and_init()?;
        ensure!(code(&vmm.execute(&STARTUP)?) == 0);
        half += 1;
        // Every second one dies in the middle of something.
        match half % 4 {
            1 => vmm.data.write_all(&GET_RANDOM[..7])?,
            3 => vmm.control.write_all(&words(&[13, 0, 1, 4096]))?,
            _ => {}
        }
        Ok(())
    })?;
    ensure!(code(&emulator.attach_and_init()?.execute(&STARTUP)?) == 0);
    Ok(())
}

#[test]
fn vmms_that_share_memory_leave_none_of_it_behind() -> Result<()> {
    for device in VIRTIO {
        let folder = tempfile::tempdir()?;
        let mut emulator = Emulator::virtio(folder.path(), device)?;
        let mut guest = Guest::new()?;
        let socket = folder.path().join("vhost-user.sock");
        nothing_is_left(&mut emulator, |_| {
            let vmm = guest.connect(&socket, guest.answered()?)?;
            execute(device, &mut guest, &vmm, &GET_RANDOM)?;
            Ok(())
        })?;
    }
    Ok(())
}

/// Has this happen over and over, and counts what the emulator holds before and after.
fn nothing_is_left(
    emulator: &mut Emulator,
    mut happens: impl FnMut(&mut Emulator) -> Result<()>,
) -> Result<()> {
    for _ in 0..50 {
        happens(emulator)?;
    }
    let (descriptors, memory) = emulator.holds()?;
    for count in 0..number("VROT_ATTACHMENTS", ATTACHMENTS)? {
        happens(emulator).with_context(|| format!("the {count}th time"))?;
    }
    // The last ones are closed beside the answers.
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (open, now) = emulator.holds()?;
        if open <= descriptors && now <= memory + KEPT {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline,
            "{open} descriptors, not {descriptors}; {now} KiB, not {memory}"
        );
        sleep(Duration::from_millis(5));
    }
}

/// Both sockets' files, while a VMM and a tool are connected by them.
#[test]
fn removed_sockets_cost_no_vmm_its_tpm() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    ensure!(code(&vmm.execute(&STARTUP)?) == 0);
    extend(&mut vmm)?;
    let measured = pcr(&mut vmm)?;
    fs::remove_file(folder.path().join("ours.sock"))?;
    ensure!(pcr(&mut vmm)? == measured);
    ensure!(vmm.control(&words(&[4]), 8)? == [0; 8]);
    drop(vmm);
    ensure!(emulator.is_alive()?);
    // Nobody finds it any more, and it ends as ever.
    ensure!(emulator.end(nix::sys::signal::Signal::SIGTERM)?.success());
    let mut emulator = Emulator::ours(folder.path())?;
    ensure!(code(&emulator.attach_and_init()?.execute(&STARTUP)?) == 0);
    for device in VIRTIO {
        let folder = tempfile::tempdir()?;
        let mut emulator = Emulator::virtio(folder.path(), device)?;
        let mut guest = Guest::new()?;
        let vmm = guest.connect(&folder.path().join("vhost-user.sock"), 0)?;
        for name in ["vhost-user.sock", "ours.sock"] {
            fs::remove_file(folder.path().join(name))?;
        }
        ensure!(
            code(&execute(device, &mut guest, &vmm, &STARTUP)?) == 0,
            "{device}"
        );
        ensure!(
            code(&execute(device, &mut guest, &vmm, &GET_RANDOM)?) == 0,
            "{device}"
        );
        drop(vmm);
        ensure!(
            emulator.end(nix::sys::signal::Signal::SIGTERM)?.success(),
            "{device}"
        );
    }
    Ok(())
}

/// Of each kind of message: the announced length is more than there is memory.
#[test]
fn a_message_of_four_gigabytes_costs_its_vmm_the_connection_and_nothing_else() -> Result<()> {
    for device in VIRTIO {
        let folder = tempfile::tempdir()?;
        let mut emulator = Emulator::virtio(folder.path(), device)?;
        let socket = folder.path().join("vhost-user.sock");
        let (_, before) = emulator.holds()?;
        for request in 0..=50_u32 {
            let header = [request, 1, u32::MAX].map(u32::to_le_bytes);
            let mut stream = UnixStream::connect(&socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            // It may be refused before all of it was sent.
            let _ = stream.write_all(header.as_flattened());
            let closed = stream.read(&mut [0; 16]);
            ensure!(
                matches!(closed, Ok(0))
                    || closed
                        .is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset),
                "{device}: message {request} is answered"
            );
        }
        let (_, after) = emulator.holds()?;
        ensure!(
            after <= before + KEPT,
            "{device}: {before} KiB, then {after}"
        );
        let mut guest = Guest::new()?;
        let vmm = guest.connect(&socket, 0)?;
        ensure!(code(&execute(device, &mut guest, &vmm, &STARTUP)?) == 0);
        ensure!(emulator.is_alive()?);
    }
    Ok(())
}

#[test]
fn a_vmm_that_takes_no_interrupts_is_served_all_the_same() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::virtio_tpm(folder.path())?;
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&folder.path().join("vhost-user.sock"), 0)?;
    // Its counter is full: to write one more would wait for a reader.
    vmm.call.write(u64::MAX - 1)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    for _ in 0..3 {
        ensure!(code(&Channel(&mut guest, &vmm).execute(&GET_RANDOM)?) == 0);
    }
    // The host has its turn as well.
    drop(emulator.attach()?);
    Ok(())
}

/// A VMM that stands still has not stopped its queue: what is offered meanwhile is served, and a second
/// one is turned away; when it is killed, the next one is served.
#[test]
fn a_vmm_that_stands_still_keeps_its_place_until_it_is_gone() -> Result<()> {
    for device in VIRTIO {
        let folder = tempfile::tempdir()?;
        let _emulator = Emulator::virtio(folder.path(), device)?;
        let socket = folder.path().join("vhost-user.sock");
        let mut guest = Guest::new()?;
        let vmm = guest.connect(&socket, 0)?;
        ensure!(code(&execute(device, &mut guest, &vmm, &STARTUP)?) == 0);
        // Said to nobody: the kick is the guest's, not the VMM's.
        guest.write(BUFFER, &command(0x17b, &[0, 8]))?;
        guest.describe(&[(BUFFER, 12, NEXT, 1), (BUFFER, 4096, WRITE, 0)])?;
        guest.offer(0)?;
        vmm.kick.write(1)?;
        guest.used()?;
        let mut second = UnixStream::connect(&socket)?;
        second.set_read_timeout(Some(PATIENCE))?;
        let _ = second.write_all([1_u32, 1, 0].map(u32::to_le_bytes).as_flattened());
        ensure!(
            matches!(second.read(&mut [0; 20]), Ok(0) | Err(_)),
            "{device}"
        );
        ensure!(code(&execute(device, &mut guest, &vmm, &GET_RANDOM)?) == 0);
        drop(vmm);
        let vmm = guest.connect(&socket, guest.answered()?)?;
        ensure!(code(&execute(device, &mut guest, &vmm, &GET_RANDOM)?) == 0);
    }
    Ok(())
}
