//! `vtpmctl dashboard` over the managers of hosts, for a browser.

#![expect(
    clippy::indexing_slicing,
    reason = "what a JSON value lacks is null; a panic is a failed test"
)]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;
use test_support::process::Process;
use test_support::programs::program;

use crate::chromium::{Chromium, Tab};

/// A page that is served.
#[derive(Debug)]
pub struct Dashboard {
    /// The program.
    pub process: Process,
    /// Its address.
    pub url: String,
    /// Who shows it may look.
    pub token: String,
}

const PATIENCE: Duration = Duration::from_secs(30);

impl Dashboard {
    /// Serves a page of the managers at these sockets, on a port that is free; `folder` is for the
    /// token.
    pub fn start(folder: &Path, log: &Path, sockets: &[PathBuf]) -> Result<Self> {
        let token_file = folder.join("dashboard.token");
        let mut command = Command::new(program("vtpmctl")?);
        command
            .args(["--output", "json", "dashboard", "--listen", "127.0.0.1:0"])
            .arg("--token-file")
            .arg(&token_file);
        for socket in sockets {
            command.arg("--host").arg(socket);
        }
        let mut process = Process::start("vtpmctl dashboard", command, log)?;
        let url = process.wait_until("the page", PATIENCE, || {
            let said = serde_json::from_str::<Value>(&fs::read_to_string(log)?);
            Ok(said
                .ok()
                .and_then(|said| said["url"].as_str().map(str::to_owned)))
        })?;
        let token = fs::read_to_string(&token_file).context("the token's file")?;
        Ok(Self {
            process,
            url,
            token: token.trim().to_owned(),
        })
    }

    /// Opens the page in a browser as a person does, who enters the token.
    pub fn open<'a>(&self, browser: &'a Chromium) -> Result<Tab<'a>> {
        let tab = browser.open(&self.url)?;
        self.enter(&tab, &self.token)?;
        tab.wait(
            "what the managers tell",
            "document.querySelector('#connection').textContent === 'live'",
        )?;
        Ok(tab)
    }

    /// Enters a token.
    pub fn enter(&self, tab: &Tab<'_>, token: &str) -> Result<()> {
        tab.wait(
            "the question for the token",
            "document.activeElement?.id === 'token'",
        )?;
        tab.type_text(token)?;
        tab.press("Enter")
    }
}
