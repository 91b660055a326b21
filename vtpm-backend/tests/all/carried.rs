//! What a VMM carries of a vRoT with a manager: the volatile state, of use once, beside the permanent
//! state that it belongs to.

use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use backend_link::frame::{receive, send};
use backend_link::message::{FromBackend, Open, ToBackend};

use crate::support::managed::{Backend, PATIENCE, connect_to, define_index, open, pushed};
use crate::support::{SHUTDOWN, STARTUP, STOP, Vmm, code, command, extend, pcr, words};

const INIT: u32 = 2;
const HASH_START: u32 = 6;
const HASH_END: u32 = 8;
const STORE_VOLATILE: u32 = 10;
const GET_STATE_BLOB: u32 = 12;
const SET_STATE_BLOB: u32 = 13;
const LOCK_STORAGE: u32 = 19;
const PARTS: [u32; 2] = [1, 2];
/// `TPM_FAIL`
const FAIL: [u8; 4] = [0, 0, 0, 9];
/// `TPM_RC_INITIALIZE`, `TPM_RC_FAILURE`, `TPM_RC_RETRY`
const INITIALIZE: u32 = 0x100;
const FAILURE: u32 = 0x101;
const RETRY: u32 = 0x922;

type Carried = [Vec<u8>; 2];

#[test]
fn what_a_vmm_carries_is_of_use_once_wherever_the_permanent_state_was_meanwhile() -> Result<()> {
    let (mut manager, mut vmm) = started(None)?;
    extend(&mut vmm)?;
    let extended = pcr(&mut vmm)?;
    // Just before.
    define_index(&mut vmm, 0x0150_0000)?;
    let carried = carry(&mut vmm)?;
    succeed(&mut vmm, &words(&[SHUTDOWN]))?;

    let saved = manager.newest()?;
    drop((vmm, manager));
    manager = Manager::of(Some(saved))?;
    let mut vmm = manager.attach()?;
    // QEMU's probe (TPM2_ReadClock) finds a TPM that is off.
    assert_eq!(code(&vmm.execute(&command(0x181, &[]))?), FAILURE);
    // One that ends half-way, and one that switches on and does nothing: neither uses it up.
    ensure!(bring(&mut vmm, &carried)?);
    vmm = manager.attach_again(vmm)?;
    ensure!(bring(&mut vmm, &carried)?);
    succeed(&mut vmm, &words(&[INIT, 1]))?;
    vmm = manager.attach_again(vmm)?;
    assert_eq!(code(&vmm.execute(&command(0x181, &[]))?), FAILURE);
    ensure!(bring(&mut vmm, &carried)?);
    succeed(&mut vmm, &words(&[INIT, 1]))?;
    assert_eq!(pcr(&mut vmm)?, extended);

    // Here, and in every later life.
    succeed(&mut vmm, &words(&[STOP]))?;
    ensure!(!bring(&mut vmm, &carried)?);
    let saved = manager.newest()?;
    drop((vmm, manager));
    manager = Manager::of(Some(saved))?;
    let mut vmm = manager.attach()?;
    ensure!(!bring(&mut vmm, &carried)?);
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    Ok(())
}

#[test]
fn it_opens_although_the_tpm_s_clock_went_on_before_it_was_taken() -> Result<()> {
    let (manager, mut vmm) = started(None)?;
    // libtpms writes its clock down every 4,096 ms, with the next change of the permanent state.
    thread::sleep(Duration::from_millis(4_300));
    extend(&mut vmm)?;
    let extended = pcr(&mut vmm)?;
    let carried = carry(&mut vmm)?;
    succeed(&mut vmm, &words(&[SHUTDOWN]))?;
    drop(vmm);
    let mut vmm = manager.attach()?;
    ensure!(bring(&mut vmm, &carried)?, "refused");
    succeed(&mut vmm, &words(&[INIT, 1]))?;
    assert_eq!(pcr(&mut vmm)?, extended);
    Ok(())
}

#[test]
fn it_is_of_no_use_once_the_vm_went_on_even_if_that_changed_no_permanent_state() -> Result<()> {
    type GoOn = fn(&mut Vmm) -> Result<()>;
    let ways: [(&str, GoOn); 5] = [
        ("a command", |vmm| {
            vmm.execute(&command(0x17b, &[0, 8])).map(drop)
        }),
        ("a measurement", extend),
        ("a launch", |vmm| {
            succeed(vmm, &words(&[HASH_START]))?;
            succeed(vmm, &words(&[HASH_END]))
        }),
        ("QEMU's word", |vmm| {
            succeed(vmm, &words(&[LOCK_STORAGE, 0]))
        }),
        ("a boot", |vmm| {
            succeed(vmm, &words(&[INIT, 0]))?;
            vmm.execute(&STARTUP).map(drop)
        }),
    ];
    for (way, go_on) in ways {
        let (manager, mut vmm) = started(None)?;
        let carried = carry(&mut vmm)?;
        go_on(&mut vmm)?;
        // Durable before the guest was answered.
        let saved = manager.newest()?;
        succeed(&mut vmm, &words(&[STOP]))?;
        ensure!(!bring(&mut vmm, &carried)?, "{way}");
        succeed(&mut vmm, &words(&[INIT, 0]))?;
        assert_eq!(code(&vmm.execute(&STARTUP)?), 0, "{way}");
        let again = Manager::of(Some(saved))?;
        ensure!(!bring(&mut again.attach()?, &carried)?, "{way}");
    }
    Ok(())
}

#[test]
fn a_vm_is_not_saved_while_its_state_is_not_durable_and_goes_on() -> Result<()> {
    // Short enough to be waited for.
    let manager = Manager::opening(open(2_000, None)?)?;
    let mut vmm = starts(&manager)?;
    manager.acknowledges.store(false, Ordering::SeqCst);
    for part in PARTS {
        let answer = vmm.control(&words(&[GET_STATE_BLOB, 1, part, 0]), 16)?;
        assert_eq!(answer.get(..4), Some(&FAIL[..]));
    }
    extend(&mut vmm)?;
    manager.acknowledges.store(true, Ordering::SeqCst);
    // The next change catches up.
    define_index(&mut vmm, 0x0150_0000)?;
    carry(&mut vmm)?;
    Ok(())
}

#[test]
fn a_vm_that_is_saved_between_two_managers_waits_for_the_next_one() -> Result<()> {
    waits_between_two_managers(|_| Ok(()), |vmm| carry(vmm).map(drop))
}

#[test]
fn a_saved_vm_that_goes_on_between_two_managers_waits_for_the_next_one() -> Result<()> {
    // What was saved of it must be of no use before it goes on: TPM2_GetRandom.
    waits_between_two_managers(
        |vmm| carry(vmm).map(drop),
        |vmm| vmm.execute(&command(0x17b, &[0, 8])).map(drop),
    )
}

/// Whether this waits after one manager left as planned until the next one has made the state
/// durable.
fn waits_between_two_managers(
    before: fn(&mut Vmm) -> Result<()>,
    action: fn(&mut Vmm) -> Result<()>,
) -> Result<()> {
    let mut manager = Manager::opening(open(600_000, None)?)?;
    let mut vmm = manager.attach()?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    ensure!(code(&vmm.execute(&STARTUP)?) == 0, "TPM2_Startup");
    before(&mut vmm)?;
    manager.order(&ToBackend::Leaving)?;
    manager.stream.shutdown(Shutdown::Both)?;
    let waiting = thread::spawn(move || action(&mut vmm).map(|()| vmm));
    // Longer than other commands wait then.
    thread::sleep(Duration::from_millis(200));
    ensure!(!waiting.is_finished(), "its state is not durable");
    let mut next = manager.backend.connect()?;
    let (sequence, _) = pushed(&mut next)?;
    send(&mut next, &ToBackend::Persisted { sequence })?;
    waiting.join().map_err(|_| anyhow::anyhow!("the VMM"))??;
    Ok(())
}

#[test]
fn a_saved_vm_s_tpm_does_nothing_for_its_manager_and_a_copy_of_it_does() -> Result<()> {
    let (mut manager, mut vmm) = started(None)?;
    let carried = carry(&mut vmm)?;
    let random = command(0x17b, &[0, 8]);
    assert_eq!(code(&manager.execute(&random)?), RETRY, "paused");
    succeed(&mut vmm, &words(&[SHUTDOWN]))?;
    drop(vmm);
    assert_eq!(code(&manager.execute(&random)?), RETRY, "saved");
    let saved = manager.newest()?;
    let mut copy = Manager::opening(Open {
        is_copy: true,
        ..open(60_000, Some(saved.clone()))?
    })?;
    assert_eq!(code(&copy.execute(&random)?), 0);
    let mut manager = Manager::of(Some(saved))?;
    assert_eq!(code(&manager.execute(&random)?), RETRY, "started again");
    let mut vmm = manager.attach()?;
    ensure!(bring(&mut vmm, &carried)?);
    succeed(&mut vmm, &words(&[INIT, 1]))?;
    vmm.execute(&random)?;
    assert_eq!(code(&manager.execute(&random)?), 0, "restored");
    Ok(())
}

#[test]
fn a_suspension_that_was_given_up_leaves_no_volatile_state_behind() -> Result<()> {
    let (mut manager, mut vmm) = started(None)?;
    extend(&mut vmm)?;
    manager.order(&ToBackend::Suspend)?;
    match manager.told()? {
        FromBackend::Suspended { volatile } => ensure!(volatile.is_some()),
        other => bail!("{other:?}"),
    }
    manager.order(&ToBackend::Hold { held: false })?;
    extend(&mut vmm)?;
    for before in [&[STOP][..], &[]] {
        for request in before {
            succeed(&mut vmm, &words(&[*request]))?;
        }
        succeed(&mut vmm, &words(&[INIT, 0]))?;
        assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
        assert_eq!(pcr(&mut vmm)?, [0; 32]);
    }
    Ok(())
}

#[test]
fn a_vm_that_was_reset_after_it_was_saved_and_went_on_finds_its_tpm_reset() -> Result<()> {
    let (_manager, mut vmm) = started(None)?;
    extend(&mut vmm)?;
    carry(&mut vmm)?;
    // It was migrated to a file, and goes on.
    succeed(&mut vmm, &words(&[LOCK_STORAGE, 3]))?;
    extend(&mut vmm)?;
    succeed(&mut vmm, &words(&[STOP]))?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    assert_eq!(pcr(&mut vmm)?, [0; 32]);
    Ok(())
}

#[test]
fn a_tpm_that_nobody_started_is_saved_and_brought_back() -> Result<()> {
    let manager = Manager::of(None)?;
    let mut vmm = manager.attach()?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    let carried = carry(&mut vmm)?;
    let manager = Manager::of(Some(manager.newest()?))?;
    let mut vmm = manager.attach()?;
    ensure!(bring(&mut vmm, &carried)?);
    succeed(&mut vmm, &words(&[INIT, 1]))?;
    let random = command(0x17b, &[0, 8]);
    assert_eq!(code(&vmm.execute(&random)?), INITIALIZE);
    assert_eq!(code(&vmm.execute(&STARTUP)?), 0);
    assert_eq!(code(&vmm.execute(&STARTUP)?), INITIALIZE);
    Ok(())
}

#[test]
fn a_volatile_state_that_would_not_be_kept_is_not_taken_for_kept() -> Result<()> {
    let (_manager, mut vmm) = started(None)?;
    let answer = vmm.control(&words(&[STORE_VOLATILE]), 4)?;
    assert_eq!(answer, FAIL);
    Ok(())
}

/// A manager that makes everything durable, while it is told to.
struct Manager {
    backend: Backend,
    stream: UnixStream,
    acknowledges: Arc<AtomicBool>,
    newest: Arc<Mutex<Option<Vec<u8>>>>,
    told: mpsc::Receiver<FromBackend>,
}

impl Manager {
    fn of(state: Option<Vec<u8>>) -> Result<Self> {
        // So long that nothing is degraded, however busy the machine is.
        Self::opening(open(600_000, state)?)
    }

    fn opening(open: Open) -> Result<Self> {
        let newest = open.permanent.as_ref().map(|state| state.to_vec());
        let backend = Backend::start()?;
        let mut stream = backend.connect()?;
        stream.set_read_timeout(Some(PATIENCE))?;
        send(&mut stream, &ToBackend::Open(open))?;
        ensure!(matches!(receive(&mut stream)?, FromBackend::Opened));
        let acknowledges = Arc::new(AtomicBool::new(true));
        let newest = Arc::new(Mutex::new(newest));
        let (tell, told) = mpsc::channel();
        let mut listening = stream.try_clone()?;
        let (may, keep) = (Arc::clone(&acknowledges), Arc::clone(&newest));
        thread::spawn(move || -> Result<()> {
            loop {
                match receive(&mut listening)? {
                    FromBackend::StateChanged { sequence, sealed } => {
                        while !may.load(Ordering::SeqCst) {
                            thread::sleep(Duration::from_millis(2));
                        }
                        *keep.lock().unwrap_or_else(PoisonError::into_inner) = Some(sealed.into());
                        send(&mut listening, &ToBackend::Persisted { sequence })?;
                    }
                    FromBackend::Suspended { volatile } => {
                        tell.send(FromBackend::Suspended { volatile })?;
                    }
                    FromBackend::Executed { id, response } => {
                        tell.send(FromBackend::Executed { id, response })?;
                    }
                    _ => {}
                }
            }
        });
        Ok(Self {
            backend,
            stream,
            acknowledges,
            newest,
            told,
        })
    }

    /// The permanent state that is durable.
    fn newest(&self) -> Result<Vec<u8>> {
        let newest = self.newest.lock().unwrap_or_else(PoisonError::into_inner);
        newest.clone().context("no state yet")
    }

    fn order(&mut self, order: &ToBackend) -> Result<()> {
        Ok(send(&mut self.stream, order)?)
    }

    fn told(&self) -> Result<FromBackend> {
        Ok(self.told.recv_timeout(PATIENCE)?)
    }

    fn execute(&mut self, command: &[u8]) -> Result<Vec<u8>> {
        let command = command.to_vec().into();
        self.order(&ToBackend::Execute { id: 1, command })?;
        match self.told()? {
            FromBackend::Executed { response, .. } => Ok(response.into()),
            other => bail!("{other:?}"),
        }
    }

    fn attach(&self) -> Result<Vmm> {
        Vmm::over(connect_to(
            &self.backend.folder.path().join("control.sock"),
        )?)
    }

    /// Another VMM, once the last one was killed.
    fn attach_again(&self, last: Vmm) -> Result<Vmm> {
        drop(last);
        self.attach()
    }
}

/// A guest whose firmware has started its TPM.
fn started(state: Option<Vec<u8>>) -> Result<(Manager, Vmm)> {
    let manager = Manager::of(state)?;
    let vmm = starts(&manager)?;
    Ok((manager, vmm))
}

fn starts(manager: &Manager) -> Result<Vmm> {
    let mut vmm = manager.attach()?;
    succeed(&mut vmm, &words(&[INIT, 0]))?;
    ensure!(code(&vmm.execute(&STARTUP)?) == 0, "TPM2_Startup");
    Ok(vmm)
}

fn succeed(vmm: &mut Vmm, request: &[u8]) -> Result<()> {
    let answer = vmm.control(request, 4)?;
    ensure!(answer == [0; 4], "{request:02x?}: {answer:02x?}");
    Ok(())
}

/// Takes the state as QEMU does when it saves a VM.
fn carry(vmm: &mut Vmm) -> Result<Carried> {
    let mut carried = Carried::default();
    for (kind, part) in PARTS.into_iter().zip(&mut carried) {
        let head = vmm.control(&words(&[GET_STATE_BLOB, 1, kind, 0]), 16)?;
        ensure!(head.get(..4) == Some(&[0; 4]), "part {kind}: {head:02x?}");
        let length = head.last_chunk().copied().map(u32::from_be_bytes);
        *part = vmm.answer(usize::try_from(length.context("a length")?)?)?;
    }
    Ok(carried)
}

/// Brings it back to a TPM that is off, as QEMU does: whether all of it was taken. Either all of it
/// is, or none.
fn bring(vmm: &mut Vmm, carried: &Carried) -> Result<bool> {
    let mut taken = Vec::new();
    for (kind, part) in PARTS.into_iter().zip(carried) {
        let length = u32::try_from(part.len())?;
        let request = [&words(&[SET_STATE_BLOB, 0, kind, length])[..], part].concat();
        let answer = vmm.control(&request, 4)?;
        ensure!(answer == [0; 4] || answer == FAIL, "{answer:02x?}");
        taken.push(answer == [0; 4]);
    }
    match taken[..] {
        [first, second] if first == second => Ok(first),
        _ => bail!("the parts are not of one mind: {taken:?}"),
    }
}
