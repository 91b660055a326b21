//! `vrot-device connect`, as others run it.

use std::path::Path;
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::time::Duration;

use attestation::fixture::event_log;
use serde_json::Value;
use tokio::io::AsyncWriteExt;
use tokio::process::Command;
use tokio::time::{sleep, timeout};

use crate::support::{Listening, Machine, folder, host_and_vm, listen};

/// Runs `vrot-device` with this on its standard input, which then ends.
async fn device(folder: &Path, arguments: &[&str], input: &[u8]) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_vrot-device"))
        .args(arguments)
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let written = input.to_vec();
    tokio::spawn(async move {
        // A program that ends before it has read everything is what some tests are about.
        let _ = stdin.write_all(&written).await;
    });
    let ended = timeout(Duration::from_secs(120), child.wait_with_output()).await;
    ended.unwrap().unwrap()
}

fn said(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn data_pass_in_both_directions_and_the_verdict_stands_beside_them() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    let Listening { address, .. } = listen(machine.service()).await;
    // More than all buffers on the way hold.
    let input = vec![b'x'; 3_000_000];
    let connect = ["connect", &address, "--policy", "policy.toml"];
    let output = device(folder.path(), &connect, &input).await;
    let told = said(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{told}");
    assert!(output.stdout == vec![b'X'; 3_000_000], "{told}");
    assert!(told.contains("X25519MLKEM768 (hybrid"), "{told}");
    assert!(told.contains("TLS 1.3, TLS_"), "{told}");
    assert_eq!(told.lines().last(), Some("verdict: affirming"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_look_prints_the_verdict_and_leaves() {
    let (host, vm) = host_and_vm();
    let id = vm.vm.to_string();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    let Listening { address, .. } = listen(machine.service()).await;
    let look = [
        "connect",
        &address,
        "--policy",
        "policy.toml",
        "--verdict-only",
    ];
    let output = device(folder.path(), &look, b"").await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let told = said(&output.stdout);
    assert_eq!(told.lines().last(), Some("verdict: affirming"), "{told}");
    assert!(output.stderr.is_empty(), "{output:?}");

    let output = device(folder.path(), &[&look[..], &["--json"]].concat(), b"").await;
    let ear: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ear["verdict"], "affirming");
    assert_eq!(ear["submods"]["vm"]["ear_attester_claims"]["vm"], id);
    assert_eq!(ear["connection"]["group"], "X25519MLKEM768");
    assert_eq!(ear["connection"]["hybrid"], true);
    assert_eq!(ear["connection"]["version"], "TLS 1.3");
    assert_eq!(ear["connection"]["service"], address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_not_meant_gets_nothing_and_the_status_says_so() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    machine.vm.lock().unwrap().log = event_log(&[(0, 0x8000_0008, b"other firmware")]);
    let Listening { address, received } = listen(machine.service()).await;
    let connect = ["connect", &address, "--policy", "policy.toml"];
    let output = device(folder.path(), &connect, b"a secret").await;
    let told = said(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(output.stdout.is_empty());
    assert!(told.contains("pcr-unexpected"), "{told}");
    assert_eq!(
        told.lines().last(),
        Some("verdict: contraindicated"),
        "{told}"
    );
    assert!(received.lock().unwrap().is_empty());
    let json = [&connect[..], &["--verdict-only", "--json"]].concat();
    let output = device(folder.path(), &json, b"").await;
    assert_eq!(output.status.code(), Some(1));
    let ear: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(ear["verdict"], "contraindicated");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_there_is_nothing_to_judge_of_ends_with_2_and_a_word() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    let (other, vm) = host_and_vm();
    let Listening { address, .. } = listen(Machine::new(other, vm).service()).await;
    // Nobody listens there, and no other test comes to.
    let closed = "127.0.0.1:1";
    for (address, because) in [
        (address.as_str(), "invalid peer certificate"),
        (closed, "cannot be reached"),
        ("nowhere", "HOST:PORT"),
    ] {
        let connect = ["connect", address, "--policy", "policy.toml"];
        let output = device(folder.path(), &connect, b"").await;
        let told = said(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{told}");
        assert!(told.contains(because), "{told}");
        assert!(output.stdout.is_empty());
    }
}

/// The verdict was affirming, and later it was not.
#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_loses_its_attestation_ends_with_1() {
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let policy = machine.policy_text() + "\n[freshness]\nresult_lifetime_s = 4\n";
    let folder = folder(&machine.host, &policy);
    let Listening { address, received } = listen(machine.service()).await;
    let mut child = Command::new(env!("CARGO_BIN_EXE_vrot-device"))
        .args(["connect", &address, "--policy", "policy.toml"])
        .current_dir(folder.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin.write_all(b"hello").await.unwrap();
    stdin.flush().await.unwrap();
    let arrived = async {
        while received.lock().unwrap().is_empty() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(120), arrived).await.unwrap();
    machine.vm.lock().unwrap().log = event_log(&[(0, 0x8000_0008, b"other firmware")]);
    let output = timeout(Duration::from_secs(120), child.wait_with_output()).await;
    let output = output.unwrap().unwrap();
    let told = said(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("pcr-unexpected"), "{told}");
    drop(stdin);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_that_everybody_may_read_or_that_is_another_ones_is_not_used() {
    use std::os::unix::fs::PermissionsExt;
    let (host, vm) = host_and_vm();
    let machine = Machine::new(host, vm);
    let folder = folder(&machine.host, &machine.policy_text());
    let write = |name: &str, text: String, mode: u32| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    let key = rcgen::KeyPair::generate().unwrap();
    let other = rcgen::KeyPair::generate().unwrap();
    let certificate = rcgen::CertificateParams::new(vec!["device.example".to_owned()])
        .unwrap()
        .self_signed(&key)
        .unwrap();
    write("device.pem", certificate.pem(), 0o644);
    write("key.pem", key.serialize_pem(), 0o600);
    write("exposed.pem", key.serialize_pem(), 0o604);
    write("no-key.pem", certificate.pem(), 0o600);
    write("other.pem", other.serialize_pem(), 0o600);
    let service = Arc::new(listen(machine.service()).await);
    for (key, status, because) in [
        ("key.pem", 0, "affirming"),
        ("exposed.pem", 2, "chmod"),
        ("other.pem", 2, "cannot be used together"),
        ("no-key.pem", 2, "private key"),
    ] {
        let connect = [
            "connect",
            &service.address,
            "--policy",
            "policy.toml",
            "--certificate",
            "device.pem",
            "--key",
            key,
        ];
        let output = device(folder.path(), &connect, b"").await;
        let told = said(&output.stderr);
        assert_eq!(output.status.code(), Some(status), "{key}: {told}");
        assert!(told.contains(because), "{key}: {told}");
    }
}
