//! Two live instances of one vRoT would each go on from the same state, with the same keys. None
//! of what can happen to a connection, a folder or a process brings that about; and what hangs
//! keeps nobody else waiting.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tpm_wire::host_commands::HOST_EVIDENCE_REQUEST;
use uuid::Uuid;

use crate::support::vmm::{OWNER, Vmm, command, define_index, with_password};
use crate::support::{Host, TENANT, wait_until};

#[test]
fn a_backend_that_gave_its_manager_up_goes_on_as_the_only_one() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let backend = host.backend(&vm)?;
    for adopted in [false, true] {
        if adopted {
            host.crash()?;
            host.start_again()?;
        }
        let known = host.log().matches("was dialled again").count();
        let vmm = Vmm::attach(&host.control(&vm)?)?;
        wait_until("manager and VMM to be connected", || {
            Ok(sockets_of(backend)? >= CONNECTED)
        })?;
        let writer = Writer::start(vmm);
        host.signal(Signal::SIGSTOP)?;
        wait_until("the backend to give up", || {
            Ok(sockets_of(backend)? < CONNECTED)
        })?;
        host.signal(Signal::SIGCONT)?;
        wait_until("the backend to be dialled again, and to say why", || {
            let log = host.log();
            Ok(log.matches("was dialled again").count() > known
                && log.matches("did not take a message").count() > usize::from(adopted))
        })?;
        let mut vmm = writer.end()?;
        assert_eq!(host.backend(&vm)?, backend);
        assert_eq!(host.instances_of(&vm)?, [backend]);
        wait_until("all state to be durable", || {
            Ok(host.json(["show", &vm])?["backend"]["degraded"] == false)
        })?;
        define_index(&mut vmm, 0x0150_0100 + u32::from(adopted))?;
    }
    host.ctl(["stop", &vm])?;
    assert_eq!(host.instances_of(&vm)?, [0; 0]);
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    for index in [0x0150_0100u32, 0x0150_0101] {
        // TPM2_NV_ReadPublic
        vmm.succeed(&command(0x169, &index.to_be_bytes()))?;
    }
    Ok(())
}

/// Where manager and VMM dial in, the manager's connection, both channels of the VMM, and the pair over
/// which the backend's threads talk.
const CONNECTED: usize = 7;

/// How many sockets a process holds open; only root may see that.
fn sockets_of(process: i32) -> Result<usize> {
    let open = fs::read_dir(format!("/proc/{process}/fd"))
        .context("this test looks at another user's process: run it as root")?;
    let targets = open.filter_map(|entry| fs::read_link(entry.ok()?.path()).ok());
    Ok(targets
        .filter(|target| target.to_string_lossy().starts_with("socket:"))
        .count())
}

#[test]
fn the_kernel_refuses_a_second_instance_whatever_became_of_the_first_ones_folder() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let backend = host.backend(&vm)?;
    let vrot = host.json(["show", &vm])?["vrot"].clone();
    host.crash()?;
    let folder = format!("run/{}", vrot.as_str().unwrap_or_default());
    fs::remove_dir_all(host.path(&folder))?;
    host.start_again()?;
    let refused = host.refused(["start", &vm])?;
    let expected = format!("process {backend} serves this vRoT");
    ensure!(refused.contains(&expected), "{refused}");
    assert_eq!(host.instances_of(&vm)?, [0; 0], "nor is a folder made");
    kill(Pid::from_raw(backend), Signal::SIGKILL)?;
    wait_until("the kernel to say that it has ended", || {
        Ok(host.vtpmctl(["start", &vm]).status()?.success())
    })
}

#[test]
fn a_backend_that_hangs_keeps_neither_callers_nor_other_vrots_waiting() -> Result<()> {
    let mut host = Host::enrolled()?;
    let mut vms = Vec::new();
    for _ in 0..4 {
        let vm = host.create()?;
        host.ctl(["start", &vm])?;
        let backend = host.backend(&vm)?;
        vms.push((vm, backend));
    }
    let (hung, well) = vms.split_at(2);
    for (_, backend) in hung {
        kill(Pid::from_raw(*backend), Signal::SIGSTOP)?;
    }
    host.crash()?;
    host.start_again()?;
    // While those hang, still.
    for (vm, backend) in well {
        assert_eq!(host.backend(vm)?, *backend);
        host.ctl(["stop", vm])?;
        host.ctl(["start", vm])?;
    }
    for (vm, _) in hung {
        for order in ["start", "stop", "suspend", "delete"] {
            let refused = host.refused([order, vm])?;
            ensure!(refused.contains("being taken over"), "{order}: {refused}");
        }
    }
    for (vm, backend) in hung {
        kill(Pid::from_raw(*backend), Signal::SIGCONT)?;
        wait_until("it to be taken over", || {
            Ok(host.backend(vm).is_ok_and(|process| process == *backend))
        })?;
        host.ctl(["stop", vm])?;
    }
    Ok(())
}

#[test]
fn a_backend_that_died_without_its_manager_is_replaced_as_one_that_died_with_it() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let backend = host.backend(&vm)?;
    host.crash()?;
    kill(Pid::from_raw(backend), Signal::SIGKILL)?;
    host.start_again()?;
    wait_until("another backend", || {
        Ok(host.backend(&vm).is_ok_and(|process| process != backend))
    })?;
    drop(Vmm::attach(&host.control(&vm)?)?);

    // After the end of the host, VMs are started by whoever starts VMs.
    host.crash()?;
    host.kill_backends()?;
    fs::remove_dir_all(host.path("run"))?;
    host.start_again()?;
    assert_eq!(host.json(["show", &vm])?["state"], "stopped");
    host.ctl(["start", &vm])?;
    Ok(())
}

#[test]
fn a_backend_that_dies_while_its_vrot_is_created_is_not_taken_for_a_live_one() -> Result<()> {
    let host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    for _ in 0..8 {
        let vm = Uuid::new_v4().to_string();
        let done = Arc::new(AtomicBool::new(false));
        let until = Arc::clone(&done);
        let runtime = host.path("run");
        // Kills it as soon as it is made out to the guest, which the audit log tells first.
        let audit = host.path("state/audit.jsonl");
        let known = fs::read_to_string(&audit)?.matches("vrot-started").count();
        let killer = thread::spawn(move || {
            while !until.load(Ordering::SeqCst) {
                let lines = fs::read_to_string(&audit).unwrap_or_default();
                if lines.matches("vrot-started").count() > known {
                    crate::support::kill_processes_in(runtime.as_ref());
                    return;
                }
            }
        });
        let created = crate::support::said(
            &mut host.vtpmctl(["create", "--vm", &vm, "--tenant", TENANT, "--start"]),
        )?;
        done.store(true, Ordering::SeqCst);
        killer.join().map_err(|_| anyhow::anyhow!("the killer"))?;
        if created.status == 0 {
            host.kill_backends()?;
            wait_until("its end to be noticed", || {
                Ok(host.json(["show", &vm])?["state"] == "stopped")
            })?;
            host.ctl(["start", &vm])?;
            drop(Vmm::attach(&host.control(&vm)?)?);
            host.ctl(["stop", &vm])?;
        }
    }
    Ok(())
}

/// A guest that changes its NV memory without a rest.
struct Writer {
    done: Arc<AtomicBool>,
    thread: thread::JoinHandle<Result<Vmm>>,
}

impl Writer {
    fn start(mut vmm: Vmm) -> Self {
        let done = Arc::new(AtomicBool::new(false));
        let is_done = Arc::clone(&done);
        let thread = thread::spawn(move || {
            while !is_done.load(Ordering::SeqCst) {
                define_index(&mut vmm, INDEX)?;
                undefine_index(&mut vmm, INDEX)?;
                // HOST_EVIDENCE_REQUEST: a manager that takes nothing is sent no more states, but
                // all of these.
                for _ in 0..64 {
                    let digest = [&[0, 32][..], &[7; 32]].concat();
                    vmm.succeed(&command(HOST_EVIDENCE_REQUEST, &digest))?;
                }
            }
            Ok(vmm)
        });
        Self { done, thread }
    }

    /// No command may have failed.
    fn end(self) -> Result<Vmm> {
        self.done.store(true, Ordering::SeqCst);
        self.thread
            .join()
            .map_err(|_| anyhow::anyhow!("the guest"))?
    }
}

const INDEX: u32 = 0x0150_0001;

/// TPM2_NV_UndefineSpace
fn undefine_index(vmm: &mut Vmm, index: u32) -> Result<()> {
    let undefine = with_password(0x122, &[OWNER, index], &[]);
    vmm.succeed(&undefine).map(drop)
}
