//! A real browser without a window: Chromium, steered by its DevTools protocol over a pair of pipes.

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null; a panic is a failed test"
)]

mod pipe;
mod tab;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::{Value, json};
use test_support::process::Process;
use test_support::run_folder::RunFolder;

use pipe::Pipe;

pub use tab::{Tab, Theme};

/// A running Chromium. Each test has a tab of its own in it.
#[derive(Debug)]
pub struct Chromium {
    pipe: Mutex<Pipe>,
    // Dropped in this order.
    _process: Process,
    _run: RunFolder,
}

/// A name that leads to this machine as an attacker's own name would (DNS rebinding).
pub const REBOUND: &str = "rebound.example";

/// What Debian's package installs, and others.
const PROGRAMS: [&str; 3] = [
    "/usr/bin/chromium",
    "/usr/bin/chromium-browser",
    "/usr/bin/google-chrome",
];

/// The program, if it is installed.
pub fn program() -> Option<PathBuf> {
    PROGRAMS
        .map(PathBuf::from)
        .into_iter()
        .find(|path| path.exists())
}

impl Chromium {
    /// Starts it; `name` is where its log goes.
    pub fn start(name: &str) -> Result<Self> {
        Self::start_in(RunFolder::create(name)?)
    }

    /// The same with a folder for its files.
    pub fn start_in(run: RunFolder) -> Result<Self> {
        let program = program().context("Chromium is not installed: `make browser` installs it")?;
        let (commands, answers) = (run.join("commands"), run.join("answers"));
        for fifo in [&commands, &answers] {
            mkfifo(fifo, Mode::from_bits_truncate(0o600))?;
        }
        let pipe = Pipe::open(&commands, &answers)?;
        // Chromium reads commands at descriptor 3 and answers at 4; it ends when nobody writes any more.
        let mut command = Command::new("sh");
        command
            .arg("-c")
            .arg("commands=$1 answers=$2; shift 2; exec \"$@\" 3<\"$commands\" 4>\"$answers\"")
            .arg("sh")
            .args([&commands, &answers, &program])
            .args(["--headless=new", "--remote-debugging-pipe", "--no-sandbox"])
            .args(["--disable-gpu", "--disable-dev-shm-usage", "--mute-audio"])
            .args(["--no-first-run", "--disable-extensions", "--disable-sync"])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args(["--force-color-profile=srgb", "--font-render-hinting=none"])
            .arg(format!("--host-resolver-rules={}", resolver_rules()))
            .arg(format!("--user-data-dir={}", run.join("profile").display()))
            .arg("about:blank");
        let process = Process::start("chromium", command, &run.log("chromium.log"))?;
        let browser = Self {
            pipe: Mutex::new(pipe),
            _process: process,
            _run: run,
        };
        browser
            .call(None, "Browser.getVersion", &json!({}))
            .context("Chromium does not answer")?;
        Ok(browser)
    }

    /// Opens a page, and waits until it is loaded.
    pub fn open(&self, url: &str) -> Result<Tab<'_>> {
        Tab::open(self, url)
    }

    /// Sends a command to a tab, or to the browser, and awaits its answer.
    fn call(&self, session: Option<&str>, method: &str, parameters: &Value) -> Result<Value> {
        self.pipe().call(session, method, parameters)
    }

    /// What was told of a tab, unasked, since this was called last.
    fn told(&self, session: &str) -> Vec<Value> {
        self.pipe().told(session)
    }

    fn pipe(&self) -> MutexGuard<'_, Pipe> {
        self.pipe.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Nothing beyond this machine is looked up.
fn resolver_rules() -> String {
    format!("MAP {REBOUND} 127.0.0.1, MAP * ~NOTFOUND, EXCLUDE 127.0.0.1, EXCLUDE localhost")
}

/// Where a picture goes.
fn write_picture(path: &Path, png: &[u8]) -> Result<()> {
    std::fs::write(path, png).with_context(|| format!("writing {}", path.display()))
}
