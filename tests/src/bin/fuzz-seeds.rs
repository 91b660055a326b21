//! Writes each fuzz target's seeds to a folder, for libFuzzer: `fuzz-seeds FOLDER`.

use std::path::PathBuf;

use anyhow::{Context, Result};
use vrot_tests::fuzzing::target::TARGETS;

fn main() -> Result<()> {
    let folder = std::env::args_os()
        .nth(1)
        .context("usage: fuzz-seeds FOLDER")?;
    let folder = PathBuf::from(folder);
    for target in TARGETS {
        let folder = folder.join(target.name);
        std::fs::create_dir_all(&folder)?;
        for (number, seed) in (target.seeds)()?.into_iter().enumerate() {
            std::fs::write(folder.join(format!("seed-{number}")), seed)?;
        }
    }
    Ok(())
}
