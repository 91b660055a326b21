//! PINs, and the TPM that counts wrong ones.

use anyhow::Result;
use test_support::tool::Tool;
use vrot_confirm::pin::Pin;

use crate::support::{Asked, Device, LOCKOUT_PASSWORD, PIN, Screen, enrol, enrolment, owned};

fn pin(text: &str) -> Result<Pin> {
    let mut pin = Pin::new()?;
    text.bytes().for_each(|byte| pin.push(byte));
    Ok(pin)
}

/// With the password of the lockout hierarchy.
fn lockout(device: &Device) -> Tool {
    owned("tpm2_dictionarylockout", &device.tpm).args(["--auth", LOCKOUT_PASSWORD])
}

#[test]
fn wrong_pins_are_counted_by_the_tpm_until_it_is_locked() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    // As the maker of a TPM for desks would set it.
    lockout(&device)
        .args(["--setup-parameters", "--max-tries", "3"])
        .args(["--recovery-time", "1000", "--lockout-recovery-time", "1000"])
        .run()?;
    let asked = Asked::new("Pay 1 €", 7)?;
    let asking = device.ask("Pay 1 €", &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    for left in ["2 left", "1 left"] {
        device.screen.press("000000\r")?;
        device.screen.wait_for(&format!("Wrong PIN, {left}"))?;
    }
    device.screen.press("000000\r")?;
    let said = asking.failed(2)?;
    assert!(
        said.contains("the TPM is locked after wrong PINs"),
        "{said}"
    );
    device.screen.wait_for("nothing to confirm")?;
    // Now the right one does not help either.
    let asking = device.ask("Pay 1 €", &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press(&format!("{PIN}\r"))?;
    let said = asking.failed(2)?;
    assert!(said.contains("locked") && said.contains("1000 s"), "{said}");
    // Until its owner unlocks it.
    lockout(&device).arg("--clear-lockout").run()?;
    let asking = device.ask("Pay 1 €", &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press(&format!("{PIN}\r"))?;
    asking.confirmed()?;
    Ok(())
}

#[test]
fn the_key_signs_by_its_pin_alone_and_in_its_own_tpm() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let asked = Asked::new("Pay 1 €", 7)?;
    for wrong in ["738292", "7382910", "73829", &"7".repeat(40)] {
        let asking = device.ask("Pay 1 €", &asked.nonce)?;
        device.screen.wait_for("Page 1 of 1")?;
        device.screen.press(&format!("{wrong}\r"))?;
        device.screen.wait_for("Wrong PIN")?;
        device.screen.press("\x1b")?;
        asking.failed(1)?;
        device.screen.wait_for("nothing to confirm")?;
        lockout(&device).arg("--clear-lockout").run()?;
    }
    // A TPM with another storage key is not given the session's salt.
    owned("tpm2_clear", &device.tpm)
        .arg(LOCKOUT_PASSWORD)
        .run()?;
    let asking = device.ask("Pay 1 €", &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press(&format!("{PIN}\r"))?;
    let said = asking.failed(2)?;
    assert!(
        said.contains("the TPM is another one or was cleared"),
        "{said}"
    );
    Ok(())
}

#[test]
fn who_answers_in_the_tpms_place_with_another_storage_key_gets_no_session() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let asked = Asked::new("Pay 1 €", 7)?;
    let asking = device.ask("Pay 1 €", &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.intrude();
    let before = device.sessions();
    assert!(before > 0);
    device.screen.press(&format!("{PIN}\r"))?;
    let said = asking.failed(2)?;
    assert!(said.contains("something sits on the way to it"), "{said}");
    assert_eq!(device.sessions(), before);
    Ok(())
}

#[test]
fn no_pin_is_set_where_the_tpm_lets_whoever_has_it_guess_on() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let screen = Screen::open(80, 24)?;
    let refused = |key: &str| -> Result<String> {
        let output = enrolment(&device.tpm_name, &screen, &device.path(key)).output()?;
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        Ok(String::from_utf8(output.stderr)?)
    };
    let limits = |tries: &str, seconds: &str| {
        lockout(&device)
            .args(["--setup-parameters", "--max-tries", tries])
            .args([
                "--recovery-time",
                seconds,
                "--lockout-recovery-time",
                "86400",
            ])
            .run()
    };
    for (tries, seconds) in [("4294967295", "1000"), ("5", "1"), ("5", "0")] {
        limits(tries, seconds)?;
        let said = refused("key-2")?;
        assert!(said.contains("tpm2_dictionarylockout"), "{said}");
    }
    limits("5", "600")?;
    let change = || owned("tpm2_changeauth", &device.tpm).args(["-c", "lockout"]);
    // As it comes from its maker.
    change().args(["-p", LOCKOUT_PASSWORD, ""]).run()?;
    let said = refused("key-2")?;
    assert!(said.contains("tpm2_changeauth -c lockout"), "{said}");
    assert!(!device.path("key-2").exists() && !screen.all().contains("Set a PIN"));
    change().arg(LOCKOUT_PASSWORD).run()?;
    enrol(&device.tpm_name, &screen, &device.path("key-2"))
}

#[test]
fn pins_that_are_guessed_first_are_not_set() -> Result<()> {
    for (text, is_good) in [
        (PIN, true),
        ("tr0ub4dor&3", true),
        ("12345", false),
        ("123456", false),
        ("987654", false),
        ("111111", false),
        ("7382 1", false),
        (&"7382".repeat(8), true),
        (&"7382".repeat(9), false),
    ] {
        assert_eq!(pin(text)?.check().is_ok(), is_good, "{text}");
    }
    assert_eq!(format!("{:?}", pin(PIN)?), "Pin");
    Ok(())
}
