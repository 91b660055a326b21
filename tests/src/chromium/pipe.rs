//! The DevTools protocol over two pipes: JSON messages, each ended by a zero byte.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use serde_json::{Value, json};

/// Both pipes, and what came without being asked for.
#[derive(Debug)]
pub(super) struct Pipe {
    commands: File,
    answers: File,
    read: Vec<u8>,
    last: u64,
    told: HashMap<String, Vec<Value>>,
}

/// A browser that starts on a busy machine takes seconds.
const PATIENCE: Duration = Duration::from_secs(60);

impl Pipe {
    /// Opens the ends of this side, without waiting for the others.
    pub(super) fn open(commands: &Path, answers: &Path) -> Result<Self> {
        let commands = OpenOptions::new().read(true).write(true).open(commands)?;
        let answers = OpenOptions::new()
            .read(true)
            .custom_flags(OFlag::O_NONBLOCK.bits())
            .open(answers)?;
        Ok(Self {
            commands,
            answers,
            read: Vec::new(),
            last: 0,
            told: HashMap::new(),
        })
    }

    /// Sends a command and reads on until its answer is there.
    pub(super) fn call(
        &mut self,
        session: Option<&str>,
        method: &str,
        parameters: &Value,
    ) -> Result<Value> {
        self.last += 1;
        let mut message = json!({ "id": self.last, "method": method, "params": parameters });
        if let Some(session) = session {
            message["sessionId"] = session.into();
        }
        self.commands.write_all(message.to_string().as_bytes())?;
        self.commands.write_all(&[0])?;
        let end = Instant::now() + PATIENCE;
        loop {
            let message = self.message(end).with_context(|| method.to_owned())?;
            if message["id"] == self.last {
                ensure!(message["error"].is_null(), "{method}: {}", message["error"]);
                return Ok(message["result"].clone());
            }
            self.keep(message);
        }
    }

    /// What was told of a session, with what has come meanwhile.
    pub(super) fn told(&mut self, session: &str) -> Vec<Value> {
        self.told.remove(session).unwrap_or_default()
    }

    fn keep(&mut self, message: Value) {
        if let Some(session) = message["sessionId"].as_str() {
            let told = self.told.entry(session.to_owned()).or_default();
            told.push(message);
        }
    }

    fn message(&mut self, end: Instant) -> Result<Value> {
        loop {
            if let Some(at) = self.read.iter().position(|byte| *byte == 0) {
                let rest = self.read.split_off(at + 1);
                let message = std::mem::replace(&mut self.read, rest);
                let text = message.strip_suffix(&[0]).unwrap_or(&message);
                return Ok(serde_json::from_slice(text)?);
            }
            let left = end.saturating_duration_since(Instant::now());
            ensure!(!left.is_zero(), "Chromium did not answer");
            let mut waits = [PollFd::new(self.answers.as_fd(), PollFlags::POLLIN)];
            poll(&mut waits, PollTimeout::try_from(left)?)?;
            let mut piece = [0; 65536];
            match self.answers.read(&mut piece) {
                // Nobody writes: it has not begun to, or has ended.
                Ok(0) => std::thread::sleep(Duration::from_millis(10)),
                Ok(length) => self.read.extend(piece.iter().take(length)),
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {}
                Err(error) => bail!("reading from Chromium: {error}"),
            }
        }
    }
}
