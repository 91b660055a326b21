//! Many callers order at once and at random, and the manager is killed among them: log, store and
//! processes say the same afterwards, and no vRoT lives twice.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};
use uuid::Uuid;

use crate::support::records::differences;
use crate::support::vmm::{Vmm, define_index};
use crate::support::{Host, TENANT, http, wait_until};

const CALLERS: u64 = 5;
const ORDERS: u32 = 15;
const ROUNDS: u64 = 2;
const VMS: usize = 3;

#[test]
fn whatever_is_ordered_at_once_log_store_and_processes_say_the_same() -> Result<()> {
    let mut host = Host::enrolled_with("backend_restarts_per_hour = 0\n")?;
    let vms: Vec<String> = (0..VMS).map(|_| Uuid::new_v4().to_string()).collect();
    for round in 0..ROUNDS {
        // Every other round the manager is killed in the middle of it.
        let killed = round % 2 == 1;
        let done = Arc::new(AtomicBool::new(false));
        let guests: Vec<_> = (vms.iter().cloned())
            .map(|vm| guest(host.socket(), vm, Arc::clone(&done)))
            .collect();
        let callers: Vec<_> = (0..CALLERS)
            .map(|caller| {
                let (socket, vms) = (host.socket(), vms.clone());
                let mut dice = Dice(1 + round * CALLERS + caller);
                thread::spawn(move || call(&socket, &vms, &mut dice, killed))
            })
            .collect();
        if killed {
            thread::sleep(Duration::from_millis(400 * round));
            host.crash()?;
            host.start_again()?;
        }
        for caller in callers {
            let called = caller.join().map_err(|_| anyhow::anyhow!("a caller"))?;
            called.with_context(|| format!("round {round}"))?;
        }
        done.store(true, Ordering::SeqCst);
        guests
            .into_iter()
            .try_for_each(|guest| guest.join())
            .map_err(|_| anyhow::anyhow!("a guest"))?;
        is_consistent(&host).with_context(|| format!("round {round}"))?;
        host.crash()?;
        host.start_again()?;
        is_consistent(&host).with_context(|| format!("after round {round}"))?;
    }
    Ok(())
}

/// xorshift64: a test that failed is repeated with the same numbers.
struct Dice(u64);

impl Dice {
    fn below(&mut self, end: usize) -> Result<usize> {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        Ok(usize::try_from(self.0 >> 33)? % end)
    }
}

fn call(socket: &Path, vms: &[String], dice: &mut Dice, killed: bool) -> Result<()> {
    for _ in 0..ORDERS {
        let vm = &vms[dice.below(vms.len())?];
        let at = format!("/v1/vrots/{vm}");
        let order = ["start", "stop", "suspend", "resume", "start", "stop"];
        let create = json!({"vm": vm, "tenant": TENANT, "start": dice.below(2)? == 0}).to_string();
        let answer = match dice.below(10)? {
            // Keys take their time.
            0 => http::ask(socket, "POST", "/v1/vrots", &create),
            1 => http::ask(socket, "DELETE", &at, ""),
            2 | 3 => http::ask(socket, "GET", &at, ""),
            one => http::ask(socket, "POST", &format!("{at}/{}", order[one - 4]), ""),
        };
        match answer {
            Ok(answer) => {
                // A new manager may still be asking the backends of the last one.
                let is_fine = answer.status < 500 || (killed && answer.status == 503);
                ensure!(is_fine, "status {}: {}", answer.status, answer.body);
            }
            Err(_) if killed => thread::sleep(Duration::from_millis(5)),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Attaches to its vRoT whenever there is one, and changes its state.
fn guest(socket: PathBuf, vm: String, done: Arc<AtomicBool>) -> thread::JoinHandle<()> {
    thread::spawn(move || {
        while !done.load(Ordering::SeqCst) {
            // Whatever fails here fails because its vRoT was stopped, or deleted, or the manager
            // is gone.
            let _ = use_tpm(&socket, &vm);
            thread::sleep(Duration::from_millis(5));
        }
    })
}

fn use_tpm(socket: &Path, vm: &str) -> Result<()> {
    let shown = http::ask(socket, "GET", &format!("/v1/vrots/{vm}"), "")?;
    let shown: Value = serde_json::from_str(&shown.body)?;
    let control = shown["backend"]["control"]
        .as_str()
        .context("it does not run")?;
    let mut vmm = Vmm::attach(Path::new(control))?;
    (0x0150_0000..0x0150_0008).try_for_each(|index| define_index(&mut vmm, index))
}

fn is_consistent(host: &Host) -> Result<()> {
    wait_until("log and store to say the same", || {
        Ok(differences(host)?.is_empty())
    })
    .with_context(|| format!("{:?}", differences(host)))?;
    let mut running = BTreeSet::new();
    for view in host.json(["list"])?["vrots"]
        .as_array()
        .into_iter()
        .flatten()
    {
        let (vm, vrot) = (view["vm"].as_str(), view["vrot"].as_str());
        let instances = host.instances_of(vm.context("a VM")?)?;
        let is_running = view["state"] == "running";
        ensure!(
            instances.len() == usize::from(is_running),
            "{view}: {instances:?}"
        );
        if is_running {
            running.insert(vrot.context("a vRoT")?.to_owned());
        }
    }
    let mut folders = BTreeSet::new();
    for entry in fs::read_dir(host.path("run"))? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            folders.insert(entry.file_name().to_string_lossy().into_owned());
        }
    }
    ensure!(folders == running, "{folders:?} of {running:?}");
    host.ctl(["audit", "verify"])?;
    Ok(())
}
