//! A host whose clock is wrong for a while, and what certificates come out of that.

use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use cert_chain::Validity;
use serde_json::Value;

use crate::support::identity::{der, verified};
use crate::support::{Host, wait_until};

/// Whether all certificates of an identity are valid now.
fn is_valid(identity: &Value) -> Result<bool> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs();
    for key in ["vik", "ek_rsa", "ek_p256"] {
        let validity = Validity::of_certificate(&der(&identity[key]["certificate_pem"])?)?;
        let life = validity.not_before().as_secs()..=validity.not_after().as_secs();
        if !life.contains(&now) {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A real-time clock in local time, put right a minute later; or one that is far off.
#[test]
fn certificates_that_a_fast_clock_dated_ahead_are_replaced_when_it_is_right_again() -> Result<()> {
    for ahead in ["+8h", "+20d"] {
        let mut host = Host::enrolled()?;
        host.shut_down()?;
        host.start_again_with_clock(ahead)?;
        let (runs, stopped) = (host.create()?, host.create()?);
        host.ctl(["start", &runs])?;
        for vm in [&runs, &stopped] {
            let identity = host.json(["identity", vm])?;
            ensure!(!is_valid(&identity)?, "the clock is right: {identity}");
        }
        host.shut_down()?;
        host.start_again()?;

        wait_until("certificates that are valid", || {
            is_valid(&host.json(["identity", &runs])?)
        })?;
        verified(&host, &host.json(["identity", &runs])?)?;
        host.ctl(["start", &stopped])?;
        let identity = host.json(["identity", &stopped])?;
        ensure!(is_valid(&identity)?, "{ahead}: {identity}");
        verified(&host, &identity)?;
    }
    Ok(())
}

#[test]
fn an_operator_has_certificates_renewed_before_they_are_due() -> Result<()> {
    let host = Host::enrolled()?;
    let vm = host.create()?;
    let certificate = |identity: &Value| -> Result<String> {
        let pem = identity["vik"]["certificate_pem"].as_str();
        Ok(pem.context("a certificate")?.to_owned())
    };
    let first = certificate(&host.json(["identity", &vm])?)?;
    // Of a vRoT that does not run it happens when it starts.
    host.ctl(["identity", &vm, "--renew"])?;
    assert_eq!(certificate(&host.json(["identity", &vm])?)?, first);
    host.ctl(["start", &vm])?;
    let second = certificate(&host.json(["identity", &vm])?)?;
    assert_ne!(second, first);

    let third = host.json(["identity", &vm, "--renew"])?;
    assert_ne!(certificate(&third)?, second);
    verified(&host, &third)?;
    assert_eq!(
        certificate(&host.json(["identity", &vm])?)?,
        certificate(&third)?
    );
    Ok(())
}
