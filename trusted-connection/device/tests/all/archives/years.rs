//! Archives through the years: what ends, what is renewed, and what is revoked.

use archive::cose_time_stamp::{StampedSign1, signature_imprint};
use archive::time_stamp::Nonce;
use archive::{ArchiveHash, TimeStampRequest};
use test_support::time_authority::{AuthorityProfile, Keys};

use super::scene::{DAY, HOUR, SIGNED, Scene};

const YEAR: u64 = 366 * DAY;

#[test]
fn an_archive_verifies_after_the_certificates_of_its_signer_ended() {
    let scene = Scene::new();
    scene.archived_by(&scene.authority(3650, "first.pem"));
    let later = SIGNED + 2 * YEAR;
    let ended = scene.device(later, "verify-data reading.signed --policy policy.toml");
    assert_eq!(ended.status, 1, "{ended:?}");
    let (status, told) = scene.verify(later, "first.pem", "");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    assert_eq!(told["data"]["signed_at"], "2026-06-01T01:00:00Z");
    let before = told["time"]["signed"]["before"].as_str().unwrap();
    assert!(before.starts_with("2026-06-01T01:"), "{before}");
}

#[test]
fn an_archive_outlives_its_authority_if_it_was_renewed_before() {
    let scene = Scene::new();
    let (first, second) = (
        scene.authority(366, "first.pem"),
        scene.authority(3650, "second.pem"),
    );
    scene.archived_by(&first);
    let unrenewed = scene.read("reading.archive");
    let renewed = scene.renew(&second, SIGNED + 300 * DAY, "first.pem second.pem", "");
    assert_eq!(renewed.status, 0, "{renewed:?}");
    let later = SIGNED + 5 * YEAR;
    let both = "first.pem second.pem";
    let (status, told) = scene.verify(later, both, "");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    assert_eq!(told["time"]["renewed"].as_array().map(Vec::len), Some(1));
    scene.write("reading.archive", &unrenewed);
    let (status, told) = scene.verify(later, both, "");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"overdue".into()),
        "{told:#}"
    );
    // A time stamp over what does not count any more would prove nothing.
    let late = scene.renew(&second, later, "first.pem second.pem", "");
    assert_eq!(late.status, 1, "{late:?}");
    assert!(late.out.contains("had to be renewed before"), "{late:?}");
    assert_eq!(scene.read("reading.archive"), unrenewed);
}

#[test]
fn what_a_host_that_was_revoked_later_vouched_for_counts_and_what_one_that_was_revoked_before_does_not()
 {
    let scene = Scene::new();
    scene.archived_by(&scene.authority(3650, "first.pem"));
    let certificate = scene.host.certificate.to_vec();
    scene.revoke(&certificate, SIGNED + HOUR, "later.crl");
    scene.revoke(&certificate, SIGNED - 60, "before.crl");
    let at = SIGNED + 60 * DAY;
    let (status, told) = scene.verify(at, "first.pem", " --crl later.crl");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    let (status, told) = scene.verify(at, "first.pem", " --crl before.crl");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"chain".into()),
        "{told:#}"
    );
    assert!(
        told["refusal"]["text"].to_string().contains("revoked"),
        "{told:#}"
    );
    // Without a time that is proven, a signature may be younger than the revocation.
    let ended = scene.device(
        SIGNED + 2 * HOUR,
        "verify-data reading.signed --policy policy.toml --crl later.crl",
    );
    assert_eq!(ended.status, 1, "{ended:?}");
    assert!(ended.out.contains("revoked"), "{ended:?}");
}

#[test]
fn what_is_archived_after_its_host_was_revoked_does_not_count_though_the_signature_is_older() {
    let scene = Scene::new();
    let authority = scene.authority(3650, "first.pem");
    // The time stamp is over the signature: certificates and statement may be younger.
    authority.set_clock(SIGNED + 60);
    let sign1 = scene.read("reading.signed");
    let imprint = signature_imprint(&sign1, ArchiveHash::Sha256).unwrap();
    let request = TimeStampRequest::new(imprint, Nonce::new([7; 8]));
    let answer = authority.answer(&request.to_der().unwrap()).unwrap();
    let token = Some(request.token(&answer).unwrap());
    let stamped = StampedSign1 { sign1, token };
    scene.write("stamped.signed", &stamped.to_cbor().unwrap());
    let certificate = scene.host.certificate.to_vec();
    scene.revoke(&certificate, SIGNED + DAY, "between.crl");
    scene.revoke(&certificate, SIGNED + 3 * DAY, "later.crl");
    let archived = SIGNED + 2 * DAY;
    let line = "create stamped.signed --to reading.archive --policy policy.toml";
    let told = scene.asking(
        &authority,
        archived,
        &format!("{line} --crl between.crl"),
        "first.pem",
    );
    assert_eq!(told.status, 1, "{told:?}");
    assert!(told.out.contains("(chain)"), "{told:?}");
    assert!(!scene.path("asked").exists(), "an authority was asked");
    // The archiver did not know.
    let told = scene.asking(&authority, archived, line, "first.pem");
    assert_eq!(told.status, 0, "{told:?}");
    let at = SIGNED + 60 * DAY;
    let (status, told) = scene.verify(at, "first.pem", " --crl between.crl");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"chain".into()),
        "{told:#}"
    );
    let (status, told) = scene.verify(at, "first.pem", " --crl later.crl");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
}

#[test]
fn an_authority_that_is_revoked_counts_no_more_unless_the_archive_was_renewed_before() {
    let scene = Scene::new();
    let (first, second) = (
        scene.authority(3650, "first.pem"),
        scene.authority(3650, "second.pem"),
    );
    scene.archived_by(&first);
    let unrenewed = scene.read("reading.archive");
    scene.write("good.crl", &first.crl(None).unwrap());
    let renewed = scene.renew(
        &second,
        SIGNED + 30 * DAY,
        "first.pem second.pem",
        " --crl good.crl",
    );
    assert_eq!(renewed.status, 0, "{renewed:?}");
    let revoked = SIGNED + 60 * DAY;
    first.set_clock(revoked);
    scene.write("revoked.crl", &first.crl(Some(revoked)).unwrap());
    let both = "first.pem second.pem";
    let at = revoked + DAY;
    let (status, told) = scene.verify(at, both, " --crl revoked.crl");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    scene.write("reading.archive", &unrenewed);
    let (status, told) = scene.verify(at, both, " --crl revoked.crl");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"overdue".into()),
        "{told:#}"
    );
}

#[test]
fn an_archive_is_hashed_anew_with_sha_512_and_still_proves_when_it_was_made() {
    let scene = Scene::new();
    let (first, second) = (
        scene.authority(366, "first.pem"),
        scene.authority(3650, "second.pem"),
    );
    scene.archived_by(&first);
    let renewed = scene.renew(
        &second,
        SIGNED + 300 * DAY,
        "first.pem second.pem",
        " --rehash sha512",
    );
    assert_eq!(renewed.status, 0, "{renewed:?}");
    let both = "first.pem second.pem";
    let (status, told) = scene.verify(SIGNED + 5 * YEAR, both, "");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    assert_eq!(told["time"]["renewed"][0]["hash"], "SHA-512");
    let before = told["time"]["archived"]["before"].as_str().unwrap();
    assert!(before.starts_with("2026-06-01T01:"), "{before}");
}

#[test]
fn authorities_with_rsa_keys_and_their_revocation_lists_count_too() {
    an_authority_counts_until_its_list_says_otherwise(Keys::Rsa);
}

#[test]
fn a_list_that_is_signed_with_another_hash_than_is_customary_for_its_curve_is_not_passed_over() {
    an_authority_counts_until_its_list_says_otherwise(Keys::P384);
}

fn an_authority_counts_until_its_list_says_otherwise(keys: Keys) {
    let scene = Scene::new();
    let profile = AuthorityProfile {
        keys,
        ..AuthorityProfile::default()
    };
    let authority = scene.authority_with(profile, "first.pem");
    scene.archived_by(&authority);
    let revoked = SIGNED + 30 * DAY;
    authority.set_clock(revoked);
    scene.write("good.crl", &authority.crl(None).unwrap());
    scene.write("revoked.crl", &authority.crl(Some(revoked)).unwrap());
    let at = revoked + DAY;
    let (status, told) = scene.verify(at, "first.pem", " --crl good.crl");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    let listed = &told["time"]["archived"]["revocation"]["crl_this_update"];
    assert!(
        listed.as_str().unwrap().starts_with("2026-07-01T01:"),
        "{told:#}"
    );
    let (_, told) = scene.verify(at, "first.pem", "");
    assert!(told["time"]["archived"]["revocation"].is_null(), "{told:#}");
    let (status, told) = scene.verify(at, "first.pem", " --crl revoked.crl");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"overdue".into()),
        "{told:#}"
    );
}

#[test]
fn an_archive_whose_authority_outlives_its_root_is_overdue_when_the_root_has_ended() {
    let scene = Scene::new();
    let profile = AuthorityProfile {
        root_days: 366,
        ..AuthorityProfile::default()
    };
    let authority = scene.authority_with(profile, "first.pem");
    scene.archived_by(&authority);
    let (status, told) = scene.verify(SIGNED + 300 * DAY, "first.pem", "");
    assert_eq!(
        (status, &told["verdict"]),
        (0, &"affirming".into()),
        "{told:#}"
    );
    let ends = told["time"]["proof_ends"].as_str().unwrap();
    assert!(ends.starts_with("2027-06-02T01:"), "{ends}");
    let (status, told) = scene.verify(SIGNED + 400 * DAY, "first.pem", "");
    assert_eq!(
        (status, &told["refusal"]["code"]),
        (1, &"overdue".into()),
        "{told:#}"
    );
    let why = told["refusal"]["text"].as_str().unwrap();
    assert!(
        why.contains("the root that the chain leads to expired"),
        "{why}"
    );
}
