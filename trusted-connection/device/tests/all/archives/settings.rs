//! What is said in the settings instead of at each call.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Arc;

use test_support::time_authority::at_time;

use super::scene::{Ended, HOUR, SIGNED, Scene};

const AT: u64 = SIGNED + 60;

#[test]
fn what_the_settings_say_need_not_be_said_at_each_call() {
    let scene = Scene::new();
    let authority = Arc::new(scene.authority(3650, "first.pem"));
    let served = authority.serve().unwrap();
    authority.set_clock(AT);
    fs::create_dir(scene.path("settings")).unwrap();
    let settings = format!(
        "policy = \"../policy.toml\"\nauthority = \"{}\"\nauthority_roots = [\"../first.pem\"]\n",
        served.url()
    );
    scene.write("settings/device.toml", settings.as_bytes());
    let configured = "--config settings/device.toml";
    for line in [
        "archive create reading.signed --to reading.archive",
        "archive verify reading.archive",
        "archive renew reading.archive --to renewed.archive",
        "verify-data reading.signed",
    ] {
        let ended = scene.device(AT, &format!("{line} {configured}"));
        assert_eq!(ended.status, 0, "{line}: {ended:?}");
    }
    // What is given all the same counts instead.
    scene.authority(3650, "other.pem");
    let verify = format!("archive verify reading.archive {configured}");
    let ended = scene.device(AT, &format!("{verify} --authority-root other.pem"));
    assert_eq!(ended.status, 1, "{ended:?}");
    let create = format!("archive create reading.signed --to another.archive {configured}");
    let ended = scene.device(AT, &format!("{create} --requests asked"));
    assert_eq!(ended.status, 3, "{ended:?}");
    let ended = scene.device(AT, &format!("{create} --authority http://127.0.0.1:1/"));
    assert_eq!(ended.status, 2, "{ended:?}");
    // Revocation lists count beside those that are given.
    let certificate = scene.host.certificate.to_vec();
    scene.revoke(&certificate, SIGNED - 60, "before.crl");
    scene.list(2, SIGNED - 2 * HOUR, "older.crl");
    let settings = format!("{settings}crls = [\"../before.crl\"]\n");
    scene.write("settings/device.toml", settings.as_bytes());
    let ended = scene.device(AT, &format!("{verify} --crl older.crl"));
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.out.contains("revoked"), "{ended:?}");
}

#[test]
fn what_is_wrong_with_settings_and_what_is_missing_is_told() {
    let scene = Scene::new();
    scene.authority(3650, "first.pem");
    for (settings, line, told) in [
        (
            "authority_root = \"first.pem\"",
            "verify x",
            "settings.toml cannot be used: line 1, column 1: unknown field `authority_root`",
        ),
        (
            "authority_root = \"first.pem\"",
            "verify x",
            ": `authority_roots` may be meant",
        ),
        (
            "authority = \"ftp://time.example.org/\"",
            "verify x",
            "line 1, column 13: it begins with neither http:// nor https://",
        ),
        (
            "",
            "create reading.signed --to a",
            "give --policy, or write `policy` into the settings (settings.toml)",
        ),
        (
            "policy = \"policy.toml\"",
            "create reading.signed --to a",
            "give --authority (or --requests), or write `authority`",
        ),
        (
            "policy = \"policy.toml\"\nauthority = \"http://127.0.0.1:1/\"",
            "create reading.signed --to a",
            "give --authority-root, or write `authority_roots`",
        ),
        (
            "policy = \"gone.toml\"",
            "create reading.signed --to a",
            "gone.toml cannot be",
        ),
    ] {
        scene.write("settings.toml", settings.as_bytes());
        let ended = scene.archive(AT, &format!("{line} --config settings.toml"));
        assert_eq!(ended.status, 2, "{settings}: {ended:?}");
        assert!(ended.err.contains(told), "{settings}: {ended:?}");
        assert!(!scene.path("a").exists());
    }
    let ended = scene.archive(AT, "verify x --config gone.toml");
    assert!(ended.err.contains("gone.toml cannot be read"), "{ended:?}");
}

#[test]
fn settings_that_cannot_be_looked_at_are_not_taken_for_none() {
    let scene = Scene::new();
    let verify = |home: &str| {
        let tool = at_time(Path::new(env!("CARGO_BIN_EXE_vrot-device")), AT)
            .args(["verify-data", "reading.signed", "--policy", "policy.toml"])
            .env("XDG_CONFIG_HOME", home)
            .folder(&scene.path(""));
        Ended::of(&tool.outcome().unwrap())
    };
    let own = scene.path("vrot/device.toml");
    fs::create_dir(scene.path("vrot")).unwrap();
    let home = scene.path("").display().to_string();
    symlink("gone.toml", &own).unwrap();
    let dangling = verify(&home);
    fs::remove_file(&own).unwrap();
    fs::remove_dir(scene.path("vrot")).unwrap();
    symlink("vrot", scene.path("vrot")).unwrap();
    let round = verify(&home);
    let told = format!("{} cannot be read", own.display());
    for ended in [dangling, round] {
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.err.contains(&told), "{ended:?}");
    }
    // Nothing can be in what is no folder.
    let ended = verify("/dev/null");
    assert_eq!(ended.status, 0, "{ended:?}");
}
