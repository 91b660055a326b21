//! The part "dashboard": how soon a page that shows all vRoTs shows that one of them has changed.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use serde_json::json;
use test_support::run_folder::RunFolder;

use super::host::BenchHost;
use super::launch::TENANT;
use super::report::Report;
use super::samples::Samples;
use crate::chromium::{Chromium, Tab};
use crate::dashboard::Dashboard;

/// What comes before all others in the order of names, so that it is in sight.
const NAME: &str = "!";

/// Starts and stops one vRoT so many times beside those that run: from the manager's answer until
/// the page has drawn the new state; 0 where that is sooner than the answer.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &BenchHost,
    count: u32,
) -> Result<()> {
    let socket = host.api().socket().to_owned();
    let page = Dashboard::start(&run.join(""), &run.log("dashboard.log"), &[socket])?;
    let browser = Chromium::start_in(RunFolder::with_logs(run.logs().join("chromium"))?)?;
    let tab = page.open(&browser)?;
    let order = json!({ "tenant": TENANT, "name": NAME }).to_string();
    let vrot = host.api().json("POST", "/v1/vrots", &order)?;
    let vm = vrot.get("vm").and_then(|vm| vm.as_str());
    let vm = vm.context("a vRoT has a VM")?;
    let path = format!("/v1/vrots/{vm}");
    tab.wait("the row", &format!("({STATE})() === 'assigned'"))?;

    let mut updates = Samples::default();
    for _ in 0..count {
        for (order, state) in [("start", "running"), ("stop", "stopped")] {
            expect(&tab, state)?;
            host.api().ask("POST", &format!("{path}/{order}"), "")?;
            let answered = SystemTime::now().duration_since(UNIX_EPOCH)?;
            let drawn = tab.evaluate("window.drawn")?;
            let drawn = drawn.as_f64().context("a time")?.max(0.0);
            updates.add_ms(Duration::try_from_secs_f64(drawn / 1e3)?.saturating_sub(answered));
        }
    }
    report.alone(
        "dashboard_update_ms",
        updates.median()?,
        "ms",
        updates.count(),
    );
    report.spread(&updates)?;
    host.api().ask("DELETE", &path, "").map(drop)
}

/// The state that the page shows of it, in JavaScript.
const STATE: &str = r"() => [...document.querySelectorAll('.row')]
    .find((row) => row.querySelector('.name')?.textContent === '!')?.querySelector('.state').textContent";

/// Has the page note when it has drawn this state, in milliseconds since 1970.
fn expect(tab: &Tab<'_>, state: &str) -> Result<()> {
    let noted = format!(
        "window.drawn = new Promise((resolve) => {{
            const state = {STATE};
            const look = () => {{
                if (state() !== '{state}') return;
                observer.disconnect();
                requestAnimationFrame(() => setTimeout(() => resolve(performance.timeOrigin + performance.now())));
            }};
            const observer = new MutationObserver(look);
            observer.observe(document.querySelector('#grid'), {{ childList: true, subtree: true, characterData: true }});
            look();
        }}); 0"
    );
    tab.evaluate(&noted).map(drop)
}
