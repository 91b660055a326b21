//! The API as a stranger to this code base would use it.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use attestation::event_log::EventType;
use attestation::event_log::writer::LogWriter;
use cert_chain::HashAlgorithm;
use serde_json::{Value, json};
use test_support::programs::install;
use vtpm_manager::audit::{AuditLog, Event, Layout};

use crate::support::enrolment::Files;
use crate::support::http::ask;
use crate::support::{Host, wait_until};

/// The user of that name.
const NOBODY: u32 = 65534;

#[test]
fn every_method_of_every_path_is_described_and_no_other() -> Result<()> {
    let host = Host::start()?;
    let answer = ask(&host.socket(), "GET", "/v1/openapi.json", "")?;
    let description: Value = serde_json::from_str(&answer.body)?;
    let paths = description["paths"].as_object().context("paths")?;
    ensure!(!paths.is_empty());
    for (path, methods) in paths {
        let described: BTreeSet<String> = methods
            .as_object()
            .context("methods")?
            .keys()
            .map(|method| method.to_uppercase())
            .collect();
        // Nobody implements TRACE: the answer lists what there is.
        let path = path.replace("{id}", "00000000-0000-4000-8000-000000000000");
        let answer = ask(&host.socket(), "TRACE", &path, "")?;
        assert_eq!(answer.status, 405, "{path}");
        let allowed: BTreeSet<String> = answer.headers["allow"]
            .split(',')
            .filter(|method| *method != "HEAD")
            .map(str::to_owned)
            .collect();
        assert_eq!(allowed, described, "{path}");
    }
    Ok(())
}

#[test]
fn errors_are_problem_details() -> Result<()> {
    let host = Host::start()?;
    for (method, path, body, status, code) in [
        ("GET", "/v1/nothing", "", 404, "unknown-path"),
        ("PUT", "/v1/vrots", "", 405, "unknown-method"),
        ("POST", "/v1/vrots", "no JSON", 400, "bad-request"),
        ("POST", "/v1/vrots", "{\"vm\":1}", 422, "bad-request"),
        ("GET", "/v1/host/policy", "", 409, "host-not-initialised"),
    ] {
        let answer = ask(&host.socket(), method, path, body)?;
        assert_eq!(answer.status, status, "{method} {path}: {}", answer.body);
        assert_eq!(answer.headers["content-type"], "application/problem+json");
        let problem: Value = serde_json::from_str(&answer.body)?;
        assert_eq!(problem["type"], format!("urn:vrot:problem:{code}"));
        assert_eq!(problem["status"], status);
        ensure!(
            problem["detail"]
                .as_str()
                .is_some_and(|detail| !detail.is_empty())
        );
    }
    Ok(())
}

#[test]
fn errors_are_described_as_what_they_are_served_as() -> Result<()> {
    let host = Host::start()?;
    let answer = ask(&host.socket(), "GET", "/v1/openapi.json", "")?;
    let description: Value = serde_json::from_str(&answer.body)?;
    for (path, methods) in description["paths"].as_object().context("paths")? {
        for (method, operation) in methods.as_object().context("methods")? {
            let Some(refusal) = operation["responses"].get("default") else {
                continue;
            };
            let media_types: Vec<&String> = refusal["content"]
                .as_object()
                .context("content")?
                .keys()
                .collect();
            assert_eq!(media_types, ["application/problem+json"], "{method} {path}");
        }
    }
    Ok(())
}

/// The enrolment and the approval of a host, with every body held against its description.
#[test]
fn bodies_are_as_they_are_described() -> Result<()> {
    let host = Host::start()?;
    host.make_operator_key()?;
    host.make_issuer()?;
    let api = Described::of(&host)?;
    let public = host.path("operator.pem.pub");
    host.ctl(["host", "init", "--policy-key", &public])?;

    let pcrs = host.path("pcrs.json");
    let policy = api.get("/v1/host/policy")?;
    std::fs::write(&pcrs, policy.to_string())?;
    let approval = host.signed_approval(&["--pcrs", &pcrs, "--accept-unextended"])?;
    api.post(
        "/v1/host/policy/approvals",
        &std::fs::read_to_string(&approval)?,
    )?;

    let files = Files::of(&host);
    let asked = api.post("/v1/host/enrolment/request", "{\"name\":\"host-1\"}")?;
    std::fs::write(&files.request, asked.to_string())?;
    host.ctl(files.challenge())?;
    let challenge = std::fs::read_to_string(&files.challenge)?;
    let answered = api.post("/v1/host/enrolment/answer", &challenge)?;
    std::fs::write(&files.answer, answered.to_string())?;
    host.ctl(files.certify())?;
    let certificate = std::fs::read_to_string(&files.certificate)?;
    api.post("/v1/host/enrolment/certificate", &certificate)?;

    let vm = host.create()?;
    for path in ["/v1/host", "/v1/vrots", "/v1/audit"] {
        api.get(path)?;
    }
    let identity = ask(
        &host.socket(),
        "GET",
        &format!("/v1/vrots/{vm}/identity"),
        "",
    )?;
    api.check("/v1/vrots/{id}/identity", "get", &identity.body)?;
    // And what is not as described is told apart.
    ensure!(api.check("/v1/host", "get", "{\"tpm\":1}").is_err());
    ensure!(
        api.check_request("/v1/host/policy/approvals", &challenge)
            .is_err()
    );
    Ok(())
}

/// The API, and what it says about itself.
struct Described<'a> {
    host: &'a Host,
    description: Value,
}

impl<'a> Described<'a> {
    fn of(host: &'a Host) -> Result<Self> {
        let answer = ask(&host.socket(), "GET", "/v1/openapi.json", "")?;
        Ok(Self {
            host,
            description: serde_json::from_str(&answer.body)?,
        })
    }

    fn get(&self, path: &str) -> Result<Value> {
        let answer = ask(&self.host.socket(), "GET", path, "")?;
        self.check(path, "get", &answer.body)
    }

    fn post(&self, path: &str, body: &str) -> Result<Value> {
        self.check_request(path, body)?;
        let answer = ask(&self.host.socket(), "POST", path, body)?;
        ensure!(answer.status == 200, "{path}: {}", answer.body);
        self.check(path, "post", &answer.body)
    }

    fn check_request(&self, path: &str, body: &str) -> Result<()> {
        let content = &self.description["paths"][path]["post"]["requestBody"]["content"];
        let body = serde_json::from_str(body)?;
        self.is(&body, &content["application/json"]["schema"], path)
    }

    fn check(&self, path: &str, method: &str, body: &str) -> Result<Value> {
        let content = &self.description["paths"][path][method]["responses"]["200"]["content"];
        let body = serde_json::from_str(body)?;
        self.is(&body, &content["application/json"]["schema"], path)?;
        Ok(body)
    }

    /// As much of JSON Schema as the description makes use of.
    fn is(&self, value: &Value, schema: &Value, at: &str) -> Result<()> {
        if let Some(reference) = schema["$ref"].as_str() {
            let name = reference.rsplit('/').next().context("a name")?;
            let named = &self.description["components"]["schemas"][name];
            ensure!(named.is_object(), "{at}: nothing is called {name}");
            return self.is(value, named, at);
        }
        if let Some(choices) = schema["oneOf"].as_array() {
            let fit = choices.iter().filter(|one| self.is(value, one, at).is_ok());
            ensure!(fit.count() == 1, "{at}: {value} is not one of {schema}");
            return Ok(());
        }
        let types: Vec<&str> = match &schema["type"] {
            Value::String(one) => vec![one],
            Value::Array(several) => several.iter().filter_map(Value::as_str).collect(),
            other => anyhow::bail!("{at}: type {other} in {schema}"),
        };
        let found = match value {
            Value::Null => "null",
            Value::Bool(_) => "boolean",
            Value::Number(_) => "integer",
            Value::String(_) => "string",
            Value::Array(_) => "array",
            Value::Object(_) => "object",
        };
        ensure!(types.contains(&found), "{at}: {value} is no {types:?}");
        // The patterns with a fixed text are those that tell messages apart.
        if let (Some(text), Some(pattern)) = (value.as_str(), schema["pattern"].as_str())
            && let Some(literal) = pattern.strip_prefix("^host-")
        {
            let literal = format!("host-{}", literal.trim_end_matches('$'));
            ensure!(text == literal, "{at}: {text} is not {literal}");
        }
        for (index, item) in value.as_array().into_iter().flatten().enumerate() {
            self.is(item, &schema["items"], &format!("{at}[{index}]"))?;
        }
        let Some(fields) = value.as_object() else {
            return Ok(());
        };
        for required in schema["required"].as_array().into_iter().flatten() {
            let name = required.as_str().context("a name")?;
            ensure!(fields.contains_key(name), "{at}: {name} is missing");
        }
        for (name, field) in fields {
            let at = format!("{at}.{name}");
            match (
                schema["properties"].get(name),
                &schema["additionalProperties"],
            ) {
                (Some(property), _) => self.is(field, property, &at)?,
                (None, Value::Object(_)) => {
                    self.is(field, &schema["additionalProperties"], &at)?;
                }
                (None, _) => anyhow::bail!("{at} is not described"),
            }
        }
        Ok(())
    }
}

#[test]
fn a_request_that_is_too_long_is_refused() -> Result<()> {
    let host = Host::start()?;
    let body = format!("{{\"vm\":\"{}\"}}", "x".repeat(1 << 20));
    // The daemon may hang up before it has read everything.
    if let Ok(answer) = ask(&host.socket(), "POST", "/v1/vrots", &body) {
        assert_eq!(answer.status, 413);
    }
    host.ctl(["host", "show"])?;
    Ok(())
}

#[test]
fn another_user_is_turned_away_and_that_is_recorded() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let host = Host::start()?;
    // A copy where everybody gets to it.
    let program = host.path("vtpmctl");
    install(&crate::support::program("vtpmctl")?, program.as_ref())?;
    let said = crate::support::said(
        std::process::Command::new(program)
            .arg("--socket")
            .arg(host.socket())
            .args(["host", "show"])
            .uid(NOBODY)
            .gid(NOBODY),
    )?;
    assert_eq!(said.status, 1);
    ensure!(said.err.contains("user 65534 may not call"), "{}", said.err);
    let log = std::fs::read_to_string(host.path("state/audit.jsonl"))?;
    ensure!(log.contains("\"uid\":65534"), "{log}");
    Ok(())
}

#[test]
fn an_order_whose_caller_hangs_up_is_carried_out_and_recorded() -> Result<()> {
    let host = Host::start()?;
    let key = cert_chain::operator::PolicyKey::generate()?;
    let body = format!(
        "{{\"policy_key\":\"{}\"}}",
        hex::encode(key.public().as_bytes())
    );
    let mut caller = UnixStream::connect(host.socket())?;
    write!(
        caller,
        "POST /v1/host/init HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )?;
    // It has begun: this is written before the keys are made.
    let record = host.path("state/anchor.json");
    crate::support::wait_until("a record", || Ok(std::fs::exists(&record)?))?;
    drop(caller);
    crate::support::wait_until("a line about the initialisation", || {
        let log = std::fs::read_to_string(host.path("state/audit.jsonl"))?;
        Ok(log.contains("\"event\":\"host-initialised\""))
    })
}

#[test]
fn the_audit_log_says_who_ordered_what() -> Result<()> {
    let host = Host::enrolled()?;
    host.create()?;
    let log = std::fs::read_to_string(host.path("state/audit.jsonl"))?;
    let own = nix::unistd::geteuid().as_raw();
    for (event, by) in [
        ("manager-started", Value::Null),
        ("host-initialised", own.into()),
        ("policy-approved", own.into()),
        ("vrot-created", own.into()),
    ] {
        let line = log
            .lines()
            .find(|line| line.contains(&format!("\"event\":\"{event}\"")))
            .with_context(|| format!("no {event} in {log}"))?;
        let line: Value = serde_json::from_str(line)?;
        assert_eq!(line["by_uid"], by, "{line}");
    }
    Ok(())
}

/// Whoever can write the file can compute its hashes as well.
#[test]
fn a_log_that_was_made_anew_as_a_whole_is_told_by_the_manager_that_wrote_the_other() -> Result<()> {
    let host = Host::start()?;
    host.ctl(["audit", "verify"])?;
    let log = host.path("state/audit.jsonl");
    std::fs::remove_file(&log)?;
    let forged = AuditLog::open(log.as_ref(), Layout::default())?;
    for _ in 0..3 {
        forged.append(None, &[Event::ManagerStopped])?;
    }
    host.ctl(["audit", "verify", "--log", &log])?;
    let said = host.refused(["audit", "verify"])?;
    ensure!(said.contains("made anew"), "{said}");
    Ok(())
}

#[test]
fn a_caller_that_says_nothing_does_not_keep_the_manager_from_ending() -> Result<()> {
    // By then its silence would have ended it, without the manager's end.
    const SILENCE: Duration = Duration::from_secs(10);
    let mut host = Host::start()?;
    for _ in 0..5 {
        let came = Instant::now();
        let mut caller = UnixStream::connect(host.socket())?;
        caller.write_all(b"GET /v1/host HTTP/1.1\r\nhost: loc")?;
        // It has been let in: a later one was answered.
        ask(&host.socket(), "GET", "/v1/host", "")?;
        ensure!(host.shut_down()?.success());
        if host
            .log()
            .contains("a caller kept its connection to the end")
        {
            return Ok(());
        }
        let took = came.elapsed();
        ensure!(took >= SILENCE, "it was not waited for: {took:?}");
        host.start_again()?;
    }
    bail!("the manager waited for a caller that said nothing, or was too slow each time")
}

#[test]
fn another_user_has_a_few_connections_and_is_told_so() -> Result<()> {
    ensure!(
        nix::unistd::geteuid().is_root(),
        "this test changes users: run it as root"
    );
    let host = Host::start()?;
    // One after the other, without a word.
    let script = "use IO::Socket::UNIX; alarm 60; \
                  @held = map { IO::Socket::UNIX->new(Peer => $ARGV[0]) or die $! } 1..$ARGV[1]; \
                  sysread $held[-1], $answer, 1000; print $answer";
    let last_of = |connections: &str| {
        crate::support::said(
            std::process::Command::new("perl")
                .args(["-e", script])
                .arg(host.socket())
                .arg(connections)
                .uid(NOBODY)
                .gid(NOBODY),
        )
    };
    // Who is silent has no answer, and loses its connection.
    let said = last_of("4")?;
    assert_eq!((said.status, said.out.as_str()), (0, ""), "{}", said.err);
    let said = last_of("5")?;
    ensure!(said.out.contains("too-many-connections"), "{}", said.out);
    Ok(())
}

#[test]
fn an_event_log_that_is_none_or_does_not_account_for_the_pcrs_is_told_before_a_device_is_shown_it()
-> Result<()> {
    let mut host = Host::start()?;
    let file = host.path("event-log");
    let shut_down = |host: &mut Host| -> Result<()> {
        host.shut_down()?;
        Ok(std::fs::write(host.path("daemon.log"), "")?)
    };
    // What is wrong, in `host show`, in the log and in the metrics.
    let told = |host: &Host, what: &str, pcrs: Value| -> Result<()> {
        wait_until("the event log was compared", || {
            Ok(host.log().contains("devices refuse every VM"))
        })?;
        let shown = host.json(["host", "show"])?;
        assert_eq!(shown["event_log"]["unaccounted_pcrs"], pcrs);
        let said = host.ctl(["host", "show"])?;
        ensure!(said.contains("VMS ARE REFUSED"), "{said}");
        ensure!(
            said.contains(what) && said.contains(&host.path("event-log")),
            "{said}"
        );
        let log = host.log();
        ensure!(log.contains("WARN") && log.contains(what), "{log}");
        let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
        ensure!(
            metrics.contains("vrot_host_event_log_usable 0"),
            "{metrics}"
        );
        Ok(())
    };
    told(&host, "the log is empty", json!([]))?;

    let mut boot = LogWriter::crypto_agile(&[HashAlgorithm::Sha256]);
    boot.measure(0, EventType::S_CRTM_VERSION, b"firmware");
    boot.measure(8, EventType::IPL, b"boot loader");
    shut_down(&mut host)?;
    for (pcr, data) in [(0, "firmware"), (8, "boot loader")] {
        host.extend_pcr(pcr, data.as_bytes())?;
    }
    std::fs::write(&file, boot.bytes())?;
    host.start_again()?;
    wait_until("the event log was found right", || {
        Ok(host.log().contains("accounts for the host's PCRs"))
    })?;
    assert_eq!(
        host.json(["host", "show"])?["event_log"]["problem"],
        Value::Null
    );
    let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
    ensure!(
        metrics.contains("vrot_host_event_log_usable 1"),
        "{metrics}"
    );

    shut_down(&mut host)?;
    host.extend_pcr(8, b"what no log tells of")?;
    host.extend_pcr(14, b"nor of this")?;
    host.start_again()?;
    told(&host, "PCR 8, 14", json!([8, 14]))?;
    let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
    for pcr in [8, 14] {
        let line = format!("vrot_host_event_log_unaccounted{{pcr=\"{pcr}\"}} 1");
        ensure!(metrics.contains(&line), "{metrics}");
    }

    for (contents, what) in [
        (Some(vec![0; 4096]), "nothing but bytes 0x00"),
        (Some(b"no log at all".to_vec()), "is no event log"),
        (None, "cannot be read"),
    ] {
        shut_down(&mut host)?;
        match contents {
            Some(contents) => std::fs::write(&file, contents)?,
            None => std::fs::remove_file(&file)?,
        }
        host.start_again()?;
        told(&host, what, json!([]))?;
    }
    Ok(())
}

#[test]
fn metrics_count_what_happens() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    host.refused(["start", &vm])?;
    let text = ask(&host.socket(), "GET", "/metrics", "")?.body;
    for line in [
        "vrot_vrots{state=\"running\"} 1",
        "vrot_events_total{event=\"created\"} 1",
        "vrot_events_total{event=\"refused\"} 1",
        "vrot_degraded 0",
    ] {
        ensure!(
            text.lines().any(|other| other == line),
            "{line} is not in:\n{text}"
        );
    }
    Ok(())
}

/// A caller that holds its connection with a body that never ends, as often as it may.
#[test]
fn a_body_that_does_not_come_is_given_up_and_others_are_served_meanwhile() -> Result<()> {
    let host = Host::start()?;
    let head = "POST /v1/vrots HTTP/1.1\r\nHost: l\r\nContent-Type: application/json\r\n\
                Content-Length: 1000\r\n\r\n{";
    let mut held = Vec::new();
    for _ in 0..100 {
        let mut stream = UnixStream::connect(host.socket())?;
        stream.write_all(head.as_bytes())?;
        held.push(stream);
    }
    host.ctl(["host", "show"])?;
    for mut stream in held {
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut response = String::new();
        stream.read_to_string(&mut response)?;
        ensure!(response.starts_with("HTTP/1.1 408"), "{response}");
        ensure!(response.contains("send the request anew"), "{response}");
    }
    Ok(())
}
