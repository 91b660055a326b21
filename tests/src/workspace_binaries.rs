//! Where the programs under test are, freshly built.

use std::collections::BTreeMap;
use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use anyhow::{Context, Result, bail};

/// The path of one of the workspace's programs, after seeing to it that it is up to date.
///
/// `cargo test` does not build other packages' programs, and a stale one would test yesterday's
/// code. So the first caller in each process has cargo build the program's package; that takes a
/// moment when nothing changed.
pub fn program(name: &str) -> Result<PathBuf> {
    let package = match name {
        "vtpm-backend" => "vtpm-backend",
        "vtpm-managerd" | "vtpmctl" => "vtpm-manager",
        "vrot-device" | "vrot-service" => "trusted-connection",
        _ => bail!("{name} is none of the workspace's programs"),
    };
    static BUILT: Mutex<BTreeMap<&str, Result<(), String>>> = Mutex::new(BTreeMap::new());
    BUILT
        .lock()
        .map_err(|_| anyhow::anyhow!("another thread failed while it built {name}"))?
        .entry(package)
        .or_insert_with(|| build(package).map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(anyhow::Error::msg)?;
    let path = profile_folder()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing although cargo built {package}",
            path.display()
        );
    }
    Ok(path)
}

/// The workspace's root folder.
pub fn workspace_folder() -> Result<PathBuf> {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = tests.parent().context("the tests lie in the workspace")?;
    Ok(root.to_owned())
}

/// Cargo's target folder.
pub fn target_folder() -> Result<PathBuf> {
    let profile = profile_folder()?;
    let target = profile
        .parent()
        .context("the profile's folder lies in cargo's target folder")?;
    Ok(target.to_owned())
}

/// `target/debug` or `target/release`: the folder of the running test, or the one above it when
/// that is `deps`.
fn profile_folder() -> Result<PathBuf> {
    let running = env::current_exe().context("asking for the path of this program")?;
    let folder = running.parent().context("this program lies in a folder")?;
    if folder.ends_with("deps") {
        let profile = folder.parent().context("`deps` lies in a folder")?;
        return Ok(profile.to_owned());
    }
    Ok(folder.to_owned())
}

/// Builds the whole workspace's programs, as `make demo` and `make test` do: cargo then finds
/// every dependency built with the same features. Where another package does not compile, the
/// one that is needed is built alone.
fn build(package: &str) -> Result<()> {
    if cargo_build(&["--workspace"]).is_ok() {
        return Ok(());
    }
    cargo_build(&["--package", package]).with_context(|| format!("{package} does not build"))
}

fn cargo_build(what: &[&str]) -> Result<()> {
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    command
        .args(["build", "--quiet", "--locked", "--bins"])
        .args(what)
        .current_dir(workspace_folder()?)
        .env("CARGO_TARGET_DIR", target_folder()?);
    if profile_folder()?.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().context("running cargo build")?;
    if !output.status.success() {
        bail!("{}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}
