//! What the commands do with good and bad archives.

use std::fs::{self, File};
use std::io::{Read, Write, sink};
use std::os::unix::fs::symlink;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use archive::cose_time_stamp::StampedSign1;
use archive::{ArchiveHash, DataHashes, Reader};
use serde_json::Value;
use signed_data::{Content, hash_of_data};
use test_support::deadline::wait_for;

use super::scene::{DATA, DAY, HOUR, SIGNED, Scene};

const FILM: &[u8] = &[0x5a; 700_000];

/// A scene with an archive of data that are in it as a file.
pub(super) fn film() -> Scene {
    let scene = Scene::new();
    let digest = hash_of_data(&mut &*FILM).unwrap();
    scene.write("film", FILM);
    scene.write(
        "film.signed",
        &scene.signed(Content::Hash(digest)).to_cbor(),
    );
    scene
}

#[test]
fn signed_data_are_archived_by_an_authority_over_http_and_verified_by_own_anchors_alone() {
    let scene = film();
    let authority = Arc::new(scene.authority(3650, "first.pem"));
    let served = authority.serve().unwrap();
    let at = SIGNED + 60;
    authority.set_clock(at);
    let create = format!(
        "create film.signed --data film --to reading.archive --policy policy.toml --authority-root first.pem \
         --authority {} --json",
        served.url()
    );
    let ended = scene.archive(at, &create);
    assert_eq!(ended.status, 0, "{ended:?}");
    let created: Value = serde_json::from_str(&ended.out).unwrap();
    assert_eq!(created["verdict"], "affirming");
    let again = scene.archive(at, &create);
    assert_eq!(again.status, 2, "{again:?}");
    assert!(again.err.contains("exists"), "{again:?}");
    drop(served);
    let (status, told) = scene.verify(at + DAY, "first.pem", " --to film.again");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    assert_eq!(scene.read("film.again"), FILM);
    assert_eq!(told["time"]["signed"], created["time"]["signed"]);
    assert_eq!(told["policy_of"], "verifier");
    // Who has an issuer's root alone judges by the policy of whoever made the archive, and is told so.
    let ended = scene.archive(
        at + DAY,
        "verify reading.archive --issuer-root roots.pem --authority-root first.pem",
    );
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(
        ended.out.contains("of whoever made the archive"),
        "{ended:?}"
    );
    assert!(ended.out.contains("by its own clock"), "{ended:?}");
    let shown = scene.archive(at, "show reading.archive");
    assert_eq!(shown.status, 0, "{shown:?}");
    assert!(shown.out.starts_with("Nothing was verified"), "{shown:?}");
    assert!(shown.out.contains("700000 bytes"), "{shown:?}");
    openssl_agrees(&scene, &authority);
}

/// OpenSSL takes both time stamps for what they are said to be of.
fn openssl_agrees(scene: &Scene, authority: &test_support::time_authority::TimeAuthority) {
    let mut reader = Reader::open(File::open(scene.path("reading.archive")).unwrap()).unwrap();
    let checked = reader.check(&[], &mut sink()).unwrap();
    let stamped = StampedSign1::read(&reader.head().signed).unwrap();
    // The signature with the head of its byte string (RFC 9921).
    let signature = &stamped.sign1[stamped.sign1.len() - 66..];
    let token = stamped.token.unwrap();
    assert!(authority.openssl_verifies(token.der(), signature).unwrap());
    assert!(!authority.openssl_verifies(token.der(), DATA).unwrap());
    let mut hashes = checked.hashes(ArchiveHash::Sha256).unwrap();
    hashes.sort_by(|one, other| one.value().cmp(other.value()));
    let hashes: Vec<u8> = hashes
        .iter()
        .flat_map(|hash| hash.value().to_vec())
        .collect();
    let token = reader.record().tokens().next().unwrap();
    assert!(authority.openssl_verifies(token.der(), &hashes).unwrap());
}

#[test]
fn forged_and_damaged_archives_are_refused_and_their_data_not_written() {
    let scene = film();
    let authority = scene.authority(3650, "first.pem");
    let ended = scene.create(&authority, "film.signed --data film --to reading.archive");
    assert_eq!(ended.status, 0, "{ended:?}");
    let genuine = scene.read("reading.archive");
    for at in [
        1,
        200,
        genuine.len() / 2,
        genuine.len() - 40,
        genuine.len() - 1,
    ] {
        let mut damaged = genuine.clone();
        damaged[at] ^= 1;
        scene.write("reading.archive", &damaged);
        let ended = scene.archive(
            SIGNED + DAY,
            "verify reading.archive --policy policy.toml --authority-root first.pem --to film.again",
        );
        assert_ne!(ended.status, 0, "byte {at}: {ended:?}");
        assert!(!scene.path("film.again").exists());
    }
    scene.write("reading.archive", &genuine[..genuine.len() - 1]);
    let cut = scene.archive(
        SIGNED + DAY,
        "verify reading.archive --policy policy.toml --authority-root first.pem",
    );
    assert_eq!(cut.status, 2, "{cut:?}");
    // Of another authority, whatever it says, nothing is believed.
    scene.write("reading.archive", &genuine);
    scene.authority(3650, "other.pem");
    let (status, told) = scene.verify(SIGNED + DAY, "other.pem", "");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"time-stamp".into()),
        "{told:#}"
    );
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", " --stream-name room-2");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"stream".into()),
        "{told:#}"
    );
}

#[test]
fn forged_data_are_not_archived() {
    let scene = film();
    let authority = scene.authority(3650, "first.pem");
    scene.write("film", b"another film");
    let ended = scene.create(&authority, "film.signed --data film --to reading.archive");
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(
        ended.out.contains("not those that were signed"),
        "{ended:?}"
    );
    let mut forged = scene.read("reading.signed");
    *forged.last_mut().unwrap() ^= 1;
    scene.write("reading.signed", &forged);
    let ended = scene.create(&authority, "reading.signed --to reading.archive");
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.out.contains("(signature)"), "{ended:?}");
    assert!(!scene.path("reading.archive").exists());
    // No authority was asked.
    assert!(!scene.path("asked").exists());
}

#[test]
fn data_that_the_policy_does_not_affirm_are_archived_only_if_that_is_meant() {
    let scene = Scene::new();
    let authority = scene.authority(3650, "first.pem");
    let policy = String::from_utf8(scene.read("policy.toml")).unwrap();
    let other = policy.replace("tenant = \"acme\"", "tenant = \"other\"");
    scene.write("policy.toml", other.as_bytes());
    let ended = scene.create(&authority, "reading.signed --to reading.archive");
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.out.contains("nothing was archived"), "{ended:?}");
    assert!(!scene.path("reading.archive").exists());
    let ended = scene.create(
        &authority,
        "reading.signed --to reading.archive --any-verdict",
    );
    assert_eq!(ended.status, 1, "{ended:?}");
    scene.write("policy.toml", policy.as_bytes());
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", "");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
}

#[test]
fn data_that_stay_elsewhere_are_demanded_and_cannot_be_hashed_anew() {
    let scene = film();
    let authority = scene.authority(3650, "first.pem");
    let what = "film.signed --data film --without-data --to reading.archive";
    let ended = scene.create(&authority, what);
    assert_eq!(ended.status, 0, "{ended:?}");
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", "");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"data-missing".into()),
        "{told:#}"
    );
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", " --data film");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    scene.write("film", b"another film");
    let (status, told) = scene.verify(SIGNED + DAY, "first.pem", " --data film");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"data".into()),
        "{told:#}"
    );
    let ended = scene.renew(&authority, SIGNED + DAY, "first.pem", " --rehash sha512");
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(
        ended.err.contains("archive them with their data"),
        "{ended:?}"
    );
}

#[test]
fn an_answer_in_a_file_is_taken_for_its_own_request_alone() {
    let scene = Scene::new();
    let authority = scene.authority(3650, "first.pem");
    let at = SIGNED + 60;
    let create = "create reading.signed --to reading.archive --policy policy.toml --requests asked \
                  --authority-root first.pem";
    let ended = scene.archive(at, create);
    assert_eq!(ended.status, 3, "{ended:?}");
    assert!(ended.err.contains("signature.tsq"), "{ended:?}");
    let request = scene.read("asked/signature.tsq");
    // The same request waits as long as it has no answer.
    assert_eq!(scene.archive(at, create).status, 3);
    assert_eq!(scene.read("asked/signature.tsq"), request);
    authority.set_clock(at);
    let other = archive::TimeStampRequest::new(
        ArchiveHash::Sha256.of(b"other"),
        archive::time_stamp::Nonce::new([1; 8]),
    );
    let answer = authority.answer(&other.to_der().unwrap()).unwrap();
    scene.write("asked/signature.tsr", &answer);
    let ended = scene.archive(at, create);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("another hash value"), "{ended:?}");
    scene.write("asked/signature.tsr", &authority.answer(&request).unwrap());
    let ended = scene.archive(at, create);
    assert_eq!(ended.status, 3, "{ended:?}");
    // What is archived then changes: its policy.
    let answer = authority.answer(&scene.read("asked/archive.tsq")).unwrap();
    scene.write("asked/archive.tsr", &answer);
    let mut policy = scene.read("policy.toml");
    policy.extend(b"# a note\n");
    scene.write("policy.toml", &policy);
    let ended = scene.archive(at, create);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("asks about something else"), "{ended:?}");
    assert!(!scene.path("reading.archive").exists());
}

#[test]
fn a_request_that_waits_for_another_archives_answer_is_not_written_over() {
    let scene = film();
    scene.authority(3650, "first.pem");
    let common = "--policy policy.toml --requests asked --authority-root first.pem";
    let film = format!("create film.signed --data film --to film.archive {common}");
    let reading = format!("create reading.signed --to reading.archive {common}");
    assert_eq!(scene.archive(SIGNED + 60, &film).status, 3);
    let request = scene.read("asked/signature.tsq");
    let ended = scene.archive(SIGNED + 60, &reading);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(
        ended.err.contains("a folder is for one archive"),
        "{ended:?}"
    );
    assert_eq!(scene.read("asked/signature.tsq"), request);
    assert_eq!(scene.archive(SIGNED + 60, &film).status, 3);
}

#[test]
fn a_list_that_was_exchanged_while_an_answer_was_waited_for_is_needed_beside_the_one_before_it() {
    let scene = Scene::new();
    let authority = scene.authority(3650, "first.pem");
    let mut policy = scene.read("policy.toml");
    policy.extend(b"\n[revocation]\nmax_crl_age_s = 86400\n");
    scene.write("policy.toml", &policy);
    scene.list(1, SIGNED, "before.crl");
    scene.list(2, SIGNED + 2 * HOUR, "after.crl");
    let create = "create reading.signed --to reading.archive --policy policy.toml --requests asked \
                  --authority-root first.pem";
    let waits = scene.archive(SIGNED + 60, &format!("{create} --crl before.crl"));
    assert_eq!(waits.status, 3, "{waits:?}");
    authority.set_clock(SIGNED + 60);
    let answer = authority
        .answer(&scene.read("asked/signature.tsq"))
        .unwrap();
    scene.write("asked/signature.tsr", &answer);
    let at = SIGNED + 3 * HOUR;
    let refused = scene.archive(at, &format!("{create} --crl after.crl"));
    assert_eq!(refused.status, 1, "{refused:?}");
    assert!(refused.out.contains("give that one as well"), "{refused:?}");
    let both = format!("{create} --crl before.crl --crl after.crl");
    assert_eq!(scene.archive(at, &both).status, 3);
    authority.set_clock(at);
    let answer = authority.answer(&scene.read("asked/archive.tsq")).unwrap();
    scene.write("asked/archive.tsr", &answer);
    let ended = scene.archive(at, &both);
    assert_eq!(ended.status, 0, "{ended:?}");
    let (status, told) = scene.verify(at, "first.pem", "");
    assert_eq!(status, 0, "{told:#}");
}

#[test]
fn more_revocation_lists_than_an_archive_has_are_refused_before_an_authority_is_asked() {
    let scene = Scene::new();
    let authority = scene.authority(3650, "first.pem");
    let mut lists = String::new();
    for number in 0..17 {
        let name = format!("{number}.crl");
        scene.write(&name, &authority.crl(None).unwrap());
        // The same list twice is one.
        let again = if number == 16 { 1 } else { 2 };
        lists.push_str(&format!(" --crl {name}").repeat(again));
        if number == 15 {
            let what = format!("reading.signed --to reading.archive{lists}");
            let ended = scene.create(&authority, &what);
            assert_eq!(ended.status, 0, "{ended:?}");
        }
    }
    fs::remove_dir_all(scene.path("asked")).unwrap();
    let what = format!("reading.signed --to more.archive{lists}");
    let ended = scene.create(&authority, &what);
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("17 revocation lists"), "{ended:?}");
    assert!(!scene.path("asked").exists());
}

#[test]
fn what_is_no_archive_or_no_file_is_said_to_be_none() {
    let scene = Scene::new();
    scene.write("reading.archive", DATA);
    let common = "--policy policy.toml --authority-root roots.pem";
    let ended = scene.archive(SIGNED, &format!("verify reading.archive {common}"));
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(
        ended.err.contains("reading.archive cannot be used"),
        "{ended:?}"
    );
    let ended = scene.archive(SIGNED, &format!("verify absent {common}"));
    assert_eq!(ended.status, 2, "{ended:?}");
    symlink("/dev/null", scene.path("link")).unwrap();
    let ended = scene.archive(
        SIGNED,
        &format!("create reading.signed --to link --replace --requests asked {common}"),
    );
    assert_eq!(ended.status, 2, "{ended:?}");
    assert!(ended.err.contains("no regular file"), "{ended:?}");
    for (url, why) in [
        ("ftp://tsa.example", "neither http:// nor https://"),
        ("http://me:secret@tsa.example/", "leave it out"),
    ] {
        let ended = scene.archive(
            SIGNED,
            &format!("create reading.signed --to a --authority {url} {common}"),
        );
        assert_eq!(ended.status, 2, "{ended:?}");
        assert!(ended.err.contains(why), "{ended:?}");
    }
}

#[test]
fn signed_data_that_have_a_time_stamp_already_keep_it() {
    let scene = Scene::new();
    scene.archived_by(&scene.authority(3650, "first.pem"));
    let (_, before) = scene.verify(SIGNED + DAY, "first.pem", "");
    let archived = File::open(scene.path("reading.archive")).unwrap();
    let stamped = Reader::open(archived).unwrap().head().signed.to_vec();
    scene.write("reading.signed", &stamped);
    fs::remove_dir_all(scene.path("asked")).unwrap();
    let another = scene.authority(3650, "second.pem");
    let roots = "first.pem second.pem";
    let ended = scene.create_by(
        &another,
        "reading.signed --to reading.archive --replace",
        roots,
    );
    assert_eq!(ended.status, 0, "{ended:?}");
    assert!(!scene.path("asked/signature.tsq").exists());
    let (status, told) = scene.verify(SIGNED + DAY, roots, "");
    assert_eq!(status, 0, "{told:#}");
    assert_eq!(told["time"]["signed"], before["time"]["signed"]);
}

/// What `script` shows is what somebody at a terminal sees.
#[test]
fn long_work_tells_a_terminal_how_far_it_is() {
    let scene = film();
    let authority = scene.authority(3650, "first.pem");
    let what = "film.signed --data film --without-data --to reading.archive";
    assert_eq!(scene.create(&authority, what).status, 0);
    let slow = scene.path("slow");
    let made = Command::new("mkfifo").arg(&slow).status().unwrap();
    assert!(made.success());
    let line = format!(
        "{} archive verify reading.archive --policy policy.toml --authority-root first.pem --data slow",
        env!("CARGO_BIN_EXE_vrot-device")
    );
    let mut child = Command::new("script")
        .args(["-qfec", &line, "/dev/null"])
        .current_dir(slow.parent().unwrap())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut terminal = child.stdout.take().unwrap();
    let shown = Arc::new(AtomicBool::new(false));
    let seen = Arc::clone(&shown);
    let reader = thread::spawn(move || {
        let (mut all, mut piece) = (Vec::new(), [0; 4096]);
        while let Ok(read @ 1..) = terminal.read(&mut piece) {
            all.extend(&piece[..read]);
            let text = String::from_utf8_lossy(&all).into_owned();
            seen.fetch_or(text.contains("hashed: 0 MiB"), Ordering::SeqCst);
        }
        String::from_utf8_lossy(&all).into_owned()
    });
    // Opened for both, it waits for nobody.
    let mut data = File::options().read(true).write(true).open(&slow).unwrap();
    wait_for("a line of progress", Duration::from_secs(120), || {
        data.write_all(b".")?;
        Ok((shown.load(Ordering::SeqCst) || reader.is_finished()).then_some(()))
    })
    .unwrap();
    drop(data);
    let ended = child.wait().unwrap();
    let all = reader.join().unwrap();
    assert!(!ended.success(), "{all}");
    assert!(shown.load(Ordering::SeqCst), "{all}");
    assert!(all.contains("verdict: contraindicated"), "{all}");
}
