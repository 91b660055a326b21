//! The Debian packages of the programs under test, made once.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::{Context, Result};
use test_support::programs::{program, target_folder, workspace_folder};
use test_support::tool::Tool;

pub(crate) const PACKAGES: [&str; 7] = [
    "vrot-host",
    "vrot-operator",
    "vrot-swtpm",
    "vrot-guest",
    "vrot-device",
    "vrot-confirm",
    "vrot-tenant",
];

/// Unpacks a package without running its scripts.
pub(crate) fn install(package: &str, root: &Path) -> Result<()> {
    Tool::new("dpkg-deb")
        .arg("-x")
        .arg(file(package)?)
        .arg(root)
        .run()?;
    Ok(())
}

/// A package; the first to ask builds all of them.
pub(crate) fn file(package: &str) -> Result<PathBuf> {
    static FOLDER: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    let folder = FOLDER
        .get_or_init(|| build_once().map_err(|error| format!("{error:#}")))
        .as_ref()
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let prefix = format!("{package}_");
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.starts_with(&prefix) {
            return Ok(path);
        }
    }
    anyhow::bail!("there is no package {package} in {}", folder.display())
}

fn build_once() -> Result<PathBuf> {
    let folder = target_folder()?.join("deb-test");
    match fs::remove_dir_all(&folder) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error.into()),
        _ => {}
    }
    build(&folder)?;
    Ok(folder)
}

/// Packs the programs under test, hardly compressed.
pub(crate) fn build(folder: &Path) -> Result<()> {
    let mut programs = PathBuf::new();
    for name in ["vtpm-managerd", "vtpm-backend", "vrot-service"] {
        programs = program(name)?;
    }
    let programs = programs.parent().context("programs lie in a folder")?;
    Tool::new("sh")
        .arg(workspace_folder()?.join("scripts/deb.sh"))
        .arg(folder)
        .env("DEB_PROGRAMS", programs)
        .env("DPKG_DEB_COMPRESSOR_TYPE", "gzip")
        .env("DPKG_DEB_COMPRESSOR_LEVEL", "1")
        .run()?;
    Ok(())
}
