//! What holds for the workspace as a whole: the direction of dependencies between its crates,
//! the licences and sources of all others, and the size of files.

mod builds;
mod documents;
mod licences;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use serde_json::Value;
use test_support::programs::workspace_folder;
use test_support::tool::Tool;

/// Each crate, and which of the others it may depend on. Identity and appraisal are pure and
/// know nothing of hosts; a vRoT knows nothing of certificates, and its manager nothing of its
/// engine; only the manager and the tests see several sides.
const ALLOWED: &[(&str, &[&str])] = &[
    ("bounded-file", &[]),
    ("durable-file", &[]),
    ("locked-memory", &[]),
    ("foreign-descriptors", &[]),
    ("socket-file", &[]),
    ("tpm-wire", &[]),
    ("tss-context", &[]),
    ("printable", &[]),
    ("program-output", &["printable"]),
    ("cert-chain", &["printable"]),
    // Its tests: a list of an issuer's.
    (
        "crl-files",
        &["attestation", "bounded-file", "cert-chain", "printable"],
    ),
    ("rate-limit", &[]),
    ("attestation", &["cert-chain", "printable"]),
    ("archive", &["attestation", "cert-chain"]),
    ("record-files", &["archive"]),
    ("signed-data", &["attestation", "cert-chain", "printable"]),
    ("confirmation", &["attestation", "cert-chain", "printable"]),
    (
        "attested-tls",
        &["attestation", "bounded-file", "cert-chain", "printable"],
    ),
    (
        "connection-proxy",
        &["attested-tls", "printable", "program-output"],
    ),
    (
        "trusted-connection",
        &["attestation", "bounded-file", "crl-files"],
    ),
    (
        "vrot-confirm",
        &[
            "attestation",
            "bounded-file",
            "cert-chain",
            "confirmation",
            "durable-file",
            "locked-memory",
            "printable",
            "program-output",
            "socket-file",
            "tss-context",
        ],
    ),
    // Whatever signs: no TPM's stack.
    (
        "data-signing",
        &[
            "attestation",
            "cert-chain",
            "durable-file",
            "printable",
            "signed-data",
        ],
    ),
    (
        "vrot-device",
        &[
            "archive",
            "attestation",
            "attested-tls",
            "bounded-file",
            "cert-chain",
            "confirmation",
            "connection-proxy",
            "data-signing",
            "durable-file",
            "printable",
            "program-output",
            "record-files",
            "signed-data",
            "tpm-wire",
            "trusted-connection",
        ],
    ),
    (
        "vrot-service",
        &[
            "attestation",
            "attested-tls",
            "bounded-file",
            "cert-chain",
            "connection-proxy",
            "data-signing",
            "durable-file",
            "printable",
            "program-output",
            "signed-data",
            "tpm-wire",
            "trusted-connection",
            "tss-context",
        ],
    ),
    // What managers answer to tenants, by their API alone.
    (
        "vrot-tenant",
        &[
            "api-types",
            "attestation",
            "attested-tls",
            "bounded-file",
            "cert-chain",
            "printable",
            "program-output",
            "trusted-connection",
        ],
    ),
    ("backend-link", &["locked-memory"]),
    ("swtpm-state", &["locked-memory"]),
    (
        "swtpm-drop-in",
        &[
            "backend-link",
            "bounded-file",
            "program-output",
            "swtpm-state",
            "tpm-wire",
            "vrot-handover",
            "vtpm-backend",
        ],
    ),
    ("vhost-user-tpm", &["tpm-wire"]),
    (
        "vtpmctl",
        &[
            "api-types",
            "attestation",
            "bounded-file",
            "cert-chain",
            "durable-file",
            "host-doctor",
            "printable",
            "program-output",
            "swtpm-state",
            "vrot-dashboard",
            "vrot-handover",
        ],
    ),
    // What managers tell, by their API alone.
    (
        "vrot-dashboard",
        &["api-types", "cert-chain", "printable", "socket-file"],
    ),
    (
        "vtpm-backend",
        &[
            "backend-link",
            "foreign-descriptors",
            "locked-memory",
            "program-output",
            "socket-file",
            "swtpm-state",
            "tpm-wire",
            "vhost-user-tpm",
        ],
    ),
    ("api-types", &["cert-chain", "durable-file", "printable"]),
    // Neither the physical TPM nor the network, nor what a record says.
    ("guarded-state", &["cert-chain"]),
    (
        "trust-anchor",
        &[
            "attestation",
            "bounded-file",
            "cert-chain",
            "durable-file",
            "locked-memory",
            "tpm-wire",
        ],
    ),
    (
        "launch-measurement",
        &[
            "api-types",
            "attestation",
            "cert-chain",
            "foreign-descriptors",
        ],
    ),
    (
        "host-audit",
        &["api-types", "cert-chain", "durable-file", "guarded-state"],
    ),
    // Looks at a host from outside: neither the TPM's stack nor the store.
    (
        "host-doctor",
        &[
            "api-types",
            "attestation",
            "bounded-file",
            "cert-chain",
            "printable",
        ],
    ),
    // Requests and answers, whoever's they are.
    (
        "host-evidence",
        &[
            "api-types",
            "attestation",
            "backend-link",
            "bounded-file",
            "cert-chain",
            "trust-anchor",
        ],
    ),
    // Who runs a vRoT, not what its record says.
    (
        "vrot-backends",
        &[
            "attestation",
            "backend-link",
            "bounded-file",
            "cert-chain",
            "guarded-state",
            "host-evidence",
            "program-output",
            "rate-limit",
            "tpm-wire",
            // Its tests: a quoter that cannot quote.
            "trust-anchor",
            "vrot-manufacture",
        ],
    ),
    // Who asks and what is told to whom: nothing of vRoTs or their host.
    (
        "tenant-api",
        &[
            "api-types",
            "attested-tls",
            "bounded-file",
            "cert-chain",
            "crl-files",
            "locked-memory",
            "printable",
            "rate-limit",
            "vrot-events",
        ],
    ),
    // What is told, not what happens.
    ("vrot-events", &["api-types", "cert-chain"]),
    // What stands in a caller's process: nothing of the manager's.
    ("vrot-handover", &["bounded-file", "foreign-descriptors"]),
    // Neither the physical TPM nor the store: whoever orders brings the signer and keeps what was made.
    ("vrot-manufacture", &["cert-chain", "tpm-wire"]),
    (
        "vtpm-manager",
        &[
            "api-types",
            "attestation",
            "backend-link",
            "bounded-file",
            "cert-chain",
            "durable-file",
            "foreign-descriptors",
            "guarded-state",
            "host-audit",
            "launch-measurement",
            "host-evidence",
            "locked-memory",
            "printable",
            "program-output",
            "rate-limit",
            "socket-file",
            "tenant-api",
            "tpm-wire",
            "trust-anchor",
            "vrot-backends",
            "vrot-events",
            "vrot-handover",
            "vrot-manufacture",
        ],
    ),
    (
        "vrot-tests",
        &[
            "archive",
            "attestation",
            "attested-tls",
            "backend-link",
            "cert-chain",
            "confirmation",
            "connection-proxy",
            "signed-data",
            "swtpm-state",
            "test-support",
            "tpm-wire",
            "trusted-connection",
            "vhost-user-tpm",
            "vrot-confirm",
            "vrot-device",
            "vrot-service",
            "vtpm-backend",
            "vtpm-manager",
        ],
    ),
    // Every program that has a manual page.
    (
        "vrot-manual",
        &[
            "swtpm-drop-in",
            "vrot-confirm",
            "vrot-device",
            "vrot-service",
            "vrot-tenant",
            "vtpm-backend",
            "vtpm-manager",
            "vtpmctl",
        ],
    ),
    (TEST_SUPPORT, &[]),
];

/// What the tests of every crate may use, and its programs may not.
const TEST_SUPPORT: &str = "test-support";

/// Integration tests that are programs of their own beside the one of their crate. The runner starts
/// one program after the other, so each that stands apart leaves processors idle; it says in its
/// first lines why it does.
const APART: [(&str, &str); 1] = [("vtpm-backend", "foreign_descriptors")];

/// Where the sources are; crates nest in these folders.
const FOLDERS: &[&str] = &[
    "bounded-file",
    "tpm-wire",
    "durable-file",
    "locked-memory",
    "program-output",
    "socket-file",
    "cert-chain",
    "attestation",
    "trusted-connection",
    "vtpm-backend",
    "vtpm-manager",
    "tests",
];

#[test]
fn crates_depend_on_each_other_in_one_direction() -> Result<()> {
    let metadata = metadata()?;
    let allowed: BTreeMap<_, _> = ALLOWED.iter().copied().collect();
    let members: BTreeSet<&str> = packages(&metadata)
        .filter(|package| package["source"].is_null())
        .filter_map(|package| package["name"].as_str())
        .collect();
    let mut wrong = Vec::new();
    for package in packages(&metadata).filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().context("a name")?;
        let Some(allowed) = allowed.get(name) else {
            wrong.push(format!("{name}: say in ALLOWED what it may depend on"));
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let on = dependency["name"].as_str().context("a name")?;
            // A crate that names itself switches on a feature of its own for its tests.
            let for_tests = on == TEST_SUPPORT && dependency["kind"] == "dev";
            if on != name && members.contains(on) && !allowed.contains(&on) && !for_tests {
                wrong.push(format!("{name} must not depend on {on}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

#[test]
fn a_crate_has_one_program_of_integration_tests() -> Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    for package in packages(&metadata).filter(|package| package["source"].is_null()) {
        let name = package["name"].as_str().context("a name")?;
        let targets = package["targets"].as_array().into_iter().flatten();
        let tests: Vec<&str> = targets
            .filter(|target| target["kind"] == serde_json::json!(["test"]))
            .filter_map(|target| target["name"].as_str())
            .filter(|test| !APART.contains(&(name, test)))
            .collect();
        if tests.len() > 1 {
            wrong.push(format!("{name}: {}", tests.join(", ")));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// `make test` runs no examples in comments, and no tests of programs that are `test = false`: each of
/// those would be linked once more for nothing.
#[test]
fn no_program_and_no_comment_holds_a_test_that_would_not_be_run() -> Result<()> {
    let metadata = metadata()?;
    let mut wrong = Vec::new();
    for package in packages(&metadata).filter(|package| package["source"].is_null()) {
        for target in package["targets"].as_array().into_iter().flatten() {
            let root = target["src_path"].as_str().context("a path")?;
            if target["kind"] == serde_json::json!(["bin"]) && target["test"] == false {
                let text = fs::read_to_string(root)?;
                let mut lines = text.lines().map(str::trim_start);
                if lines.any(|line| line.starts_with("mod ") || line.starts_with("#[cfg(test)]")) {
                    wrong.push(format!(
                        "{root}: a module, so there may be tests: remove `test = false`"
                    ));
                }
            }
        }
    }
    let root = workspace_folder()?;
    for folder in FOLDERS {
        for file in rust_files(&root.join(folder))? {
            let text = fs::read_to_string(&file)?;
            let fences = text
                .lines()
                .filter_map(|line| line.trim_start().strip_prefix("//"))
                .filter_map(|line| line.get(1..)?.trim_start().strip_prefix("```"));
            // The first of two opens a block: one without a language is Rust, and a test.
            if fences
                .step_by(2)
                .any(|tag| tag.is_empty() || tag.starts_with("rust"))
            {
                wrong.push(format!("{}: a code block that is Rust", file.display()));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

fn metadata() -> Result<Value> {
    metadata_in(&workspace_folder()?)
}

fn metadata_in(folder: &Path) -> Result<Value> {
    let output = Tool::new(std::env::var("CARGO").unwrap_or_else(|_| "cargo".to_owned()))
        .args(["metadata", "--locked", "--format-version", "1"])
        .args(["--filter-platform", "x86_64-unknown-linux-gnu"])
        .folder(folder)
        .run()?;
    Ok(serde_json::from_slice(&output)?)
}

fn packages(metadata: &Value) -> impl Iterator<Item = &Value> {
    metadata["packages"].as_array().into_iter().flatten()
}

fn rust_files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() && !path.ends_with("target") {
            files.extend(rust_files(&path)?);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(files)
}
