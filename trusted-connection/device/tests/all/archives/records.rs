//! A directory of many files, archived as one, and single ones taken out.

use std::fs;
use std::os::unix::fs::symlink;

use archive::records::CONTENT_TYPE;
use serde_json::Value;
use signed_data::Content;
use test_support::time_authority::{TimeAuthority, at_time};

use super::scene::{DAY, Ended, SIGNED, Scene};

const COUNT: usize = 1200;

/// A scene with a directory of records.
fn measured() -> Scene {
    let scene = Scene::new();
    for number in 0..COUNT {
        let path = scene.path(&name(number));
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content(number)).unwrap();
    }
    scene
}

fn name(number: usize) -> String {
    format!("measured/day-{}/{number:05}.json", number / 100)
}

/// Its name below the directory.
fn record(number: usize) -> String {
    name(number).replacen("measured/", "", 1)
}

fn content(number: usize) -> String {
    format!("{{\"number\":{number}}}")
}

/// Signs what is to be signed, and archives it with the directory.
fn archive(scene: &Scene, authority: &TimeAuthority) -> Ended {
    let listed = scene.archive(
        SIGNED,
        "records measured --to records.cbor --replace --json",
    );
    assert_eq!(listed.status, 0, "{listed:?}");
    let listed: Value = serde_json::from_str(&listed.out).unwrap();
    assert_eq!(listed["content_type"], CONTENT_TYPE);
    sign(scene, CONTENT_TYPE);
    create(scene, authority)
}

fn sign(scene: &Scene, content_type: &str) {
    let statement = Content::Attached(scene.read("records.cbor"));
    let signed = scene.signed_as(content_type, statement);
    scene.write("records.signed", &signed.to_cbor());
}

fn create(scene: &Scene, authority: &TimeAuthority) -> Ended {
    scene.create(
        authority,
        "records.signed --records measured --to reading.archive",
    )
}

fn archived() -> Scene {
    let scene = measured();
    let authority = scene.authority(3650, "first.pem");
    let ended = archive(&scene, &authority);
    assert_eq!(ended.status, 0, "{ended:?}");
    scene
}

#[test]
fn a_directory_is_archived_as_one_and_comes_back_as_it_was() {
    let scene = archived();
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", " --to again");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    assert_eq!(told["records"]["count"], COUNT, "{told:#}");
    for number in 0..COUNT {
        let again = name(number).replacen("measured", "again", 1);
        assert_eq!(scene.read(&again), content(number).as_bytes());
    }
    // Nothing is written over.
    let ended = scene.archive(
        SIGNED + DAY,
        "verify reading.archive --policy policy.toml --authority-root first.pem --to again",
    );
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("again cannot be written"), "{ended:?}");
}

/// No file may have more than a few bytes, so the first record ends the process.
#[test]
fn records_whose_writing_was_cut_off_have_no_directory_of_the_name_that_was_asked_for() {
    let scene = archived();
    let verify =
        "archive verify reading.archive --policy policy.toml --authority-root first.pem --to again";
    let ended = at_time("prlimit", SIGNED + DAY)
        .args([
            "--fsize=8",
            "--core=0",
            "--",
            env!("CARGO_BIN_EXE_vrot-device"),
        ])
        .args(verify.split(' '))
        .folder(&scene.path(""))
        .outcome()
        .unwrap();
    assert!(!ended.status.success(), "{ended:?}");
    assert!(!scene.path("again").exists(), "{ended:?}");
    let ended = scene.device(SIGNED + DAY, verify);
    assert_eq!(ended.status, 0, "{ended:?}");
    assert_eq!(
        scene.read(&name(0).replacen("measured", "again", 1)),
        content(0).as_bytes()
    );
}

#[test]
fn a_record_that_was_taken_out_is_verified_alone() {
    let scene = archived();
    let wanted = record(777);
    let extract = format!("extract reading.archive --record {wanted} --to 777.record");
    let ended = scene.archive(SIGNED + DAY, &extract);
    assert_eq!(ended.status, 0, "{ended:?}");
    fs::remove_file(scene.path("reading.archive")).unwrap();
    let verify = "verify 777.record --policy policy.toml --authority-root first.pem --json";
    let ended = scene.archive(SIGNED + DAY, &format!("{verify} --to 777.json"));
    assert_eq!(ended.status, 0, "{ended:?}");
    let told: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(told["record"]["name"], wanted, "{told:#}");
    // The days are in the order of bytes: 0, 1, 10, 11, 2 and so on.
    assert_eq!(told["record"]["index"], 977, "{told:#}");
    assert_eq!(told["records"]["count"], COUNT, "{told:#}");
    assert_eq!(scene.read("777.json"), content(777).as_bytes());
    let shown = scene.archive(SIGNED, "show 777.record");
    assert!(shown.out.contains("00777.json, taken out"), "{shown:?}");
    // Each byte of it counts.
    let genuine = scene.read("777.record");
    let at = genuine
        .windows(7)
        .position(|part| part == b"00777.j")
        .unwrap();
    for at in [at, genuine.len() / 2, genuine.len() - 1] {
        let mut forged = genuine.clone();
        forged[at] ^= 1;
        scene.write("777.record", &forged);
        let ended = scene.archive(SIGNED + DAY, &format!("{verify} --to other.json"));
        assert_ne!(ended.status, 0, "byte {at}: {ended:?}");
        assert!(!scene.path("other.json").exists());
    }
}

#[test]
fn what_is_no_record_of_an_archive_is_not_taken_out() {
    let scene = archived();
    for (wanted, why) in [
        ("day-0/99999.json", "has no record"),
        ("../policy.toml", "no record is called"),
        ("/etc/passwd", "no record is called"),
    ] {
        let extract = format!("extract reading.archive --record {wanted} --to out.record");
        let ended = scene.archive(SIGNED + DAY, &extract);
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.err.contains(why), "{ended:?}");
        assert!(!scene.path("out.record").exists());
    }
}

#[test]
fn a_directory_that_was_not_signed_as_it_is_makes_no_archive() {
    let scene = measured();
    let authority = scene.authority(3650, "first.pem");
    let ended = archive(&scene, &authority);
    assert_eq!(ended.status, 0, "{ended:?}");
    fs::remove_file(scene.path("reading.archive")).unwrap();
    let refused = |why: &str| {
        let ended = create(&scene, &authority);
        assert_eq!(ended.status, 1, "{ended:?}");
        assert!(ended.out.contains(why), "{ended:?}");
        assert!(!scene.path("reading.archive").exists());
    };
    // A record more, one less, one that is another, one of another name.
    scene.write("measured/day-0/more.json", b"{}");
    refused("not those that were signed");
    fs::remove_file(scene.path("measured/day-0/more.json")).unwrap();
    fs::rename(
        scene.path(&name(5)),
        scene.path("measured/day-0/renamed.json"),
    )
    .unwrap();
    refused("not those that were signed");
    fs::rename(
        scene.path("measured/day-0/renamed.json"),
        scene.path(&name(5)),
    )
    .unwrap();
    scene.write(&name(5), b"{\"number\":6}");
    refused("not those that were signed");
    scene.write(&name(5), content(5).as_bytes());
    // The same bytes, signed as something else.
    sign(&scene, "application/json");
    refused("no records were signed");
    sign(&scene, CONTENT_TYPE);
    fs::remove_dir_all(scene.path("asked")).unwrap();
    symlink("/etc/hostname", scene.path("measured/link")).unwrap();
    let ended = create(&scene, &authority);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(
        ended.err.contains("measured/link is a symbolic link"),
        "{ended:?}"
    );
}

#[test]
fn an_archive_with_other_records_than_were_signed_is_refused_though_it_was_stamped() {
    use std::io::Write as _;

    use archive::records::{RecordName, RecordWriter};
    use archive::{EvidenceRecord, Form, Head, Reader, TimeStampRequest, Writer};

    let scene = measured();
    let authority = scene.authority(3650, "first.pem");
    let ended = archive(&scene, &authority);
    assert_eq!(ended.status, 0, "{ended:?}");
    let genuine = scene.read("reading.archive");
    let reader = Reader::open(std::io::Cursor::new(&genuine)).unwrap();
    let mut records = RecordWriter::new(Vec::new());
    let forged = RecordName::parse("day-0/00000.json").unwrap();
    records.record(forged, b"forged").unwrap();
    let data = records.finish().unwrap().out;
    let genuine = reader.head();
    let mut head = Head::new(genuine.signed.to_vec(), Form::Records, data.len() as u64);
    head.policy.clone_from(&genuine.policy);
    let mut writer = Writer::new(Vec::new(), &head).unwrap();
    writer.write_all(&data).unwrap();
    let unstamped = writer.finish().unwrap();
    let nonce = archive::time_stamp::Nonce::new([3; 8]);
    let request = TimeStampRequest::new(unstamped.imprint().unwrap(), nonce);
    // An authority stamps whatever it is given.
    let answer = authority.answer(&request.to_der().unwrap()).unwrap();
    let token = request.token(&answer).unwrap();
    let record = EvidenceRecord::new(unstamped.hashes(), token).unwrap();
    scene.write("reading.archive", &unstamped.finish(&record).unwrap());
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", " --to again");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"records".into()),
        "{told:#}"
    );
    assert!(!scene.path("again").exists());
    let extract = "extract reading.archive --record day-0/00000.json --to forged.record";
    let ended = scene.archive(SIGNED + DAY, extract);
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(!scene.path("forged.record").exists());
}
