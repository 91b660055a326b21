//! What documents say of the sources, and how long a source is.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use test_support::programs::workspace_folder;

use crate::{FOLDERS, rust_files};

#[test]
fn every_test_that_security_names_exists() -> Result<()> {
    let root = workspace_folder()?;
    let mut sources = String::new();
    for folder in FOLDERS {
        for file in rust_files(&root.join(folder))? {
            sources.push_str(&fs::read_to_string(file)?);
        }
    }
    let security = fs::read_to_string(root.join("SECURITY.md"))?;
    let mut names = 0;
    for line in security.lines().filter(|line| line.starts_with("| ")) {
        let shown_by = line.trim_end_matches('|').rsplit('|').next();
        for name in shown_by.unwrap_or_default().split('`').skip(1).step_by(2) {
            names += 1;
            ensure!(
                sources.contains(&format!("fn {name}()")),
                "SECURITY.md names `{name}`, which is no test"
            );
        }
    }
    ensure!(names > 40, "SECURITY.md names {names} tests only");
    Ok(())
}

/// What ARCHITECTURE.md says stands where it says.
#[test]
fn every_path_that_the_architecture_names_exists() -> Result<()> {
    let root = workspace_folder()?;
    let text = fs::read_to_string(root.join("ARCHITECTURE.md"))?;
    // Code spans that look like paths below the root: with a slash, and no placeholder.
    let named: BTreeSet<&str> = (text.split('`').skip(1).step_by(2))
        .filter(|span| span.contains('/') && !span.contains([' ', '<', '*', '\n']))
        .collect();
    ensure!(named.len() > 40, "only {} paths are named", named.len());
    let missing: Vec<&&str> = named
        .iter()
        .filter(|path| !root.join(path).exists())
        .collect();
    assert!(missing.is_empty(), "{missing:?}");
    Ok(())
}

/// A file holds one idea; what is longer than this holds several.
const MOST_LINES: usize = 600;

#[test]
fn no_source_file_has_more_than_600_lines_without_its_tests() -> Result<()> {
    let root = workspace_folder()?;
    let mut wrong = Vec::new();
    for folder in FOLDERS {
        let files = rust_files(&root.join(folder))?;
        let tests = modules_of_tests(&files)?;
        for file in files.iter().filter(|file| !tests.contains(*file)) {
            let text = fs::read_to_string(file)?;
            let lines = without_unit_tests(&text).lines().count();
            if lines > MOST_LINES {
                wrong.push(format!("{}: {lines} lines", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What one person can know well; a crate that is larger has parts that know nothing of each other.
const MOST_LINES_OF_A_CRATE: usize = 12_000;

#[test]
fn no_crate_has_more_than_12_000_lines_of_code() -> Result<()> {
    let metadata = super::metadata()?;
    let mut wrong = Vec::new();
    for package in super::packages(&metadata).filter(|package| package["source"].is_null()) {
        let manifest = package["manifest_path"].as_str().context("a path")?;
        let sources = Path::new(manifest).with_file_name("src");
        let files = rust_files(&sources)?;
        let tests = modules_of_tests(&files)?;
        let is_of_tests = |file: &PathBuf| {
            let mut above = file.ancestors();
            above.any(|above| tests.contains(above) || tests.contains(&above.with_extension("rs")))
        };
        let mut lines = 0;
        for file in files.iter().filter(|file| !is_of_tests(file)) {
            let text = fs::read_to_string(file)?;
            let code = without_unit_tests(&text).lines().map(str::trim_start);
            lines += code
                .filter(|line| !line.is_empty() && !line.starts_with("//"))
                .count();
        }
        if lines > MOST_LINES_OF_A_CRATE {
            wrong.push(format!("{}: {lines} lines", sources.display()));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

const MARK: &str = "\n#[cfg(test)]\n";

/// A source up to its unit tests.
pub(crate) fn without_unit_tests(text: &str) -> &str {
    let is_of_tests = |rest: &str| {
        let line = rest.lines().next().unwrap_or_default();
        line.ends_with("mod tests {")
    };
    let mut marks = text.match_indices(MARK);
    let begin = marks.find(|(at, _)| text.get(at + MARK.len()..).is_some_and(is_of_tests));
    begin.map_or(text, |(at, _)| text.get(..at).unwrap_or(text))
}

/// Files that hold nothing but tests: their parent declares them for tests only.
fn modules_of_tests(files: &[PathBuf]) -> Result<BTreeSet<PathBuf>> {
    let mut tests = BTreeSet::new();
    for file in files {
        let folder = match file.file_stem().and_then(|stem| stem.to_str()) {
            Some("mod" | "lib" | "main") => file.with_file_name(""),
            _ => file.with_extension(""),
        };
        let text = fs::read_to_string(file)?;
        for declaration in text.split("#[cfg(test)]\n").skip(1) {
            let line = declaration.lines().next().unwrap_or_default();
            if let Some((_, name)) = line
                .strip_suffix(';')
                .and_then(|line| line.rsplit_once("mod "))
            {
                tests.insert(folder.join(format!("{name}.rs")));
            }
        }
    }
    Ok(tests)
}
