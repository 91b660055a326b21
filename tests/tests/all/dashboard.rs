//! The page that shows hosts, in a real browser.

use std::path::Path;
use std::sync::LazyLock;

use anyhow::{Context, Result, ensure};
use cert_chain::{Digest32, HashAlgorithm, HashValue};
use serde_json::{Value, json};
use test_support::run_folder::RunFolder;
use uuid::Uuid;
use vrot_tests::chromium::{Chromium, Tab, Theme};
use vrot_tests::contrast::contrasts;
use vrot_tests::dashboard::Dashboard;
use vrot_tests::fake_manager::{FakeManager, host, vrot};
use vrot_tests::scene::Scene;
use vrot_tests::vmm::Control;

static BROWSER: LazyLock<Result<Chromium>> = LazyLock::new(|| Chromium::start("dashboard-browser"));

pub(crate) fn browser() -> Result<&'static Chromium> {
    match &*BROWSER {
        Ok(browser) => Ok(browser),
        Err(error) => anyhow::bail!("{error:#}"),
    }
}

/// A name that would act in a page that took it for markup.
const HOSTILE: &str = "<img src=x onerror=window.hacked=1><script>";

#[test]
fn the_page_shows_what_happens_on_a_host_as_it_happens() -> Result<()> {
    let mut scene = Scene::set("dashboard")?;
    let (web, database) = (Uuid::new_v4(), Uuid::new_v4());
    for (vm, tenant, name) in [(web, "acme", HOSTILE), (database, "globex", "database-1")] {
        let create = [
            "create",
            "--vm",
            &vm.to_string(),
            "--tenant",
            tenant,
            "--name",
            name,
        ];
        scene.host.vtpmctl(create)?.run()?;
    }
    let log = scene.run.log("dashboard.log");
    let sockets = [scene.host.socket()];
    let mut page = Dashboard::start(&scene.run.join(""), &log, &sockets)?;
    let tab = page.open(browser()?)?;
    let name = cell(web, ".name");
    tab.wait("the row of a VM", &format!("{name} === {}", json!(HOSTILE)))?;
    assert_eq!(tab.text(&cell(web, ".state"))?, "assigned");
    assert_eq!(
        tab.text("document.querySelector('.host .name span').textContent")?,
        "host-1.test.example"
    );
    let bound = tab.text("document.querySelector('.host .meter').ariaValueText")?;
    ensure!(bound.contains("batches"), "{bound}");

    // It starts, and nobody touches the page.
    scene.host.start_vrot(web)?;
    tab.wait(
        "its state",
        &format!("{} === 'running'", cell(web, ".state")),
    )?;
    let told = "[...document.querySelectorAll('.event .what')].some((line) => line.textContent.endsWith(' started'))";
    tab.wait("the event", told)?;
    let running = "document.querySelector('[data-tile=running] .value').textContent";
    tab.wait("the count", &format!("{running} === '1 of 2'"))?;

    // Whoever comes back is told again what happened, once.
    tab.evaluate("window.before = true; location.reload()")?;
    tab.wait("the event again", &format!("!window.before && {told}"))?;

    // By keyboard alone: search, choose, open, close.
    tab.press("/")?;
    tab.type_text("globex assigned")?;
    tab.wait("one row", "document.querySelectorAll('.row').length === 1")?;
    tab.press("Escape")?;
    tab.wait(
        "both rows",
        "document.querySelectorAll('.row').length === 2",
    )?;
    tab.press("Home")?;
    tab.press("Enter")?;
    let chain = "document.querySelector('#details svg.chain')?.textContent ?? ''";
    tab.wait(
        "the chain of trust",
        &format!("({chain}).includes('identity issuer')"),
    )?;
    let drawn = tab.text(chain)?;
    let vik = scene.host.identity(web)?["vik"]["name"].clone();
    let vik = vik
        .as_str()
        .and_then(|name| name.get(..12))
        .context("the vIK's name")?;
    for part in [
        "host-1.test.example",
        "as the operator approved",
        vik,
        "told by its evidence alone",
    ] {
        ensure!(drawn.contains(part), "{part} is missing: {drawn}");
    }
    ensure!(
        tab.text("document.querySelector('#details').innerText")?
            .contains("PCR 7")
    );
    tab.press("Escape")?;
    tab.wait(
        "the drawer's end",
        "!document.querySelector('#details').open",
    )?;
    assert_eq!(tab.evaluate("document.activeElement.id")?, "grid");

    // What its VM measures is shown to whoever opens it, though the guest tells nobody.
    let shown = scene.host.show(web)?;
    let control = shown["backend"]["control"].as_str().context("a socket")?;
    let mut vmm = Control::connect(Path::new(control))?.attach()?;
    let measured = Digest32::of(b"a boot loader");
    let digest = HashValue::new(HashAlgorithm::Sha256, measured.as_bytes());
    vmm.extend(4, &digest.context("32 bytes")?)?;
    let log = [&[0; 32][..], measured.as_bytes()].concat();
    let pcr = Digest32::of(&log).to_string();
    tab.press("Enter")?;
    let beginning = pcr.get(..12).context("digits")?;
    let told = format!(
        "({chain}).includes('as its vRoT quotes') && ({chain}).includes('PCR 4 {beginning}')"
    );
    tab.wait("what booted in the VM", &told)?;
    ensure!(
        tab.text("document.querySelector('#details').innerText")?
            .contains(&pcr)
    );
    tab.press("Escape")?;

    let times = "[...document.querySelectorAll('.event .what')].filter((line) => line.textContent.endsWith(' started')).length";
    assert_eq!(tab.evaluate(times)?, 1);

    // A manager that is gone is told, and what it tells afterwards is shown.
    scene.host.without_manager(|| {
        let told = "document.querySelector('.host .problem.bad')?.textContent.includes('cannot be reached')";
        tab.wait("the manager's end", told)
    })?;
    scene
        .host
        .vtpmctl(["delete", &database.to_string()])?
        .run()?;
    tab.wait(
        "the row's end",
        &format!("{} === undefined", cell(database, ".vm")),
    )?;
    tab.wait(
        "the manager",
        "document.querySelector('.host .problem') === null",
    )?;
    scene.host.stop_vrot(web)?;
    tab.wait(
        "its state",
        &format!("{} === 'stopped'", cell(web, ".state")),
    )?;

    must_be_content(&tab)?;
    // Whoever may look at the program's token file may look, and nobody when it has ended.
    ensure!(page.process.stop()?.success());
    ensure!(
        !scene
            .run
            .join("dashboard-1")
            .join("dashboard.token")
            .exists()
    );
    tab.wait(
        "the end",
        "document.querySelector('#connection').textContent.includes('not connected')",
    )?;
    Ok(())
}

#[test]
fn nothing_that_a_manager_tells_is_executed() -> Result<()> {
    let run = RunFolder::create("dashboard-hostile")?;
    let manager = FakeManager::start(&run.join("manager.sock"))?;
    let mut row = vrot(1, HOSTILE, HOSTILE);
    for field in ["note", "renewal_problem"] {
        row[field] = HOSTILE.into();
    }
    row["launch"] = json!({ "required": true, "state": "in-force", "digest": "33".repeat(32),
        "parts": [{ "part": HOSTILE, "value": HOSTILE }] });
    let mut other = vrot(2, "javascript:window.hacked=3", "running");
    other["name"] = "invoices\u{202e}gnp.exe".into();
    manager.tell_host("host-1.test.example", &[row.clone(), other]);
    let mut told = host("host-1.test.example");
    for field in ["tpm", "tpm_problem", "isolation"] {
        told[field] = HOSTILE.into();
    }
    told["enrolment"]["issuer"] = HOSTILE.into();
    told["event_log"] = json!({ "path": HOSTILE, "problem": HOSTILE });
    for field in ["state", "problem", "policy"] {
        told["store"][field] = HOSTILE.into();
    }
    told["last_fault"] = json!({ "time": "2026-11-28T12:00:00Z", "place": HOSTILE });
    manager.tell("/v1/host", told);
    let vrot_id = row["vrot"].as_str().context("an id")?.to_owned();
    manager.tell(&format!("/v1/vrots/{vrot_id}"), row.clone());
    manager.tell("/v1/host/policy", json!({ "policy_key": format!("000b{}", "44".repeat(32)),
        "policy_digest": "44".repeat(32), "objects": [], "bank": "sha256", "pcrs": { "4": HOSTILE },
        "satisfied": true, "approvals": [{ "label": HOSTILE, "bank": "sha256", "differences": [] }] }));
    manager.tell(
        &format!("/v1/vrots/{vrot_id}/pcrs"),
        json!({ "bank": "sha256", "pcrs": { "4": HOSTILE, "7": HOSTILE } }),
    );
    let event = json!({ "number": 1, "at": "2026-11-28T12:00:00Z", "kind": HOSTILE, "vrot": vrot_id,
        "vm": row["vm"], "details": { "cause": HOSTILE } });
    let hello = json!({ "kind": "hello", "manager": vrot_id, "oldest": 1, "next": 2 });
    manager.tell("/v1/events", format!("{hello}\nno JSON\n{event}\n").into());

    let page = Dashboard::start(
        &run.join(""),
        &run.log("dashboard.log"),
        &[manager.socket()],
    )?;
    let tab = page.open(browser()?)?;
    tab.wait(
        "both rows",
        "document.querySelectorAll('.row').length === 2",
    )?;
    tab.wait(
        "the event",
        "document.querySelector('.event')?.textContent.includes('onerror')",
    )?;
    tab.wait(
        "the host's problems",
        "document.querySelectorAll('.host .problem').length >= 4",
    )?;
    tab.press("Home")?;
    tab.press("Enter")?;
    let shown = "document.querySelector('#details svg.chain')?.textContent.includes('<img')";
    tab.wait("the chain of trust", shown)?;
    // Each of them stands there to be read, and none became an element.
    let words = tab.text("document.body.textContent")?;
    ensure!(words.matches("<img src=x onerror").count() > 15, "{words}");
    ensure!(words.contains("invoices\\u{202e}gnp.exe"), "{words}");
    let foreign = "document.querySelectorAll('#page script, #details script, #page img:not([src=\"/icon.svg\"]), #details img, [onerror]').length";
    assert_eq!(tab.evaluate(foreign)?, 0);
    assert_eq!(tab.evaluate("typeof window.hacked")?, "undefined");
    must_be_content(&tab)?;

    // Nor would it be if a script of ours took it for markup: the browser refuses.
    for attempt in [
        "document.body.innerHTML = '<b>'",
        "document.body.setAttribute('onclick', 'window.hacked = 4')",
        "document.body.append(document.createElement('script')); document.scripts[1].text = 'window.hacked = 5'",
    ] {
        let refused = format!(
            "(() => {{ try {{ {attempt}; return 'taken' }} catch (error) {{ return error.name }} }})()"
        );
        assert_eq!(tab.text(&refused)?, "TypeError", "{attempt}");
    }
    let elsewhere = "fetch('http://127.0.0.1:1/').then(() => 'sent', (error) => error.name)";
    assert_eq!(tab.text(elsewhere)?, "TypeError");
    let said = tab.complaints()?.join("\n");
    for directive in ["TrustedHTML", "TrustedScript", "connect-src"] {
        ensure!(said.contains(directive), "{directive}: {said}");
    }
    Ok(())
}

#[test]
fn a_thousand_vrots_are_as_few_elements_and_found_by_search_keyboard_and_order() -> Result<()> {
    let run = RunFolder::create("dashboard-thousand")?;
    let manager = FakeManager::start(&run.join("manager.sock"))?;
    let state = |number| {
        if number % 10 == 3 {
            "stopped"
        } else {
            "running"
        }
    };
    let name = |number| format!("vm-{number}");
    let mut rows: Vec<Value> = (0..1000)
        .map(|number| vrot(number, &name(number), state(number)))
        .collect();
    rows[7]["backend"]["degraded"] = true.into();
    rows[8]["vik_not_after"] = "2026-01-01T00:00:00Z".into();
    manager.tell_host("host-1.test.example", &rows);
    let second = FakeManager::start(&run.join("second.sock"))?;
    second.tell_host("other.test.example", &[vrot(5000, "elsewhere", "running")]);
    let sockets = [manager.socket(), second.socket()];
    let page = Dashboard::start(&run.join(""), &run.log("dashboard.log"), &sockets)?;
    let tab = page.open(browser()?)?;
    tab.prefer(Theme::Light)?;
    tab.wait(
        "all rows",
        "document.querySelector('#count').textContent === '1,001'",
    )?;
    // The name of a host may be known after its rows are.
    second.tell("/v1/host", host("host-2.test.example"));
    tab.wait(
        "the second host's name",
        "[...document.querySelectorAll('.host .name')].some((name) => name.textContent.includes('host-2'))",
    )?;
    let drawn = tab.evaluate("document.querySelectorAll('.row').length")?;
    ensure!(
        drawn
            .as_u64()
            .is_some_and(|drawn| (10..60).contains(&drawn)),
        "{drawn}"
    );
    assert_eq!(
        tab.evaluate("document.querySelector('#grid').ariaRowCount")?,
        "1002"
    );
    let tiles = "[...document.querySelectorAll('.tile .value')].map((value) => value.textContent).join('|')";
    assert_eq!(tab.text(tiles)?, "901 of 1,001|1|1|0|0|0.0 /s");

    // The last one is reached, and said to be the one that is chosen.
    tab.press("End")?;
    let chosen = "document.getElementById(document.querySelector('#grid').getAttribute('aria-activedescendant'))?.innerText ?? ''";
    tab.wait("the last row", &format!("({chosen}).includes('vm-999')"))?;
    tab.press("ArrowUp")?;
    tab.wait("the one before", &format!("({chosen}).includes('vm-998')"))?;
    // In sight, where a person looks.
    let place = "(() => { const row = document.querySelector('[aria-selected=true]').getBoundingClientRect(); const grid = document.querySelector('#grid').getBoundingClientRect(); return row.top >= grid.top && row.bottom <= grid.bottom + 1 })()";
    assert_eq!(tab.evaluate(place)?, true);

    // What changes is shown where it is, and nothing else moves.
    rows[998]["state"] = "suspended".into();
    manager.tell("/v1/vrots", json!({ "vrots": rows }));
    tab.wait("the change", &format!("({chosen}).includes('suspended')"))?;

    // A tile shows its own; a search, those of the other host.
    tab.evaluate("document.querySelector('[data-tile=degraded]').click()")?;
    tab.wait(
        "the degraded one",
        "document.querySelectorAll('.row').length === 1",
    )?;
    ensure!(
        tab.text("document.querySelector('.row').innerText")?
            .contains("vm-7")
    );
    tab.evaluate("document.querySelector('#clear').click()")?;
    tab.press("/")?;
    tab.type_text("host-2")?;
    tab.wait(
        "the other host's",
        "document.querySelector('#count').textContent === '1 of 1,001'",
    )?;
    tab.press("Escape")?;
    tab.evaluate("[...document.querySelectorAll('.heads button')].find((head) => head.textContent === 'State').click()")?;
    let first = "document.querySelector('.row[aria-rowindex=\"2\"] .state').textContent";
    tab.wait("the order by state", &format!("{first} === 'running'"))?;
    tab.evaluate("document.querySelector('.heads [aria-sort] button').click()")?;
    tab.wait("the other order", &format!("{first} === 'suspended'"))?;
    assert_eq!(
        tab.evaluate("document.querySelector('.heads [aria-sort]').ariaSort")?,
        "descending"
    );

    let light = contrasts(&tab)?;
    tab.picture(&run.log("light.png"))?;
    tab.prefer(Theme::Dark)?;
    let dark = contrasts(&tab)?;
    tab.picture(&run.log("dark.png"))?;
    for (theme, (ground, worst)) in [("light", &light), ("dark", &dark)] {
        ensure!(*worst >= 4.5, "{theme}: {worst} on {ground}");
    }
    ensure!(light.0 != dark.0, "both themes are {}", light.0);
    must_be_content(&tab)
}

/// The text of a part of a VM's row, in JavaScript; undefined without the row.
fn cell(vm: Uuid, part: &str) -> String {
    format!(
        "[...document.querySelectorAll('.row')].find((row) => row.textContent.includes('{vm}'))\
         ?.querySelector('{part}').textContent"
    )
}

/// The browser has nothing to complain about.
fn must_be_content(tab: &Tab<'_>) -> Result<()> {
    let complaints = tab.complaints()?;
    ensure!(complaints.is_empty(), "{}", complaints.join("\n"));
    Ok(())
}
