//! The manager's API as a client in a hurry uses it: one request on one connection.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

/// A manager, by the socket of its API.
#[derive(Clone, Debug)]
pub(super) struct Api {
    socket: PathBuf,
}

/// All values of a manager's metrics, by name with labels.
#[derive(Clone, Debug)]
pub(super) struct Metrics(BTreeMap<String, f64>);

/// A storm of launches may queue for a long time.
const PATIENCE: Duration = Duration::from_secs(3600);

impl Api {
    /// The manager that listens there.
    pub(super) fn new(socket: PathBuf) -> Self {
        Self { socket }
    }

    /// The socket.
    pub(super) fn socket(&self) -> &Path {
        &self.socket
    }

    /// Asks, and demands an answer of the kind "success".
    pub(super) fn ask(&self, method: &str, path: &str, body: &str) -> Result<String> {
        let exchange = || -> Result<(u16, String)> {
            let mut stream = UnixStream::connect(&self.socket)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            let request = format!(
                "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\
                 content-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(request.as_bytes())?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            let (head, body) = text.split_once("\r\n\r\n").context("no answer")?;
            let status = head.split(' ').nth(1).context("no status")?.parse()?;
            Ok((status, body.to_owned()))
        };
        let (status, body) = exchange().with_context(|| format!("{method} {path}"))?;
        ensure!(
            (200..300).contains(&status),
            "{method} {path}: {status}: {body}"
        );
        Ok(body)
    }

    /// The same, with JSON as the answer.
    pub(super) fn json(&self, method: &str, path: &str, body: &str) -> Result<Value> {
        Ok(serde_json::from_str(&self.ask(method, path, body)?)?)
    }

    /// The manager's metrics.
    pub(super) fn metrics(&self) -> Result<Metrics> {
        let text = self.ask("GET", "/metrics", "")?;
        Metrics::parse(&text)
    }
}

impl Metrics {
    fn parse(text: &str) -> Result<Self> {
        let values = text
            .lines()
            .filter(|line| !line.starts_with('#') && !line.is_empty())
            .map(|line| {
                let (name, value) = line.rsplit_once(' ').context("a metric has a value")?;
                Ok((name.to_owned(), value.parse()?))
            });
        values.collect::<Result<_>>().map(Self)
    }

    /// One of them.
    pub(super) fn value(&self, name: &str) -> Result<f64> {
        self.find(name)
            .with_context(|| format!("the manager has no metric {name}"))
    }

    /// One of them, if it is there.
    pub(super) fn find(&self, name: &str) -> Option<f64> {
        self.0.get(name).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_are_found_by_name_and_label() -> Result<()> {
        let metrics = Metrics::parse(
            "# HELP vrots How many.\n# TYPE vrots gauge\nvrots{state=\"running\"} 7\nbatch 1.5\n",
        )?;
        assert_eq!(metrics.value("vrots{state=\"running\"}")?, 7.0);
        assert_eq!(metrics.find("batch"), Some(1.5));
        assert!(metrics.value("vrots").is_err());
        Ok(())
    }
}
