//! A tenant with curl, which asks one thing after the other on one connection.

use std::fmt::Write as _;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use test_support::deadline::wait_for;
use test_support::programs::program;
use test_support::run_folder::RunFolder;
use test_support::tool::Tool;

use super::PATIENCE;
use crate::bench::host::BenchHost;
use crate::bench::launch::TENANT;

/// What the tenant has: its certificate and key, the issuer's root, the host's name and port.
pub(super) struct Client {
    root: PathBuf,
    certificate: PathBuf,
    key: PathBuf,
    host: String,
    port: u16,
    config: PathBuf,
}

/// One request.
pub(super) struct Request {
    /// What it asks for.
    pub(super) path: &'static str,
    /// JSON that is sent with it.
    pub(super) body: Option<String>,
    /// Where the answer is left.
    pub(super) answer: PathBuf,
}

impl Client {
    /// Has the issuer certify the tenant, and waits until the host, whose key the physical TPM certifies first,
    /// serves it.
    pub(super) fn certified(run: &RunFolder, host: &BenchHost, port: u16) -> Result<Self> {
        let client = Self {
            root: host.issuer_root().to_owned(),
            certificate: run.join("tenant.pem"),
            key: run.join("tenant.key"),
            host: host.certified_name().to_owned(),
            port,
            config: run.join("tenant.curl"),
        };
        let issuer = client.root.parent().context("a folder")?;
        Tool::new(program("vtpmctl")?)
            .args(["issuer", "tenant", "add", TENANT, "--dir"])
            .arg(issuer)
            .arg("--out")
            .arg(&client.certificate)
            .arg("--new-key")
            .arg(&client.key)
            .run()?;
        let list = client.list(run.join("vms.json"));
        wait_for("the API for tenants", PATIENCE, || {
            Ok(client.ask(std::slice::from_ref(&list), drop).ok())
        })?;
        Ok(client)
    }

    /// The request for the list of its VMs.
    pub(super) fn list(&self, answer: PathBuf) -> Request {
        Request {
            path: "/v1/vms",
            body: None,
            answer,
        }
    }

    /// The issuer's certificate.
    pub(super) fn root(&self) -> &Path {
        &self.root
    }

    /// Asks one after the other. As soon as an answer is there, it tells how long that took on the
    /// connection.
    pub(super) fn ask(
        &self,
        requests: &[Request],
        mut answered: impl FnMut(Duration),
    ) -> Result<()> {
        fs::write(&self.config, self.config_of(requests)?)?;
        let mut curl = Command::new("curl")
            .arg("--config")
            .arg(&self.config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .context("starting curl")?;
        let told = curl.stderr.take().context("what curl tells")?;
        let mut other = String::new();
        let mut answers = 0;
        for line in BufReader::new(told).lines().map_while(Result::ok) {
            match took(&line) {
                Some(took) => {
                    answers += 1;
                    answered(took);
                }
                None => writeln!(other, "{line}")?,
            }
        }
        let status = curl.wait()?;
        ensure!(
            status.success() && other.is_empty() && answers == requests.len(),
            "curl, {answers} of {} answers: {status}: {other}",
            requests.len()
        );
        Ok(())
    }

    /// curl(1), `--config`: options hold until `next`.
    fn config_of(&self, requests: &[Request]) -> Result<String> {
        let mut text = String::new();
        for (number, request) in requests.iter().enumerate() {
            if number > 0 {
                text += "next\n";
            }
            text += "silent\nshow-error\nfail\n";
            text += "write-out = \"%{stderr}%{time_pretransfer} %{time_total}\\n\"\n";
            let (host, port) = (&self.host, self.port);
            writeln!(text, "url = \"https://{host}:{port}{}\"", request.path)?;
            writeln!(text, "resolve = \"{host}:{port}:{}\"", Ipv4Addr::LOCALHOST)?;
            for (option, file) in [
                ("cacert", &self.root),
                ("cert", &self.certificate),
                ("key", &self.key),
                ("output", &request.answer),
            ] {
                writeln!(text, "{option} = \"{}\"", file.display())?;
            }
            if let Some(body) = &request.body {
                text += "header = \"content-type: application/json\"\n";
                writeln!(text, "data = \"{}\"", body.replace('"', "\\\""))?;
            }
        }
        Ok(text)
    }
}

/// From the moment at which a request could be sent to the end of its answer.
fn took(line: &str) -> Option<Duration> {
    let (before, total) = line.split_once(' ')?;
    let took = total.parse::<f64>().ok()? - before.parse::<f64>().ok()?;
    Duration::try_from_secs_f64(took.max(0.0)).ok()
}
