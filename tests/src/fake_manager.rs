//! A manager that tells what a test wants: the API's paths on a Unix socket, with answers that no manager of
//! ours would give, or of more vRoTs than a test has time to make.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result};
use serde_json::{Value, json};
use uuid::Uuid;

/// A socket that answers, until the process ends.
#[derive(Debug)]
pub struct FakeManager {
    socket: PathBuf,
    answers: Answers,
}

/// By path; a text is sent as it is.
type Answers = Arc<Mutex<BTreeMap<String, Value>>>;

impl FakeManager {
    /// Listens, and answers 404 to everything.
    pub fn start(socket: &Path) -> Result<Self> {
        let listener = UnixListener::bind(socket)?;
        let answers = Answers::default();
        let told = Arc::clone(&answers);
        thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let told = Arc::clone(&told);
                // Who hangs up hears nothing.
                thread::spawn(move || answer(&stream, &told).ok());
            }
        });
        Ok(Self {
            socket: socket.to_owned(),
            answers,
        })
    }

    /// Where it listens.
    pub fn socket(&self) -> PathBuf {
        self.socket.clone()
    }

    /// What is answered at a path from now on.
    pub fn tell(&self, path: &str, answer: Value) {
        let mut answers = self.answers.lock().unwrap_or_else(PoisonError::into_inner);
        answers.insert(path.to_owned(), answer);
    }

    /// A host without anything wrong, that has these vRoTs.
    pub fn tell_host(&self, name: &str, vrots: &[Value]) {
        self.tell("/v1/host", host(name));
        self.tell("/v1/vrots", json!({ "vrots": vrots }));
        self.tell("/metrics", "vrot_host_evidence_total 5\n".into());
    }
}

fn answer(mut stream: &UnixStream, answers: &Answers) -> Result<()> {
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next().context("a request")??;
    let path = first.split(' ').nth(1).context("a path")?;
    let path = path.split('?').next().unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let found = answers
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .get(path)
        .cloned();
    let (status, body) = match found {
        Some(Value::String(text)) => ("200 OK", text),
        Some(json) => ("200 OK", json.to_string()),
        None => {
            let problem = json!({ "type": "urn:vrot:problem:no-such-path", "title": "Not Found",
                "status": 404, "detail": "there is nothing here" });
            ("404 Not Found", problem.to_string())
        }
    };
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )?;
    Ok(())
}

/// A host as `GET /v1/host` shows it.
pub fn host(name: &str) -> Value {
    let digest = "11".repeat(32);
    let key = format!("000b{digest}");
    json!({
        "tpm": "device:/dev/tpmrm0", "tpm_problem": null, "state_dir": "/var/lib/vtpm-manager",
        "event_log": { "path": "/sys/kernel/security/tpm0/binary_bios_measurements", "problem": null },
        "backend_digest": digest, "isolation": "own-users", "manager_digest": digest,
        "keys": { "ek": key, "ik": key, "srk": key, "policy_key": key },
        "enrolment": { "host": name, "issuer": "O=demo.example, CN=vRoT identity issuer",
            "not_before": "2026-01-01T00:00:00Z", "not_after": "2099-01-01T00:00:00Z",
            "certificate_pem": "", "root_pem": "" },
        "store": { "state": "open", "refusal": null, "problem": null, "batch": 4711, "uncovered_batches": 3,
            "window_s": 300, "window_age_s": 41, "policy": "checkpoint", "boot": "continued",
            "power_loss": null },
        "last_fault": null,
    })
}

/// A vRoT as `GET /v1/vrots` shows it.
pub fn vrot(number: u128, name: &str, state: &str) -> Value {
    let id = Uuid::from_u128(0x1111_0000_4000_8000_0000_0000_0000 + number);
    let is_running = state == "running";
    let backend = json!({ "process": 1, "control": "/run/x", "attached": true, "degraded": false });
    json!({
        "vrot": id, "vm": Uuid::from_u128(0x2222_0000_4000_8000_0000_0000_0000 + number),
        "tenant": "acme", "name": name, "generation": 1, "state": state,
        "since": "2026-11-28T12:00:00Z", "note": null, "state_loss": null,
        "vik": format!("000b{}", "22".repeat(32)), "vik_certificate": "issued",
        "tls_certificate": "issued", "ek_certificates": "issued",
        "vik_not_after": "2099-01-01T00:00:00Z", "renewal_problem": null,
        "launch": { "required": false, "state": "not-measured", "parts": [] },
        "backend": is_running.then_some(backend),
    })
}
