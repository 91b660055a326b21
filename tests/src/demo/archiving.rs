//! A reading that the VM signed: archived, verified from the archive alone, and forged.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use archive::cose_time_stamp::StampedSign1;
use archive::{Head, Reader, Writer};
use test_support::programs::program;
use test_support::time_authority::{ServedAuthority, TimeAuthority};
use test_support::tool::Tool;

use super::stage::Stage;
use crate::device;
use crate::narrator::Narrator;

/// Whoever keeps the reading, and the authority that says when it was there.
#[derive(Debug)]
pub(super) struct Archivist {
    authority: Arc<TimeAuthority>,
    served: ServedAuthority,
    signed: PathBuf,
    archive: PathBuf,
    forged: PathBuf,
    root: PathBuf,
}

/// What the VM measured (`images/init`), and what a forger would like it to have measured.
const READING: &[u8] = br#"{"celsius":21.5}"#;
const FORGED: &[u8] = br#"{"celsius":91.5}"#;

impl Archivist {
    /// Has an authority listen.
    pub(super) fn open(stage: &Stage) -> Result<Self> {
        let authority = Arc::new(TimeAuthority::new()?);
        let root = stage.output("time-root.pem");
        fs::copy(authority.root(), &root).context("copying the authority's root")?;
        Ok(Self {
            served: authority.serve()?,
            authority,
            signed: stage.run.join("reading.signed"),
            archive: stage.output("reading.archive"),
            forged: stage.run.join("forged.archive"),
            root,
        })
    }

    /// Takes the signed reading out of the VM, through the proxy; it is there once the VM's keys are certified.
    pub(super) fn fetch(&self, narrator: &Narrator, proxy: SocketAddr) -> Result<()> {
        let curl = Tool::new("curl")
            .args(["--silent", "--show-error", "--fail", "--max-time", "120"])
            .args([
                "--retry",
                "60",
                "--retry-delay",
                "1",
                "--retry-all-errors",
                "--output",
            ])
            .arg(&self.signed)
            .arg(format!("http://{proxy}/reading.signed"));
        narrator.run(curl).map(drop)
    }

    /// Archives it with time stamps, and verifies the archive.
    pub(super) fn archive(&self, narrator: &Narrator, stage: &Stage) -> Result<()> {
        let issued = self
            .authority
            .openssl("x509 -noout -subject -in own.pem", NONE)?;
        let issued = String::from_utf8_lossy(&issued).trim().to_owned();
        narrator.note(&format!("the authority: openssl ts, {issued}"));
        let create = Tool::new(program("vrot-device")?)
            .args(["archive", "create"])
            .arg(&self.signed)
            .arg("--to")
            .arg(&self.archive)
            .args(["--replace", "--authority", &self.served.url()])
            .arg("--authority-root")
            .arg(&self.root)
            .arg("--policy")
            .arg(stage.policy());
        narrator.quote(&narrator.run(create)?);
        narrator.quote(&narrator.run(self.verify(&self.archive, stage)?)?);
        let explain = Tool::new(program("vrot-device")?)
            .args(["explain", "--archive"])
            .arg(&self.archive);
        narrator.quote(&narrator.run(explain)?);
        Ok(())
    }

    /// Presents another reading with the genuine proof of time.
    pub(super) fn forge(&self, narrator: &Narrator, stage: &Stage) -> Result<()> {
        self.write_forged()?;
        let verify = self.verify(&self.forged, stage)?;
        narrator.command(&verify);
        let (status, said) = device::judge(verify)?;
        ensure!(
            status == 1,
            "the forged reading was not refused ({status}): {said:#}"
        );
        let refusal = said.get("refusal").context("no refusal was told")?;
        let text = |name: &str| refusal[name].as_str().map(str::to_owned);
        let (code, why) = (text("code"), text("text"));
        ensure!(
            refusal["code"] == "altered",
            "it was refused for another reason: {said:#}"
        );
        narrator.note("refused:");
        narrator.quote(&format!(
            "{}: {}",
            code.unwrap_or_default(),
            why.unwrap_or_default()
        ));
        Ok(())
    }

    fn write_forged(&self) -> Result<()> {
        let genuine = fs::File::open(&self.archive)?;
        let reader = Reader::open(genuine)?;
        let mut stamped = StampedSign1::read(&reader.head().signed)?;
        let at = stamped
            .sign1
            .windows(READING.len())
            .position(|part| part == READING);
        let at = at.context("the reading is in the archive")?;
        let place = stamped.sign1.get_mut(at..at + READING.len());
        place
            .context("the reading's place")?
            .copy_from_slice(FORGED);
        let genuine = reader.head();
        let mut head = Head::new(stamped.to_cbor()?, genuine.form, genuine.length);
        head.crls.clone_from(&genuine.crls);
        head.policy.clone_from(&genuine.policy);
        head.verdict.clone_from(&genuine.verdict);
        let forged = Writer::new(Vec::new(), &head)?.finish()?;
        Ok(fs::write(&self.forged, forged.finish(reader.record())?)?)
    }

    fn verify(&self, archive: &PathBuf, stage: &Stage) -> Result<Tool> {
        Ok(Tool::new(program("vrot-device")?)
            .args(["archive", "verify"])
            .arg(archive)
            .arg("--policy")
            .arg(stage.policy())
            .arg("--authority-root")
            .arg(&self.root))
    }
}

const NONE: &[&str] = &[];
