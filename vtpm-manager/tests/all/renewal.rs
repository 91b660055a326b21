//! Certificates of identity keys, renewed while guests run, and whatever guests do about it.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result, ensure};
use cert_chain::layout::{NvIndex, VIK_HANDLE};
use serde_json::Value;
use sha2::{Digest, Sha256};

use crate::support::http::ask;
use crate::support::identity::{der, verified};
use crate::support::vmm::{
    Attach, OWNER, PASSWORD, Vmm, begin_every_session, command, create_primary, define_index,
    evict_control, nv_read, policy_session, with_sessions,
};
use crate::support::{Host, said, wait_until};

const SOON: &str = "vik_renew_after_s = 1\n";
const VIK_CERTIFICATE: u32 = 0x01c1_0002;
const RENEWALS: &str = "vrot_certificate_renewals_total";

const ENDORSEMENT: u32 = 0x4000_000b;
const PLATFORM: u32 = 0x4000_000c;
const SESSION_MEMORY: u32 = 0x903;
const OBJECT_MEMORY: u32 = 0x902;

#[test]
fn a_certificate_is_renewed_while_the_vm_runs() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let before = host.json(["identity", &vm])?;
    let certificate = |identity: &Value| identity["vik"]["certificate_pem"].clone();
    wait_until("another certificate", || {
        Ok(certificate(&host.json(["identity", &vm])?) != certificate(&before))
    })?;
    let after = host.json(["identity", &vm])?;
    assert_eq!(after["vik"]["name"], before["vik"]["name"]);
    assert_eq!(after["vik"]["public_area"], before["vik"]["public_area"]);
    let chain = verified(&host, &after)?;
    assert_eq!(chain.claims().vm.to_string(), vm);
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)?;

    ensure!(after["vik"]["not_after"].is_string(), "{after}");
    let shown = host.json(["show", &vm])?;
    ensure!(shown["vik_not_after"].is_string(), "{shown}");
    assert_eq!(shown["renewal_problem"], Value::Null);
    let audit = fs::read_to_string(host.path("state/audit.jsonl"))?;
    ensure!(
        audit.contains("\"event\":\"certificate-renewed\""),
        "{audit}"
    );
    host.ctl(["audit", "verify"])?;
    Ok(())
}

#[test]
fn a_guest_with_every_slot_taken_gets_its_certificate_and_keeps_its_slots() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let sequences = take_all(&mut vmm, hash_sequence(), OBJECT_MEMORY)?;
    let sessions = take_all(&mut vmm, policy_session(), SESSION_MEMORY)?;
    ensure!(!sequences.is_empty() && !sessions.is_empty());
    // What is in a session must survive, so each gets something of its own.
    let mut digests = Vec::new();
    for (code, session) in (0x17b_u32..).zip(&sessions) {
        // TPM2_PolicyCommandCode
        let parameters = [session.to_be_bytes(), code.to_be_bytes()].concat();
        vmm.succeed(&command(0x16c, &parameters))?;
        digests.push(policy_digest(&mut vmm, *session)?);
    }

    let enough = renewals(&host)? + 3;
    wait_until("renewals beside a busy guest", || {
        // However they fall between its commands, the guest notices nothing.
        for _ in 0..50 {
            for (session, digest) in sessions.iter().zip(&digests) {
                assert_eq!(policy_digest(&mut vmm, *session)?, *digest);
            }
        }
        Ok(renewals(&host)? >= enough)
    })?;
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)?;
    for sequence in sequences {
        // TPM2_SequenceComplete: the objects are still there, too.
        let parameters = [
            &sequence.to_be_bytes()[..],
            PASSWORD,
            &[0, 0],
            &OWNER.to_be_bytes(),
        ]
        .concat();
        vmm.succeed(&with_sessions(command(0x13e, &parameters)))?;
    }
    Ok(())
}

/// A TPM numbers its sessions, also those that are not loaded: nobody gets in between there.
#[test]
fn a_guest_that_began_every_possible_session_gets_its_certificate_when_it_ends_one() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let mut last = None;
    wait_until("the failure to be shown", || {
        // Again and again: the manager may have had the last one for a moment.
        last = begin_every_session(&mut vmm)?.or(last);
        let problem = host.json(["show", &vm])?["renewal_problem"].clone();
        let problem = problem.as_str().unwrap_or_default();
        Ok(problem.contains("TPM2_StartAuthSession"))
    })?;
    // TPM2_FlushContext
    vmm.succeed(&command(0x165, &last.context("a session")?))?;
    wait_until("the renewal", || {
        Ok(host.json(["show", &vm])?["renewal_problem"] == Value::Null)
    })?;
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)
}

/// CVE-2025-49707: a key of the administrator's where the identity key was.
#[test]
fn a_key_put_in_the_vik_s_place_never_gets_a_certificate() -> Result<()> {
    let (host, vm) = running()?;
    let name = host.json(["identity", &vm])?["vik"]["name"].clone();
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // TPM2_EvictControl: away with the vIK, and a key of one's own in its place.
    vmm.succeed(&evict_control(VIK_HANDLE, VIK_HANDLE))?;
    let own = create_primary(&mut vmm, &own_signing_key())?;
    vmm.succeed(&evict_control(own, VIK_HANDLE))?;
    // TPM2_ReadPublic: it is another one.
    let public = vmm.succeed(&command(0x173, &VIK_HANDLE.to_be_bytes()))?;
    ensure!(!hex::encode(public).contains(name.as_str().context("a name")?));

    let enough = renewals(&host)? + 2;
    renewed(&host, enough)?;
    let identity = host.json(["identity", &vm])?;
    assert_eq!(identity["vik"]["name"], name);
    assert_eq!(verified(&host, &identity)?.claims().vik.to_string(), name);
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)
}

#[test]
fn an_owner_s_passwords_stop_no_renewal() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    for hierarchy in [ENDORSEMENT, OWNER] {
        // TPM2_HierarchyChangeAuth
        let parameters = [
            &hierarchy.to_be_bytes()[..],
            PASSWORD,
            &[0, 3, b'o', b'w', b'n'],
        ]
        .concat();
        vmm.succeed(&with_sessions(command(0x129, &parameters)))?;
    }
    let enough = renewals(&host)? + 2;
    renewed(&host, enough)?;
    drop(vmm);
    // Nor does one that is due at the start.
    host.ctl(["stop", &vm])?;
    std::thread::sleep(std::time::Duration::from_secs(2));
    host.ctl(["start", &vm])?;
    verified(&host, &host.json(["identity", &vm])?)?;
    Ok(())
}

#[test]
fn a_vrot_that_lost_its_vik_gets_no_certificate_and_everybody_can_see_it() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // TPM2_ChangeEPS: whatever the template makes now is no vIK of this host.
    let parameters = [&PLATFORM.to_be_bytes()[..], PASSWORD].concat();
    vmm.succeed(&with_sessions(command(0x124, &parameters)))?;
    wait_until("the failure to be shown", || {
        Ok(host.json(["show", &vm])?["renewal_problem"].is_string())
    })?;
    let certificate = host.json(["identity", &vm])?["vik"]["certificate_pem"].clone();
    let problem = host.json(["show", &vm])?["renewal_problem"].clone();
    let problem = problem.as_str().context("a problem")?;
    ensure!(problem.contains("no certificate is issued"), "{problem}");
    ensure!(host.ctl(["list"])?.contains("NOT RENEWED"));
    ensure!(metric(&host, "vrot_certificate_renewal_failures_total")? >= 1);
    assert_eq!(metric(&host, "vrot_certificate_renewals_overdue")?, 1);

    let failures = metric(&host, "vrot_certificate_renewal_failures_total")?;
    wait_until("another attempt", || {
        Ok(metric(&host, "vrot_certificate_renewal_failures_total")? > failures)
    })?;
    let now = host.json(["identity", &vm])?["vik"]["certificate_pem"].clone();
    assert_eq!(now, certificate, "none was issued");
    let audit = fs::read_to_string(host.path("state/audit.jsonl"))?;
    let lines = audit.matches("certificate-renewal-failed").count();
    assert_eq!(lines, 1, "the same reason is written down once");
    Ok(())
}

/// What firmware does when somebody at the machine, or its system by the physical presence interface, has
/// the TPM cleared: the platform hierarchy is its own, and its password is empty.
#[test]
fn a_tpm_that_its_firmware_cleared_keeps_its_certificates_and_gets_new_ones() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    define_index(&mut vmm, 0x0150_0001)?;
    let certificates = |vmm: &mut Vmm| -> Result<Vec<Vec<u8>>> {
        [NvIndex::EK_RSA_CERTIFICATE, NvIndex::EK_P256_CERTIFICATE]
            .map(|index| nv_read(vmm, index.handle()))
            .into_iter()
            .collect()
    };
    let before = certificates(&mut vmm)?;
    let platform = [&PLATFORM.to_be_bytes()[..], PASSWORD].concat();
    // TPM2_ClearControl, TPM2_Clear, and, for another request, TPM2_PCR_Allocate of SHA-256 alone.
    vmm.succeed(&with_sessions(command(
        0x127,
        &[&platform[..], &[0]].concat(),
    )))?;
    vmm.succeed(&with_sessions(command(0x126, &platform)))?;
    let banks = [&platform[..], &[0, 0, 0, 1, 0, 0x0b, 3, 0xff, 0xff, 0xff]].concat();
    vmm.succeed(&with_sessions(command(0x12b, &banks)))?;
    drop(vmm);
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    // TPM2_NV_ReadPublic: what the owner had is gone, what the platform has is not.
    let gone = vmm.execute(&command(0x169, &0x0150_0001_u32.to_be_bytes()))?;
    ensure!(gone.0 != 0, "the owner's index is there");
    assert_eq!(certificates(&mut vmm)?, before);
    let enough = renewals(&host)? + 1;
    renewed(&host, enough)?;
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)
}

#[test]
fn a_manager_ends_between_two_renewals_and_its_successor_goes_on() -> Result<()> {
    let (mut host, vm) = running()?;
    renewed(&host, 1)?;
    assert_eq!(host.shut_down()?.code(), Some(0));
    host.start_again()?;
    renewed(&host, 1)?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)?;
    let log = host.log();
    ensure!(!log.contains("not renewed"), "{log}");
    // Copies leave nothing behind, and one backend is enough.
    wait_until("one folder", || {
        let folders = fs::read_dir(host.path("run"))?.filter(|entry| {
            let is_folder = |entry: &fs::DirEntry| entry.path().is_dir();
            entry.as_ref().is_ok_and(is_folder)
        });
        Ok(folders.count() == 1)
    })
}

#[test]
fn a_resumed_vrot_is_left_alone_until_its_vmm_is_there() -> Result<()> {
    let (host, vm) = running()?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let sequences = take_all(&mut vmm, hash_sequence(), OBJECT_MEMORY)?;
    host.ctl(["suspend", &vm])?;
    drop(vmm);
    host.ctl(["resume", &vm])?;
    wait_until("an attempt", || Ok(host.log().contains("on its way up")))?;
    assert_eq!(host.json(["show", &vm])?["renewal_problem"], Value::Null);
    let mut vmm = Vmm::attach_as(&host.control(&vm)?, Attach::Resumed)?;
    let enough = renewals(&host)? + 1;
    renewed(&host, enough)?;
    guest_has_what_the_manager_says(&host, &vm, &mut vmm)?;
    for sequence in sequences {
        // TPM2_FlushContext: it is still there.
        vmm.succeed(&command(0x165, &sequence.to_be_bytes()))?;
    }
    Ok(())
}

/// The guest hides the platform's indices again and again, so that a renewal fails at any step of
/// it, and at times when its line is written.
#[test]
fn a_renewal_that_fails_after_its_line_was_written_is_corrected_by_another_line() -> Result<()> {
    let (host, vm) = running_with("")?;
    let mut vmm = Vmm::attach(&host.control(&vm)?)?;
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        let guest = scope.spawn(|| {
            while !is_over.load(Ordering::Relaxed) {
                vmm.succeed(&show_platform_indices(false))?;
                vmm.succeed(&show_platform_indices(true))?;
            }
            anyhow::Ok(())
        });
        let mut succeeded = 0;
        let corrected = wait_until("a renewal that fails after its line", || {
            ensure!(!guest.is_finished(), "the guest failed");
            let renewed = said(&mut host.vtpmctl(["identity", &vm, "--renew"]))?.status == 0;
            succeeded += usize::from(renewed);
            let certificate = der(&host.json(["identity", &vm])?["vik"]["certificate_pem"])?;
            let last = last_certificate_told(&host)?;
            // A panic here would leave the guest at work for ever.
            let found = hex::encode(Sha256::digest(&certificate));
            ensure!(last == found, "told of {last}, found {found}");
            Ok(lines(&host, "certificate-renewed")? > succeeded)
        });
        is_over.store(true, Ordering::Relaxed);
        let guest = guest.join().map_err(|_| anyhow::anyhow!("a panic"))?;
        corrected.and(guest)
    })
}

/// The last certificate of the only vRoT's identity key of which the audit log tells.
fn last_certificate_told(host: &Host) -> Result<String> {
    let lines = host.audit()?;
    let mut certificates = lines.iter().filter_map(|line| line["certificate"].as_str());
    Ok(certificates
        .next_back()
        .context("a certificate")?
        .to_owned())
}

fn lines(host: &Host, event: &str) -> Result<usize> {
    let lines = host.audit()?;
    Ok(lines.iter().filter(|line| line["event"] == event).count())
}

/// `TPM2_HierarchyControl` of the platform, for `TPM_RH_PLATFORM_NV`.
fn show_platform_indices(shown: bool) -> Vec<u8> {
    let indices = 0x4000_000d_u32.to_be_bytes();
    let parameters = [
        &PLATFORM.to_be_bytes()[..],
        PASSWORD,
        &indices,
        &[u8::from(shown)],
    ]
    .concat();
    with_sessions(command(0x121, &parameters))
}

fn running() -> Result<(Host, String)> {
    running_with(SOON)
}

fn running_with(configuration: &str) -> Result<(Host, String)> {
    let host = Host::enrolled_with(configuration)?;
    let vm = host.create()?;
    host.ctl(["start", &vm])?;
    Ok((host, vm))
}

fn renewals(host: &Host) -> Result<u64> {
    metric(host, RENEWALS)
}

fn renewed(host: &Host, times: u64) -> Result<()> {
    wait_until("renewals", || Ok(renewals(host)? >= times))
}

fn metric(host: &Host, name: &str) -> Result<u64> {
    let metrics = ask(&host.socket(), "GET", "/metrics", "")?.body;
    let value = metrics
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    Ok(value.context("a metric")?.parse()?)
}

/// Renewals go on meanwhile, so the two agree between them.
fn guest_has_what_the_manager_says(host: &Host, vm: &str, vmm: &mut Vmm) -> Result<()> {
    wait_until("the same certificate in the guest", || {
        let said = der(&host.json(["identity", vm])?["vik"]["certificate_pem"])?;
        Ok(nv_read(vmm, VIK_CERTIFICATE)? == said.as_ref())
    })
}

/// Sends a command until it is refused for want of slots; the handles it returned.
fn take_all(vmm: &mut Vmm, taking: Vec<u8>, refusal: u32) -> Result<Vec<u32>> {
    let mut handles = Vec::new();
    loop {
        let (code, response) = vmm.execute(&taking)?;
        if code == refusal {
            return Ok(handles);
        }
        ensure!(code == 0, "0x{code:x}");
        handles.push(u32::from_be_bytes(
            *response.first_chunk().context("a handle")?,
        ));
    }
}

/// TPM2_HashSequenceStart takes an object's slot.
fn hash_sequence() -> Vec<u8> {
    command(0x186, &[0, 0, 0x00, 0x0b])
}

/// TPM2_PolicyGetDigest
fn policy_digest(vmm: &mut Vmm, session: u32) -> Result<Vec<u8>> {
    vmm.succeed(&command(0x189, &session.to_be_bytes()))
}

/// The template of a restricted signing key.
fn own_signing_key() -> Vec<u8> {
    [
        // ECC, SHA-256; fixedTPM, fixedParent, sensitiveDataOrigin, userWithAuth, noDA,
        // restricted, sign; no policy.
        &[0x00, 0x23, 0x00, 0x0b, 0x00, 0x05, 0x04, 0x72, 0, 0][..],
        // No symmetric algorithm; ECDSA with SHA-256, P-256, no KDF; empty point.
        &[
            0x00, 0x10, 0x00, 0x18, 0x00, 0x0b, 0x00, 0x03, 0x00, 0x10, 0, 0, 0, 0,
        ],
    ]
    .concat()
}
