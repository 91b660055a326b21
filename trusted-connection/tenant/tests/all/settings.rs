//! Settings that cannot be used are refused before anybody is asked.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use crate::server::{Client, host};

fn client() -> Client {
    let host = host("host-1");
    let vm = host.vm();
    Client::of(&host, &vm, &[(&host, 1)])
}

fn refused(client: &Client, arguments: &[&str], told: &str) {
    let output = client.run(arguments);
    let why = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{why}");
    assert!(
        why.contains(told) && output.stdout.is_empty(),
        "{told}: {why}"
    );
}

#[test]
fn a_key_that_others_can_read_is_not_used() {
    let client = client();
    fs::set_permissions(client.path("acme.key"), fs::Permissions::from_mode(0o604)).unwrap();
    refused(&client, &["vms"], "chmod o=");
}

#[test]
fn what_is_wrong_with_a_file_is_told_with_its_name() {
    for (from, to, told) in [
        ("roots.pem", "none.pem", "none.pem cannot be read"),
        ("\"acme.pem\"", "\"roots.pem\"", "cannot be used together"),
        ("\"acme.key\"", "\"policy.toml\"", "policy.toml"),
        ("deadline_s", "dead_line", "dead_line"),
    ] {
        let client = client();
        client.change(from, to);
        fs::set_permissions(
            client.path("policy.toml"),
            fs::Permissions::from_mode(0o600),
        )
        .unwrap();
        refused(&client, &["vms"], told);
    }
    let without = client();
    without.change("policy = \"policy.toml\"\n", "");
    refused(&without, &["attest", "--all"], "has no policy for all VMs");
    refused(&without, &["attest"], "--all");
    refused(
        &without,
        &["vms", "--host", "host-7.demo.example"],
        "host-7.demo.example",
    );
    refused(
        &without,
        &["attest", "--all", "--policy", "/nonexistent"],
        "/nonexistent",
    );
}

#[test]
fn settings_are_found_in_the_user_s_folder() {
    let folder = tempfile::tempdir().unwrap();
    let run = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_vrot-tenant"));
        let output = command
            .arg("vms")
            .env("XDG_CONFIG_HOME", folder.path())
            .output();
        String::from_utf8(output.unwrap().stderr).unwrap()
    };
    let own = folder.path().join("vrot");
    fs::create_dir(&own).unwrap();
    fs::write(own.join("tenant.toml"), "certificate = 1").unwrap();
    let why = run();
    assert!(
        why.contains(&own.join("tenant.toml").display().to_string()),
        "{why}"
    );
}
