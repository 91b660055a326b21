//! What is timed: a vRoT, swtpm, or a server that answers with what it got.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::unistd::Pid;
use test_support::process::Process;
use test_support::virtio_tpm::Driver;
use tpm_wire::{Response, ResponseCode};
use uuid::Uuid;

use super::echo::Echo;
use super::kinds::{Kind, create_key};
use super::processors::pin;
use crate::bench::api::Api;
use crate::bench::launch::{launch, remove_vm, start_over, wait_until_complete};
use crate::bench::peer::{self, Peer};
use crate::bench::processor_time;
use crate::vmm::Vmm;

/// One of those that have their turns, on a processor of its own.
pub(super) struct Subject {
    process: Pid,
    end: End,
}

enum End {
    Ours {
        vmm: Vmm,
        vm: Uuid,
        key: [u8; 4],
    },
    Peer {
        vmm: Vmm,
        key: [u8; 4],
        _process: Process,
    },
    Queue {
        driver: Driver,
        vm: Uuid,
    },
    Echo(Echo),
}

/// As long as QEMU's queues are, and ChromeOS' driver takes them.
const QUEUE: u16 = 128;
/// `TPM2_Startup(TPM_SU_CLEAR)`
const STARTUP: [u8; 12] = [0x80, 1, 0, 0, 0, 12, 0, 0, 1, 0x44, 0, 0];
/// libtpms may ask for a repetition (`TPM_RC_RETRY`, Part 2 §6.6.3).
const RETRIES: u32 = 100;

impl Subject {
    /// A vRoT as a launch hook gets it, with all its certificates: nothing is done for it any more.
    pub(super) fn ours(api: &Api) -> Result<Self> {
        let launched = launch(api)?;
        wait_until_complete(api, launched.vm)?;
        let mut vmm = launched.control.attach()?;
        let key = key_of(&mut vmm).context("a vRoT's key")?;
        Self::pinned(
            launched.process,
            End::Ours {
                vmm,
                vm: launched.vm,
                key,
            },
        )
    }

    /// A vRoT behind virtio-tpm, whose commands a driver puts into a queue: one that shares no code
    /// with the backend.
    pub(super) fn queue(api: &Api) -> Result<Self> {
        let started = start_over(api, "virtio-tpm")?;
        let mut driver = Driver::connect(&started.socket, QUEUE)?;
        let startup = driver.execute(&STARTUP)?;
        ensure!(code(&startup)?.is_success(), "the TPM does not start");
        let vm = started.vm;
        Self::pinned(started.process, End::Queue { driver, vm })
    }

    /// A swtpm with a state of the same kind.
    pub(super) fn peer(peer: &Peer<'_>) -> Result<Self> {
        let (process, control) = peer.start_copy("commands")?.into_parts();
        let mut vmm = control.attach()?;
        let key = key_of(&mut vmm).context("swtpm's key")?;
        Self::pinned(
            peer::process(&process)?,
            End::Peer {
                vmm,
                key,
                _process: process,
            },
        )
    }

    /// The echo server.
    pub(super) fn echo() -> Result<Self> {
        let echo = Echo::start()?;
        Self::pinned(echo.process()?, End::Echo(echo))
    }

    fn pinned(process: Pid, end: End) -> Result<Self> {
        pin(process)?;
        Ok(Self { process, end })
    }

    /// The bytes that are sent.
    pub(super) fn command(&self, kind: Kind) -> Vec<u8> {
        kind.command(match &self.end {
            End::Ours { key, .. } | End::Peer { key, .. } => *key,
            End::Queue { .. } | End::Echo(_) => [0; 4],
        })
    }

    /// One command, which must succeed.
    pub(super) fn execute(&mut self, command: &[u8]) -> Result<()> {
        match &mut self.end {
            End::Ours { vmm, .. } | End::Peer { vmm, .. } => succeed(vmm, command).map(drop),
            End::Queue { driver, .. } => {
                let response = driver.execute(command)?;
                ensure!(code(&response)?.is_success(), "a command is refused");
                Ok(())
            }
            End::Echo(echo) => echo.execute(command),
        }
    }

    /// The VMM, where there is one.
    pub(super) fn vmm(&mut self) -> Option<&mut Vmm> {
        match &mut self.end {
            End::Ours { vmm, .. } | End::Peer { vmm, .. } => Some(vmm),
            End::Queue { .. } | End::Echo(_) => None,
        }
    }

    /// What its process has used of the processor so far.
    pub(super) fn processor_time(&self) -> Result<Duration> {
        processor_time::of_process(self.process)
    }

    /// Deletes a vRoT.
    pub(super) fn remove(self, api: &Api) -> Result<()> {
        match self.end {
            End::Ours { vmm, vm, .. } => {
                drop(vmm);
                remove_vm(api, vm)
            }
            End::Queue { driver, vm } => {
                drop(driver);
                remove_vm(api, vm)
            }
            End::Peer { .. } | End::Echo(_) => Ok(()),
        }
    }
}

fn key_of(vmm: &mut Vmm) -> Result<[u8; 4]> {
    let response = succeed(vmm, &create_key())?;
    let handle = response.get(10..14).context("a handle")?;
    Ok(handle.try_into()?)
}

fn code(response: &[u8]) -> Result<ResponseCode> {
    Ok(Response::parse(response).context("a response")?.code())
}

fn succeed(vmm: &mut Vmm, command: &[u8]) -> Result<Vec<u8>> {
    let mut retries = 0;
    loop {
        let response = vmm.respond(command)?;
        let code = code(&response)?;
        if code.is_success() {
            return Ok(response);
        }
        ensure!(
            code == ResponseCode::RETRY && retries < RETRIES,
            "response code {code}"
        );
        retries += 1;
        thread::sleep(Duration::from_millis(1));
    }
}
