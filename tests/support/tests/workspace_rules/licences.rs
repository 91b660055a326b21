//! Licences and sources of what everything is built of.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, bail};
use test_support::programs::workspace_folder;

use crate::{metadata, metadata_in, packages};

#[test]
fn every_dependency_has_an_allowed_licence_and_comes_from_the_registry() -> Result<()> {
    let metadata = metadata()?;
    let judge = metadata_in(&workspace_folder()?.join("tests/formats"))?;
    let deny: toml::Table = fs::read_to_string(workspace_folder()?.join("deny.toml"))?.parse()?;
    let licences = deny
        .get("licenses")
        .context("deny.toml has no [licenses]")?;
    let allowed = strings(licences.get("allow"));
    let exceptions: BTreeMap<&str, BTreeSet<&str>> = licences
        .get("exceptions")
        .and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some((entry.get("crate")?.as_str()?, strings(entry.get("allow")))))
        .collect();
    let mut wrong = Vec::new();
    for package in packages(&metadata).chain(packages(&judge)) {
        let name = package["name"].as_str().context("a name")?;
        let licence = package["license"].as_str().unwrap_or_default();
        let excepted = match exceptions.get(name) {
            Some(exception) => is_allowed(licence, exception)?,
            None => false,
        };
        if !excepted && !is_allowed(licence, &allowed)? {
            wrong.push(format!("{name}: licence \"{licence}\" is not in deny.toml"));
        }
        if let Some(source) = package["source"].as_str()
            && !source.starts_with("registry+")
        {
            wrong.push(format!(
                "{name}: comes from {source}, not from the registry"
            ));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn licence_expressions_are_read_as_spdx_says() -> Result<()> {
    let allowed = BTreeSet::from(["MIT", "Apache-2.0", "Apache-2.0 WITH LLVM-exception"]);
    for accepted in [
        "MIT",
        "GPL-3.0 OR MIT",
        "MIT/GPL-3.0",
        "(MIT OR GPL-3.0) AND Apache-2.0",
        "Apache-2.0 WITH LLVM-exception",
    ] {
        assert!(is_allowed(accepted, &allowed)?, "{accepted}");
    }
    for refused in [
        "",
        "GPL-3.0",
        "MIT AND GPL-3.0",
        "GPL-3.0 OR MIT AND GPL-3.0",
        "MIT WITH LLVM-exception",
    ] {
        assert!(!is_allowed(refused, &allowed)?, "{refused}");
    }
    Ok(())
}

fn strings(list: Option<&toml::Value>) -> BTreeSet<&str> {
    list.and_then(toml::Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(toml::Value::as_str)
        .collect()
}

/// SPDX licence expressions (SPDX 2.3, annex D), with `/` as the older spelling of `OR`.
fn is_allowed(expression: &str, allowed: &BTreeSet<&str>) -> Result<bool> {
    let spaced = expression
        .replace('/', " OR ")
        .replace('(', " ( ")
        .replace(')', " ) ");
    let mut words = spaced.split_whitespace().peekable();
    if words.peek().is_none() {
        return Ok(false);
    }
    let answer = any_of(&mut words, allowed)?;
    if let Some(left) = words.next() {
        bail!("\"{left}\" is left over in the licence \"{expression}\"");
    }
    Ok(answer)
}

type Words<'a> = std::iter::Peekable<std::str::SplitWhitespace<'a>>;

fn any_of(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> Result<bool> {
    let mut answer = all_of(words, allowed)?;
    while words.next_if_eq(&"OR").is_some() {
        answer |= all_of(words, allowed)?;
    }
    Ok(answer)
}

fn all_of(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> Result<bool> {
    let mut answer = one(words, allowed)?;
    while words.next_if_eq(&"AND").is_some() {
        answer &= one(words, allowed)?;
    }
    Ok(answer)
}

fn one(words: &mut Words<'_>, allowed: &BTreeSet<&str>) -> Result<bool> {
    let word = words
        .next()
        .context("a licence expression ends too early")?;
    if word == "(" {
        let answer = any_of(words, allowed)?;
        if words.next() != Some(")") {
            bail!("a parenthesis stays open");
        }
        return Ok(answer);
    }
    if words.next_if_eq(&"WITH").is_some() {
        let exception = words.next().context("WITH what?")?;
        return Ok(allowed.contains(format!("{word} WITH {exception}").as_str()));
    }
    Ok(allowed.contains(word))
}
