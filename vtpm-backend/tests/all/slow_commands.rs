//! Commands that take long: given up when the VMM says so, answered in time where it does not
//! wait, and out of others' way where they come by a queue.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, ToBackend};
use test_support::tpm_commands::rsa_key;
use tpm_wire::{MAX_SIZE, ResponseCode, read_frame};
use vhost::VhostBackend;

use crate::support::managed::{Backend, open, start_in, status};
use crate::support::rings::{Channel, Guest};
use crate::support::{Commands, Emulator, STARTUP, code, command, rings, words};

const GET_CAPABILITY: u32 = 0x17a;
const GET_RANDOM: u32 = 0x17b;
const FLUSH_CONTEXT: u32 = 0x165;
const CANCEL: u32 = 9;
/// What Linux waits for before it sends a command again (`tpm_transmit` of its 6.1), in milliseconds.
const LINUX_WAITS: [u64; 7] = [20, 40, 80, 160, 320, 640, 1280];

#[test]
fn a_key_generation_is_given_up_at_once_when_the_vmm_says_so() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours(folder.path())?;
    let mut vmm = emulator.attach_and_init()?;
    ensure!(code(&vmm.execute(&STARTUP)?) == 0);
    let mut given_up = 0;
    for number in 0..12 {
        vmm.data.write_all(&rsa_key(number))?;
        ensure!(vmm.control(&words(&[CANCEL]), 4)? == [0; 4]);
        let response = read_frame(&mut vmm.data, MAX_SIZE)?.context("an answer")?;
        match code(&response) {
            // A key that was found before the VMM was heard.
            0 => flush(&mut vmm, &response)?,
            code if code == ResponseCode::CANCELED.raw() => given_up += 1,
            code => anyhow::bail!("response code 0x{code:x}"),
        }
        // What the TPM went on with meanwhile leaves nothing behind.
        ensure!(transient_objects(&mut vmm)? == 0);
    }
    ensure!(given_up > 0, "{given_up} of 12");
    let response = vmm.execute(&rsa_key(99))?;
    ensure!(code(&response) == 0);
    flush(&mut vmm, &response)
}

#[test]
fn a_guest_whose_vmm_does_not_wait_gets_its_key_when_it_asks_again() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours_answering_within(folder.path(), 10)?;
    let mut vmm = emulator.attach_and_init()?;
    ensure!(code(&patiently(&mut vmm, &STARTUP)?) == 0);
    let mut told_to_retry = 0;
    for number in 0..8 {
        let command = rsa_key(number);
        let mut response = vmm.execute(&command)?;
        // On a machine that is busy with other tests a key may take longer than Linux waits.
        for wait in LINUX_WAITS.into_iter().chain([1280; 30]) {
            if code(&response) != ResponseCode::RETRY.raw() {
                break;
            }
            ensure!(response.len() == 10, "{} bytes", response.len());
            told_to_retry += 1;
            thread::sleep(Duration::from_millis(wait));
            response = vmm.execute(&command)?;
        }
        ensure!(code(&response) == 0, "0x{:x}", code(&response));
        flush(&mut vmm, &response)?;
    }
    ensure!(told_to_retry > 0, "each key was made in 10 ms");
    Ok(())
}

#[test]
fn no_answer_reaches_another_command_than_its_own() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours_answering_within(folder.path(), 10)?;
    let mut vmm = emulator.attach_and_init()?;
    ensure!(code(&patiently(&mut vmm, &STARTUP)?) == 0);
    let mut interrupted = 0;
    for number in 0..12 {
        let response = vmm.execute(&rsa_key(number))?;
        if code(&response) == 0 {
            flush(&mut vmm, &response)?;
            continue;
        }
        // A guest that wants something else now, and sizes tell whose answer it is.
        ensure!(code(&response) == ResponseCode::RETRY.raw());
        interrupted += 1;
        for length in [8, 16] {
            let random = patiently(&mut vmm, &get_random(length))?;
            ensure!(code(&random) == 0 && random.len() == 12 + usize::from(length));
        }
        ensure!(transient_objects(&mut vmm)? == 0, "the key stayed behind");
    }
    ensure!(interrupted > 0, "each key was made in 10 ms");
    Ok(())
}

#[test]
fn a_vmm_that_goes_in_the_middle_of_a_key_leaves_a_tpm_that_works() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let mut emulator = Emulator::ours_answering_within(folder.path(), 10)?;
    for number in 0..4 {
        let mut vmm = emulator.attach_and_init()?;
        ensure!(code(&patiently(&mut vmm, &STARTUP)?) == 0);
        ensure!(transient_objects(&mut vmm)? == 0);
        vmm.data.write_all(&rsa_key(number))?;
        match number {
            0 => {}
            1 => vmm.control.write_all(&words(&[CANCEL]))?,
            // More than there is room for, and half a command.
            2 => vmm.data.write_all(&get_random(8).repeat(40))?,
            _ => vmm.data.write_all(&[0x80, 1, 0, 0, 0, 12, 0])?,
        }
    }
    ensure!(emulator.is_alive()?);
    Ok(())
}

#[test]
fn a_key_that_is_made_by_a_queue_keeps_neither_manager_nor_vmm_waiting() -> Result<()> {
    let (backend, mut manager) = managed_virtio_tpm()?;
    let (mut guest, vmm) = guest_of(&backend)?;
    let (mut told, mut answered) = (0, 0);
    for number in 0..8 {
        // What the backend said by itself is not taken for an answer.
        execute(&mut manager, &get_random(8))?;
        guest.begin(&vmm, &rsa_key(number))?;
        let status = status(&mut manager)?;
        ensure!(status.attached);
        told += u32::from(guest.answered()? != guest.offered());
        let response = guest.end()?;
        ensure!(code(&response) == 0, "0x{:x}", code(&response));
        answered += 1;
        flush(&mut Channel(&mut guest, &vmm), &response)?;
    }
    ensure!(told > 0, "the manager waited for each of {answered} keys");
    Ok(())
}

#[test]
fn a_key_that_is_made_by_a_queue_gives_way_to_what_the_manager_orders() -> Result<()> {
    let (backend, mut manager) = managed_virtio_tpm()?;
    let (mut guest, vmm) = guest_of(&backend)?;
    let mut gave_way = 0;
    for number in 0..8 {
        guest.begin(&vmm, &rsa_key(number))?;
        ensure!(execute(&mut manager, &get_random(8))?.len() == 12 + 8);
        ensure!(guest.answered()? == guest.offered(), "it is still open");
        let response = guest.end()?;
        match code(&response) {
            0 => flush(&mut Channel(&mut guest, &vmm), &response)?,
            code if code == ResponseCode::RETRY.raw() => gave_way += 1,
            code => anyhow::bail!("response code 0x{code:x}"),
        }
        ensure!(transient_objects(&mut Channel(&mut guest, &vmm))? == 0);
    }
    ensure!(gave_way > 0, "the manager waited for each key");
    // Sent again, as Linux does, it is made.
    let mut guest = Channel(&mut guest, &vmm);
    let response = guest.execute(&rsa_key(0))?;
    ensure!(code(&response) == 0, "0x{:x}", code(&response));
    flush(&mut guest, &response)
}

#[test]
fn a_key_that_is_made_by_a_queue_is_not_given_up_for_whoever_connects() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _backend = Emulator::virtio_tpm(folder.path())?;
    let socket = folder.path().join("vhost-user.sock");
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&socket, 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    let mut turned_away = 0;
    for number in 0..8 {
        guest.begin(&vmm, &rsa_key(number))?;
        while guest.answered()? != guest.offered() {
            // Turned away while the key is made.
            let mut other = UnixStream::connect(&socket)?;
            other.set_read_timeout(Some(Duration::from_secs(60)))?;
            ensure!(matches!(other.read(&mut [0]), Ok(0)));
            turned_away += u32::from(guest.answered()? != guest.offered());
        }
        let response = guest.end()?;
        ensure!(code(&response) == 0, "0x{:x}", code(&response));
        flush(&mut Channel(&mut guest, &vmm), &response)?;
    }
    ensure!(turned_away > 0, "nobody connected while a key was made");
    Ok(())
}

#[test]
fn a_vmm_that_stops_the_queue_in_the_middle_of_a_key_finds_each_request_answered() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let _backend = Emulator::virtio_tpm(folder.path())?;
    let socket = folder.path().join("vhost-user.sock");
    let mut guest = Guest::new()?;
    let mut vmm = guest.connect(&socket, 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    let mut given_up = 0;
    for number in 0..8 {
        guest.begin(&vmm, &rsa_key(number))?;
        if number % 2 == 0 {
            let base = vmm.frontend.get_vring_base(0)?;
            ensure!(base == u32::from(guest.offered()));
            ensure!(guest.answered()? == guest.offered(), "a request is lost");
            vmm.start(base.try_into()?)?;
        } else {
            drop(vmm);
            vmm = guest.connect(&socket, guest.answered()?)?;
        }
        let response = guest.end()?;
        match code(&response) {
            0 => flush(&mut Channel(&mut guest, &vmm), &response)?,
            code if code == ResponseCode::RETRY.raw() => given_up += 1,
            code => anyhow::bail!("response code 0x{code:x}"),
        }
        ensure!(transient_objects(&mut Channel(&mut guest, &vmm))? == 0);
    }
    ensure!(given_up > 0, "the VMM waited for each key");
    Ok(())
}

/// A managed backend, and its manager.
fn managed_virtio_tpm() -> Result<(Backend, UnixStream)> {
    let folder = tempfile::tempdir()?;
    let process = start_in(folder.path(), None)
        .args(["--device", "virtio-tpm"])
        .spawn()?;
    let backend = Backend { process, folder };
    let mut manager = backend.connect()?;
    send(&mut manager, &ToBackend::Open(open(50, None)?))?;
    match receive(&mut manager)? {
        FromBackend::Opened => Ok((backend, manager)),
        other => anyhow::bail!("{other:?}"),
    }
}

/// Its VM, whose TPM is started.
fn guest_of(backend: &Backend) -> Result<(Guest, rings::Vmm)> {
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.folder.path().join("vhost-user.sock"), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    Ok((guest, vmm))
}

/// A command of the manager's.
fn execute(manager: &mut UnixStream, command: &[u8]) -> Result<Vec<u8>> {
    let command = command.to_vec().into();
    send(manager, &ToBackend::Execute { id: 1, command })?;
    loop {
        if let FromBackend::Executed { response, .. } = receive(manager)? {
            return Ok(response.into());
        }
    }
}

/// Sends a command until it is answered otherwise than to send it again.
fn patiently(vmm: &mut impl Commands, command: &[u8]) -> Result<Vec<u8>> {
    loop {
        let response = vmm.execute(command)?;
        if code(&response) != ResponseCode::RETRY.raw() {
            return Ok(response);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn get_random(length: u8) -> Vec<u8> {
    command(GET_RANDOM, &[0, length])
}

fn flush(vmm: &mut impl Commands, created: &[u8]) -> Result<()> {
    let handle = created.get(10..14).context("a handle")?;
    ensure!(code(&vmm.execute(&command(FLUSH_CONTEXT, handle))?) == 0);
    Ok(())
}

/// How many objects the TPM has loaded (`TPM_CAP_HANDLES` from 0x80000000 on).
fn transient_objects(vmm: &mut impl Commands) -> Result<u32> {
    let ask = command(GET_CAPABILITY, &words(&[1, 0x8000_0000, 16]));
    let response = patiently(vmm, &ask)?;
    let count = response.get(15..19).context("a count")?;
    Ok(u32::from_be_bytes(count.try_into()?))
}
