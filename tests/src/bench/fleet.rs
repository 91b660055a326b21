//! All VMs of a host at once: launched together, attached, and as many swtpm beside them.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::unistd::Pid;
use test_support::process::Process;

use super::api::Api;
use super::launch::{Launched, launch, wait_until_certified, wait_until_complete};
use super::peer::{self, Peer};
use crate::vmm::{Control, Vmm};

/// Guests with their TPMs.
#[derive(Debug, Default)]
pub(super) struct Fleet {
    /// The VMMs.
    pub(super) vmms: Vec<Vmm>,
    /// The processes of the TPMs.
    pub(super) processes: Vec<Pid>,
    /// Those among them that end with this value.
    owned: Vec<Process>,
}

/// Beside the main thread's; launching threads only wait.
const STACK: usize = 256 * 1024;
/// Launches at a time where nobody looks at the clock.
const AT_LEISURE: usize = 4;

/// Launches so many vRoTs, `at_once` of them at a time; what became of each, and how long all
/// took.
pub(super) fn launch_all(
    api: &Api,
    count: usize,
    at_once: usize,
) -> Result<(Vec<Result<Launched>>, Duration)> {
    let ordered = AtomicUsize::new(0);
    let outcomes = Mutex::new(Vec::with_capacity(count));
    let begin = Instant::now();
    thread::scope(|scope| {
        for _ in 0..at_once.min(count) {
            let (ordered, outcomes) = (&ordered, &outcomes);
            thread::Builder::new()
                .stack_size(STACK)
                .spawn_scoped(scope, move || {
                    while ordered.fetch_add(1, Ordering::Relaxed) < count {
                        let outcome = launch(api);
                        outcomes
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(outcome);
                    }
                })
                .context("starting a thread that launches")?;
        }
        anyhow::Ok(())
    })?;
    let took = begin.elapsed();
    let outcomes = outcomes
        .into_inner()
        .unwrap_or_else(PoisonError::into_inner);
    Ok((outcomes, took))
}

/// From the first order of a storm.
pub(super) struct Storm {
    /// Until each vRoT's socket has answered.
    pub(super) launched: Duration,
    /// Until each VM can attest.
    pub(super) certified: Duration,
    /// Until each has its other certificates, too.
    pub(super) complete: Duration,
}

/// Launches so many vRoTs at the same time; the storm counts only if each launch succeeds. What
/// did succeed is left in `into`.
pub(super) fn storm(api: &Api, count: usize, into: &mut Vec<Launched>) -> Result<Storm> {
    let begin = Instant::now();
    let (outcomes, took) = launch_all(api, count, count)?;
    let mut failures = Vec::new();
    for outcome in outcomes {
        match outcome {
            Ok(launched) => into.push(launched),
            Err(error) => failures.push(error),
        }
    }
    if let Some(first) = failures.first() {
        bail!(
            "{} of {count} launches failed, one with: {first:#}",
            failures.len()
        );
    }
    for launched in into.iter() {
        wait_until_certified(api, launched.vm)?;
    }
    let certified = begin.elapsed();
    for launched in into.iter() {
        wait_until_complete(api, launched.vm)?;
    }
    Ok(Storm {
        launched: took,
        certified,
        complete: begin.elapsed(),
    })
}

/// Launches what is missing, a few at a time.
pub(super) fn fill(api: &Api, count: usize, into: &mut Vec<Launched>) -> Result<()> {
    let missing = count.saturating_sub(into.len());
    let (outcomes, _) = launch_all(api, missing, AT_LEISURE)?;
    for outcome in outcomes {
        into.push(outcome?);
    }
    Ok(())
}

impl Fleet {
    /// Attaches a VMM to each launched vRoT; its guest starts the TPM and defines its index.
    pub(super) fn attach(launched: Vec<Launched>) -> Result<Self> {
        let mut fleet = Self::default();
        for launched in launched {
            fleet.add(launched.control, launched.process)?;
        }
        Ok(fleet)
    }

    /// As many swtpm, in the same state.
    pub(super) fn of_peers(peer: &Peer<'_>, count: usize) -> Result<Self> {
        let mut fleet = Self::default();
        for number in 0..count {
            let (process, control) = peer.start_copy(&number.to_string())?.into_parts();
            fleet.add(control, peer::process(&process)?)?;
            fleet.owned.push(process);
        }
        Ok(fleet)
    }

    /// The first of them.
    pub(super) fn one(&mut self) -> Result<&mut Vmm> {
        self.vmms.first_mut().context("the fleet is empty")
    }

    fn add(&mut self, control: Control, process: Pid) -> Result<()> {
        let mut vmm = control.attach()?;
        vmm.define()?;
        vmm.must_write()?;
        self.vmms.push(vmm);
        self.processes.push(process);
        Ok(())
    }

    /// How many there are.
    pub(super) fn count(&self) -> usize {
        self.vmms.len()
    }
}
