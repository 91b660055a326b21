//! Somebody who follows a stream of events.

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Host;

/// Longer than the pause between two signs of life.
const PATIENCE: Duration = Duration::from_secs(40);

/// A stream of events, from its first line on.
pub(crate) struct Follower {
    lines: BufReader<Box<dyn Read + Send>>,
    /// The first line.
    pub(crate) hello: Value,
}

impl Follower {
    /// Follows the manager that listens at this socket; `query` begins with `?`, or is empty.
    pub(crate) fn at(socket: &Path, query: &str) -> Result<Self> {
        let mut stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        write!(
            stream,
            "GET /v1/events{query} HTTP/1.1\r\nhost: localhost\r\n\r\n"
        )?;
        Self::reading(Box::new(stream))
    }

    /// Reads the answer to a request that was sent.
    pub(crate) fn reading(stream: Box<dyn Read + Send>) -> Result<Self> {
        let mut lines = BufReader::new(stream);
        let mut status = String::new();
        lines.read_line(&mut status)?;
        if !status.starts_with("HTTP/1.1 200 ") {
            bail!("{status}");
        }
        let hello = next(&mut lines)?.context("no first line")?;
        Ok(Self { lines, hello })
    }

    /// The next line; none at the end.
    pub(crate) fn next(&mut self) -> Result<Option<Value>> {
        next(&mut self.lines)
    }

    /// The next events of a VM, as many as these kinds are, which must be these.
    pub(crate) fn tells(&mut self, vm: &str, kinds: &[&str]) -> Result<Vec<Value>> {
        let mut told: Vec<Value> = Vec::new();
        while told.len() < kinds.len() {
            let event = self.next()?.context("the stream ended")?;
            if event["vm"] == vm {
                told.push(event);
            }
        }
        let found: Vec<&Value> = told.iter().map(|event| &event["kind"]).collect();
        assert_eq!(found, kinds);
        Ok(told)
    }
}

impl Host {
    /// Gives a VM of this tenant a vRoT, and waits until it is certified and that was told: what happens next is
    /// told afterwards.
    pub(crate) fn create_certified(&self, tenant: &str) -> Result<String> {
        let vm = self.create_for(tenant)?;
        let mut events = Follower::at(&self.socket(), "?after=0")?;
        events.tells(&vm, &["created", "certified"])?;
        Ok(vm)
    }
}

/// Objects, and not what stands between chunks (RFC 9112 §7.1): no chunk ends within a line.
fn next(lines: &mut impl BufRead) -> Result<Option<Value>> {
    loop {
        let mut line = String::new();
        if lines.read_line(&mut line)? == 0 || line == "0\r\n" {
            return Ok(None);
        }
        if line.starts_with('{') {
            return Ok(Some(serde_json::from_str(&line)?));
        }
    }
}
