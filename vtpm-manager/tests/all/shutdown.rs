//! A manager that is told to end joins all that it has begun: nothing is left half-way, and of its
//! processes only the backends of guests go on.

use std::fs;
use std::io::ErrorKind;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use uuid::Uuid;

use crate::support::vmm::{Vmm, define_index};
use crate::support::{Host, TENANT, wait_until};

const POOL: &str = "[pool]\nsize = 2\ntenants = [\"acme\"]\nrefill_per_minute = 6000\n";
/// What the manager says of work that it does not join.
const NOT_JOINED: [&str; 3] = ["given up", "left to the next", "left as it is"];

#[test]
fn a_manager_at_work_that_is_told_to_end_gives_nothing_up_and_leaves_its_guests_alone() -> Result<()>
{
    let mut host = Host::enrolled_with(POOL)?;
    // With numbers of their own: their certificates are issued while the manager ends.
    let vms: Vec<String> = (0..4).map(|_| Uuid::new_v4().to_string()).collect();
    for vm in &vms {
        host.json(["create", "--vm", vm, "--tenant", TENANT, "--start"])?;
    }
    let mut vmm = Vmm::attach(&host.control(vms.first().context("a VM")?)?)?;
    define_index(&mut vmm, 0x0150_0001)?;
    let children = children_of(host.manager()?)?;
    ensure!(!children.is_empty(), "something starts backends");

    assert!(host.shut_down()?.success());
    let log = host.log();
    for sign in NOT_JOINED {
        ensure!(!log.contains(sign), "`{sign}`");
    }
    assert_eq!(host.all_instances().len(), vms.len(), "guests' backends");
    for child in children {
        wait_until("the process that starts backends has ended", || {
            Ok(!Path::new("/proc").join(&child).exists())
        })?;
    }

    host.start_again()?;
    for vm in &vms {
        wait_until("all certificates", || {
            let shown = host.json(["show", vm])?;
            Ok(shown["vik_certificate"] == "issued" && shown["ek_certificates"] == "issued")
        })?;
    }
    Ok(())
}

/// Processes that a process has started.
fn children_of(process: i32) -> Result<Vec<String>> {
    let mut children = Vec::new();
    for thread in fs::read_dir(format!("/proc/{process}/task"))? {
        let started = match fs::read_to_string(thread?.path().join("children")) {
            Ok(started) => started,
            // A thread has ended meanwhile, and its children are another's now.
            Err(error) if error.kind() == ErrorKind::NotFound => return children_of(process),
            Err(error) => return Err(error.into()),
        };
        children.extend(started.split_whitespace().map(str::to_owned));
    }
    Ok(children)
}
