//! Manager, backend or both are killed at each step of a commit: what a guest was told is there
//! afterwards, and the store is accepted.

use anyhow::Result;

use crate::support::bus::{Bus, DURABLE, Step, VOLATILE};
use crate::support::writer::{ANSWERS_MEAN_DURABLE, Writer, attach, check, prepared};
use crate::support::{Host, wait_until};

/// Who dies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Victims {
    Manager,
    Backend,
    Both,
}

/// Commits that a guest sees before the one that is cut short.
const BEFORE: u32 = 2;

#[test]
fn what_a_guest_was_told_is_there_whoever_was_killed_at_whichever_step() -> Result<()> {
    let steps = [Step::BeforeWrite(VOLATILE), Step::AfterWrite(VOLATILE)];
    killed_at(&steps, "checkpoint")
}

#[test]
fn so_it_is_where_each_batch_is_written_to_flash() -> Result<()> {
    let steps = [
        Step::BeforeWrite(VOLATILE),
        Step::AfterWrite(VOLATILE),
        Step::BeforeWrite(DURABLE),
        Step::AfterWrite(DURABLE),
    ];
    killed_at(&steps, "strict")
}

fn killed_at(steps: &[Step], policy: &str) -> Result<()> {
    let mut host = Host::enrolled_with(&format!(
        "anchor_policy = \"{policy}\"\n{ANSWERS_MEAN_DURABLE}"
    ))?;
    let vm = prepared(&host)?;
    let bus = host.put_bus_between()?;
    for step in steps {
        for victims in [Victims::Manager, Victims::Backend, Victims::Both] {
            round(&mut host, &vm, &bus, *step, victims)
                .map_err(|error| error.context(format!("{victims:?} killed at {step:x?}")))?;
        }
    }
    Ok(())
}

fn round(host: &mut Host, vm: &str, bus: &Bus, step: Step, victims: Victims) -> Result<()> {
    let vmm = attach(host, vm)?;
    let (manager, backend) = (host.manager()?, host.backend(vm)?);
    bus.kill_at(
        step,
        BEFORE,
        match victims {
            Victims::Manager => vec![manager],
            Victims::Backend => vec![backend],
            Victims::Both => vec![manager, backend],
        },
    );
    let writer = Writer::start(vmm);
    wait_until("that step", || Ok(bus.has_killed()))?;
    let told = match victims {
        Victims::Manager => {
            host.crash()?;
            host.start_again()?;
            // No command fails: the guest waited for the next manager. On a machine so busy that it
            // waited in vain, all is durable once it is said to be.
            let told = writer.stop()?;
            wait_until("all state to be durable", || {
                Ok(host.json(["show", vm])?["backend"]["degraded"] == false)
            })?;
            host.crash()?;
            host.kill_backends()?;
            host.start_again()?;
            told
        }
        Victims::Backend => {
            let told = writer.end()?;
            wait_until("the end of the backend", || {
                Ok(host.json(["show", vm])?["state"] == "stopped")
            })?;
            told
        }
        Victims::Both => {
            let told = writer.end()?;
            host.crash()?;
            host.start_again()?;
            told
        }
    };
    check(host, vm, told)
}
