//! The page that shows the demo's host, and a picture of it where there is a browser.

use std::fs;
use std::io::{self, IsTerminal};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, Result};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use test_support::run_folder::RunFolder;

use super::stage::Stage;
use crate::chromium::{self, Chromium, Tab, Theme};
use crate::dashboard::Dashboard;
use crate::narrator::Narrator;

/// The picture that is left.
pub(super) const PICTURE: &str = "dashboard.png";
const CHAIN_PICTURE: &str = "dashboard-chain.png";
/// How long somebody at a terminal may look.
const TO_LOOK: Duration = Duration::from_secs(600);

/// A page that is served.
#[derive(Debug)]
pub(super) struct Page(Dashboard);

impl Page {
    /// Serves the page of the demo's host.
    pub(super) fn serve(narrator: &Narrator, stage: &Stage) -> Result<Self> {
        let socket = stage.host.socket();
        narrator.note(&format!(
            "$ vtpmctl dashboard --listen 127.0.0.1:0 --host {}",
            socket.display()
        ));
        let log = stage.run.log("dashboard.log");
        let page = Dashboard::start(&stage.run.join(""), &log, &[socket])?;
        narrator.note(&format!("page: {}   token: {}", page.url, page.token));
        Ok(Self(page))
    }

    /// Takes pictures of the page, and of a VM's chain of trust, if there is a browser.
    pub(super) fn take_pictures(&self, narrator: &Narrator, stage: &Stage) -> Result<()> {
        for picture in [PICTURE, CHAIN_PICTURE] {
            // That of an earlier demo, if there was one.
            let _ = fs::remove_file(stage.output(picture));
        }
        if chromium::program().is_none() {
            narrator
                .note("no Chromium is installed, so there is no picture (apt install chromium)");
            return Ok(());
        }
        narrator.wait("taking a picture with Chromium", || {
            let logs = super::logs()?.join("chromium");
            let browser = Chromium::start_in(RunFolder::with_logs(logs)?)?;
            let tab = self.0.open(&browser)?;
            tab.prefer(Theme::Light)?;
            tab.wait("the VM's row", &format!("Boolean({})", row_of(stage)))?;
            tab.picture(&stage.output(PICTURE))?;
            open_chain(&tab, stage)?;
            tab.picture(&stage.output(CHAIN_PICTURE))
        })
    }

    /// Says where the page is and its picture, and leaves somebody at a terminal time to look.
    pub(super) fn tell(self, stage: &Stage) -> Result<()> {
        let Self(page) = self;
        let picture = stage.output(PICTURE);
        if picture.exists() {
            println!("A picture of the host's page: {}", picture.display());
        } else {
            println!(
                "To look at the host's page: vtpmctl dashboard, and open its address in a browser."
            );
        }
        let input = io::stdin();
        if !input.is_terminal() || !io::stdout().is_terminal() {
            return Ok(());
        }
        println!("\nThe page is there until you press Enter, for ten minutes at most:");
        println!("  {}   token: {}", page.url, page.token);
        let mut waits = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
        poll(&mut waits, PollTimeout::try_from(TO_LOOK)?)
            .map(drop)
            .context("waiting for Enter")
    }
}

/// The VM's row, in JavaScript.
fn row_of(stage: &Stage) -> String {
    let vm = stage.vm;
    format!(
        "[...document.querySelectorAll('.row')].find((row) => row.textContent.includes('{vm}'))"
    )
}

fn open_chain(tab: &Tab<'_>, stage: &Stage) -> Result<()> {
    tab.evaluate(&format!("{}.click()", row_of(stage)))?;
    tab.wait(
        "the chain of trust",
        "document.querySelector('#details svg.chain') !== null",
    )
}
