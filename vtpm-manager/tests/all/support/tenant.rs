//! Tenants, who ask the manager with curl.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::follower::Follower;
use super::http::Answer;
use super::{DOMAIN, Host, said, wait_until};

/// The API of a host, and one tenant's certificate.
pub(crate) struct Tenant {
    port: u16,
    root: String,
    certificate: String,
    key: String,
}

/// A stream that curl reads; it ends with this.
pub(crate) struct Stream {
    curl: Child,
    pub(crate) events: Follower,
}

/// Has an enrolled host's manager serve tenants, with more lines of its configuration for that.
pub(crate) fn serve_tenants(host: &mut Host, more: &str) -> Result<()> {
    ensure!(host.shut_down()?.success());
    let config = host.path("config.toml");
    let mut text = fs::read_to_string(&config)?;
    text += &format!(
        "\n[tenants]\nlisten = [\"127.0.0.1:0\"]\nissuer = \"{}\"\n{more}",
        host.path("issuer/root.pem")
    );
    fs::write(&config, text)?;
    host.start_again()
}

/// Where the manager listens for tenants, once it has a certificate for that.
pub(crate) fn port(host: &Host) -> Result<u16> {
    let mut port = None;
    wait_until("the API for tenants", || {
        let log = host.log();
        // What an earlier manager said stands before.
        let Some((_, rest)) = log.rsplit_once("listening for tenants address=127.0.0.1:") else {
            return Ok(false);
        };
        port = rest.split_whitespace().next().map(str::to_owned);
        Ok(rest.contains("the key for tenants is certified"))
    })?;
    Ok(port.context("a port")?.parse()?)
}

impl Tenant {
    /// A tenant that the host's issuer has certified.
    pub(crate) fn certified(host: &Host, name: &str) -> Result<Self> {
        let issuer = host.path("issuer");
        let (certificate, key) = (
            host.path(&format!("{name}.pem")),
            host.path(&format!("{name}.key")),
        );
        host.ctl([
            "issuer",
            "tenant",
            "add",
            name,
            "--dir",
            &issuer,
            "--out",
            &certificate,
            "--new-key",
            &key,
        ])?;
        Self::with(host, certificate, key)
    }

    /// One with these files.
    pub(crate) fn with(host: &Host, certificate: String, key: String) -> Result<Self> {
        Ok(Self {
            port: port(host)?,
            root: host.path("issuer/root.pem"),
            certificate,
            key,
        })
    }

    /// The address of a path.
    pub(crate) fn url(&self, path: &str) -> String {
        format!("https://host-1.{DOMAIN}:{}{path}", self.port)
    }

    /// Where the host listens.
    pub(crate) fn address(&self) -> String {
        format!("127.0.0.1:{}", self.port)
    }

    /// Where its certificate is.
    pub(crate) fn certificate(&self) -> PathBuf {
        self.certificate.clone().into()
    }

    /// Where its private key is.
    pub(crate) fn key(&self) -> &str {
        &self.key
    }

    /// Where the certificate of the host's issuer is.
    pub(crate) fn root(&self) -> &str {
        &self.root
    }

    /// curl, for this tenant and host.
    pub(crate) fn curl(&self) -> Command {
        let mut curl = Command::new("curl");
        let resolve = format!("host-1.{DOMAIN}:{}:127.0.0.1", self.port);
        curl.args([
            "--silent",
            "--show-error",
            "--include",
            "--no-buffer",
            "--http1.1",
        ])
        .args(["--max-time", "60", "--resolve", &resolve])
        .args(["--cacert", &self.root])
        .args(["--cert", &self.certificate, "--key", &self.key]);
        curl
    }

    /// Asks for a path, with more options of curl's.
    pub(crate) fn ask(&self, path: &str, more: &[&str]) -> Result<Answer> {
        let said = said(self.curl().args(more).arg(self.url(path)))?;
        ensure!(
            said.status == 0,
            "curl {path}: {} {}",
            said.status,
            said.err
        );
        // After an interim response (100) comes the answer.
        let text = match said.out.strip_prefix("HTTP/1.1 100 Continue\r\n\r\n") {
            Some(rest) => rest,
            None => &said.out,
        };
        let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
        let status = head.split(' ').nth(1).context("no status")?.parse()?;
        let headers: BTreeMap<String, String> = (head.lines().skip(1))
            .filter_map(|line| line.split_once(": "))
            .map(|(name, value)| (name.to_lowercase(), value.to_owned()))
            .collect();
        Ok(Answer {
            status,
            headers,
            body: body.to_owned(),
        })
    }

    /// The same, where the answer is JSON of something that is there.
    pub(crate) fn json(&self, path: &str) -> Result<Value> {
        let answer = self.ask(path, &[])?;
        ensure!(answer.status == 200, "{path}: {}", answer.body);
        Ok(serde_json::from_str(&answer.body)?)
    }

    /// Its VMs, as the host lists them.
    pub(crate) fn vms(&self) -> Result<Vec<String>> {
        let list = self.json("/v1/vms")?;
        let vms = list["vms"].as_array().context("a list")?;
        let numbers = vms
            .iter()
            .filter_map(|vm| vm["vm"].as_str().map(str::to_owned));
        Ok(numbers.collect())
    }

    /// Asks for evidence; the answer's body goes into a file, and its status is told.
    pub(crate) fn evidence(&self, body: &Value, into: &str) -> Result<u16> {
        let asked = format!("{into}.request");
        fs::write(&asked, body.to_string())?;
        let mut curl = self.curl();
        curl.args(["--no-include", "--output", into, "--write-out"])
            .args(["%{http_code}", "--data-binary", &format!("@{asked}")]);
        let said = said(curl.arg(self.url("/v1/evidence")))?;
        ensure!(said.status == 0, "curl: {} {}", said.status, said.err);
        Ok(said.out.parse()?)
    }

    /// Whether the host speaks with it, and what curl said if not.
    pub(crate) fn is_admitted(&self) -> Result<Result<(), String>> {
        let said = said(self.curl().arg(self.url("/v1/vms")))?;
        Ok(match said.status {
            0 => Ok(()),
            _ => Err(said.err),
        })
    }

    /// Follows its events.
    pub(crate) fn follow(&self, query: &str) -> Result<Stream> {
        let mut curl = self
            .curl()
            .arg(self.url(&format!("/v1/events{query}")))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()?;
        let out = curl.stdout.take().context("its output")?;
        Ok(Stream {
            events: Follower::reading(Box::new(out))?,
            curl,
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.curl.kill();
        let _ = self.curl.wait();
    }
}
