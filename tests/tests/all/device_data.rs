//! Data that a device signs with its own TPM, a swtpm, and what is made of them elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;

use anyhow::{Context, Result, anyhow, bail, ensure};
use attestation::data_key_qualifying_data;
use cert_chain::template;
use serde_json::Value;
use signed_data::SignedData;
use test_support::programs::program;
use test_support::software_tpm::MadeTpm;
use test_support::tool::Tool;
use tpm_wire::{MAX_SIZE, NO_SESSIONS, Response, SESSIONS, frame, read_frame};
use vrot_tests::device;

use crate::devices::{BANKS, Device, Issuer, NAME, enrolled};
use crate::tpm_relay::{Then, TpmRelay};

const DATA: &str = r#"{"kWh":1234}"#;
const COUNTER: &str = "0x01807664";
/// Codes of commands (TPM 2.0 Part 2 §6.5.2).
const CC_NV_INCREMENT: u32 = 0x0000_0134;
const CC_CREATE_PRIMARY: u32 = 0x0000_0131;
const CC_CERTIFY: u32 = 0x0000_0148;
const CC_NV_READ: u32 = 0x0000_014e;
const CC_SIGN: u32 = 0x0000_015d;
const CC_LOAD_EXTERNAL: u32 = 0x0000_0167;
const DEVICES: &str = "spiffe://demo.example/plant-7/*";

/// An enrolled device that has something to sign, and a policy that accepts it.
struct Meter {
    issuer: Issuer,
    device: Device,
    policy: PathBuf,
}

impl Meter {
    fn enrolled() -> Result<Self> {
        let (issuer, device) = enrolled()?;
        fs::write(device.path("data"), DATA)?;
        Ok(Self {
            policy: device.policy(DEVICES, &issuer)?,
            issuer,
            device,
        })
    }

    fn signing(&self, to: &str) -> Result<Tool> {
        Ok(Tool::new(program("vrot-device")?)
            .args(["sign", "--from", "data", "--to", to, "--replace"])
            .args(["--content-type", "application/json"])
            .args(["--stream-name", "meter-12/energy"])
            .args(self.device.root_of_trust())
            .folder(&self.device.path("")))
    }

    fn sign(&self, to: &str, options: &[&str]) -> Result<()> {
        self.signing(to)?.args(options).run().map(drop)
    }

    /// Signs through another socket than the TPM's own.
    fn signing_through(&self, relay: &TpmRelay, to: &str) -> Result<Command> {
        let mut command = Command::new(program("vrot-device")?);
        command
            .args([
                "sign",
                "--from",
                "data",
                "--to",
                to,
                "--identity",
                "identity",
            ])
            .arg("--tpm")
            .arg(relay.socket())
            .current_dir(self.device.path(""))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Ok(command)
    }

    fn tool(&self, line: &str) -> Result<Vec<u8>> {
        let mut words = line.split_whitespace();
        Tool::new(words.next().context("a program")?)
            .args(words)
            .env("TPM2TOOLS_TCTI", self.device.tpm().tcti())
            .folder(&self.device.path(""))
            .run()
    }

    fn verify(&self, signed: &str, options: &[&str]) -> Result<(i32, Value)> {
        let command = Tool::new(program("vrot-device")?)
            .args(["verify-data", signed, "--policy"])
            .arg(&self.policy)
            .args(options)
            .folder(&self.device.path(""));
        device::judge(command)
    }

    /// The number under which something was signed.
    fn number(&self, signed: &str) -> Result<u64> {
        let (status, result) = self.verify(signed, &["--data", "data", "--identity-alone"])?;
        ensure!(status == 0, "{result:#}");
        result["number"].as_u64().context("a number")
    }

    fn sign_and_tell_the_number(&self) -> Result<u64> {
        self.sign("signed", &[])?;
        self.number("signed")
    }
}

fn succeeds(mut child: Child) -> Result<()> {
    let status = child.wait()?;
    ensure!(status.success(), "a signer ended with {status}");
    Ok(())
}

fn refused(found: &(i32, Value)) -> (i32, &str) {
    (
        found.0,
        found.1["refusal"]["code"].as_str().unwrap_or("none"),
    )
}

#[test]
fn a_device_signs_data_with_its_tpm_and_others_tell_them_from_forged_ones() -> Result<()> {
    let meter = Meter::enrolled()?;
    meter.sign("signed", &["--attached", "--evidence"])?;
    let (status, result) = meter.verify("signed", &["--max-evidence-age", "600"])?;
    assert_eq!(
        (status, &result["verdict"]),
        (0, &"affirming".into()),
        "{result:#}"
    );
    let source = &result["source"];
    assert_eq!(source["role"], "device");
    assert_eq!(source["device"], format!("spiffe://demo.example/{NAME}"));
    assert_eq!(result["stream"], "meter-12/energy");
    ensure!(result["evidence_age_s"].is_u64(), "{result:#}");
    // Forged: nine kilowatt hours less.
    let mut forged = fs::read(meter.device.path("signed"))?;
    let at = (forged.windows(DATA.len())).position(|part| part == DATA.as_bytes());
    *forged
        .get_mut(at.context("the data travel along")? + 10)
        .context("a digit")? = b'0';
    fs::write(meter.device.path("forged"), &forged)?;
    assert_eq!(refused(&meter.verify("forged", &[])?), (1, "signature"));
    let number = result["number"].to_string();
    let again = meter.verify("signed", &["--after", &number])?;
    assert_eq!(refused(&again), (1, "replayed"));
    // Data beside the signature, without evidence: it is known who signed.
    meter.sign("signed", &[])?;
    let alone = ["--data", "data", "--identity-alone"];
    assert_eq!(meter.verify("signed", &alone)?.0, 0);
    let (status, result) = meter.verify("signed", &["--data", "data"])?;
    assert_eq!(
        (status, &result["reasons"][0]["code"]),
        (1, &"evidence-missing".into())
    );
    Ok(())
}

#[test]
fn a_device_that_is_killed_between_counting_and_signing_leaves_a_gap_and_no_number_comes_twice()
-> Result<()> {
    let meter = Meter::enrolled()?;
    let relay = TpmRelay::start(meter.device.tpm().socket(), &meter.device.path("relay"))?;
    let mut last = meter.sign_and_tell_the_number()?;
    for (command, counted) in [(CC_NV_INCREMENT, 0), (CC_SIGN, 1)] {
        let held = relay.hold(command, 0);
        let mut signer = meter.signing_through(&relay, "killed")?.spawn()?;
        held.meanwhile(|| {
            signer.kill()?;
            signer.wait()?;
            Ok(Then::Dropped)
        })?;
        ensure!(!meter.device.path("killed").exists(), "nothing was signed");
        // The keys of the one that was killed may still be there for a moment.
        succeeds(meter.signing_through(&relay, "signed-next")?.spawn()?)?;
        let next = meter.number("signed-next")?;
        assert_eq!(next, last + 1 + counted);
        fs::remove_file(meter.device.path("signed-next"))?;
        last = next;
    }
    Ok(())
}

#[test]
fn two_programs_that_sign_at_a_time_get_no_number_twice() -> Result<()> {
    let meter = Meter::enrolled()?;
    let relay = TpmRelay::start(meter.device.tpm().socket(), &meter.device.path("relay"))?;
    let first = meter.sign_and_tell_the_number()?;
    // Between increment and read, another one counts.
    let held = relay.hold(CC_NV_READ, 1);
    let signer = meter.signing_through(&relay, "contended")?.spawn()?;
    held.meanwhile(|| {
        meter.tool(&format!("tpm2_nvincrement {COUNTER}"))?;
        Ok(Then::Executed)
    })?;
    succeeds(signer)?;
    // The signer counted to the next number and the other to the one after: neither is known to be alone.
    assert_eq!(meter.number("contended")?, first + 3);
    // And two signers, as they come.
    let names: Vec<String> = (0..6).map(|number| format!("signed-{number}")).collect();
    thread::scope(|scope| {
        let sign = |name: &String| succeeds(meter.signing_through(&relay, name)?.spawn()?);
        let signers: Vec<_> = (names.chunks(3))
            .map(|names| scope.spawn(move || names.iter().try_for_each(sign)))
            .collect();
        (signers.into_iter()).try_for_each(|signer| match signer.join() {
            Ok(signed) => signed,
            Err(_) => bail!("a signer panicked"),
        })
    })?;
    let numbers = (names.iter()).map(|name| meter.number(name));
    let numbers = numbers.collect::<Result<BTreeSet<u64>>>()?;
    assert_eq!(numbers.len(), names.len(), "{numbers:?}");
    ensure!(numbers.first() > Some(&(first + 3)), "{numbers:?}");
    Ok(())
}

#[test]
fn numbers_go_on_whatever_becomes_of_disk_counter_and_owner() -> Result<()> {
    let meter = Meter::enrolled()?;
    let copy =
        |from: &Path, to: &Path| Tool::new("cp").arg("-aT").arg(from).arg(to).run().map(drop);
    let (identity, saved) = (meter.device.path("identity"), meter.device.path("saved"));
    copy(&identity, &saved)?;
    let mut last = meter.sign_and_tell_the_number()?;
    let mut goes_on = |what: &str| -> Result<()> {
        let next = meter.sign_and_tell_the_number()?;
        ensure!(next > last, "{what}: {next} after {last}");
        last = next;
        Ok(())
    };
    // The disk of before: nothing on it counts.
    fs::remove_dir_all(&identity)?;
    copy(&saved, &identity)?;
    goes_on("a restored disk")?;
    meter.tool(&format!("tpm2_nvundefine {COUNTER} -C o"))?;
    goes_on("a counter that was removed")?;
    meter.tool(&format!("tpm2_nvundefine {COUNTER} -C o"))?;
    meter.tool(&format!(
        "tpm2_nvdefine {COUNTER} -C o -a nt=counter|authread|authwrite|no_da"
    ))?;
    goes_on("a counter that somebody else made")?;
    // A new owner: the storage hierarchy and its indices are gone, the device's identity is not.
    meter.tool("tpm2_clear -c l")?;
    goes_on("a TPM that was cleared")?;
    // What does not count gives no numbers.
    meter.tool(&format!("tpm2_nvundefine {COUNTER} -C o"))?;
    meter.tool(&format!(
        "tpm2_nvdefine {COUNTER} -C o -s 8 -a authread|authwrite"
    ))?;
    let refused = meter
        .sign("signed", &[])
        .err()
        .context("it does not count")?;
    ensure!(
        format!("{refused:#}").contains("is no counter"),
        "{refused:#}"
    );
    // An owner with a password: what to do is said.
    meter.tool(&format!("tpm2_nvundefine {COUNTER} -C o"))?;
    meter.tool("tpm2_changeauth -c owner secret")?;
    let refused = meter.sign("signed", &[]).err().context("no owner's word")?;
    ensure!(
        format!("{refused:#}").contains("tpm2_nvdefine"),
        "{refused:#}"
    );
    meter.tool(&format!(
        "tpm2_nvdefine {COUNTER} -C o -P secret -a nt=counter|authread|authwrite|no_da"
    ))?;
    goes_on("a counter that an owner with a password made")
}

#[test]
fn a_device_signs_only_as_whom_its_tpm_was_certified() -> Result<()> {
    let meter = Meter::enrolled()?;
    // What another device keeps of its enrolment: the certificate is for another TPM's key.
    let issuer = &meter.issuer;
    let made = MadeTpm::second(BANKS)?;
    let other = Device::boot(&made, "6.12.48")?;
    other.enrol_as("plant-7/meter-13", issuer)?;
    let certificate = "identity/certificate.pem";
    fs::copy(other.path(certificate), meter.device.path(certificate))?;
    let refused = meter.sign("signed", &[]).err().context("another's name")?;
    ensure!(
        format!("{refused:#}").contains("another TPM"),
        "{refused:#}"
    );
    ensure!(
        !meter.device.path("signed").exists(),
        "something was written"
    );
    Ok(())
}

/// If one did, its device could pass off as its own what another signed.
#[test]
fn no_tpm_certifies_another_tpms_key_for_data() -> Result<()> {
    let meter = Meter::enrolled()?;
    meter.sign("signed", &[])?;
    let signed = SignedData::from_cbor(&fs::read(meter.device.path("signed"))?)?;
    let foreign = signed.credentials().statement.public.to_vec();
    // Another TPM, with the same template of an identity key.
    let made = MadeTpm::second(BANKS)?;
    let other = Device::boot(&made, "6.12.48")?;
    let tpm = |command: &[u8]| run(other.tpm().socket(), command);
    let ik = created(&tpm, &template::device_key())?;
    let own = created(&tpm, &template::data_key())?;
    let sized = |bytes: &[u8]| -> Result<Vec<u8>> {
        Ok([&u16::try_from(bytes.len())?.to_be_bytes(), bytes].concat())
    };
    let certify = |key: u32| -> Result<u32> {
        let body = [
            &key.to_be_bytes()[..],
            &ik.to_be_bytes(),
            &18u32.to_be_bytes(),
            &PASSWORD,
            &PASSWORD,
            &sized(data_key_qualifying_data().as_bytes())?,
            // TPM_ALG_NULL
            &[0, 0x10],
        ];
        let response = tpm(&frame(SESSIONS, CC_CERTIFY, &body.concat()))?;
        let response = Response::parse(&response).context("a response")?;
        Ok(response.code().raw())
    };
    assert_eq!(certify(own)?, 0);
    flush(&tpm, own)?;
    // The endorsement and the null hierarchy: only a public area can be loaded so.
    for hierarchy in [0x4000_000b_u32, 0x4000_0007] {
        let body = [&[0, 0][..], &sized(&foreign)?, &hierarchy.to_be_bytes()];
        let response = tpm(&frame(NO_SESSIONS, CC_LOAD_EXTERNAL, &body.concat()))?;
        let loaded = Response::parse(&response).context("a response")?;
        ensure!(loaded.code().is_success(), "{}", loaded.code());
        let handle = handle_of(loaded.body())?;
        assert_ne!(
            certify(handle)?,
            0,
            "the TPM certified a key that it has not"
        );
        flush(&tpm, handle)?;
    }
    Ok(())
}

/// `TPM_RS_PW` with the empty authorization value.
const PASSWORD: [u8; 9] = [0x40, 0, 0, 9, 0, 0, 0, 0, 0];
const CC_FLUSH_CONTEXT: u32 = 0x0000_0165;

fn run(socket: &Path, command: &[u8]) -> Result<Vec<u8>> {
    let mut tpm = UnixStream::connect(socket)?;
    tpm.write_all(command)?;
    read_frame(&mut tpm, MAX_SIZE)?.context("the TPM hung up")
}

/// A primary key of the endorsement hierarchy.
fn created(tpm: &impl Fn(&[u8]) -> Result<Vec<u8>>, template: &[u8]) -> Result<u32> {
    let body = [
        &0x4000_000b_u32.to_be_bytes()[..],
        &9u32.to_be_bytes(),
        &PASSWORD,
        &[0, 4, 0, 0, 0, 0],
        &u16::try_from(template.len())?.to_be_bytes(),
        template,
        &[0; 6],
    ];
    let response = tpm(&frame(SESSIONS, CC_CREATE_PRIMARY, &body.concat()))?;
    let response = Response::parse(&response).context("a response")?;
    ensure!(response.code().is_success(), "{}", response.code());
    handle_of(response.body())
}

fn flush(tpm: &impl Fn(&[u8]) -> Result<Vec<u8>>, handle: u32) -> Result<()> {
    tpm(&frame(NO_SESSIONS, CC_FLUSH_CONTEXT, &handle.to_be_bytes())).map(drop)
}

fn handle_of(body: &[u8]) -> Result<u32> {
    let handle = body.first_chunk().ok_or_else(|| anyhow!("a handle"))?;
    Ok(u32::from_be_bytes(*handle))
}
