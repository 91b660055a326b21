//! Manual pages and completion for shells, made of command lines: a reader of manual pages takes every
//! page without a warning, and a shell completes what the programs have.

use std::fs;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use test_support::programs::program;
use test_support::tool::Tool;

#[test]
fn manual_pages_are_read_without_a_warning_and_completion_knows_commands_and_options() -> Result<()>
{
    let folder = tempfile::tempdir()?;
    Tool::new(program("vrot-manual")?)
        .arg(folder.path())
        .run()?;
    let mut pages = 0;
    for entry in fs::read_dir(folder.path())? {
        let share = entry?.path();
        let name = share
            .file_name()
            .context("a name")?
            .to_string_lossy()
            .into_owned();
        for page in fs::read_dir(share.join("man/man1"))? {
            let page = page?.path();
            is_read_without_a_warning(&page)?;
            pages += 1;
        }
        let main = share.join(format!("man/man1/{name}.1"));
        let text = Tool::new("groff")
            .args(["-Kutf8", "-man", "-Tascii", "-P-cbou"])
            .arg(&main)
            .text()?;
        for heading in ["NAME", "SYNOPSIS", "OPTIONS"] {
            ensure!(
                text.lines().any(|line| line == heading),
                "{name}: no {heading}: {text}"
            );
        }
        for completion in ["zsh/vendor-completions/_", "fish/vendor_completions.d/"] {
            let suffix = if completion.starts_with("fish") {
                ".fish"
            } else {
                ""
            };
            let path = share.join(format!("{completion}{name}{suffix}"));
            let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
            ensure!(text.contains(&name), "{}", path.display());
        }
    }
    ensure!(pages > 60, "{pages} pages");

    let of = |program: &str, words: &[&str]| completed(folder.path(), program, words);
    assert_eq!(of("vtpmctl", &["doc"])?, ["doctor"]);
    assert_eq!(of("vtpmctl", &["audit", ""])?, ["accept", "verify"]);
    ensure!(of("vtpmctl", &["audit", "verify", "--he"])?.contains(&"--head".to_owned()));
    assert_eq!(of("vtpmctl", &["--output", ""])?, ["human", "json"]);
    assert_eq!(of("vtpm-managerd", &["--che"])?, ["--check-config"]);
    ensure!(of("vrot-tenant", &["att"])?.contains(&"attest".to_owned()));
    ensure!(of("vrot-device", &["ver"])?.contains(&"verify".to_owned()));
    Ok(())
}

fn is_read_without_a_warning(page: &Path) -> Result<()> {
    let read = Command::new("groff")
        .args(["-Kutf8", "-man", "-Tutf8", "-ww", "-z"])
        .arg(page)
        .output()?;
    let said = String::from_utf8_lossy(&read.stderr);
    ensure!(
        read.status.success() && said.is_empty(),
        "{}: {said}",
        page.display()
    );
    Ok(())
}

/// What bash offers for the last of these words; options that every command has aside.
fn completed(folder: &Path, program: &str, words: &[&str]) -> Result<Vec<String>> {
    let file = folder
        .join(program)
        .join("bash-completion/completions")
        .join(program);
    let script = r#"source "$1"; program=$2; shift 2
        function=$(complete -p "$program" | sed 's/.* -F \([^ ]*\) .*/\1/')
        COMP_WORDS=("$program" "$@"); COMP_CWORD=$#
        "$function" "$program" "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD-1]}"
        printf '%s\n' "${COMPREPLY[@]}""#;
    let offered = Tool::new("bash")
        .args(["-c", script, "bash"])
        .arg(&file)
        .arg(program)
        .args(words)
        .text()?;
    let mut offered: Vec<String> = (offered.lines())
        .filter(|word| {
            words.last().is_none_or(|last| last.starts_with('-')) || !word.starts_with('-')
        })
        .filter(|word| *word != "help" && !word.is_empty())
        .map(str::to_owned)
        .collect();
    offered.sort();
    Ok(offered)
}
