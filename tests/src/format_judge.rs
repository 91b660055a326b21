//! Readers of our formats that are not ours: the crates `cddl` and `ear`, in a program that is no
//! member of this workspace (`tests/formats`), so that what they need is in no build of the product.

use std::fs;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;
use test_support::programs::program;
use test_support::tool::Tool;

/// How a judge's "no" reads.
pub type Judgement = std::result::Result<(), String>;

/// Whether CBOR is as the first rule of `description` says, by crate `cddl`.
pub fn described(description: &str, cbor: &[u8]) -> Result<Judgement> {
    let folder = tempfile::tempdir()?;
    let (rules, file) = (folder.path().join("rules.cddl"), folder.path().join("cbor"));
    fs::write(&rules, description)?;
    fs::write(&file, cbor)?;
    let command = Tool::new(judge()?).arg("cddl").arg(rules).arg(file);
    let line = command.line();
    let output = command.outcome()?;
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    match output.status.code() {
        Some(0) => Ok(Ok(())),
        Some(1) => Ok(Err(said)),
        _ => bail!("`{line}` ended with {}: {said}", output.status),
    }
}

/// What crate `ear` understands of an EAT attestation result. It reads none that has expired, so
/// it reads this one as of `at`, in seconds since 1970.
pub fn understood_ear(json: &Value, at: u64) -> Result<Value> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ear.json");
    fs::write(&file, json.to_string())?;
    let output = Tool::new("faketime")
        .args(["-f", &format!("@{}", utc(at)?)])
        .arg(judge()?)
        .arg("ear")
        .arg(file)
        .env("TZ", "UTC")
        .run()?;
    Ok(serde_json::from_slice(&output)?)
}

fn judge() -> Result<std::path::PathBuf> {
    program("format-judge").context(
        "the judge of formats is built by `make test`, or by `cargo build --locked \
         --manifest-path tests/formats/Cargo.toml --target-dir target`",
    )
}

/// As `faketime` takes times.
fn utc(seconds: u64) -> Result<String> {
    let text = Tool::new("date")
        .args(["--utc", "+%Y-%m-%d %H:%M:%S", "--date"])
        .arg(format!("@{seconds}"))
        .text()?;
    ensure!(!text.trim().is_empty(), "`date` printed nothing");
    Ok(text.trim().to_owned())
}
