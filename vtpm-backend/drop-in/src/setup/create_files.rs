//! `--create-config-files`: a user's own configuration, with an authority of its own.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use nix::unistd::Uid;
use program_output::console::print;

use super::configuration::NAME;
use super::user_folder;

const AUTHORITY: &str = "swtpm-localca.conf";
const AUTHORITY_OPTIONS: &str = "swtpm-localca.options";

/// Writes the files, as the words (with commas or spaces between) say.
pub(super) fn create(how: &str) -> Result<()> {
    let (mut overwrite, mut root, mut skip) = (false, false, false);
    for word in how.split([',', ' ']).filter(|word| !word.is_empty()) {
        match word {
            "overwrite" => overwrite = true,
            "root" => root = true,
            "skip-if-exist" => skip = true,
            _ => bail!(
                "--create-config-files: there is no {word:?}; there are overwrite, root, skip-if-exist"
            ),
        }
    }
    ensure!(
        !(overwrite && skip),
        "--create-config-files: give one of overwrite and skip-if-exist"
    );
    let folder = user_folder()?;
    let names = [NAME, AUTHORITY, AUTHORITY_OPTIONS];
    let existing = names.map(|name| folder.join(name));
    let existing = existing.iter().find(|path| path.symlink_metadata().is_ok());
    match existing {
        Some(_) if skip => return Ok(()),
        Some(path) if !overwrite => bail!(
            "{} exists: give overwrite to replace it, or skip-if-exist to keep it",
            path.display()
        ),
        _ => {}
    }
    ensure!(
        root || !Uid::effective().is_root(),
        "root's own configuration would take the place of that in /etc: give root if it is to"
    );
    let state = folder.join("var/lib/swtpm-localca");
    fs::create_dir_all(&state).with_context(|| format!("{} cannot be made", state.display()))?;
    let contents = [
        setup(&folder),
        authority(&state),
        "--platform-manufacturer vRoT\n--platform-version 1\n--platform-model vRoT\n".to_owned(),
    ];
    for (name, content) in names.into_iter().zip(contents) {
        let path = folder.join(name);
        print(&format!("Writing {}.\n", path.display()))?;
        write(&path, &content).with_context(|| format!("{} cannot be written", path.display()))?;
    }
    Ok(())
}

/// In place of what is there, which may be a symbolic link.
fn write(path: &Path, content: &str) -> std::io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).open(path)?;
    file.write_all(content.as_bytes())
}

fn setup(folder: &Path) -> String {
    let folder = folder.display();
    format!(
        "create_certs_tool = /usr/bin/swtpm_localca\n\
         create_certs_tool_config = {folder}/{AUTHORITY}\n\
         create_certs_tool_options = {folder}/{AUTHORITY_OPTIONS}\n\
         # Comma-separated list (no spaces) of PCR banks to activate by default\n\
         active_pcr_banks = sha256\n"
    )
}

fn authority(state: &Path) -> String {
    let state = state.display();
    format!(
        "statedir = {state}\n\
         signingkey = {state}/signkey.pem\n\
         issuercert = {state}/issuercert.pem\n\
         certserial = {state}/certserial\n"
    )
}
