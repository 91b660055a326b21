//! QEMU's monitor (QMP): what the machine's state is, and where its ports are.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// A connection to a machine's monitor.
#[derive(Debug)]
pub struct Monitor {
    stream: BufReader<UnixStream>,
}

impl Monitor {
    /// Connects; `None` while QEMU does not listen yet.
    pub fn connect(path: &Path) -> Result<Option<Self>> {
        let Ok(stream) = UnixStream::connect(path) else {
            return Ok(None);
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut monitor = Self {
            stream: BufReader::new(stream),
        };
        monitor
            .message()
            .context("reading the monitor's greeting")?;
        monitor.execute("qmp_capabilities", json!({}))?;
        Ok(Some(monitor))
    }

    /// The machine's run state, `running` when all is well.
    pub fn status(&mut self) -> Result<String> {
        let answer = self.execute("query-status", json!({}))?;
        let status = answer.get("status").and_then(Value::as_str);
        Ok(status.unwrap_or("unknown").to_owned())
    }

    /// The port on this machine behind which a forwarded port of the guest is.
    pub fn forwarded_port(&mut self, of_guest: u16) -> Result<u16> {
        // Protocol, descriptor, address and port here, address and port in the guest.
        const HERE: usize = 3;
        const GUEST: usize = 5;
        let text = self.say("info usernet")?;
        text.lines()
            .filter(|line| line.contains("HOST_FORWARD"))
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|words| words.get(GUEST) == Some(&of_guest.to_string().as_str()))
            .and_then(|words| words.get(HERE)?.parse().ok())
            .with_context(|| format!("port {of_guest} is not forwarded: {text}"))
    }

    /// Whether a socket of the command line is connected.
    pub fn is_connected(&mut self, chardev: &str) -> Result<bool> {
        let answer = self.execute("query-chardev", json!({}))?;
        let all = answer.as_array().context("a list of chardevs")?;
        let named = |one: &&Value| one.get("label").and_then(Value::as_str) == Some(chardev);
        let found = all.iter().find(named).context("a chardev of that name")?;
        let state = found.get("filename").and_then(Value::as_str);
        Ok(state.is_some_and(|state| !state.starts_with("disconnected")))
    }

    /// Lets a machine that was started with `-preconfig` make its devices and start.
    pub fn leave_preconfig(&mut self) -> Result<()> {
        self.execute("x-exit-preconfig", json!({}))?;
        Ok(())
    }

    /// Lets the machine go on after a reset, whatever QEMU's command line said.
    pub fn keep_on_reset(&mut self) -> Result<()> {
        self.execute("set-action", json!({"reboot": "reset"}))?;
        Ok(())
    }

    /// Presses the reset button.
    pub fn reset(&mut self) -> Result<()> {
        self.execute("system_reset", json!({}))?;
        Ok(())
    }

    /// Wakes a machine that sleeps.
    pub fn wake_up(&mut self) -> Result<()> {
        self.execute("system_wakeup", json!({}))?;
        Ok(())
    }

    /// Gives a command in the words of the monitor for people, and yields what it says.
    pub fn say(&mut self, command: &str) -> Result<String> {
        let answer = self.execute("human-monitor-command", json!({"command-line": command}))?;
        Ok(answer.as_str().unwrap_or_default().to_owned())
    }

    /// Ends QEMU.
    pub fn quit(&mut self) -> Result<()> {
        self.execute("quit", json!({}))?;
        Ok(())
    }

    fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let request = json!({"execute": command, "arguments": arguments});
        let stream = self.stream.get_mut();
        writeln!(stream, "{request}").with_context(|| format!("sending {command}"))?;
        loop {
            let message = self.message().with_context(|| command.to_owned())?;
            if let Some(answer) = message.get("return") {
                return Ok(answer.clone());
            }
            if let Some(error) = message.get("error") {
                bail!("QEMU refused {command}: {error}");
            }
            // Anything else is an event that nobody waits for.
        }
    }

    fn message(&mut self) -> Result<Value> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            bail!("QEMU closed its monitor");
        }
        Ok(serde_json::from_str(&line)?)
    }
}

const PATIENCE: Duration = Duration::from_secs(20);
