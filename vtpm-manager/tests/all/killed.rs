//! Manager, backend or both are killed while a guest writes: what the guest was told is durable
//! is there afterwards.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::support::writer::{
    ANSWERS_MEAN_DURABLE, MOMENTS, STEP, Writer, attach, check, check_through_restarts, prepared,
};
use crate::support::{Host, wait_until};

/// Longer than a guest waits for its manager.
const AWAY: Duration = Duration::from_millis(800);

#[test]
fn what_a_guest_was_told_is_there_after_its_backend_was_killed() -> Result<()> {
    let host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    let vm = prepared(&host)?;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(&host, &vm)?);
        thread::sleep(STEP * moment);
        host.kill_backends()?;
        let told = writer.end()?;
        wait_until("the end of the backend", || {
            Ok(host.json(["show", &vm])?["state"] == "stopped")
        })?;
        check(&host, &vm, told)?;
    }
    Ok(())
}

#[test]
fn what_a_guest_was_told_is_there_after_manager_and_backend_were_killed() -> Result<()> {
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    let vm = prepared(&host)?;
    for moment in 0..MOMENTS {
        let writer = Writer::start(attach(&host, &vm)?);
        thread::sleep(STEP * moment);
        host.crash()?;
        host.kill_backends()?;
        let told = writer.end()?;
        host.start_again()?;
        check(&host, &vm, told)?;
    }
    Ok(())
}

#[test]
fn a_guest_goes_on_while_its_manager_is_dead_and_all_is_durable_when_it_is_back() -> Result<()> {
    let mut host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    check_through_restarts(&mut host, |host| {
        host.crash()?;
        thread::sleep(AWAY);
        Ok(())
    })
}

/// Several guests write, vRoTs come and go, and everything is killed at moments that no step of the
/// work chose.
#[test]
fn whatever_was_acknowledged_on_a_busy_host_holds_after_it_was_killed_at_random() -> Result<()> {
    let mut host = Host::enrolled_with(ANSWERS_MEAN_DURABLE)?;
    let vms = [prepared(&host)?, prepared(&host)?, prepared(&host)?];
    let mut there = BTreeSet::from_iter(vms.clone());
    let mut gone = BTreeSet::new();
    let mut random = Random(0x5eed);
    for round in 0..ROUNDS {
        let mut writers = Vec::new();
        for vm in &vms {
            writers.push(Writer::start(attach(&host, vm)?));
        }
        for _ in 0..random.below(3) {
            there.insert(host.create()?);
        }
        let other = there.iter().find(|vm| !vms.contains(vm)).cloned();
        if let Some(vm) = other.filter(|_| random.below(2) == 0) {
            host.ctl(["delete", &vm])?;
            there.remove(&vm);
            gone.insert(vm);
        }
        thread::sleep(Duration::from_micros(random.below(60_000)));
        // Which of them dies first is left to chance as well.
        if random.below(2) == 0 {
            host.crash()?;
            host.kill_backends()?;
        } else {
            host.kill_backends()?;
            host.crash()?;
        }
        let told: Vec<u64> = (writers.into_iter().map(Writer::end)).collect::<Result<_>>()?;
        host.start_again()?;
        for (vm, told) in vms.iter().zip(told) {
            check(&host, vm, told).with_context(|| format!("round {round}"))?;
        }
        let listed = host.json(["list"])?;
        let listed: BTreeSet<String> = (listed["vrots"].as_array().into_iter().flatten())
            .filter_map(|vrot| vrot["vm"].as_str().map(str::to_owned))
            .collect();
        ensure!(listed == there, "round {round}: {listed:?}, not {there:?}");
        ensure!(listed.is_disjoint(&gone));
    }
    Ok(())
}

/// Rounds of that.
const ROUNDS: u32 = 8;

/// Numbers that are as good as random, and the same in each run (xorshift).
struct Random(u64);

impl Random {
    fn below(&mut self, end: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % end
    }
}
