//! The configuration that the package installs.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use vtpm_manager::config::Config;

const SHIPPED: &str = include_str!("../../packaging/vrot-host/config.toml");

#[test]
fn the_shipped_configuration_is_accepted() -> Result<()> {
    let config = parse(SHIPPED)?;
    assert_eq!(config.anchor.tpm.to_string(), "device:/dev/tpmrm0");
    assert_eq!(config.event_log, Path::new("/run/vrot-host/event-log"));
    Ok(())
}

#[test]
fn what_is_commented_out_states_the_defaults() -> Result<()> {
    let active: String = lines(|line| !line.starts_with('#'));
    let spelled_out = lines(|line| !line.starts_with("# ") && line != "#");
    let spelled_out = spelled_out.replace("\n#", "\n");
    ensure!(spelled_out.lines().count() > active.lines().count() + 10);

    let mut defaults = parse(&active)?;
    // Elsewhere than in this test it is found beside the manager's program.
    defaults.backend = "/usr/bin/vtpm-backend".into();
    assert_eq!(
        format!("{:#?}", parse(&spelled_out)?),
        format!("{defaults:#?}")
    );
    Ok(())
}

#[test]
fn every_entry_there_is_can_be_found_in_the_shipped_configuration() -> Result<()> {
    // The parser names what it knows when it meets what it does not.
    for (given, table) in [
        ("tmp = 1", "top"),
        ("[pool]\nzise = 1", "pool"),
        ("[swtpm]\nuzers = 1", "swtpm"),
        ("[tenants]\nlizten = 1", "tenants"),
    ] {
        let error = parse(given).err().context("accepted")?.to_string();
        let (_, known) = error.split_once("expected one of").context(error.clone())?;
        let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
        ensure!(known.len() > 2, "{table}: {error}");
        for entry in known {
            ensure!(
                SHIPPED.lines().any(|line| {
                    // Behind a space where there is no default to state.
                    let line = line.trim_start_matches('#').trim_start();
                    let table = [format!("[{entry}]"), format!("[[{table}.{entry}]]")];
                    line.starts_with(&format!("{entry} = ")) || table.contains(&line.to_owned())
                }),
                "`{entry}` ({table}) is not in the shipped configuration"
            );
        }
    }
    Ok(())
}

fn lines(keep: impl Fn(&str) -> bool) -> String {
    SHIPPED
        .lines()
        .filter(|line| keep(line))
        .flat_map(|line| [line, "\n"])
        .collect()
}

fn parse(text: &str) -> Result<Config> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("config.toml");
    fs::write(&file, text)?;
    Ok(Config::load(&file)?)
}
