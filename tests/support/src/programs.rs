//! Where the programs under test are.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

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
