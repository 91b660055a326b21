//! What crates are built of: the pure ones of nothing impure, verifiers without a foreign library.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::programs::workspace_folder;

use crate::documents;
use crate::{metadata, packages, rust_files};

/// What the pure crates must not use: their results depend on their arguments alone. (Random numbers
/// for keys come through `ring`.)
const IMPURE: [&str; 8] = [
    "std::env",
    "std::fs",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "Instant",
    "SystemTime",
];

#[test]
fn identity_and_appraisal_use_no_file_no_network_and_no_clock() -> Result<()> {
    let root = workspace_folder()?;
    let mut wrong = Vec::new();
    for folder in [
        "cert-chain/src",
        "attestation/src",
        "attestation/archive/src",
    ] {
        for file in rust_files(&root.join(folder))? {
            let text = fs::read_to_string(&file)?;
            let code = documents::without_unit_tests(&text);
            for word in IMPURE.iter().filter(|word| code.contains(**word)) {
                wrong.push(format!("{} uses {word}", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// Crates that judge what others claim to be, and which of the libraries in [`NETWORK`] they are built
/// with: none where identity and evidence are judged; those of its own connections in the device.
const VERIFIERS: [(&str, &[&str]); 5] = [
    ("archive", &[]),
    ("attestation", &[]),
    ("cert-chain", &[]),
    (
        "vrot-device",
        &["hyper", "mio", "rustls", "socket2", "tokio"],
    ),
    (
        "vrot-tenant",
        &["hyper", "mio", "rustls", "socket2", "tokio"],
    ),
];

/// Libraries that open connections, or serve those that do.
const NETWORK: [&str; 10] = [
    "curl",
    "h2",
    "hyper",
    "mio",
    "native-tls",
    "reqwest",
    "rustls",
    "socket2",
    "tokio",
    "ureq",
];

/// They name what they link because it is their own C code, which comes along with them and is built
/// without any other library: `ring`, and the cryptography of TLS, which has hybrid key exchange.
const BRING_THEIR_OWN: [&str; 3] = ["ring", "aws-lc-rs", "aws-lc-sys"];

#[test]
fn appraisal_is_built_without_a_network_and_no_verifier_with_a_foreign_library() -> Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    for (verifier, connects_with) in VERIFIERS {
        let build = build_of(verifier, &metadata)?;
        ensure!(
            build.iter().any(|package| package["name"] == "ring"),
            "what {verifier} is built of was not found"
        );
        for package in build {
            let name = package["name"].as_str().context("a name")?;
            // OpenSSL, a TPM software stack, libtpms.
            let links = package["links"].as_str().unwrap_or_default();
            if !links.is_empty() && !BRING_THEIR_OWN.contains(&name) {
                wrong.push(format!("{verifier} links {links} through {name}"));
            }
            if NETWORK.contains(&name) && !connects_with.contains(&name) {
                wrong.push(format!("{verifier} is built with {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What the manager needs, and no machine of an operator or an issuer has.
const OF_HOSTS: [&str; 5] = ["axum", "redb", "tss-esapi", "vtpm-backend", "vtpm-manager"];

#[test]
fn the_command_line_is_built_without_tpm_stack_store_and_server() -> Result<()> {
    let metadata = metadata()?;
    let build = build_of("vtpmctl", &metadata)?;
    ensure!(
        build.iter().any(|package| package["name"] == "hyper"),
        "what vtpmctl is built of was not found"
    );
    let mut wrong = Vec::new();
    for package in build {
        let name = package["name"].as_str().context("a name")?;
        let links = package["links"].as_str().unwrap_or_default();
        if OF_HOSTS.contains(&name) || (!links.is_empty() && !BRING_THEIR_OWN.contains(&name)) {
            wrong.push(format!("vtpmctl is built with {name}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// The packages that a crate is built of, those of build scripts and procedural macros included,
/// those of tests not.
fn build_of<'a>(root: &str, metadata: &'a Value) -> Result<Vec<&'a Value>> {
    let by_id: BTreeMap<&str, &Value> = packages(metadata)
        .filter_map(|package| Some((package["id"].as_str()?, package)))
        .collect();
    let nodes: BTreeMap<&str, &Value> = metadata
        .pointer("/resolve/nodes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter_map(|node| Some((node["id"].as_str()?, node)))
        .collect();
    let root = by_id.iter().find(|(_, package)| package["name"] == root);
    let mut found = BTreeSet::new();
    let mut open = vec![*root.context("the crate is in the workspace")?.0];
    while let Some(id) = open.pop() {
        if !found.insert(id) {
            continue;
        }
        let node = nodes.get(id).context("a package is resolved")?;
        for dependency in node["deps"].as_array().into_iter().flatten() {
            let mut kinds = dependency["dep_kinds"].as_array().into_iter().flatten();
            if kinds.any(|kind| kind["kind"] != "dev") {
                open.push(dependency["pkg"].as_str().context("a package's id")?);
            }
        }
    }
    Ok(found
        .iter()
        .filter_map(|id| by_id.get(id).copied())
        .collect())
}
