//! The XML of libvirt's domains, which `vtpmctl libvirt-xml` reads and writes for `virsh`.

use std::fs;
use std::process::{Command, Output};

use anyhow::{Result, ensure};
use test_support::programs::program;

fn edit(domain: &str) -> Result<Output> {
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("domain.xml");
    fs::write(&file, domain)?;
    let mut vtpmctl = Command::new(program("vtpmctl")?);
    let config = folder.path().join("none.toml");
    vtpmctl.args(["libvirt-xml", "--domain"]).arg(&file);
    Ok(vtpmctl.arg("--config").arg(config).output()?)
}

#[test]
fn of_a_domain_nothing_changes_but_its_tpm_whatever_stands_in_it() -> Result<()> {
    let uuid = "<uuid>b6a5d4b0-b9dc-4275-9c2e-c5c68ee011b5</uuid>";
    let title = "<title>cafe\u{301} \u{1f469}\u{200d}\u{1f4bb} \u{202e}x&#x202e;</title>";
    for domain in [
        format!(
            "<domain>\n\t<name>x</name>\n\t{title}\n\t{uuid}\n\t<devices>\n\t</devices>\n</domain>\n"
        ),
        format!(
            "\u{feff}<domain>\r\n<name>x</name>\r\n{uuid}\r\n<devices>\r\n</devices>\r\n</domain>"
        ),
    ] {
        let edited = edit(&domain)?;
        ensure!(
            edited.status.success(),
            "{}",
            String::from_utf8_lossy(&edited.stderr)
        );
        let edited = String::from_utf8(edited.stdout)?;
        let (before, rest) = edited.split_once("<tpm").unwrap_or_default();
        let (_, after) = rest.split_once("</tpm>").unwrap_or_default();
        ensure!(!before.is_empty(), "{edited:?}");
        // Blanks around the new element are its own.
        ensure!(domain.starts_with(before.trim_end()), "{before:?}");
        ensure!(domain.trim_end().ends_with(after.trim()), "{after:?}");
        ensure!(!edited.contains("\\u{"), "{edited:?}");
    }
    Ok(())
}

#[test]
fn a_file_that_is_no_domain_is_bad_input_and_named() -> Result<()> {
    for (text, why) in [
        ("hello", "no XML"),
        ("", "no XML"),
        ("<network/>", "is needed"),
    ] {
        let refused = edit(text)?;
        let said = String::from_utf8(refused.stderr)?;
        ensure!(refused.status.code() == Some(2), "{text}: {said}");
        ensure!(
            said.contains("domain.xml") && said.contains(why),
            "{text}: {said}"
        );
        ensure!(said.trim_end().lines().count() == 1, "{said:?}");
    }
    Ok(())
}
