//! `vtpmctl watch`: what happens, as it happens, also beyond a restart of the manager.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Host, wait_until};

/// A watcher that runs.
struct Watch {
    process: Child,
    /// None once nobody reads them any more.
    lines: Option<BufReader<ChildStdout>>,
}

impl Watch {
    fn start(host: &Host, arguments: &[&str]) -> Result<Self> {
        let mut watch = host.vtpmctl(arguments);
        watch
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let mut process = watch.spawn()?;
        let lines = process.stdout.take().map(BufReader::new);
        Ok(Self { process, lines })
    }

    fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        let lines = self.lines.as_mut().context("no output")?;
        ensure!(lines.read_line(&mut line)? > 0, "it ended");
        Ok(line)
    }

    fn json(&mut self) -> Result<Value> {
        let line = self.line()?;
        serde_json::from_str(&line).with_context(|| line)
    }

    /// The next lines are of these kinds.
    fn tells(&mut self, kinds: &[&str]) -> Result<Vec<Value>> {
        let told: Vec<Value> = kinds.iter().map(|_| self.json()).collect::<Result<_>>()?;
        let found: Vec<&Value> = told.iter().map(|line| &line["kind"]).collect();
        assert_eq!(found, kinds);
        Ok(told)
    }

    /// All that it says until it ends.
    fn rest(mut self, signal: Signal) -> Result<String> {
        kill(Pid::from_raw(self.process.id().try_into()?), signal)?;
        let mut said = String::new();
        let lines = self.lines.as_mut().context("no output")?;
        lines.read_to_string(&mut said)?;
        Ok(said)
    }

    fn end(mut self, signal: Signal) -> Result<(Option<i32>, String)> {
        kill(Pid::from_raw(self.process.id().try_into()?), signal)?;
        let status = self.process.wait()?.code();
        let mut said = String::new();
        self.process
            .stderr
            .take()
            .context("no output")?
            .read_to_string(&mut said)?;
        Ok((status, said))
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn events_are_told_as_they_happen_and_only_those_that_were_asked_for() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create_for("acme")?;
    let mut of_vm = Watch::start(
        &host,
        &["--output", "json", "watch", "--vm", &vm, "--earlier"],
    )?;
    let told = of_vm.tells(&["hello", "created", "certified"])?;
    assert_eq!(told[1]["vm"], vm.as_str());
    let mut of_tenant = Watch::start(&host, &["--output", "json", "watch", "--tenant", "other"])?;
    of_tenant.tells(&["hello"])?;
    let nobody = ["--vm", &vm, "--tenant", "other", "--earlier"];
    let nobody = [&["--output", "json", "watch"][..], &nobody].concat();
    let mut of_nobody = Watch::start(&host, &nobody)?;
    of_nobody.tells(&["hello"])?;
    let vrot = told[1]["vrot"].as_str().context("its vRoT")?.to_owned();
    let mut of_vrot = Watch::start(&host, &["--output", "json", "watch", "--vm", &vrot])?;
    of_vrot.tells(&["hello"])?;
    let mut people = Watch::start(&host, &["watch", "--earlier"])?;
    let line = people.line()?;
    for part in ["created", &vm, "acme", "(generation 1)"] {
        ensure!(line.contains(part), "{line}");
    }

    let other = host.create_certified("other")?;
    host.ctl(["start", &vm])?;
    host.ctl(["start", &other])?;
    of_vm.tells(&["started"])?;
    of_vrot.tells(&["started"])?;
    let told = of_tenant.tells(&["created", "certified", "started"])?;
    assert_eq!(told[2]["vm"], other.as_str());
    assert_eq!(of_vm.end(Signal::SIGINT)?, (Some(0), String::new()));
    assert_eq!(of_tenant.end(Signal::SIGTERM)?, (Some(0), String::new()));
    // Nothing of what it asked for has happened.
    assert_eq!(of_nobody.rest(Signal::SIGINT)?, "");

    // Nobody reads any more: the next event ends it.
    people.lines = None;
    host.ctl(["stop", &vm])?;
    wait_until("the end of what nobody reads", || {
        Ok(people.process.try_wait()?.is_some())
    })?;
    assert_eq!(people.process.wait()?.code(), Some(0));
    Ok(())
}

#[test]
fn a_watch_outlives_the_manager_and_says_what_it_cannot_know() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create_for("acme")?;
    let mut json = Watch::start(&host, &["--output", "json", "watch", "--earlier"])?;
    let told = json.tells(&["hello", "created", "certified"])?;
    let first = told[0]["manager"].clone();
    let mut people = Watch::start(&host, &["watch", "--earlier"])?;
    people.line()?;
    people.line()?;
    host.shut_down()?;
    host.start_again()?;
    host.ctl(["start", &vm])?;
    let told = json.tells(&["hello", "started"])?;
    assert_ne!(told[0]["manager"], first);
    assert_eq!(told[1]["number"], 1);
    let line = people.line()?;
    ensure!(
        line.contains("started again") && line.contains("event 2"),
        "{line}"
    );
    ensure!(people.line()?.contains("started"));
    // What happens to the host concerns everybody.
    let mut of_other = Watch::start(&host, &["--output", "json", "watch", "--tenant", "other"])?;
    of_other.tells(&["hello"])?;
    host.lose_power()?;
    let told = json.tells(&["hello", "host-restarted"])?;
    assert_ne!(told[0]["manager"], first);
    of_other.tells(&["hello", "host-restarted"])?;
    while json.json()?["kind"] != "stopped" {}
    let (status, said) = json.end(Signal::SIGINT)?;
    assert_eq!(status, Some(0));
    ensure!(said.matches("waiting …").count() == 2, "{said}");

    // Where nobody ever answered there is nothing to wait for.
    host.shut_down()?;
    let said = host.refused(["watch"])?;
    ensure!(said.contains("start vtpm-managerd"), "{said}");
    Ok(())
}
