//! The audit log is altered while no manager runs. The physical TPM vouches for what was there, so the
//! next manager says so, whoever asks, until an operator accepts it; guests do not wait meanwhile.

use std::fs;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use sha2::{Digest, Sha256};

use crate::support::vmm::{Vmm, command};
use crate::support::{Host, wait_until};

const HASH_FIELD: &str = ",\"hash\":\"";

/// The lines as somebody would write them who knows the format, with one word replaced in the first of
/// them that has it.
fn rewritten(log: &str, from: &str, to: &str) -> Result<String> {
    let mut text = String::new();
    let mut changed = false;
    let mut previous = "0".repeat(64);
    for line in log.lines() {
        let (body, _) = line.rsplit_once(HASH_FIELD).context("no hash")?;
        let (start, _) = body
            .rsplit_once(",\"previous\":\"")
            .context("no previous")?;
        let start = match changed {
            false => start.replacen(from, to, 1),
            true => start.to_owned(),
        };
        changed |= start != body.get(..start.len()).unwrap_or_default();
        let body = format!("{start},\"previous\":\"{previous}\"");
        let mut hash = Sha256::new_with_prefix(b"vrot audit log v1\0");
        hash.update(&body);
        previous = hex::encode(hash.finalize());
        text.push_str(&format!("{body}{HASH_FIELD}{previous}\"}}\n"));
    }
    ensure!(changed, "nothing was changed");
    Ok(text)
}

/// What everybody is told after the log was altered; the hash that is missing.
fn is_told(host: &Host, vm: &str, finding: &str) -> Result<String> {
    // Guests and their launches do not wait for it. (This waits for the store.)
    host.ctl(["show", vm])?;
    assert_eq!(host.metric("vrot_audit_altered")?, 1.0);
    let shown = host.json(["host", "show"])?["audit_problem"].clone();
    let problem = shown.as_str().context("no problem")?;
    ensure!(
        problem.contains("audit.jsonl") || problem.contains("audit log"),
        "{problem}"
    );
    ensure!(problem.contains(finding), "{problem}");
    ensure!(host.ctl(["host", "show"])?.contains("ALTERED"));
    let verified = host.refused(["audit", "verify"])?;
    ensure!(verified.contains(finding), "{verified}");
    let lines = host.audit()?;
    let told = lines
        .iter()
        .rfind(|line| line["event"] == "audit-log-altered");
    let head = told.context("no line")?["head"]
        .as_str()
        .context("no hash")?;
    ensure!(
        problem.contains(&format!("vtpmctl audit accept {head}")),
        "{problem}"
    );
    Ok(head.to_owned())
}

fn nothing_is_told(host: &Host) -> Result<()> {
    // Waits for the store.
    host.ctl(["list"])?;
    assert_eq!(host.metric("vrot_audit_altered")?, 0.0);
    let shown = host.json(["host", "show"])?;
    ensure!(shown["audit_problem"].is_null(), "{shown}");
    host.ctl(["audit", "verify"]).map(drop)
}

#[test]
fn an_audit_log_that_was_altered_while_no_manager_ran_is_told_until_it_is_accepted() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    host.shut_down()?;
    let path = host.path("state/audit.jsonl");
    let older = fs::read_to_string(&path)?;
    ensure!(older.contains("manager-stopped"));
    host.start_again()?;
    nothing_is_told(&host)?;
    host.create()?;

    let cut = |log: &str| {
        let end = log.trim_end().rfind('\n').map_or(0, |end| end + 1);
        log.get(..end).map(str::to_owned).context("a prefix")
    };
    type Alteration<'a> = &'a dyn Fn(&str) -> Result<Option<String>>;
    let alterations: [(&str, &str, Alteration<'_>); 4] = [
        ("a line is rewritten", "instead of", &|log| {
            rewritten(log, "\"tenant\":\"acme\"", "\"tenant\":\"evil\"").map(Some)
        }),
        (
            "the last line is cut off",
            "lines were cut off at the end",
            &|log| cut(log).map(Some),
        ),
        ("the log is removed", "ended with the line number", &|_| {
            Ok(None)
        }),
        (
            "an older copy is put back",
            "an older copy was put back",
            &|_| Ok(Some(older.clone())),
        ),
    ];
    for (what, finding, alter) in alterations {
        // Whatever had been vouched for before the manager ended.
        host.shut_down()?;
        match alter(&fs::read_to_string(&path)?)? {
            Some(text) => fs::write(&path, text)?,
            None => fs::remove_file(&path)?,
        }
        host.start_again()?;
        let head = is_told(&host, &vm, finding).context(what)?;
        ensure!(
            host.log().contains(finding),
            "{what}: the manager's log says nothing"
        );
        // A restart does not make it undone, not even after a crash.
        host.crash()?;
        host.start_again()?;
        assert_eq!(is_told(&host, &vm, &head)?, head, "{what}");
        // The wrong hash changes nothing.
        let refused = host.refused(["audit", "accept", &"0".repeat(64)])?;
        ensure!(refused.contains("does not lack"), "{refused}");
        is_told(&host, &vm, &head)?;
        host.ctl(["audit", "accept", &head])?;
        nothing_is_told(&host)?;
        host.crash()?;
        host.start_again()?;
        nothing_is_told(&host)?;
        let lines = host.audit()?;
        let accepted = lines
            .iter()
            .rfind(|line| line["event"] == "audit-log-accepted");
        assert_eq!(
            accepted.context("no line")?["head"],
            head.as_str(),
            "{what}"
        );
    }
    // Its guest has served through all of it.
    let get_random = command(0x0000_017b, &[0, 8]);
    vmm.succeed(&get_random).map(drop)
}

#[test]
fn an_audit_log_that_was_altered_again_is_told_by_both_hashes_until_each_is_accepted() -> Result<()>
{
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    let path = host.path("state/audit.jsonl");
    let mut heads = Vec::new();
    for tenant in ["evil", "worse"] {
        host.shut_down()?;
        let log = fs::read_to_string(&path)?;
        let before = if tenant == "evil" { "acme" } else { "evil" };
        let [from, to] = [before, tenant].map(|name| format!("\"tenant\":\"{name}\""));
        fs::write(&path, rewritten(&log, &from, &to)?)?;
        host.start_again()?;
        heads.push(is_told(&host, &vm, "instead of")?);
    }
    let [first, second] = heads.as_slice() else {
        anyhow::bail!("{heads:?}");
    };
    ensure!(first != second);
    // Also after a crash, and after one of them was accepted.
    host.crash()?;
    host.start_again()?;
    is_told(&host, &vm, first)?;
    is_told(&host, &vm, second)?;
    host.ctl(["audit", "accept", second])?;
    let shown = host.json(["host", "show"])?["audit_problem"].clone();
    let problem = shown.as_str().context("no problem")?;
    ensure!(
        problem.contains(first) && !problem.contains(second),
        "{problem}"
    );
    host.ctl(["audit", "accept", first])?;
    nothing_is_told(&host)
}

#[test]
fn whenever_a_manager_is_killed_the_log_that_it_leaves_is_called_unaltered() -> Result<()> {
    let mut host = Host::enrolled()?;
    for delay in [0, 1, 3, 7, 15, 40] {
        let mut order = host.vtpmctl(["create", "--start", "--tenant", "acme", "--vm"]);
        order.arg(uuid::Uuid::new_v4().to_string());
        let mut order = order.stderr(std::process::Stdio::null()).spawn()?;
        std::thread::sleep(std::time::Duration::from_millis(delay));
        kill(Pid::from_raw(host.manager()?), Signal::SIGKILL)?;
        order.wait()?;
        host.crash()?;
        host.start_again()?;
        nothing_is_told(&host)?;
    }
    host.lose_power()?;
    nothing_is_told(&host)
}

#[test]
fn lines_of_which_no_vrot_changes_are_vouched_for_as_well() -> Result<()> {
    let mut host = Host::enrolled()?;
    host.shut_down()?;
    host.start_again()?;
    let started = host.json(["audit", "verify"])?;
    ensure!(
        started["vouched_lines"].as_u64() < started["entries"].as_u64(),
        "{started}"
    );
    ensure!(host.metric("vrot_audit_unvouched_lines")? > 0.0);
    wait_until("the physical TPM to vouch for the newest lines", || {
        Ok(host.metric("vrot_audit_unvouched_lines")? == 0.0)
    })?;
    let vouched = host.json(["audit", "verify"])?;
    assert_eq!(vouched["vouched_lines"], vouched["entries"]);
    ensure!(host.ctl(["audit", "verify"])?.contains("vouches for all"));
    Ok(())
}
