//! What a person sees and does, and what becomes of it.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use confirmation::{ConfirmationRefused, judge};
use rustls_pki_types::UnixTime;
use test_support::deadline::wait_for;
use test_support::tool::Tool;
use vrot_confirm::terminal::{Input, Terminal, Tty};

use crate::support::{Asked, Device, PIN, Screen, enrol};

const TEXT: &str = "Pay 100 € to ACME GmbH";

/// More lines than a small terminal has.
fn long_text() -> String {
    let lines: Vec<String> = (1..=20).map(|line| format!("Clause {line}")).collect();
    lines.join("\n")
}

#[test]
fn what_was_confirmed_counts_for_its_text_service_and_nonce_alone() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let asked = Asked::new(TEXT, 7)?;
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    assert!(device.screen.shows(&format!("| {TEXT}\r\n")));
    device.screen.press(&format!("{PIN}\r"))?;
    let confirmation = asking.confirmed()?;
    let (policy, now) = (device.policy()?, UnixTime::now());
    let judged = |asked: &Asked| judge(Some(&confirmation), &asked.expected(), &policy, now);
    let verified = judged(&asked)?.context("a confirmation")?;
    assert_eq!(verified.key().to_string(), device.key_name()?);
    assert_eq!(verified.lines(), [TEXT]);
    // The PIN was not shown, and did not cross the way to the TPM, neither when it was set nor now.
    assert!(!device.screen.all().contains(PIN));
    let sent = device.sent_to_tpm();
    let finds = |what: &[u8]| sent.windows(what.len()).any(|window| window == what);
    assert!(finds(&[0x80, 0x02]) && !finds(PIN.as_bytes()));
    // Nor what it could be guessed from: each session has a salt that only the TPM can open
    // (TPM2_StartAuthSession, whose first handle would be TPM_RH_NULL).
    let salts: Vec<&[u8]> = (sent.windows(14))
        .filter_map(|window| match window {
            [0x80, 1, _, _, _, _, 0, 0, 1, 0x76, salt @ ..] => Some(salt),
            _ => None,
        })
        .collect();
    assert!(salts.len() >= 2 && !salts.contains(&[0x40, 0, 0, 7].as_slice()));

    let other_text = Asked::new("Pay 900 € to ACME GmbH", 7)?;
    assert!(matches!(
        judged(&other_text),
        Err(ConfirmationRefused::Text { .. })
    ));
    let other_nonce = Asked::new(TEXT, 8)?;
    assert!(matches!(
        judged(&other_nonce),
        Err(ConfirmationRefused::Nonce)
    ));
    let mut other_service = Asked::new(TEXT, 7)?;
    other_service.service = "bank.example".parse()?;
    assert!(matches!(
        judged(&other_service),
        Err(ConfirmationRefused::Service { .. })
    ));
    // Too late, and before it was made.
    for seconds in [now.as_secs() + 3000, now.as_secs() - 200] {
        let at = UnixTime::since_unix_epoch(std::time::Duration::from_secs(seconds));
        let refused = judge(Some(&confirmation), &asked.expected(), &policy, at);
        assert!(
            matches!(refused, Err(ConfirmationRefused::Time { .. })),
            "{refused:?}"
        );
    }
    // No byte of it can be changed, and nothing cut off or added.
    for at in 0..confirmation.len() {
        let mut changed = confirmation.clone();
        *changed.get_mut(at).context("a byte")? ^= 1;
        assert!(
            judge(Some(&changed), &asked.expected(), &policy, now).is_err(),
            "byte {at}"
        );
        let cut = confirmation.get(..at).context("its beginning")?;
        assert!(judge(Some(cut), &asked.expected(), &policy, now).is_err());
    }
    let longer = [confirmation.as_slice(), &[0]].concat();
    assert!(judge(Some(&longer), &asked.expected(), &policy, now).is_err());
    Ok(())
}

#[test]
fn policies_demand_a_confirmation_or_do_without_and_name_their_keys() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let (asked, now) = (Asked::new(TEXT, 7)?, UnixTime::now());
    let none =
        |policy: &confirmation::ConfirmationPolicy| judge(None, &asked.expected(), policy, now);
    let (required, own) = (device.policy()?, device.key_name()?);
    assert!(matches!(none(&required), Err(ConfirmationRefused::Missing)));
    let optional = device.policy_with("optional", &own)?;
    assert!(none(&optional)?.is_none());
    // One that is there must be good, also where none is demanded.
    let bad = judge(Some(&[0xa0]), &asked.expected(), &optional, now);
    assert!(matches!(bad, Err(ConfirmationRefused::Malformed)));
    // Another key of the same TPM, which somebody else enrolled.
    enrol(
        &device.tpm_name,
        &crate::support::Screen::open(80, 24)?,
        &device.path("key-2"),
    )?;
    let other = vrot_confirm::key_file::KeyFile::read(&device.path("key-2"))?;
    let other = cert_chain::PublicArea::parse(&other.statement.public)?.name();
    assert_ne!(other.to_string(), own);
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press(&format!("{PIN}\r"))?;
    let confirmation = asking.confirmed()?;
    let policy = device.policy_with("required", &other.to_string())?;
    let refused = judge(
        Some(&confirmation),
        &asked.expected(),
        &policy,
        UnixTime::now(),
    );
    assert!(
        matches!(refused, Err(ConfirmationRefused::UnknownKey(_))),
        "{refused:?}"
    );
    Ok(())
}

#[test]
fn the_command_line_verifies_a_confirmation_by_a_policy() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let (asked, other) = (Asked::new(TEXT, 7)?, Asked::new(TEXT, 8)?);
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press(&format!("{PIN}\r"))?;
    let file = device.path("confirmation.cbor");
    std::fs::write(&file, asking.confirmed()?)?;
    for (demand, asked, has_one, status, said) in [
        ("required", &asked, true, 0, "\"confirmed\": true"),
        ("required", &other, true, 1, "another nonce"),
        ("required", &asked, false, 1, "demands one"),
        ("optional", &asked, false, 0, "\"confirmed\": false"),
        ("optional", &other, true, 1, "another nonce"),
    ] {
        let mut command = device.verify_command(demand, asked)?;
        if has_one {
            command = command.arg("--confirmation").arg(&file);
        }
        let output = command.outcome()?;
        assert_eq!(output.status.code(), Some(status), "{output:?}");
        assert!(
            String::from_utf8_lossy(&output.stdout).contains(said),
            "{output:?}"
        );
    }
    Ok(())
}

#[test]
fn a_pin_that_is_typed_before_the_last_page_confirms_nothing() -> Result<()> {
    let device = Device::enrolled(60, 12)?;
    let asked = Asked::new(&long_text(), 9)?;
    let asking = device.ask(&long_text(), &asked.nonce)?;
    device.screen.wait_for("Page 1 of 4")?;
    device.screen.press(&format!("{PIN}\r"))?;
    device.screen.press(" ")?;
    device.screen.wait_for("Page 2 of 4")?;
    device.screen.press(&format!("{PIN}\r  "))?;
    device.screen.wait_for("Page 4 of 4")?;
    // Nothing of what was typed before counts: this is too little for a PIN, and wrong.
    device.screen.press("1\r")?;
    device.screen.wait_for("Wrong PIN")?;
    device.screen.press(&format!("{PIN}\r"))?;
    let confirmation = asking.confirmed()?;
    let policy = device.policy()?;
    let verified = judge(
        Some(&confirmation),
        &asked.expected(),
        &policy,
        UnixTime::now(),
    )?;
    assert_eq!(verified.context("a confirmation")?.lines().len(), 20);
    Ok(())
}

#[test]
fn enter_confirms_nothing_with_a_pin_from_before_the_last_page_was_seen_or_seen_again() -> Result<()>
{
    let device = Device::enrolled(60, 12)?;
    let asked = Asked::new(&long_text(), 9)?;
    // Typed on the first page; and on the last one, before another one was looked at.
    for (typed, first) in [
        (format!("{PIN}   "), true),
        (format!("   {PIN}\x1b[A"), false),
    ] {
        let asking = device.ask(&long_text(), &asked.nonce)?;
        device.screen.wait_for("Page 1 of 4")?;
        device.screen.press(&typed)?;
        if !first {
            device.screen.wait_for("Page 3 of 4")?;
            device.screen.press(" ")?;
        }
        device.screen.wait_for("Page 4 of 4")?;
        device.screen.press("\r\x1b")?;
        assert!(asking.failed(1)?.contains("declined"), "{typed:?}");
        device.screen.wait_for("nothing to confirm")?;
    }
    Ok(())
}

#[test]
fn a_terminal_that_changes_its_size_shows_the_text_anew_and_the_pin_is_forgotten() -> Result<()> {
    let device = Device::enrolled(60, 40)?;
    let asked = Asked::new(&long_text(), 9)?;
    let asking = device.ask(&long_text(), &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press(PIN)?;
    device.screen.resize(60, 12)?;
    device.screen.press("\r")?;
    device.screen.wait_for("Page 1 of 4")?;
    device.screen.press("\x1b")?;
    assert!(asking.failed(1)?.contains("declined"));
    Ok(())
}

#[test]
fn one_request_is_shown_at_a_time_and_another_is_told_so() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let (first, second) = (Asked::new(TEXT, 1)?, Asked::new(TEXT, 2)?);
    let asking = device.ask(TEXT, &first.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    assert!(device.screen.shows("Request 0101010101010101"));
    let busy = device.ask("Pay 900 € to somebody else", &second.nonce)?;
    assert!(busy.failed(2)?.contains("another request"));
    assert!(!device.screen.all().contains("somebody else"));
    device.screen.press("\x1b")?;
    asking.failed(1)?;
    Ok(())
}

#[test]
fn a_flood_of_connections_is_turned_away_and_leaves_room_again() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    // Those that say nothing lose their places after a while; a machine that is too busy for the last one to come
    // before that tries again.
    let silent = wait_for("a connection too many", Duration::from_secs(120), || {
        let connect = || UnixStream::connect(device.path("socket"));
        let silent: Vec<UnixStream> = (0..17).map(|_| connect()).collect::<Result<_, _>>()?;
        let last = silent.last().context("one")?;
        last.set_read_timeout(Some(Duration::from_secs(60)))?;
        let mut told = String::new();
        BufReader::new(last).read_line(&mut told)?;
        Ok((told == "{\"answer\":\"busy\"}\n").then_some(silent))
    })?;
    drop(silent);
    let asked = Asked::new(TEXT, 1)?;
    let asking = wait_for("room again", Duration::from_secs(60), || {
        let mut asking = device.ask(TEXT, &asked.nonce)?;
        let is_shown = wait_for("an end or a page", Duration::from_secs(60), || {
            let is_shown = device.screen.shows("Page 1 of 1");
            Ok((is_shown || asking.is_answered()?).then_some(is_shown))
        })?;
        Ok(is_shown.then_some(asking))
    })?;
    device.screen.press(&format!("{PIN}\r"))?;
    asking.confirmed()?;
    Ok(())
}

#[test]
fn other_users_neither_open_the_terminal_nor_reach_the_socket() -> Result<()> {
    let mut device = Device::enrolled(80, 24)?;
    let mode = |path: &std::path::Path| {
        Ok::<_, anyhow::Error>(fs::metadata(path)?.permissions().mode() & 0o777)
    };
    assert_eq!(mode(&device.path("socket"))?, 0o660);
    assert_eq!(mode(&device.path("key"))?, 0o600);
    // Even where a terminal's modes would allow it.
    let terminal = device.screen.path();
    fs::set_permissions(terminal, fs::Permissions::from_mode(0o666))?;
    let write = format!("echo 738291 > {}", terminal.display());
    let other_user = || {
        Tool::new("setpriv")
            .args(["--reuid=65534", "--clear-groups", "sh", "-c", &write])
            .outcome()
    };
    let output = other_user()?;
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        !output.status.success() && said.contains("busy"),
        "{output:?}"
    );
    let limits = fs::read_to_string(format!("/proc/{}/limits", device.daemon.id()))?;
    let core = limits
        .lines()
        .find(|line| line.starts_with("Max core file size"));
    let values: Vec<&str> = core
        .context("a limit")?
        .split_whitespace()
        .skip(4)
        .take(2)
        .collect();
    assert_eq!(values, ["0", "0"]);
    // Afterwards it is as any other, for who used it for the daemon or for an enrolment.
    assert!(device.daemon.stop()?.success());
    assert!(other_user()?.status.success());
    enrol(&device.tpm_name, &device.screen, &device.path("another"))?;
    assert!(other_user()?.status.success());
    Ok(())
}

#[test]
fn a_person_is_not_asked_with_a_certificate_that_no_service_accepts() -> Result<()> {
    let mut device = Device::enrolled(80, 24)?;
    let now = UnixTime::now().as_secs();
    device.certify_anew(now - 7200, 3600)?;
    let asked = Asked::new(TEXT, 7)?;
    let refused = device.ask(TEXT, &asked.nonce)?.failed(2)?;
    assert!(refused.contains("has expired"), "{refused}");
    assert!(!device.screen.all().contains(TEXT));
    // It was renewed.
    device.certify_anew(now, 3600)?;
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press("\x1b")?;
    asking.failed(1)?;
    // One of another key.
    fs::write(device.path("certificate.pem"), device.issuer_pem())?;
    let refused = device.restart().err().context("a refusal")?;
    let refused = format!("{refused:#}");
    assert!(refused.contains("is of another key"), "{refused}");
    Ok(())
}

#[test]
fn keys_that_are_pressed_without_end_do_not_make_a_person_s_time_longer() -> Result<()> {
    let screen = Screen::open(80, 24)?;
    let mut terminal = Tty::open(screen.path())?;
    screen.press("ab")?;
    let later = Instant::now() + Duration::from_secs(60);
    assert!(matches!(terminal.key(later, None)?, Input::Key(_)));
    // The second is there as well.
    assert_eq!(terminal.key(Instant::now(), None)?, Input::Late);
    Ok(())
}

#[test]
fn a_pin_is_not_in_the_daemons_memory_when_the_request_has_ended() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let asked = Asked::new(TEXT, 1)?;
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press("9173840265")?;
    // It can be found where it is.
    let typed = b"9173840265";
    wait_for("the PIN in memory", Duration::from_secs(60), || {
        Ok(memory_has(&device, typed)?.then_some(()))
    })?;
    device.screen.press("\r")?;
    device.screen.wait_for("Wrong PIN")?;
    assert!(!memory_has(&device, typed)?, "a wrong one");
    device.screen.press(&format!("{PIN}\r"))?;
    asking.confirmed()?;
    device.screen.wait_for("nothing to confirm")?;
    assert!(!memory_has(&device, PIN.as_bytes())?, "the right one");
    Ok(())
}

/// Whether these bytes are anywhere in the daemon's memory that it can write to.
fn memory_has(device: &Device, bytes: &[u8]) -> Result<bool> {
    let process = format!("/proc/{}", device.daemon.id());
    let memory = fs::File::open(format!("{process}/mem"))?;
    for line in fs::read_to_string(format!("{process}/maps"))?.lines() {
        let mut words = line.split(' ');
        let (range, mode) = (
            words.next().context("a range")?,
            words.next().context("a mode")?,
        );
        if !mode.starts_with("rw") {
            continue;
        }
        let (start, end) = range.split_once('-').context("two ends")?;
        let (start, end) = (
            u64::from_str_radix(start, 16)?,
            u64::from_str_radix(end, 16)?,
        );
        let mut part = vec![0; usize::try_from(end - start)?];
        // What was unmapped meanwhile, and what the kernel keeps there.
        let Ok(length) = memory.read_at(&mut part, start) else {
            continue;
        };
        part.truncate(length);
        if part.windows(bytes.len()).any(|window| window == bytes) {
            return Ok(true);
        }
    }
    Ok(false)
}

#[test]
fn a_request_whose_asker_or_daemon_is_killed_ends_without_a_confirmation() -> Result<()> {
    let mut device = Device::enrolled(80, 24)?;
    let asked = Asked::new(TEXT, 1)?;
    let mut asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    asking.child.kill()?;
    asking.ended()?;
    device.screen.wait_for("was taken back")?;
    // Who has read it may be typing: that is for nobody, and nobody else has their request shown meanwhile.
    let other = Asked::new("Pay 900 € to somebody else", 2)?;
    device.screen.press(PIN)?;
    let busy = device.ask(other.text.as_str(), &other.nonce)?;
    assert!(busy.failed(2)?.contains("another request"));
    device.screen.press("\r\x1b")?;
    device.screen.wait_for("nothing to confirm")?;
    assert!(!device.screen.all().contains("somebody else"));
    device.screen.press(&format!("{PIN}\r"))?;
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.screen.press("\x1b")?;
    assert!(asking.failed(1)?.contains("declined"));
    device.screen.wait_for("nothing to confirm")?;
    let asking = device.ask(TEXT, &asked.nonce)?;
    device.screen.wait_for("Page 1 of 1")?;
    device.daemon.kill()?;
    assert!(asking.failed(2)?.contains("no answer"));
    Ok(())
}

#[test]
fn no_request_reaches_the_terminal_with_anything_but_printable_text() -> Result<()> {
    let device = Device::enrolled(80, 24)?;
    let nonce = "07".repeat(32);
    let before = device.screen.all();
    for (text, service) in [
        ("Pay 1 €\\u001b[2J\\u001b[HPay 900 €", "shop.example"),
        ("Pay\\r900 €", "shop.example"),
        ("Pay \\u202e001\\u202c €", "shop.example"),
        ("Pay", "shop.example\\u001b[2J"),
        ("Pay", "sh\\u043ep.example"),
    ] {
        let line =
            format!("{{\"text\":\"{text}\",\"service\":\"{service}\",\"nonce\":\"{nonce}\"}}");
        let mut answer = String::new();
        device.send(&line)?.read_to_string(&mut answer)?;
        assert!(answer.starts_with("{\"answer\":\"refused\""), "{answer}");
        assert!(answer.is_ascii() && !answer.contains('\u{1b}'), "{answer}");
    }
    // Neither JSON, nor an end.
    for line in ["Pay", &"x".repeat(100_000)] {
        let mut answer = String::new();
        let sent = device.send(line);
        // It does not read to the end what is too long.
        if let Ok(mut stream) = sent {
            let _ = stream.read_to_string(&mut answer);
        }
        assert!(!answer.contains("confirmed"), "{answer}");
    }
    assert_eq!(device.screen.all(), before);
    Ok(())
}
