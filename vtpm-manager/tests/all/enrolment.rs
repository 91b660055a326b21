//! Enrolment with files, as between machines that do not reach each other.

use std::fs;

use anyhow::{Context, Result, ensure};

use crate::support::enrolment::Files;
use crate::support::{DOMAIN, Host};

/// A host with keys, and an issuer.
fn prepared() -> Result<Host> {
    prepare(Host::start()?)
}

/// The same with a TPM of another maker.
fn prepared_elsewhere() -> Result<Host> {
    prepare(Host::start_on_another_makers_tpm()?)
}

fn prepare(host: Host) -> Result<Host> {
    host.make_operator_key()?;
    host.make_issuer()?;
    host.initialise()?;
    Ok(host)
}

#[test]
fn four_files_make_a_certified_host() -> Result<()> {
    let host = prepared()?;
    let files = Files::of(&host);
    host.ctl(files.ask("web-7"))?;
    host.ctl(files.challenge())?;
    host.ctl(files.answer())?;
    host.ctl(files.certify())?;
    host.ctl(["host", "install", "--certificate", &files.certificate])?;
    let enrolment = host.json(["host", "show"])?["enrolment"].clone();
    assert_eq!(enrolment["host"], format!("web-7.{DOMAIN}"));

    let refused = host.refused(files.certify())?;
    ensure!(refused.contains("answered before"), "{refused}");
    Ok(())
}

#[test]
fn an_answer_is_not_spent_on_a_certificate_that_cannot_be_written() -> Result<()> {
    let host = prepared()?;
    let files = Files::of(&host);
    host.ctl(files.ask("web-7"))?;
    host.ctl(files.challenge())?;
    host.ctl(files.answer())?;
    let folder = host.path("folder");
    fs::create_dir(&folder)?;
    for place in [&folder, &host.path("missing/4.json"), "/dev/full"] {
        let mut elsewhere = files.certify();
        elsewhere[7] = place;
        let said = crate::support::said(&mut host.vtpmctl(elsewhere))?;
        assert_eq!(said.status, 2, "{place}: {}", said.err);
        ensure!(said.err.contains(place), "{}", said.err);
    }
    host.ctl(files.certify())?;
    host.ctl(["host", "install", "--certificate", &files.certificate])?;
    Ok(())
}

#[test]
fn a_message_in_the_wrong_place_is_bad_input() -> Result<()> {
    let host = prepared()?;
    let request = host.path("request");
    host.ctl(["host", "request", "--name", "host-1", "--out", &request])?;
    let said =
        crate::support::said(&mut host.vtpmctl(["host", "install", "--certificate", &request]))?;
    assert_eq!(said.status, 2, "{}", said.err);
    ensure!(said.err.contains("host-enrolment-request"), "{}", said.err);
    Ok(())
}

#[test]
fn another_hosts_certificate_is_not_installed() -> Result<()> {
    let (first, second) = (Host::enrolled()?, prepared_elsewhere()?);
    let request = second.path("request");
    second.ctl(["host", "request", "--name", "host-2", "--out", &request])?;
    let foreign = first.path("state/host-certificate.json");
    let refused = second.refused(["host", "install", "--certificate", &foreign])?;
    ensure!(refused.contains("another host"), "{refused}");
    assert_eq!(
        second.json(["host", "show"])?["enrolment"],
        serde_json::Value::Null
    );
    Ok(())
}

#[test]
fn a_name_is_not_given_to_a_second_tpm() -> Result<()> {
    let (first, second) = (Host::enrolled()?, prepared_elsewhere()?);
    // The first host's issuer accepts the second one's TPM, too.
    let roots = first.path("issuer/tpm-roots.pem");
    let makers = [fs::read(&roots)?, fs::read(second.path("makers.pem"))?].concat();
    fs::write(&roots, makers)?;
    let issuer = first.path("issuer");
    let operator = second.path("operator.pem.pub");
    first.ctl(["issuer", "operator-key", "add", "--dir", &issuer, &operator])?;
    let refused = second.refused(["host", "enrol", "--name", "host-1", "--issuer", &issuer])?;
    ensure!(refused.contains("host-1.test.example"), "{refused}");
    second.ctl(["host", "enrol", "--name", "host-2", "--issuer", &issuer])?;
    Ok(())
}

#[test]
fn a_tpm_of_an_unknown_maker_is_not_challenged() -> Result<()> {
    let (first, second) = (Host::enrolled()?, prepared_elsewhere()?);
    let issuer = first.path("issuer");
    let refused = second.refused(["host", "enrol", "--name", "host-2", "--issuer", &issuer])?;
    ensure!(refused.contains("EK certificate"), "{refused}");
    Ok(())
}

#[test]
fn a_tpm_that_has_a_name_gets_no_second_one_until_the_issuer_gives_the_first_away() -> Result<()> {
    let host = Host::enrolled()?;
    let issuer = host.path("issuer");
    let again = ["host", "enrol", "--name", "host-2", "--issuer", &issuer];
    let refused = host.refused(again)?;
    ensure!(
        refused.contains("has the endorsement key of `host-1.test.example`"),
        "{refused}"
    );
    // Nor does a new identity key in the same TPM, or a record from before keys were noted.
    let file = host.path("issuer/hosts/host-1.json");
    let mut record: serde_json::Value = serde_json::from_slice(&fs::read(&file)?)?;
    for (field, value) in [("ik", None), ("ek_key", None), ("version", Some(1))] {
        let fields = record.as_object_mut().context("no object")?;
        match value {
            None => drop(fields.remove(field)),
            Some(value) => drop(fields.insert(field.to_owned(), value.into())),
        }
    }
    fs::write(&file, record.to_string())?;
    ensure!(host.refused(again)?.contains("host-1.test.example"));
    fs::remove_file(&file)?;
    host.ctl(again)?;
    Ok(())
}

#[test]
fn a_maker_that_was_removed_after_the_challenge_certifies_nothing() -> Result<()> {
    let (host, other) = (prepared()?, Host::start_on_another_makers_tpm()?);
    let files = Files::of(&host);
    let roots = host.path("issuer/tpm-roots.pem");
    host.ctl(files.ask("host-1"))?;
    host.ctl(files.challenge())?;
    host.ctl(files.answer())?;
    let accepted = fs::read(&roots)?;
    fs::copy(other.path("makers.pem"), &roots)?;
    let refused = host.refused(files.certify())?;
    ensure!(refused.contains("EK certificate"), "{refused}");
    ensure!(
        !fs::exists(&files.certificate)? && !fs::exists(host.path("issuer/hosts/host-1.json"))?
    );
    // The answer is not spent: with the maker back, it counts.
    fs::write(&roots, accepted)?;
    host.ctl(files.certify())?;
    Ok(())
}

#[test]
fn a_certificate_that_has_no_place_spends_no_enrolment() -> Result<()> {
    let host = prepared()?;
    let files = Files::of(&host);
    host.ctl(files.ask("web-7"))?;
    host.ctl(files.challenge())?;
    host.ctl(files.answer())?;
    let issuer = host.path("issuer");
    let key = host.path("issuer/issuer-key.pem");
    let before = fs::read(&key)?;
    for place in [
        &host.path("missing/certificate"),
        &key,
        &host.path("issuer"),
    ] {
        let certify = [
            "issuer",
            "certify",
            "--dir",
            &issuer,
            "--answer",
            &files.answer,
            "--out",
            place,
        ];
        let said = crate::support::said(&mut host.vtpmctl(certify))?;
        ensure!(said.status == 2, "{place}: {}", said.err);
    }
    for list in [&key, &host.path("issuer/root.pem")] {
        let make = ["issuer", "crl", "--dir", &issuer, "--out", list];
        let said = crate::support::said(&mut host.vtpmctl(make))?;
        ensure!(said.status == 2, "{list}: {}", said.err);
    }
    ensure!(fs::read(&key)? == before);
    host.ctl(files.certify())?;
    Ok(())
}
