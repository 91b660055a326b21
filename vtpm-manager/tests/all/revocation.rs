//! The issuer revokes hosts: what it writes down, and what OpenSSL makes of its lists.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use cert_chain::enrolment::{Certificate, Message};
use cert_chain::pem::encode_certificate;
use cert_chain::{CertificateSerial, Crl, RevocationReason};
use serde_json::{Value, json};
use test_support::tool::Tool;

use crate::support::enrolment::Files;
use crate::support::{DOMAIN, Host, said};

/// The host's certificate, as the manager keeps it.
fn certificate(host: &Host) -> Result<Vec<u8>> {
    let message = fs::read(host.path("state/host-certificate.json"))?;
    Ok(Certificate::from_json(&message)?.certificate)
}

/// Whether OpenSSL accepts the host's certificate beside a list.
fn openssl_accepts(host: &Host, list: &str) -> Result<bool> {
    let file = host.path("host.pem");
    fs::write(&file, encode_certificate(&certificate(host)?))?;
    let outcome = Tool::new("openssl")
        .args(["verify", "-crl_check", "-CAfile"])
        .arg(host.path("issuer/root.pem"))
        .args(["-CRLfile", list, &file])
        .outcome()?;
    let told = String::from_utf8_lossy(&outcome.stderr).into_owned();
    ensure!(
        outcome.status.success() || told.contains("certificate revoked"),
        "{told}"
    );
    Ok(outcome.status.success())
}

fn only_list(file: &str) -> Result<Crl> {
    let lists = Crl::all_from_file(&fs::read(file)?)?;
    lists.into_iter().next().context("a list")
}

#[test]
fn a_host_that_its_issuer_revoked_is_on_every_list_from_then_on() -> Result<()> {
    let host = Host::enrolled()?;
    let (issuer, list) = (host.path("issuer"), host.path("list.pem"));
    let make = ["issuer", "crl", "--dir", &issuer, "--out", &list];
    let number =
        |made: &Value| Ok::<u64, anyhow::Error>(made.as_str().context("a number")?.parse()?);
    let first = number(&host.json(make)?["number"])?;
    ensure!(openssl_accepts(&host, &list)?);
    let serial = CertificateSerial::of_certificate(&certificate(&host)?)?;
    let name = format!("host-1.{DOMAIN}");
    let known = || host.json(["issuer", "certificates", "--dir", &issuer]);
    let before = known()?;
    ensure!(
        before["certificates"][0]["serial"] == json!(serial),
        "{before}"
    );
    ensure!(
        before["certificates"][0]["subject"] == json!(name),
        "{before}"
    );
    ensure!(before["certificates"][0]["revoked"].is_null(), "{before}");

    let revoke = |reason| {
        let of_host = ["issuer", "revoke", "--dir", &issuer, "--host", "host-1"];
        let more = ["--reason", reason, "--crl", &list];
        host.json([of_host.as_slice(), &more].concat())
    };
    // A list that has no place costs nothing.
    let root = host.path("issuer/root.pem");
    let of_host = ["issuer", "revoke", "--dir", &issuer, "--host", "host-1"];
    let more = ["--reason", "privilege-withdrawn", "--crl", &root];
    let refused = said(&mut host.vtpmctl([of_host.as_slice(), &more].concat()))?;
    ensure!(refused.status == 2, "{}", refused.err);
    ensure!(refused.err.contains("name another file"), "{}", refused.err);
    let after = known()?;
    ensure!(after["certificates"][0]["revoked"].is_null(), "{after}");

    let revoked = revoke("privilege-withdrawn")?;
    let second = number(&revoked["list"]["number"])?;
    ensure!(second > first, "{revoked}");
    ensure!(!openssl_accepts(&host, &list)?);
    let found = only_list(&list)?.find(&serial).context("the host")?;
    ensure!(found.reason == RevocationReason::PrivilegeWithdrawn);

    // Once more: the reason is corrected, and the time stays.
    let since = revoked["revoked"][0]["revoked"]["since"].clone();
    ensure!(since.is_string(), "{revoked}");
    std::thread::sleep(std::time::Duration::from_millis(1100));
    let again = revoke("key-compromise")?;
    ensure!(again["revoked"][0]["revoked"]["since"] == since, "{again}");
    host.ctl(make)?;
    let last = only_list(&list)?;
    ensure!(number(&json!(last.number().to_string()))? > second);
    let found = last.find(&serial).context("the host")?;
    ensure!(found.reason == RevocationReason::KeyCompromise);
    ensure!(!openssl_accepts(&host, &list)?);
    let after = known()?;
    ensure!(
        after["certificates"][0]["revoked"]["reason"] == "key-compromise",
        "{after}"
    );
    Ok(())
}

#[test]
fn a_key_that_was_revoked_as_compromised_is_not_certified_again_and_another_reason_is_no_bar()
-> Result<()> {
    let host = Host::enrolled()?;
    let issuer = host.path("issuer");
    let enrol = ["host", "enrol", "--name", "host-1", "--issuer", &issuer];
    let revoke = |reason| {
        let of_host = ["issuer", "revoke", "--dir", &issuer, "--host", "host-1"];
        host.ctl([of_host.as_slice(), &["--reason", reason]].concat())
    };
    revoke("superseded")?;
    host.ctl(enrol)?;
    let known = host.json(["issuer", "certificates", "--dir", &issuer])?;
    let known = known["certificates"].as_array().context("a list")?.clone();
    ensure!(known.len() == 2, "{known:?}");
    ensure!(known.iter().filter(|one| one["revoked"].is_null()).count() == 1);

    revoke("key-compromise")?;
    let refused = host.refused(enrol)?;
    ensure!(refused.contains("makes new keys first"), "{refused}");
    Ok(())
}

#[test]
fn that_a_key_is_compromised_is_taken_back_for_a_certificate_and_not_for_a_name() -> Result<()> {
    let host = Host::enrolled()?;
    let issuer = host.path("issuer");
    let enrol = ["host", "enrol", "--name", "host-1", "--issuer", &issuer];
    let revoke = |whose: [&str; 2], reason| {
        let start = ["issuer", "revoke", "--dir", &issuer, "--reason", reason];
        said(&mut host.vtpmctl([start.as_slice(), &whose].concat()))
    };
    let name = ["--host", "host-1"];
    assert_eq!(revoke(name, "key-compromise")?.status, 0);
    // Out of use, or simply replaced: the key is no better for it.
    let again = revoke(name, "superseded")?;
    assert_eq!(again.status, 0, "{}", again.err);
    ensure!(again.err.contains("--serial"), "{}", again.err);
    let known = host.json(["issuer", "certificates", "--dir", &issuer])?;
    let record = &known["certificates"][0];
    ensure!(record["revoked"]["reason"] == "key-compromise", "{known}");
    ensure!(host.refused(enrol)?.contains("somebody else may have"));
    // Nothing is carried around in vain.
    let files = Files::of(&host);
    host.ctl(files.ask("host-1"))?;
    let refused = host.refused(files.challenge())?;
    ensure!(refused.contains("somebody else may have"), "{refused}");

    let serial = record["serial"].as_str().context("a number")?;
    let corrected = revoke(["--serial", serial], "superseded")?;
    ensure!(!corrected.err.contains("as before"), "{}", corrected.err);
    host.ctl(enrol)?;
    Ok(())
}

#[test]
fn the_key_of_a_certificate_that_has_expired_is_not_certified_again_either() -> Result<()> {
    let host = Host::enrolled()?;
    let issuer = host.path("issuer");
    let serial = CertificateSerial::of_certificate(&certificate(&host)?)?;
    let file = host.path(&format!("issuer/certificates/{serial}.json"));
    let mut record: Value = serde_json::from_slice(&fs::read(&file)?)?;
    record["not_after"] = json!("2020-01-01T00:00:00Z");
    fs::write(&file, record.to_string())?;
    let revoke = |reason| {
        let of_host = ["issuer", "revoke", "--dir", &issuer, "--host", "host-1"];
        said(&mut host.vtpmctl([of_host.as_slice(), &["--reason", reason]].concat()))
    };
    // Nobody accepts it any more, so that is all that revocation could be for.
    let needless = revoke("superseded")?;
    ensure!(needless.status == 1, "{}", needless.err);
    assert_eq!(revoke("key-compromise")?.status, 0);
    let refused = host.refused(["host", "enrol", "--name", "host-1", "--issuer", &issuer])?;
    ensure!(refused.contains("somebody else may have"), "{refused}");
    Ok(())
}

/// Verifiers take the list with the highest number for the newest.
#[test]
fn an_issuer_whose_folder_was_put_back_from_a_copy_makes_lists_that_count_as_newer() -> Result<()> {
    let host = Host::enrolled()?;
    let (issuer, list) = (host.path("issuer"), host.path("list.pem"));
    let make = ["issuer", "crl", "--dir", &issuer, "--out", &list];
    let begin = api_types::Timestamp::now().seconds();
    let number = || Ok::<u64, anyhow::Error>(only_list(&list)?.number().to_string().parse()?);
    let file = host.path("issuer/last-crl.json");
    let last = |number: u64| fs::write(&file, json!({"version": 1, "number": number}).to_string());
    // The copy is from before the lists of last week.
    last(4)?;
    host.ctl(make)?;
    ensure!(number()? >= begin);
    // A clock that ran ahead once, and one list after the other.
    last(begin * 2)?;
    host.ctl(make)?;
    assert_eq!(number()?, begin * 2 + 1);
    // No number is used twice.
    last(u64::MAX)?;
    let refused = host.refused(make)?;
    ensure!(refused.contains("last-crl.json"), "{refused}");
    assert_eq!(number()?, begin * 2 + 1);
    Ok(())
}

#[test]
fn an_issuer_revokes_its_own_certificates_and_no_others() -> Result<()> {
    let (host, other) = (Host::enrolled()?, Host::enrolled()?);
    let (issuer, foreign) = (host.path("issuer"), other.path("foreign.pem"));
    fs::write(&foreign, encode_certificate(&certificate(&other)?))?;
    let revoke = |whose: [&str; 2]| {
        let start = [
            "issuer",
            "revoke",
            "--dir",
            &issuer,
            "--reason",
            "superseded",
        ];
        said(&mut host.vtpmctl([start.as_slice(), &whose].concat()))
    };
    let root = host.path("issuer/root.pem");
    for (whose, status, told) in [
        (["--certificate", &foreign], 1, "nothing to revoke"),
        (["--certificate", &root], 1, "nothing to revoke"),
        (["--serial", "4711"], 1, "--certificate FILE"),
        (["--serial", "47110"], 2, "hexadecimal"),
        (["--host", "host-2"], 1, &format!("host-2.{DOMAIN}")),
        (
            ["--host", "host-1.other.example"],
            1,
            "host-1.other.example",
        ),
        (
            ["--device", "robot-1"],
            1,
            &format!("spiffe://{DOMAIN}/robot-1"),
        ),
    ] {
        let refused = revoke(whose)?;
        assert_eq!(refused.status, status, "{whose:?}: {}", refused.err);
        ensure!(refused.err.contains(told), "{whose:?}: {}", refused.err);
    }
    ensure!(
        host.refused([
            "issuer",
            "revoke",
            "--dir",
            &issuer,
            "--reason",
            "superseded"
        ])
        .is_err()
    );

    // What an issuer of an earlier version certified, it does not know by number; a file shows it.
    fs::remove_dir_all(host.path("issuer/certificates"))?;
    let refused = revoke(["--host", "host-1"])?;
    ensure!(
        refused.err.contains("--certificate FILE"),
        "{}",
        refused.err
    );
    let own = host.path("state/host-certificate.json");
    assert_eq!(revoke(["--certificate", &own])?.status, 0);
    let list = host.path("list.pem");
    host.ctl([
        "issuer", "crl", "--dir", &issuer, "--out", &list, "--days", "30",
    ])?;
    ensure!(!openssl_accepts(&host, &list)?);
    let serial = CertificateSerial::of_certificate(&certificate(&host)?)?.to_string();
    ensure!(Path::new(&host.path(&format!("issuer/certificates/{serial}.json"))).exists());
    assert_eq!(revoke(["--serial", &serial.to_uppercase()])?.status, 0);
    Ok(())
}
