//! A TPM by a queue in the guest's memory, with a real TPM behind: driven by a library that shares no
//! code with the backend's, and byte by byte by hand.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Stdio;
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use socket_file::make_room;
use test_support::virtio_tpm::Driver;
use tpm_wire::MAX_SIZE;
use vhost::VhostBackend;
use vhost::vhost_user::VhostUserFrontend;

use crate::support::rings::{
    BUFFER, Channel, Descriptor, Guest, INDIRECT, MEMORY, NEXT, Vmm, WRITE,
};
use crate::support::{Commands, Emulator, STARTUP, code, command, extend, pcr, with_password};

/// `TPM_RC_INITIALIZE`: the TPM was switched on and not started.
const INITIALIZE: u32 = 0x100;
const GET_RANDOM: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x7b, 0, 8];
const ANSWER: u32 = 4096;

struct Backend {
    emulator: Emulator,
    folder: tempfile::TempDir,
}

impl Backend {
    fn start() -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let emulator = Emulator::virtio_tpm(folder.path())?;
        Ok(Self { emulator, folder })
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("vhost-user.sock")
    }

    /// A driver, once the VMM before is gone.
    fn driver(&self, queue_size: u16) -> Result<Driver> {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            match Driver::connect(&self.socket(), queue_size) {
                Err(error) if Instant::now() > deadline => return Err(error),
                Err(_) => sleep(Duration::from_millis(5)),
                connected => return connected,
            }
        }
    }

    /// Whether the TPM still serves a driver, and has this in its PCR.
    fn serves(&self, expected: &[u8]) -> Result<()> {
        let mut driver = self.driver(4)?;
        ensure!(
            code(&driver.execute(&GET_RANDOM)?) == 0,
            "not started any more"
        );
        ensure!(pcr(&mut driver)? == expected, "another value");
        Ok(())
    }
}

#[test]
fn an_independent_driver_measures_and_quotes_with_queues_of_every_size() -> Result<()> {
    let backend = Backend::start()?;
    let mut driver = backend.driver(2)?;
    ensure!(code(&driver.execute(&GET_RANDOM)?) == INITIALIZE);
    ensure!(code(&driver.execute(&STARTUP)?) == 0);
    drop(driver);
    let mut before = vec![0; 32];
    for queue_size in (1..=15).map(|power| 1_u16 << power) {
        let mut driver = backend.driver(queue_size)?;
        ensure!(pcr(&mut driver)? == before, "a queue of {queue_size}");
        // More than once around, where that is quick.
        for _ in 0..queue_size.min(8) + 1 {
            extend(&mut driver)?;
            let random = driver.execute(&GET_RANDOM)?;
            ensure!(code(&random) == 0 && random.len() == 10 + 2 + 8);
        }
        let now = pcr(&mut driver)?;
        ensure!(now != before, "nothing was measured");
        before = now;
    }
    quotes(&mut backend.driver(64)?)
}

/// A key is made and quotes PCR 16; its attestation names this.
fn quotes(driver: &mut Driver) -> Result<()> {
    // A restricted signing key, P-256 with ECDSA and SHA-256 (TPM2B_PUBLIC).
    const PUBLIC: [u8; 26] = [
        0, 24, 0, 0x23, 0, 0x0b, 0, 5, 0, 0x72, 0, 0, 0, 0x10, 0, 0x18, 0, 0x0b, 0, 3, 0, 0x10, 0,
        0, 0, 0,
    ];
    let sensitive = [0, 4, 0, 0, 0, 0];
    let parameters = [&sensitive[..], &PUBLIC, &[0, 0, 0, 0, 0, 0]].concat();
    let created = driver.execute(&with_password(0x131, &[0x4000_0001], &parameters))?;
    ensure!(code(&created) == 0, "CreatePrimary: 0x{:x}", code(&created));
    let handle = created.get(10..14).and_then(<[u8]>::first_chunk);
    let handle = u32::from_be_bytes(*handle.context("a handle")?);
    let nonce = [&[0, 16][..], &[0x5a; 16]].concat();
    let selection = [0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1];
    let quote = with_password(
        0x158,
        &[handle],
        &[&nonce[..], &[0, 0x10], &selection].concat(),
    );
    let quoted = driver.execute(&quote)?;
    // The first one may be told to come again (TPM_RC_RETRY).
    let quoted = match code(&quoted) {
        0x922 => driver.execute(&quote)?,
        _ => quoted,
    };
    ensure!(code(&quoted) == 0, "Quote: 0x{:x}", code(&quoted));
    let has_nonce = quoted.windows(16).any(|part| part == [0x5a; 16]);
    ensure!(has_nonce, "the attestation does not name the nonce");
    Ok(())
}

/// Each way in which a guest or its VMM can reset the device, its queue or its connection; then the
/// one by which the host resets the TPM.
#[test]
fn no_reset_of_the_device_resets_a_pcr() -> Result<()> {
    let mut backend = Backend::start()?;
    let mut driver = backend.driver(4)?;
    ensure!(code(&driver.execute(&STARTUP)?) == 0);
    extend(&mut driver)?;
    let measured = pcr(&mut driver)?;
    drop(driver);
    backend.serves(&measured)?;
    let mut guest = Guest::new()?;
    let socket = backend.socket();
    // The queue is stopped and started, as a driver does that is loaded again.
    let vmm = guest.connect(&socket, 0)?;
    ensure!(pcr(&mut Channel(&mut guest, &vmm))? == measured);
    let base = vmm.frontend.get_vring_base(0)?;
    ensure!(base == u32::from(guest.offered()));
    vmm.start(base.try_into()?)?;
    ensure!(
        pcr(&mut Channel(&mut guest, &vmm))? == measured,
        "GET_VRING_BASE"
    );
    vmm.frontend.clone().reset_device()?;
    vmm.frontend.set_features(1 << 32 | 1 << 30)?;
    vmm.start(guest.offered())?;
    ensure!(
        pcr(&mut Channel(&mut guest, &vmm))? == measured,
        "RESET_DEVICE"
    );
    vmm.frontend.reset_owner()?;
    drop(vmm);
    backend.serves(&measured)?;
    // A VMM that ends, and one that is killed in the middle of a command.
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&socket, 0)?;
    guest.describe(&[(BUFFER, 12, NEXT, 1), (BUFFER, ANSWER, WRITE, 0)])?;
    guest.write(BUFFER, &GET_RANDOM)?;
    guest.offer(0)?;
    vmm.kick.write(1)?;
    drop(vmm);
    backend.serves(&measured)?;
    // TPM2_Startup is refused by a TPM that was not reset.
    ensure!(code(&backend.driver(4)?.execute(&STARTUP)?) == INITIALIZE);
    backend.serves(&measured)?;
    // The host may: CMD_INIT on the control channel.
    drop(backend.emulator.attach_and_init()?);
    let mut driver = backend.driver(4)?;
    ensure!(code(&driver.execute(&GET_RANDOM)?) == INITIALIZE);
    ensure!(code(&driver.execute(&STARTUP)?) == 0);
    ensure!(pcr(&mut driver)? == [0; 32]);
    Ok(())
}

#[test]
fn a_command_may_come_and_be_answered_in_pieces() -> Result<()> {
    let backend = Backend::start()?;
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.socket(), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    // In four parts, one of them empty, the answer in three.
    guest.write(BUFFER, &GET_RANDOM)?;
    let parts = [
        (BUFFER, 1, NEXT, 1),
        (BUFFER + 1, 0, NEXT, 2),
        (BUFFER + 1, 10, NEXT, 3),
        (BUFFER + 11, 1, NEXT, 4),
        (BUFFER + 0x1000, 3, WRITE | NEXT, 5),
        (BUFFER + 0x2000, 0, WRITE | NEXT, 6),
        (BUFFER + 0x3000, 100, WRITE, 0),
    ];
    ensure!(guest.chain(&vmm, &parts)? == 20);
    let answer = [
        guest.read(BUFFER + 0x1000, 3)?,
        guest.read(BUFFER + 0x3000, 17)?,
    ];
    ensure!(code(&answer.concat()) == 0);
    ensure!(
        guest.read(BUFFER + 0x1003, 4)? == [0; 4],
        "written beyond its part"
    );
    // By a table of its own.
    let table = BUFFER + 0x8000;
    guest.describe_at(table, &parts)?;
    ensure!(guest.chain(&vmm, &[(table, 7 * 16, INDIRECT, 0)])? == 20);
    Ok(())
}

/// What is no command is given back with none of its buffer used, and changes nothing.
#[test]
fn a_chain_that_is_no_command_is_given_back_unused_and_the_next_one_is_served() -> Result<()> {
    let backend = Backend::start()?;
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.socket(), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    extend(&mut Channel(&mut guest, &vmm))?;
    let measured = pcr(&mut Channel(&mut guest, &vmm))?;
    // Were one of them carried out, the PCR would be another.
    let digests = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    let extends = with_password(0x182, &[16], &digests);
    let length = u32::try_from(extends.len())?;
    let longest = u32::try_from(MAX_SIZE)?;
    let table = BUFFER + 0x8000;
    guest.describe_at(
        table,
        &[(table, 16, INDIRECT, 0), (BUFFER, ANSWER, WRITE, 0)],
    )?;
    let chains: &[(&str, &[Descriptor])] = &[
        ("nothing was written", &[(BUFFER, ANSWER, WRITE, 0)]),
        (
            "of length zero",
            &[(BUFFER, 0, NEXT, 1), (BUFFER, ANSWER, WRITE, 0)],
        ),
        (
            "longer than any command",
            &[(BUFFER, longest + 1, NEXT, 1), (BUFFER, ANSWER, WRITE, 0)],
        ),
        (
            "a part is not in memory",
            &[
                (BUFFER, length, NEXT, 1),
                (MEMORY, 1, NEXT, 2),
                (BUFFER, ANSWER, WRITE, 0),
            ],
        ),
        (
            "a part reaches out of memory",
            &[(MEMORY - 8, 16, NEXT, 1), (BUFFER, ANSWER, WRITE, 0)],
        ),
        (
            "an address that overflows",
            &[(u64::MAX, 16, NEXT, 1), (BUFFER, ANSWER, WRITE, 0)],
        ),
        (
            "written after room for the answer",
            &[(BUFFER, ANSWER, WRITE | NEXT, 1), (BUFFER, length, 0, 0)],
        ),
        ("leads out of the table", &[(BUFFER, length, NEXT, 16)]),
        (
            "in a circle",
            &[(BUFFER, length, NEXT, 1), (BUFFER, 0, NEXT, 0)],
        ),
        (
            "longer than 4 GiB",
            &[
                (BUFFER, length, NEXT, 1),
                (BUFFER, u32::MAX, WRITE | NEXT, 2),
                (BUFFER, u32::MAX, WRITE, 0),
            ],
        ),
        ("a table of no length", &[(table, 0, INDIRECT, 0)]),
        ("a table of a strange length", &[(table, 17, INDIRECT, 0)]),
        (
            "a table that is not in memory",
            &[(MEMORY, 16, INDIRECT, 0)],
        ),
        ("a table in a table", &[(table, 32, INDIRECT, 0)]),
    ];
    for (name, descriptors) in chains {
        guest.write(BUFFER, &extends)?;
        ensure!(guest.chain(&vmm, descriptors)? == 0, "{name}");
        let now = pcr(&mut Channel(&mut guest, &vmm))?;
        ensure!(now == measured, "{name}: it was carried out");
    }
    // Without room for the answer it is carried out, and not answered: by a part, or in parts.
    for room in [0, 9] {
        guest.write(BUFFER, &GET_RANDOM)?;
        let chain = [(BUFFER, 12, NEXT, 1), (BUFFER + 0x1000, room, WRITE, 0)];
        ensure!(guest.chain(&vmm, &chain)? == 0, "{room} bytes of room");
        ensure!(guest.read(BUFFER + 0x1000, 16)? == [0; 16]);
    }
    guest.write(BUFFER, &GET_RANDOM)?;
    ensure!(
        guest.chain(&vmm, &[(BUFFER, 12, 0, 0)])? == 0,
        "nowhere to answer"
    );
    let out = [(BUFFER, 12, NEXT, 1), (MEMORY - 4, 64, WRITE, 0)];
    ensure!(
        guest.chain(&vmm, &out)? == 0,
        "an answer that would leave memory"
    );
    ensure!(pcr(&mut Channel(&mut guest, &vmm))? == measured);
    Ok(())
}

/// A VMM that lost its connection while a command was carried out does not know that it was, and
/// offers it again to the same backend.
#[test]
fn a_command_that_is_offered_again_after_a_reconnection_is_not_carried_out_again() -> Result<()> {
    let backend = Backend::start()?;
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.socket(), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    extend(&mut Channel(&mut guest, &vmm))?;
    let offered = guest.offered();
    let answered = guest.answered()?;
    let answer = guest.read(BUFFER, 10)?;
    drop(vmm);
    // As the ring was before the command.
    let vmm = guest.connect(&backend.socket(), offered - 1)?;
    vmm.kick.write(1)?;
    sleep(Duration::from_millis(200));
    ensure!(guest.answered()? == answered, "answered twice");
    ensure!(guest.read(BUFFER, 10)? == answer);
    let once = pcr(&mut Channel(&mut guest, &vmm))?;
    extend(&mut Channel(&mut guest, &vmm))?;
    let twice = pcr(&mut Channel(&mut guest, &vmm))?;
    let expected = {
        let other = Backend::start()?;
        let mut driver = other.driver(4)?;
        ensure!(code(&driver.execute(&STARTUP)?) == 0);
        extend(&mut driver)?;
        let first = pcr(&mut driver)?;
        extend(&mut driver)?;
        [first, pcr(&mut driver)?]
    };
    ensure!([once, twice] == expected);
    // A command that the backend had not taken when the connection ended is carried out once.
    let before = pcr(&mut Channel(&mut guest, &vmm))?;
    drop(vmm);
    let digests = [&[0, 0, 0, 1, 0, 0x0b][..], &[7; 32]].concat();
    let extends = with_password(0x182, &[16], &digests);
    guest.write(BUFFER, &extends)?;
    guest.describe(&[
        (BUFFER, extends.len().try_into()?, NEXT, 1),
        (BUFFER, ANSWER, WRITE, 0),
    ])?;
    guest.offer(0)?;
    let vmm = guest.connect(&backend.socket(), guest.offered() - 1)?;
    ensure!(
        guest.used()? != 0,
        "it was not carried out, and no kick came"
    );
    ensure!(pcr(&mut Channel(&mut guest, &vmm))? != before);
    Ok(())
}

/// Its PCRs are gone: what a guest sends that does not know of it must not succeed.
#[test]
fn a_backend_that_was_started_again_demands_a_startup() -> Result<()> {
    let mut backend = Backend::start()?;
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.socket(), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    extend(&mut Channel(&mut guest, &vmm))?;
    backend.emulator.end(Signal::SIGKILL)?;
    // Offered, and never taken.
    guest.write(BUFFER, &command(0x17e, &[0, 0, 0, 1, 0, 0x0b, 3, 0, 0, 1]))?;
    guest.describe(&[(BUFFER, 20, NEXT, 1), (BUFFER, ANSWER, WRITE, 0)])?;
    guest.offer(0)?;
    drop(vmm);
    backend.emulator = Emulator::virtio_tpm(backend.folder.path())?;
    let vmm = guest.connect(&backend.socket(), guest.offered() - 1)?;
    ensure!(guest.used()? == 10);
    ensure!(code(&guest.read(BUFFER, 10)?) == INITIALIZE);
    let mut channel = Channel(&mut guest, &vmm);
    ensure!(code(&channel.execute(&GET_RANDOM)?) == INITIALIZE);
    ensure!(code(&channel.execute(&STARTUP)?) == 0);
    ensure!(pcr(&mut channel)? == [0; 32]);
    Ok(())
}

#[test]
fn rings_that_cannot_be_stop_the_queue_until_it_is_set_up_anew() -> Result<()> {
    let backend = Backend::start()?;
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.socket(), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    // More chains than there are descriptors.
    guest.write(0x2002, &0x4000_u16.to_le_bytes())?;
    vmm.kick.write(1)?;
    sleep(Duration::from_millis(50));
    ensure!(guest.answered()? == 1, "something was served");
    guest.write(0x2002, &1_u16.to_le_bytes())?;
    drop(vmm);
    let vmm = guest.connect(&backend.socket(), 1)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&GET_RANDOM)?) == 0);
    Ok(())
}

#[test]
fn a_vmm_is_refused_what_the_device_cannot_have() -> Result<()> {
    let backend = Backend::start()?;
    let socket = backend.socket();
    let guest = Guest::new()?;
    let mut refused = Vec::new();
    let mut attempt = |name, result: Result<()>| {
        if result.is_ok() {
            refused.push(name);
        }
    };
    let vmm = Vmm::open(&socket)?;
    let error = |result: vhost::Result<()>| result.map_err(Into::into);
    attempt("a queue of 0", error(vmm.frontend.set_vring_num(0, 0)));
    drop(vmm);
    let vmm = Vmm::open(&socket)?;
    attempt("a queue of 3", error(vmm.frontend.set_vring_num(0, 3)));
    drop(vmm);
    let vmm = Vmm::open(&socket)?;
    attempt(
        "features",
        error(vmm.frontend.set_features(1 << 34 | 1 << 30)),
    );
    drop(vmm);
    // Access to a file could wait for whoever serves it.
    let vmm = Vmm::open(&socket)?;
    let on_disk = tempfile::tempfile_in(env!("CARGO_TARGET_TMPDIR"))?;
    on_disk.set_len(MEMORY)?;
    attempt("a file on disk as memory", vmm.share(&on_disk));
    drop(vmm);
    // So could reading from what is no eventfd.
    let vmm = Vmm::open(&socket)?;
    vmm.share(&guest.memory)?;
    let (pipe, _other) = std::io::pipe()?;
    attempt("a pipe as kick", kick_with(&vmm, pipe.into()));
    drop(vmm);
    let vmm = Vmm::open(&socket)?;
    attempt("rings before memory", vmm.start(0));
    drop(vmm);
    ensure!(refused.is_empty(), "taken: {refused:?}");
    ensure!(code(&backend.driver(4)?.execute(&STARTUP)?) == 0);
    Ok(())
}

fn kick_with(vmm: &Vmm, descriptor: std::os::fd::OwnedFd) -> Result<()> {
    use std::os::fd::{FromRawFd, IntoRawFd};
    #[expect(unsafe_code, reason = "the type takes a number alone")]
    // SAFETY: the descriptor is given away.
    let event = unsafe { vmm_sys_util::eventfd::EventFd::from_raw_fd(descriptor.into_raw_fd()) };
    Ok(vmm.frontend.set_vring_kick(0, &event)?)
}

#[test]
fn a_second_vmm_is_turned_away_and_half_a_message_is_not_waited_for() -> Result<()> {
    let mut backend = Backend::start()?;
    let mut driver = backend.driver(4)?;
    ensure!(code(&driver.execute(&STARTUP)?) == 0);
    ensure!(Driver::connect(&backend.socket(), 4).is_err());
    // A program that looks whether somebody listens there, as another backend does.
    ensure!(make_room(&backend.socket()).is_err());
    // Longer than a half message is waited for: the first one has sent none.
    sleep(Duration::from_millis(1500));
    ensure!(code(&driver.execute(&GET_RANDOM)?) == 0);
    drop(driver);
    for half in [&[1_u8, 0, 0][..], &[1, 0, 0, 0, 1, 0, 0, 0, 8, 0, 0, 0, 1]] {
        let deadline = Instant::now() + Duration::from_secs(60);
        // The one before has left when somebody is taken.
        let mut stream = UnixStream::connect(backend.socket())?;
        // Or else, as another test that starts a program has a copy of its connection for a moment, this
        // one is turned away, perhaps before anything was sent.
        let _ = stream.write_all(half);
        // The host's tools have their turn meanwhile.
        drop(backend.emulator.attach()?);
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let closed = std::io::Read::read(&mut stream, &mut [0]);
        ensure!(
            matches!(closed, Ok(0))
                || closed.is_err_and(|error| error.kind() == std::io::ErrorKind::ConnectionReset)
        );
        ensure!(Instant::now() < deadline);
    }
    ensure!(code(&backend.driver(4)?.execute(&GET_RANDOM)?) == 0);
    Ok(())
}

/// Memory that its VMM takes away is nobody's fault but the VMM's: its own vRoT ends, says why, and
/// what was durable is there.
#[test]
fn a_vmm_that_cuts_off_its_guests_memory_ends_its_own_vrot() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let log = folder.path().join("log");
    let emulator =
        Emulator::virtio_tpm_logging_to(folder.path(), Stdio::from(File::create(&log)?))?;
    let mut backend = Backend { emulator, folder };
    let mut guest = Guest::new()?;
    let vmm = guest.connect(&backend.socket(), 0)?;
    ensure!(code(&Channel(&mut guest, &vmm).execute(&STARTUP)?) == 0);
    guest.memory.set_len(0)?;
    vmm.kick.write(1)?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while backend.emulator.is_alive()? {
        ensure!(Instant::now() < deadline, "it lives on");
        sleep(Duration::from_millis(5));
    }
    let said = fs::read_to_string(&log)?;
    ensure!(said.contains("took its guest's memory away"), "{said}");
    backend.emulator = Emulator::virtio_tpm(backend.folder.path())?;
    ensure!(code(&backend.driver(4)?.execute(&STARTUP)?) == 0);
    Ok(())
}

#[test]
fn attaching_a_thousand_times_leaves_no_descriptor_and_no_memory_behind() -> Result<()> {
    let backend = Backend::start()?;
    let process = backend.emulator.id();
    let descriptors =
        || -> Result<usize> { Ok(fs::read_dir(format!("/proc/{process}/fd"))?.count()) };
    let mappings = || -> Result<usize> {
        Ok(fs::read_to_string(format!("/proc/{process}/maps"))?
            .lines()
            .count())
    };
    let mut guest = Guest::new()?;
    let once = |guest: &mut Guest| -> Result<()> {
        let vmm = guest.connect(&backend.socket(), guest.offered())?;
        let answer = Channel(guest, &vmm).execute(&GET_RANDOM)?;
        ensure!(answer.len() >= 10);
        Ok(())
    };
    once(&mut guest)?;
    let before = (descriptors()?, mappings()?);
    for _ in 0..1000 {
        once(&mut guest)?;
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while descriptors()? > before.0 {
        ensure!(Instant::now() < deadline, "{} descriptors", descriptors()?);
        sleep(Duration::from_millis(5));
    }
    ensure!(mappings()? <= before.1 + 2, "{} mappings", mappings()?);
    Ok(())
}
