//! `vrot-device explain --archive`: a tree, and parts that OpenSSL judges.

use std::fs;

use test_support::tool::Tool;

use super::program::film;
use super::scene::{DAY, SIGNED, Scene};

#[test]
fn an_archive_is_drawn_from_the_issuer_down_to_the_data() {
    let scene = Scene::new();
    scene.archived_by(&scene.authority(3650, "first.pem"));
    let ended = scene.device(SIGNED, "explain --archive reading.archive");
    assert_eq!(ended.status, 0, "{ended:?}");
    let vm = scene.vm.vm.to_string();
    let expected = [
        "Nothing was verified",
        "· identity issuer",
        "└─· host  host-1.demo.example",
        "└─· VM  ",
        vm.as_str(),
        "└─· signature  by the key for data",
        "number 7 of the source, stream room-1/temperature",
        "└─· data  application/json",
        "archived at ",
    ];
    let mut rest = ended.out.as_str();
    for expected in expected {
        let found = rest.split_once(expected);
        let (_, behind) =
            found.unwrap_or_else(|| panic!("{expected:?} is not in its place: {}", ended.out));
        rest = behind;
    }
    let told = scene.device(SIGNED, "explain --archive reading.archive --json");
    let told: serde_json::Value = serde_json::from_str(&told.out).unwrap();
    assert_eq!(told["verified"], false);
    assert_eq!(told["archive"][2]["what"], "VM", "{told:#}");
}

#[test]
fn openssl_verifies_signature_and_time_stamps_of_the_parts_of_an_archive() {
    let scene = Scene::new();
    scene.archived_by(&scene.authority(3650, "first.pem"));
    let ended = scene.device(SIGNED, "explain --archive reading.archive --export parts");
    assert_eq!(ended.status, 0, "{ended:?}");
    let commands: Vec<String> = (ended.out.lines())
        .filter(|line| line.trim_start().starts_with("openssl "))
        .map(|line| line.replace("AUTHORITY-ROOT.pem", "../first.pem"))
        .collect();
    assert_eq!(commands.len(), 3, "{ended:?}");
    let parts = scene.path("parts");
    let agrees = |command: &str| {
        let mut words = command.split_whitespace();
        let tool = Tool::new(words.next().unwrap()).args(words).folder(&parts);
        tool.outcome().unwrap().status.success()
    };
    for command in &commands {
        assert!(agrees(command), "{command}");
    }
    // What they are over counts.
    for part in ["signed-message.bin", "stamped-signature.bin", "head.cbor"] {
        let mut bytes = fs::read(parts.join(part)).unwrap();
        *bytes.last_mut().unwrap() ^= 1;
        fs::write(parts.join(part), bytes).unwrap();
    }
    for command in &commands {
        assert!(!agrees(command), "{command}");
    }
    assert!(parts.join("evidence/vm-quote.attest").exists());
}

/// The commands are given to a shell as they are printed.
#[test]
fn data_in_an_archive_are_held_by_hand_against_what_was_signed_and_stamped() {
    let scene = film();
    let authority = scene.authority(3650, "first.pem");
    let ended = scene.create(&authority, "film.signed --data film --to reading.archive");
    assert_eq!(ended.status, 0, "{ended:?}");
    let renewed = scene.renew(&authority, SIGNED + DAY, "first.pem", "");
    assert_eq!(renewed.status, 0, "{renewed:?}");
    let ended = scene.device(SIGNED, "explain --archive reading.archive --export parts");
    let (_, commands) = ended.out.split_once("By hand, in that folder:\n").unwrap();
    let commands = commands
        .replace("AUTHORITY-ROOT.pem", "../first.pem")
        .replace("ARCHIVE", "../reading.archive");
    let commands: Vec<&str> = commands.lines().map(str::trim).collect();
    assert_eq!(commands.len(), 5, "{ended:?}");
    assert_eq!(ended.out.matches(" -attime ").count(), 2, "{ended:?}");
    let parts = scene.path("parts");
    let agrees = |command: &str| {
        let tool = Tool::new("sh").args(["-c", command]).folder(&parts);
        tool.outcome().unwrap().status.success()
    };
    for command in &commands {
        assert!(agrees(command), "{command}");
    }
    let mut archive = scene.read("reading.archive");
    let data = archive
        .windows(100)
        .position(|part| part.iter().all(|byte| *byte == 0x5a));
    archive[data.unwrap()] ^= 1;
    scene.write("reading.archive", &archive);
    for command in &commands {
        assert_eq!(
            agrees(command),
            !command.contains("reading.archive"),
            "{command}"
        );
    }
}
