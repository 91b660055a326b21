//! Where the programs under test are.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::tool::Tool;

/// The path of one of the workspace's programs.
///
/// Tests build nothing: `make test` builds all programs first, and `cargo test` by itself does
/// not build other packages' programs.
pub fn program(name: &str) -> Result<PathBuf> {
    let path = profile_folder()?.join(name);
    if !path.is_file() {
        bail!(
            "{} is missing: build the programs first, with `cargo build --workspace --bins`",
            path.display()
        );
    }
    Ok(path)
}

/// Puts a copy of a program where everybody can run it.
///
/// Another process writes it: a program that another test starts has a copy of every descriptor of
/// this process for a moment, and what is open for writing is not executed (`ETXTBSY`).
pub fn install(from: &Path, to: &Path) -> Result<()> {
    Tool::new("install")
        .args(["-m", "755", "--"])
        .arg(from)
        .arg(to)
        .run()?;
    Ok(())
}

/// The same with a program of these contents: a script.
pub fn install_script(contents: &str, to: &Path) -> Result<()> {
    let mut draft = to.as_os_str().to_owned();
    draft.push(".draft");
    let draft = PathBuf::from(draft);
    fs::write(&draft, contents).with_context(|| format!("writing {}", draft.display()))?;
    install(&draft, to)?;
    fs::remove_file(&draft).with_context(|| format!("removing {}", draft.display()))
}

/// The workspace's root folder.
pub fn workspace_folder() -> Result<PathBuf> {
    let support = Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = support.ancestors().nth(2);
    Ok(root.context("this lies in the workspace")?.to_owned())
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
