//! A manager that was just started: it answers before it has opened its store, says so, and is
//! waited for.

use std::io::{BufRead, BufReader, Read};
use std::os::unix::net::UnixDatagram;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;

use crate::support::{Host, TENANT, http, wait_until};

/// A host with a running VM, whose manager was started again while its TPM does not answer. A TPM
/// may take eight seconds for what is asked of it at the start.
fn opening() -> Result<(Host, String, Pid)> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    host.shut_down()?;
    let tpm = Pid::from_raw(host.tpm()?);
    kill(tpm, Signal::SIGSTOP)?;
    host.begin_again()?;
    Ok((host, vm, tpm))
}

#[test]
fn a_manager_answers_before_its_tpm_does_and_says_that_it_opens_its_store() -> Result<()> {
    let (host, _, tpm) = opening()?;
    let ask = |method, path, body| http::ask(&host.socket(), method, path, body);
    let create = format!("{{\"tenant\":\"{TENANT}\"}}");
    for (method, path, body) in [
        ("GET", "/v1/vrots", ""),
        ("POST", "/v1/vrots", create.as_str()),
        ("GET", "/v1/host/policy", ""),
        ("GET", "/v1/audit", ""),
    ] {
        let answer = ask(method, path, body)?;
        ensure!(answer.status == 503, "{path}: {}", answer.body);
        ensure!(answer.headers.contains_key("retry-after"), "{path}");
        let problem: Value = serde_json::from_str(&answer.body)?;
        ensure!(problem["type"] == "urn:vrot:problem:opening", "{problem}");
    }
    ensure!(ask("GET", "/v1/nothing", "")?.status == 404);

    let shown: Value = serde_json::from_str(&ask("GET", "/v1/host", "")?.body)?;
    ensure!(shown["store"]["state"] == "opening", "{shown}");
    ensure!(shown["tpm_problem"].is_string(), "{shown}");
    ensure!(shown["event_log"]["unchecked"].is_string(), "{shown}");
    let told = host.ctl(["host", "show"])?;
    ensure!(told.contains("opening"), "{told}");
    // Nothing is said to be missing that is only not known.
    ensure!(!told.contains("none yet"), "{told}");
    ensure!(!told.contains("REFUSED"), "{told}");
    ensure!(host.metric("vrot_store_opening")? == 1.0);
    ensure!(host.metric("vrot_store_open")? == 0.0);

    kill(tpm, Signal::SIGCONT)?;
    wait_until("the store to be open", || {
        Ok(host.json(["host", "show"])?["store"]["state"] == "open")
    })?;
    ensure!(host.metric("vrot_store_opening")? == 0.0);
    ensure!(host.metric("vrot_store_open")? == 1.0);
    Ok(())
}

#[test]
fn a_request_that_came_before_the_store_was_open_is_not_recorded_as_refused() -> Result<()> {
    let mut host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    let backend = Pid::from_raw(host.backend(&vm)?);
    host.shut_down()?;
    // Until it is given up, the manager waits for it with everything else opened.
    kill(backend, Signal::SIGSTOP)?;
    host.begin_again()?;
    let create = format!("{{\"tenant\":\"{TENANT}\"}}");
    let mut early = 0;
    loop {
        let answer = http::ask(&host.socket(), "POST", "/v1/vrots", &create)?;
        if answer.status == 201 {
            break;
        }
        ensure!(
            answer.body.contains("urn:vrot:problem:opening"),
            "{}",
            answer.body
        );
        early += 1;
    }
    kill(backend, Signal::SIGCONT)?;
    ensure!(early > 0, "nothing was asked too early");
    let lines = host.audit()?;
    let refused = lines.iter().find(|line| line["event"] == "refused");
    ensure!(refused.is_none(), "{refused:?}");
    Ok(())
}

#[test]
fn vtpmctl_waits_for_a_manager_that_opens_its_store_and_says_so() -> Result<()> {
    let (host, vm, tpm) = opening()?;
    let mut waiting = host.vtpmctl(["--output", "json", "show", &vm]);
    let mut waiting = waiting
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()?;
    ensure!(host.metric("vrot_store_opening")? == 1.0);
    // It says so before there is anything else to tell.
    let mut err = BufReader::new(waiting.stderr.take().context("its words")?);
    let mut line = String::new();
    err.read_line(&mut line)?;
    kill(tpm, Signal::SIGCONT)?;
    ensure!(line.contains("opening its store: waiting"), "{line}");
    err.read_to_string(&mut line)?;
    let said = waiting.wait_with_output()?;
    ensure!(said.status.success(), "{line}");
    let out = String::from_utf8(said.stdout)?;
    let shown: Value = serde_json::from_str(&out).context("JSON")?;
    ensure!(shown["backend"]["process"].is_number(), "{shown}");
    Ok(())
}

#[test]
fn a_manager_that_opens_its_store_ends_when_it_is_told_to() -> Result<()> {
    let (mut host, vm, tpm) = opening()?;
    ensure!(host.shut_down()?.success());
    ensure!(!host.socket().exists(), "its socket is left behind");
    kill(tpm, Signal::SIGCONT)?;
    host.start_again()?;
    ensure!(host.json(["show", &vm])?["backend"]["process"].is_number());
    Ok(())
}

#[test]
fn the_service_manager_is_told_how_the_store_stands_until_the_manager_ends() -> Result<()> {
    let mut host = Host::start()?;
    host.shut_down()?;
    let socket = host.path("notify.sock");
    let told = UnixDatagram::bind(&socket)?;
    told.set_read_timeout(Some(Duration::from_secs(30)))?;
    let next = || -> Result<String> {
        let mut message = [0; 4096];
        let length = told.recv(&mut message)?;
        Ok(String::from_utf8(message[..length].to_vec())?)
    };
    host.start_again_notifying(&socket)?;
    let first = next()?;
    ensure!(first.lines().any(|line| line == "READY=1"), "{first}");
    ensure!(first.contains("STATUS=opening the store"), "{first}");
    let second = next()?;
    ensure!(second.contains("the store is not open"), "{second}");
    // What it is told at the start does not stay when it is not so any more.
    host.make_operator_key()?;
    host.initialise()?;
    while next()?.trim() != "STATUS=serving" {}
    ensure!(host.shut_down()?.success());
    while !next()?.lines().any(|line| line == "STOPPING=1") {}
    Ok(())
}
