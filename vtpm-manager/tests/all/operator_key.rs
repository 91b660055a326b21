//! The operator's key: where it is, whose it is, and what depends on it.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::support::enrolment::Files;
use crate::support::{Host, said};

/// A host whose issuer knows its operator; the host has no keys yet.
fn prepared() -> Result<Host> {
    let host = Host::start()?;
    host.make_operator_key()?;
    host.make_issuer()?;
    Ok(host)
}

/// What whoever rules a host does: keys anew, under an operator's key of their own.
fn initialise_under_a_key_of_its_own(host: &mut Host) -> Result<String> {
    host.shut_down()?;
    fs::remove_dir_all(host.path("state"))?;
    host.evict_identity_key()?;
    host.start_again()?;
    let own = host.path("own.pem");
    host.ctl(["host", "policy", "keygen", "--out", &own])?;
    host.ctl(["host", "init", "--policy-key", &format!("{own}.pub")])?;
    Ok(format!("{own}.pub"))
}

fn enrol(host: &Host) -> [String; 6] {
    let issuer = host.path("issuer");
    ["host", "enrol", "--name", "host-1", "--issuer", &issuer].map(str::to_owned)
}

fn recorded(host: &Host) -> Result<Value> {
    let json = fs::read(host.path("issuer/hosts/host-1.json"))?;
    Ok(serde_json::from_slice(&json)?)
}

#[test]
fn a_host_under_an_operator_key_of_its_own_is_not_certified_again() -> Result<()> {
    let mut host = Host::enrolled()?;
    let before = recorded(&host)?;
    let own = initialise_under_a_key_of_its_own(&mut host)?;
    let refused = host.refused(enrol(&host))?;
    ensure!(
        refused.contains("none that this issuer accepts"),
        "{refused}"
    );

    // Even where the issuer knows the key: the host had another one.
    let issuer = host.path("issuer");
    host.ctl(["issuer", "operator-key", "add", "--dir", &issuer, &own])?;
    let refused = host.refused(enrol(&host))?;
    ensure!(refused.contains("--replace-operator-key"), "{refused}");
    assert_eq!(recorded(&host)?, before);

    let mut replace = enrol(&host).to_vec();
    replace.push("--replace-operator-key".to_owned());
    host.ctl(replace)?;
    let after = recorded(&host)?;
    ensure!(after["policy_key"] != before["policy_key"]);
    assert_eq!(after["replaced"][0]["policy_key"], before["policy_key"]);
    ensure!(after["replaced"][0]["replaced_at"].is_string());
    Ok(())
}

#[test]
fn an_issuer_without_operator_keys_certifies_nothing_until_it_is_told_some() -> Result<()> {
    let host = prepared()?;
    host.initialise()?;
    let issuer = host.path("issuer");
    let keys = host.json(["issuer", "operator-key", "list", "--dir", &issuer])?;
    let name = keys["operator_keys"][0]
        .as_str()
        .context("a name")?
        .to_owned();
    let list = ["issuer", "operator-key", "remove", "--dir", &issuer, &name];
    host.ctl(list)?;
    let refused = host.refused(enrol(&host))?;
    ensure!(
        refused.contains("vtpmctl issuer operator-key add"),
        "{refused}"
    );
    // An issuer from before there was such a list.
    fs::remove_file(host.path("issuer/operator-keys.pem"))?;
    ensure!(host.refused(enrol(&host))?.contains("operator-key add"));

    let key = host.path("operator.pem.pub");
    host.ctl(["issuer", "operator-key", "add", "--dir", &issuer, &key])?;
    host.ctl(enrol(&host))?;
    Ok(())
}

#[test]
fn a_key_that_was_removed_after_the_challenge_certifies_nothing() -> Result<()> {
    let host = prepared()?;
    host.initialise()?;
    let files = Files::of(&host);
    let issuer = host.path("issuer");
    host.ctl(files.ask("host-1"))?;
    let name = host.json(files.challenge())?["policy_key"]
        .as_str()
        .context("a name")?
        .to_owned();
    host.ctl(files.answer())?;
    host.ctl(["issuer", "operator-key", "remove", "--dir", &issuer, &name])?;
    let refused = host.refused(files.certify())?;
    ensure!(refused.contains("operator key"), "{refused}");
    ensure!(!Path::new(&files.certificate).exists());
    Ok(())
}

#[test]
fn the_private_key_is_nowhere_but_where_it_was_made_and_the_host_is_approved_all_the_same()
-> Result<()> {
    let host = prepared()?;
    let mode = fs::metadata(host.path("operator.pem"))?
        .permissions()
        .mode();
    assert_eq!(mode & 0o777, 0o600);
    // The host waits, and says for what.
    let public = host.path("operator.pem.pub");
    let said = said(&mut host.vtpmctl(["host", "init", "--policy-key", &public]))?;
    assert_eq!(said.status, 0, "{}", said.err);
    for command in [
        "host policy show --output json > host-pcrs.json",
        "host policy sign --key operator.pem --pcrs host-pcrs.json --out approval.json",
        "host policy approve approval.json",
    ] {
        ensure!(said.err.contains(command), "{command} in: {}", said.err);
    }
    assert_eq!(host.json(["host", "show"])?["store"]["state"], "locked");

    // Three files' journey.
    let pcrs = host.path("host-pcrs.json");
    fs::write(&pcrs, host.json(["host", "policy", "show"])?.to_string())?;
    let approval = host.signed_approval(&["--pcrs", &pcrs, "--accept-unextended"])?;
    host.ctl(["host", "policy", "approve", &approval])?;
    host.ctl(enrol(&host))?;
    host.create()?;

    let private = fs::read_to_string(host.path("operator.pem"))?;
    let secret = private.lines().nth(1).context("base64")?;
    for entry in fs::read_dir(host.path("state"))? {
        let bytes = fs::read(entry?.path()).unwrap_or_default();
        ensure!(
            !bytes
                .windows(secret.len())
                .any(|part| part == secret.as_bytes())
        );
    }
    Ok(())
}

#[test]
fn a_missing_or_wrong_key_file_is_an_error_and_nothing_is_made() -> Result<()> {
    let host = prepared()?;
    let missing = host.path("opreator.pem.pub");
    for (file, why) in [
        (missing.clone(), "cannot be read"),
        (host.path("operator.pem"), "this is a private key"),
        (host.path("makers.pem"), "PUBLIC KEY"),
    ] {
        let said = said(&mut host.vtpmctl(["host", "init", "--policy-key", &file]))?;
        assert_eq!(said.status, 2, "{}", said.err);
        ensure!(said.err.contains(why), "{why} in: {}", said.err);
    }
    ensure!(!Path::new(&missing).exists());
    assert_eq!(host.json(["host", "show"])?["keys"], Value::Null);

    let said = said(&mut host.vtpmctl(["host", "init"]))?;
    ensure!(
        said.status == 2 && said.err.contains("--trial"),
        "{}",
        said.err
    );

    // The issuer takes no private key either.
    let issuer = host.path("issuer");
    let key = host.path("operator.pem");
    let refused = host.refused(["issuer", "operator-key", "add", "--dir", &issuer, &key])?;
    ensure!(refused.contains("this is a private key"), "{refused}");
    Ok(())
}

#[test]
fn initialising_a_host_twice_changes_nothing() -> Result<()> {
    let host = prepared()?;
    host.initialise()?;
    let before = host.json(["host", "show"])?;
    host.ctl([
        "host",
        "init",
        "--policy-key",
        &host.path("operator.pem.pub"),
    ])?;
    assert_eq!(host.json(["host", "show"])?, before);
    let other = host.path("other.pem");
    host.ctl(["host", "policy", "keygen", "--out", &other])?;
    let refused = host.refused(["host", "init", "--policy-key", &format!("{other}.pub")])?;
    ensure!(refused.contains("provisioned for policy key"), "{refused}");
    Ok(())
}

#[test]
fn initialising_a_host_whose_store_is_refused_fails_and_says_so() -> Result<()> {
    let mut host = Host::enrolled()?;
    let copy = |from: &str, to: &str| {
        let mut cp = std::process::Command::new("cp");
        let said = said(cp.args(["-a", "--", &host.path(from), &host.path(to)]))?;
        ensure!(said.status == 0, "{}", said.err);
        Ok(())
    };
    copy("state", "old")?;
    host.create()?;
    host.shut_down()?;
    fs::remove_dir_all(host.path("state"))?;
    fs::rename(host.path("old"), host.path("state"))?;
    host.start_again()?;
    let public = host.path("operator.pem.pub");
    let refused = host.refused(["host", "init", "--policy-key", &public])?;
    ensure!(refused.contains("the store is refused"), "{refused}");
    Ok(())
}

#[test]
fn a_host_on_trial_approves_itself_and_says_what_that_is_worth() -> Result<()> {
    let host = prepared()?;
    let said = said(&mut host.vtpmctl(["host", "init", "--trial"]))?;
    assert_eq!(said.status, 0, "{}", said.err);
    ensure!(said.err.contains("key is on this host"), "{}", said.err);
    assert_eq!(host.json(["host", "show"])?["store"]["state"], "open");
    // It is its own operator, so no issuer that was not told certifies it.
    ensure!(
        host.refused(enrol(&host))?
            .contains("none that this issuer accepts")
    );
    Ok(())
}
