//! Data that a device signs with its own TPM, a swtpm, and what is made of them elsewhere.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;
use test_support::programs::program;
use test_support::software_tpm::MadeTpm;
use test_support::tool::Tool;
use vrot_tests::device;

use crate::devices::{BANKS, Device, Issuer, NAME, enrolled};

const DATA: &str = r#"{"kWh":1234}"#;
const COUNTER: &str = "0x01807664";
const DEVICES: &str = "spiffe://demo.example/plant-7/*";

/// An enrolled device that has something to sign, and a policy that accepts it.
struct Meter {
    _issuer: Issuer,
    device: Device,
    policy: PathBuf,
}

impl Meter {
    fn enrolled() -> Result<Self> {
        let (issuer, device) = enrolled()?;
        fs::write(device.path("data"), DATA)?;
        Ok(Self {
            policy: device.policy(DEVICES, &issuer)?,
            _issuer: issuer,
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
