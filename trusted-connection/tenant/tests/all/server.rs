//! A host that answers what a test has it answer, and a tenant who asks it.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use attestation::Nonce;
use attestation::fixture::{Host, Vm};
use attested_tls::tls::{KeyExchange, provider};
use cert_chain::Validity;
use cert_chain::profile::issue_host_tls_certificate;
use rcgen::{CertificateParams, KeyPair};
use rustls::{ServerConfig, ServerConnection, StreamOwned, version};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, UnixTime};
use serde_json::{Value, json};
use tempfile::TempDir;

/// In policies.
pub(crate) const HOSTS: &str = "hosts = [\"host-1.demo.example\", \"host-2.demo.example\"]";

/// What a host was asked.
pub(crate) struct Asked {
    /// Method and path.
    pub(crate) line: String,
    /// The body.
    pub(crate) body: String,
}

/// What a host sends back, as it is.
pub(crate) type Answers = Box<dyn Fn(&Asked) -> Vec<u8> + Send + Sync>;

/// The settings of a tenant, and the files that they name.
pub(crate) struct Client {
    pub(crate) folder: TempDir,
}

/// A host whose certificates are good now.
pub(crate) fn host(label: &str) -> Host {
    Host::made_at(UnixTime::now(), label)
}

/// A second one of the same issuer.
pub(crate) fn neighbour(of: &Host, label: &str) -> Host {
    Host::under_at(UnixTime::now(), of.issuer_again(), label)
}

/// Has a host answer, with a certificate as its manager has it; where it listens.
pub(crate) fn serve(host: &Host, answers: Answers) -> u16 {
    let key = KeyPair::generate().unwrap();
    let day = Validity::starting(UnixTime::now(), Duration::from_secs(86400)).unwrap();
    let own = issue_host_tls_certificate(&key, day, &host.key, &host.certificate).unwrap();
    serve_with(vec![own, host.certificate.clone()], &key, answers)
}

/// The same with other certificates.
pub(crate) fn serve_with(
    chain: Vec<CertificateDer<'static>>,
    key: &KeyPair,
    answers: Answers,
) -> u16 {
    let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
    let config = ServerConfig::builder_with_provider(provider(KeyExchange::HybridFirst))
        .with_protocol_versions(&[&version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(chain, key)
        .unwrap();
    let (config, answers) = (Arc::new(config), Arc::new(answers));
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (config, answers) = (Arc::clone(&config), Arc::clone(&answers));
            // Whoever is refused ends the connection.
            thread::spawn(move || answer(stream, config, &answers).ok());
        }
    });
    port
}

fn answer(stream: TcpStream, config: Arc<ServerConfig>, answers: &Answers) -> std::io::Result<()> {
    let tls = ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut stream = StreamOwned::new(tls, stream);
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte)?;
        head.extend(byte);
    }
    let head = String::from_utf8_lossy(&head).into_owned();
    let length = head
        .lines()
        .find_map(|line| line.strip_prefix("content-length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    stream.read_exact(&mut body)?;
    let asked = Asked {
        line: head.lines().next().unwrap_or_default().to_owned(),
        body: String::from_utf8(body).unwrap(),
    };
    stream.write_all(&answers(&asked))?;
    stream.conn.send_close_notify();
    stream.flush()
}

/// A whole answer.
pub(crate) fn ok(kind: &str, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// What a manager says of VMs.
pub(crate) fn list(host: &Host, vms: &[&Vm]) -> Vec<u8> {
    let view = |vm: &&Vm| {
        json!({ "vm": vm.vm, "vrot": vm.vrot, "name": null, "state": "running",
            "since": "2026-06-01T00:00:00Z", "generation": 1, "identity": "issued",
            "not_after": null, "attached": true, "degraded": false, "state_loss": null,
            "imported": false })
    };
    let vms: Vec<Value> = vms.iter().map(view).collect();
    let list = json!({ "host": host.name, "vms": vms });
    ok("application/json", list.to_string().as_bytes())
}

/// The nonce of a request for evidence.
pub(crate) fn nonce_of(asked: &Asked) -> Nonce {
    let body: Value = serde_json::from_str(&asked.body).unwrap();
    body["nonce"].as_str().unwrap().parse().unwrap()
}

/// A host that answers as a manager does, with evidence by `make`.
pub(crate) fn evidence_by(
    list: Vec<u8>,
    make: impl Fn(&Nonce) -> Vec<u8> + Send + Sync + 'static,
) -> Answers {
    Box::new(move |asked| match asked.line.split(' ').nth(1) {
        Some("/v1/evidence") => ok("application/cbor", &make(&nonce_of(asked))),
        Some("/v1/vms") => list.clone(),
        _ => b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec(),
    })
}

impl Client {
    /// A tenant who knows these hosts, and trusts the issuer of the first one. Its policy accepts what boots
    /// as `vm`.
    pub(crate) fn of(issuer: &Host, vm: &Vm, hosts: &[(&Host, u16)]) -> Self {
        let client = Self {
            folder: tempfile::tempdir().unwrap(),
        };
        let key = KeyPair::generate().unwrap();
        let own = CertificateParams::new(vec!["acme".to_owned()]).unwrap();
        let own = own.self_signed(&key).unwrap();
        client.write("acme.pem", &own.pem());
        client.write("acme.key", &key.serialize_pem());
        fs::set_permissions(client.path("acme.key"), fs::Permissions::from_mode(0o600)).unwrap();
        client.write("roots.pem", &issuer.issuer.certificate_pem());
        client.write("policy.toml", &policy(issuer, vm));
        let mut text = "certificate = \"acme.pem\"\nkey = \"acme.key\"\nroots = \"roots.pem\"\n\
             policy = \"policy.toml\"\ndeadline_s = 30\n"
            .to_owned();
        for (host, port) in hosts {
            text += &format!(
                "[[host]]\nname = \"{}\"\naddress = \"127.0.0.1:{port}\"\n",
                host.name
            );
        }
        client.write("tenant.toml", &text);
        client
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The settings with something else in them.
    pub(crate) fn change(&self, from: &str, to: &str) {
        let text = fs::read_to_string(self.path("tenant.toml")).unwrap();
        assert!(text.contains(from), "{text}");
        self.write("tenant.toml", &text.replace(from, to));
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vrot-tenant"));
        command
            .arg("--config")
            .arg(self.path("tenant.toml"))
            .args(arguments)
            .stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Status, and what it says as JSON.
    pub(crate) fn json(&self, arguments: &[&str]) -> (i32, Value) {
        let output = self.run(&[&["--output", "json"], arguments].concat());
        let said = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|_| panic!("{}", String::from_utf8_lossy(&output.stderr)));
        (output.status.code().unwrap(), said)
    }
}

/// One that accepts every VM that booted as this one, on either host.
pub(crate) fn policy(host: &Host, vm: &Vm) -> String {
    let text = host.policy_text(vm) + "\n[vm.without_log]\ndemand = [\"pinned-pcrs\"]\n";
    let lines = text.lines().filter(|line| !line.starts_with("vm = "));
    let lines = lines.map(|line| match line.starts_with("hosts = ") {
        true => HOSTS,
        false => line,
    });
    lines.flat_map(|line| [line, "\n"]).collect()
}
