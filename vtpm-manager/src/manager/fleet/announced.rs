//! Launches that a launch hook announced before the vRoT's own launcher starts it.
//!
//! A launcher that knows swtpm sets a VM's TPM up and starts it by itself, after its hook was called: at a
//! first start there is no vRoT yet that the hook could name. So what is measured then waits here, under the
//! VM's number. It is for one start, and kept in memory alone: one that is lost is one that was not measured.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use attestation::launch::Launch;
use cert_chain::VmId;

/// How long one waits for its start. Setting a TPM up takes seconds where a host is busy.
const WAITS: Duration = Duration::from_secs(300);
/// More VMs than a host starts within that time. The one that has waited longest makes room.
const MAX_ANNOUNCED: usize = 4096;

/// What was announced and not started yet.
#[derive(Debug, Default)]
pub(super) struct Announced {
    launches: Mutex<BTreeMap<VmId, Waiting>>,
}

/// A launch that waits for its VM.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) launch: Launch,
    since: Instant,
}

impl Announced {
    /// The VM is about to be launched so; or nothing is known of its next launch.
    pub(super) fn set(&self, vm: VmId, launch: Option<Launch>, now: Instant) {
        let mut launches = self.current(now);
        launches.remove(&vm);
        let Some(launch) = launch else { return };
        if launches.len() >= MAX_ANNOUNCED {
            let oldest = launches.iter().min_by_key(|(_, waiting)| waiting.since);
            if let Some(oldest) = oldest.map(|(vm, _)| *vm) {
                launches.remove(&oldest);
            }
        }
        launches.insert(vm, Waiting { launch, since: now });
    }

    /// How the VM is about to be launched.
    pub(super) fn of(&self, vm: VmId, now: Instant) -> Option<Waiting> {
        self.current(now).get(&vm).cloned()
    }

    /// This one was used. What was announced since is for the start after that.
    pub(super) fn used(&self, vm: VmId, used: &Waiting, now: Instant) {
        let mut launches = self.current(now);
        if launches.get(&vm).map(|waiting| waiting.since) == Some(used.since) {
            launches.remove(&vm);
        }
    }

    /// Those that have not waited too long.
    fn current(&self, now: Instant) -> MutexGuard<'_, BTreeMap<VmId, Waiting>> {
        let mut launches = self.launches.lock().unwrap_or_else(PoisonError::into_inner);
        launches.retain(|_, waiting| now.duration_since(waiting.since) < WAITS);
        launches
    }
}

#[cfg(test)]
mod tests {
    use anyhow::Context;
    use attestation::launch::LaunchPart;

    use super::*;

    fn launch_of(announced: &Announced, vm: VmId, now: Instant) -> Option<Launch> {
        announced.of(vm, now).map(|waiting| waiting.launch)
    }

    fn launch() -> anyhow::Result<Launch> {
        let part = LaunchPart {
            id: "cpus".parse()?,
            value: "2".parse()?,
        };
        Ok(Launch::new(vec![part])?)
    }

    #[test]
    fn what_is_announced_while_a_vm_starts_is_for_its_next_start() -> anyhow::Result<()> {
        let announced = Announced::default();
        let vm = VmId::random();
        let begun = Instant::now();
        announced.set(vm, Some(launch()?), begun);
        let used = announced.of(vm, begun).context("an announcement")?;
        let later = begun + Duration::from_secs(1);
        announced.set(vm, Some(launch()?), later);
        announced.used(vm, &used, later);
        let next = announced.of(vm, later).context("the next start's")?;
        announced.used(vm, &next, later);
        assert_eq!(launch_of(&announced, vm, later), None);
        Ok(())
    }

    #[test]
    fn a_launch_waits_for_its_vm_for_a_while_and_no_longer() -> anyhow::Result<()> {
        let announced = Announced::default();
        let (vm, other) = (VmId::random(), VmId::random());
        let launch = launch()?;
        let begun = Instant::now();
        announced.set(vm, Some(launch.clone()), begun);
        assert_eq!(launch_of(&announced, other, begun), None);
        assert_eq!(launch_of(&announced, vm, begun), Some(launch.clone()));
        let late = begun + WAITS;
        assert_eq!(launch_of(&announced, vm, late), None);

        announced.set(vm, Some(launch.clone()), late);
        announced.set(vm, None, late);
        assert_eq!(launch_of(&announced, vm, late), None);

        // However many there are, the newest waits.
        announced.set(other, Some(launch.clone()), late);
        let later = late + Duration::from_secs(1);
        for _ in 0..MAX_ANNOUNCED {
            announced.set(VmId::random(), Some(launch.clone()), later);
        }
        announced.set(vm, Some(launch.clone()), later);
        assert_eq!(launch_of(&announced, other, later), None);
        assert_eq!(launch_of(&announced, vm, later), Some(launch));
        assert_eq!(announced.current(later).len(), MAX_ANNOUNCED);
        Ok(())
    }
}
