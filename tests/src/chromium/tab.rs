//! One page in the browser: what it shows, and what a person does to it.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};
use test_support::deadline::wait_for;

use super::{Chromium, write_picture};

/// A page.
#[derive(Debug)]
pub struct Tab<'a> {
    browser: &'a Chromium,
    target: String,
    session: String,
}

/// What the person prefers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Theme {
    /// Dark on light.
    Light,
    /// Light on dark.
    Dark,
}

const PATIENCE: Duration = Duration::from_secs(60);

impl<'a> Tab<'a> {
    pub(super) fn open(browser: &'a Chromium, url: &str) -> Result<Self> {
        let text = |value: &Value| value.as_str().map(str::to_owned).context("a text");
        // A window of its own: a tab behind another one draws nothing.
        let new = json!({ "url": "about:blank", "newWindow": true });
        let target = text(&browser.call(None, "Target.createTarget", &new)?["targetId"])?;
        let attach = json!({ "targetId": target, "flatten": true });
        let session = text(&browser.call(None, "Target.attachToTarget", &attach)?["sessionId"])?;
        let tab = Self {
            browser,
            target,
            session,
        };
        for domain in ["Page.enable", "Runtime.enable", "Log.enable"] {
            tab.call(domain, json!({}))?;
        }
        tab.call(
            "Emulation.setFocusEmulationEnabled",
            json!({ "enabled": true }),
        )?;
        tab.resize(1440, 900)?;
        tab.go(url)?;
        Ok(tab)
    }

    /// Goes to another address.
    pub fn go(&self, url: &str) -> Result<()> {
        let went = self.call("Page.navigate", json!({ "url": url }))?;
        ensure!(went["errorText"].is_null(), "{url}: {}", went["errorText"]);
        self.wait(
            "the page",
            "document.readyState === 'complete' && location.href !== 'about:blank'",
        )
    }

    /// The value of a JavaScript expression in the page.
    pub fn evaluate(&self, expression: &str) -> Result<Value> {
        let asked =
            json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        let answer = self.call("Runtime.evaluate", asked)?;
        let thrown = &answer["exceptionDetails"];
        ensure!(thrown.is_null(), "{expression}: {thrown}");
        Ok(answer["result"]["value"].clone())
    }

    /// The same as a text.
    pub fn text(&self, expression: &str) -> Result<String> {
        let value = self.evaluate(expression)?;
        let text = value.as_str().map(str::to_owned);
        text.with_context(|| format!("{expression} is {value}"))
    }

    /// Waits until an expression is true.
    pub fn wait(&self, what: &str, expression: &str) -> Result<()> {
        let waited = wait_for(what, PATIENCE, || {
            Ok((self.evaluate(expression)? == true).then_some(()))
        });
        waited.with_context(|| format!("{expression}; the page says: {}", self.said()))
    }

    /// Presses a key, by the name that a page knows it by.
    pub fn press(&self, key: &str) -> Result<()> {
        let code = match key {
            "Enter" => 13,
            "Escape" => 27,
            "End" => 35,
            "Home" => 36,
            "ArrowUp" => 38,
            "ArrowDown" => 40,
            "/" => 191,
            _ => bail!("this harness does not know the key {key}"),
        };
        let text = match key {
            "Enter" => "\r",
            "/" => "/",
            _ => "",
        };
        for kind in [
            if text.is_empty() {
                "rawKeyDown"
            } else {
                "keyDown"
            },
            "keyUp",
        ] {
            let mut event = json!({ "type": kind, "key": key, "windowsVirtualKeyCode": code });
            if kind == "keyDown" {
                event["text"] = text.into();
            }
            self.call("Input.dispatchKeyEvent", event)?;
        }
        Ok(())
    }

    /// Types a text where the focus is.
    pub fn type_text(&self, text: &str) -> Result<()> {
        self.call("Input.insertText", json!({ "text": text }))
            .map(drop)
    }

    /// Makes the window as large as this.
    pub fn resize(&self, width: u32, height: u32) -> Result<()> {
        let size =
            json!({ "width": width, "height": height, "deviceScaleFactor": 1, "mobile": false });
        self.call("Emulation.setDeviceMetricsOverride", size)
            .map(drop)
    }

    /// Sets what the person prefers.
    pub fn prefer(&self, theme: Theme) -> Result<()> {
        let value = match theme {
            Theme::Light => "light",
            Theme::Dark => "dark",
        };
        let features = json!([{ "name": "prefers-color-scheme", "value": value },
            { "name": "prefers-reduced-motion", "value": "reduce" }]);
        self.call(
            "Emulation.setEmulatedMedia",
            json!({ "features": features }),
        )
        .map(drop)
    }

    /// Writes a picture of the page as a PNG file.
    pub fn picture(&self, path: &Path) -> Result<()> {
        let taken = self.call("Page.captureScreenshot", json!({ "format": "png" }))?;
        let png = taken["data"].as_str().context("a picture")?;
        write_picture(path, &STANDARD.decode(png)?)
    }

    /// What the browser has to complain about since this was called last: errors and warnings of
    /// scripts, of loading, and of the page's policy.
    pub fn complaints(&self) -> Result<Vec<String>> {
        // What it has told by now comes before this answer.
        self.evaluate("0")?;
        let told = self.browser.told(&self.session);
        Ok(told.iter().filter_map(complaint).collect())
    }

    /// What stands on the page, for messages.
    fn said(&self) -> String {
        let said = self.text("document.body.innerText.slice(0, 2000)");
        said.unwrap_or_default()
    }

    fn call(&self, method: &str, parameters: Value) -> Result<Value> {
        self.browser.call(Some(&self.session), method, &parameters)
    }
}

impl Drop for Tab<'_> {
    fn drop(&mut self) {
        let close = json!({ "targetId": self.target });
        let _ = self.browser.call(None, "Target.closeTarget", &close);
    }
}

fn complaint(message: &Value) -> Option<String> {
    let parameters = &message["params"];
    match message["method"].as_str()? {
        "Runtime.exceptionThrown" => Some(parameters["exceptionDetails"].to_string()),
        "Runtime.consoleAPICalled" => Some(parameters["args"].to_string()),
        "Log.entryAdded" => {
            let entry = &parameters["entry"];
            let is_bad = matches!(entry["level"].as_str(), Some("error" | "warning"));
            is_bad.then(|| format!("{} {}", entry["text"], entry["url"]))
        }
        _ => None,
    }
}
