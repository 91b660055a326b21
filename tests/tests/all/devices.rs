//! Devices with TPMs: enrolled with the issuer by four messages, and attested at both ends of a
//! connection. OpenSSL judges the certificates, tpm2-tools the quotes.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow, bail};
use attestation::device::{DeviceEvidence, DeviceResult};
use attestation::fixture::{Host, Vm};
use attestation::{BOOT_PCRS, Binding, Nonce, device_qualifying_data};
use attested_tls::tls::{KeyExchange, ServerTls, provider};
use attested_tls::{
    Attester, ConnectionError, Deadlines, Demand, EvidenceFuture, Format, Verifier, accept,
};
use cert_chain::{Digest32, PcrSelection};
use rustls::sign::CertifiedKey;
use rustls_pki_types::{PrivateKeyDer, UnixTime};
use serde_json::Value;
use tempfile::TempDir;
use test_support::programs::program;
use test_support::software_tpm::{MadeTpm, SoftwareTpm};
use test_support::tool::Tool;
use vrot_device::Connector;
use vrot_device::connection::DeviceIdentity;
use vrot_device::root_of_trust::{DeviceAttester, IdentityFolder};
use vrot_device::tpm::DeviceTpm;
use vrot_service::devices::Devices;
use vrot_tests::host_boot_log::HostBootLog;
use vrot_tests::issuer::IssuerFolder;

pub(crate) const BANKS: &[&str] = &["sha256"];
pub(crate) const NAME: &str = "plant-7/meter-12";

/// A device that is switched on and has booted, with a folder for what it keeps and sends.
pub(crate) struct Device {
    folder: TempDir,
    tpm: SoftwareTpm,
}

impl Device {
    pub(crate) fn boot(made: &MadeTpm, kernel: &str) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let at = |name: &str| folder.path().join(name);
        made.copy_to(&at("state"))?;
        let tpm = SoftwareTpm::start("the device's TPM", &at("state"), &at("tpm"), &at("log"))?;
        let device = Self { folder, tpm };
        device.measure(kernel)?;
        Ok(device)
    }

    fn measure(&self, kernel: &str) -> Result<()> {
        let log = HostBootLog::of_debian_server(kernel);
        log.measure_into(&self.tpm)?;
        fs::write(self.path("eventlog"), log.bytes())?;
        Ok(())
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Its TPM.
    pub(crate) fn tpm(&self) -> &SoftwareTpm {
        &self.tpm
    }

    /// A step of `vrot-device enrol`, with files in this device's folder.
    fn enrol(&self, step: &str, arguments: &[&str]) -> Result<Tool> {
        let mut tool = Tool::new(program("vrot-device")?)
            .args(["enrol", step])
            .args(arguments)
            .folder(self.folder.path());
        if step != "show" {
            tool = tool.arg("--tpm").arg(self.tpm.socket());
        }
        Ok(tool)
    }

    fn request(&self, name: &str) -> Result<()> {
        let arguments = ["--name", name, "--out", "request"];
        self.enrol("request", &arguments)?.run().map(drop)
    }

    fn answer(&self) -> Result<()> {
        let arguments = ["--challenge", "challenge", "--out", "answer"];
        self.enrol("answer", &arguments)?.run().map(drop)
    }

    fn install(&self) -> Result<()> {
        let arguments = ["--certificate", "certificate", "--identity", "identity"];
        self.enrol("install", &arguments)?.run().map(drop)
    }

    /// What its programs are told of its root of trust.
    pub(crate) fn root_of_trust(&self) -> Vec<PathBuf> {
        vec![
            "--identity".into(),
            self.path("identity"),
            "--tpm".into(),
            self.tpm.socket().to_owned(),
            "--event-log".into(),
            self.path("eventlog"),
        ]
    }

    /// All four messages.
    pub(crate) fn enrol_as(&self, name: &str, issuer: &Issuer) -> Result<()> {
        self.request(name)?;
        issuer.challenge(self, Some(name))?;
        self.answer()?;
        issuer.certify(self)?;
        self.install()
    }

    fn attester(&self) -> Result<DeviceAttester> {
        Ok(DeviceAttester::new(
            DeviceTpm::open(self.tpm.socket())?,
            IdentityFolder::new(self.path("identity")),
            self.path("eventlog"),
            PcrSelection::new(BOOT_PCRS)?,
        )?)
    }

    /// The policy of a service that accepts these devices as this one booted.
    pub(crate) fn policy(&self, devices: &str, issuer: &Issuer) -> Result<PathBuf> {
        let reference = Tool::new(program("vrot-device")?)
            .args(["reference", "--layer", "device", "--event-log", "eventlog"])
            .folder(self.folder.path())
            .text()?;
        let text = format!(
            "[trust]\nroots = \"{}\"\n\n[expect]\ndevices = [\"{devices}\"]\n\n{reference}",
            issuer.folder.root().display(),
        );
        let path = self.path("devices.toml");
        fs::write(&path, text)?;
        Ok(path)
    }
}

pub(crate) struct Issuer {
    folder: IssuerFolder,
    /// Where it is, if it is this test's own.
    _own: Option<TempDir>,
}

impl Issuer {
    /// One that is there already.
    pub(crate) fn of(folder: &IssuerFolder) -> Self {
        Self {
            folder: folder.clone(),
            _own: None,
        }
    }

    fn accepting(made: &MadeTpm) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let issuer = IssuerFolder::create(
            &folder.path().join("issuer"),
            "demo.example",
            &made.maker_certificates()?,
        )?;
        Ok(Self {
            folder: issuer,
            _own: Some(folder),
        })
    }

    fn challenge(&self, device: &Device, name: Option<&str>) -> Result<()> {
        let mut tool = self.command("challenge", device)?;
        tool = tool.args(["--request", "request", "--out", "challenge"]);
        if let Some(name) = name {
            tool = tool.args(["--device", name]);
        }
        tool.run().map(drop)
    }

    fn certify(&self, device: &Device) -> Result<()> {
        let tool = self.command("certify", device)?;
        tool.args(["--answer", "answer", "--out", "certificate"])
            .run()
            .map(drop)
    }

    fn command(&self, step: &str, device: &Device) -> Result<Tool> {
        Ok(Tool::new(program("vtpmctl")?)
            .args(["issuer", step, "--dir"])
            .arg(self.folder.folder())
            .folder(device.folder.path()))
    }
}

/// An issuer, and a device that it certified.
pub(crate) fn enrolled() -> Result<(Issuer, Device)> {
    let made = MadeTpm::first(BANKS)?;
    let (issuer, device) = (Issuer::accepting(&made)?, Device::boot(&made, "6.12.48")?);
    device.enrol_as(NAME, &issuer)?;
    Ok((issuer, device))
}

fn said(refused: Result<()>, text: &str) -> Result<()> {
    match refused {
        Ok(()) => bail!("it was not refused"),
        Err(error) if error.to_string().contains(text) => Ok(()),
        Err(error) => Err(error.context(format!("not refused with `{text}`"))),
    }
}

#[test]
fn a_device_enrols_by_four_messages_and_openssl_accepts_its_certificate() -> Result<()> {
    let (issuer, device) = enrolled()?;
    let shown = device
        .enrol("show", &["--identity", "identity", "--json"])?
        .run()?;
    let shown: Value = serde_json::from_slice(&shown)?;
    assert_eq!(shown["device"], format!("spiffe://demo.example/{NAME}"));
    let certificate = device.path("identity/certificate.pem");
    Tool::new("openssl")
        .args(["verify", "-x509_strict", "-CAfile"])
        .arg(issuer.folder.root())
        .arg(&certificate)
        .run()?;
    let said = Tool::new("openssl")
        .args(["x509", "-noout", "-ext"])
        .arg("subjectAltName,basicConstraints,keyUsage,extendedKeyUsage")
        .arg("-in")
        .arg(&certificate)
        .text()?;
    for line in [
        "CA:FALSE",
        "URI:spiffe://demo.example/plant-7/meter-12",
        "2.23.133.8.3",
        "Digital Signature",
    ] {
        assert!(said.contains(line), "{line} in {said}");
    }
    assert!(!said.contains("DNS:") && !said.contains("Sign,"), "{said}");
    // The TPM makes the same key again after a reset, so nothing has to be kept in it.
    let before = DeviceTpm::open(device.tpm.socket())?.identity_key().name();
    let again = Device::boot(&MadeTpm::first(BANKS)?, "6.12.48")?;
    assert_eq!(
        DeviceTpm::open(again.tpm.socket())?.identity_key().name(),
        before
    );
    Ok(())
}

#[test]
fn an_issuer_enrols_the_devices_that_it_was_told_under_one_name_each() -> Result<()> {
    let (issuer, device) = enrolled()?;
    // A request by itself says not whose device it is.
    device.request("meter-13")?;
    said(issuer.challenge(&device, None), "device-enrolment-request")?;
    said(issuer.challenge(&device, Some("meter-14")), "--device says")?;
    // One TPM has one name, and one name has one TPM.
    said(
        issuer.challenge(&device, Some("meter-13")),
        "one TPM has one name",
    )?;
    let second = Device::boot(&MadeTpm::second(BANKS)?, "6.12.48")?;
    second.request(NAME)?;
    said(
        issuer.challenge(&second, Some(NAME)),
        "is the name of the device",
    )?;
    let stranger = Device::boot(&MadeTpm::of_another_maker(BANKS)?, "6.12.48")?;
    stranger.request("meter-15")?;
    said(
        issuer.challenge(&stranger, Some("meter-15")),
        "EK certificate",
    )?;
    // Only the TPM that asked can answer, and once.
    second.request("meter-16")?;
    issuer.challenge(&second, Some("meter-16"))?;
    fs::copy(second.path("challenge"), device.path("challenge"))?;
    said(device.answer(), "another TPM")?;
    second.answer()?;
    issuer.certify(&second)?;
    said(issuer.certify(&second), "answered before")?;
    // And what is certified is one TPM's.
    fs::copy(second.path("certificate"), device.path("certificate"))?;
    said(device.install(), "another TPM")?;
    // Its own is still there, and can be renewed.
    device.enrol_as(NAME, &issuer)
}

#[tokio::test]
async fn what_a_device_s_tpm_signs_tpm2_tools_accept() -> Result<()> {
    let (_issuer, device) = enrolled()?;
    let (nonce, binding) = (
        Nonce::new([7; 32])?,
        Binding::Connection(Digest32::of(b"x")),
    );
    let demand = Demand::Evidence {
        formats: vec![Format::Device],
        policy: Digest32::of(b"policy"),
    };
    let attester = device.attester()?;
    let evidence = attester
        .evidence(&demand, nonce.clone(), binding.clone())
        .await
        .map_err(|none| anyhow!("{none}"))?;
    let quote = DeviceEvidence::from_cbor(&evidence)?.quote;
    fs::write(device.path("attest"), &*quote.attest)?;
    fs::write(device.path("signature"), &*quote.signature)?;
    let log = Digest32::of(&fs::read(device.path("eventlog"))?);
    let (_, certificate) = IdentityFolder::new(device.path("identity")).read()?;
    let key = &certificate.claims().ik;
    let qualifying = device_qualifying_data(&nonce, &binding, key, &log);
    Tool::new("openssl")
        .args([
            "x509",
            "-in",
            "identity/certificate.pem",
            "-noout",
            "-pubkey",
            "-out",
            "key.pem",
        ])
        .folder(device.folder.path())
        .run()?;
    let check = |qualifying: &Digest32| {
        Tool::new("tpm2_checkquote")
            .args(["-u", "key.pem", "-m", "attest", "-s", "signature", "-q"])
            .arg(qualifying.to_string())
            .folder(device.folder.path())
            .run()
    };
    check(&qualifying)?;
    assert!(check(&Digest32::of(b"another connection")).is_err());
    Ok(())
}

/// A service in a VM, at the other end of a connection.
struct Service {
    host: Host,
    vm: Vm,
}

impl Attester for Service {
    fn evidence(&self, _: &Demand, nonce: Nonce, binding: Binding) -> EvidenceFuture {
        let evidence = self.host.evidence(&self.vm, &nonce, binding).to_cbor();
        Box::pin(std::future::ready(Ok(evidence)))
    }
}

/// What a service with this policy makes of a device that attests itself so, each attested by the
/// other. The VM's two TPMs are keys in software; the device's TPM is a swtpm.
async fn meet(
    policy: &Path,
    attester: Arc<dyn Attester>,
) -> Result<std::result::Result<Arc<DeviceResult>, ConnectionError>> {
    let host = Host::made_at(UnixTime::now(), "host-1");
    let vm = host.vm();
    let service = Service { host, vm };
    let (host, vm) = (&service.host, &service.vm);
    let chain = vec![host.tls_certificate(vm), host.certificate.clone()];
    let key = PrivateKeyDer::try_from(vm.tls_key.serialize_der()).map_err(anyhow::Error::msg)?;
    let key = CertifiedKey::from_der(chain, key, &provider(KeyExchange::HybridFirst))?;
    let devices = Arc::new(Devices::load(policy)?);
    let tls = ServerTls::new(
        key,
        devices.client_certificates()?,
        KeyExchange::HybridFirst,
    )?;
    let device = DeviceIdentity::none().attested(attester);
    let connector = Connector::new(Arc::new(host.policy(vm)), device, None)?;
    let patience = Duration::from_secs(60);
    let deadlines = Deadlines {
        handshake: patience,
        attestation: patience,
        sending: patience,
    };
    let connector = connector.with_deadlines(deadlines);
    let (ours, theirs) = tokio::io::duplex(64 * 1024);
    let address = "vm-1.example.org:7072".parse()?;
    let (met, connected) = tokio::join!(
        accept(ours, &tls, Arc::new(service), devices.verifier(), deadlines),
        connector.attest(theirs, &address),
    );
    if met.is_ok() {
        connected?;
    }
    Ok(met.map(|attested| attested.appraisal))
}

async fn refused(policy: &Path, attester: Arc<dyn Attester>) -> Result<String> {
    match meet(policy, attester).await? {
        Err(ConnectionError::Refused(refused)) => Ok(refused.reason),
        Err(other) => Err(other.into()),
        Ok(result) => bail!("{} was accepted", result.name()),
    }
}

#[tokio::test]
async fn a_device_and_a_service_attest_themselves_to_each_other() -> Result<()> {
    let (issuer, device) = enrolled()?;
    let policy = device.policy("spiffe://demo.example/plant-7/*", &issuer)?;
    let met = meet(&policy, Arc::new(device.attester()?)).await??;
    assert_eq!(met.name(), format!("spiffe://demo.example/{NAME}"));
    assert!(met.layer().reasons().is_empty());
    Ok(())
}

#[tokio::test]
async fn a_device_of_another_name_or_issuer_is_refused() -> Result<()> {
    let (issuer, device) = enrolled()?;
    let policy = device.policy("spiffe://demo.example/plant-8/*", &issuer)?;
    let reason = refused(&policy, Arc::new(device.attester()?)).await?;
    assert!(reason.contains("device-unexpected"), "{reason}");
    let elsewhere = Issuer::accepting(&MadeTpm::first(BANKS)?)?;
    let policy = device.policy("spiffe://demo.example/plant-7/*", &elsewhere)?;
    let reason = refused(&policy, Arc::new(device.attester()?)).await?;
    assert!(reason.contains("trusted issuer"), "{reason}");
    Ok(())
}

#[tokio::test]
async fn a_device_that_booted_another_kernel_is_refused_and_its_log_cannot_hide_it() -> Result<()> {
    let (issuer, good) = enrolled()?;
    let policy = good.policy("spiffe://demo.example/plant-7/*", &issuer)?;
    let bad = Device::boot(&MadeTpm::first(BANKS)?, "6.12.49")?;
    bad.enrol_as(NAME, &issuer)?;
    let reason = refused(&policy, Arc::new(bad.attester()?)).await?;
    assert!(reason.contains("pcr-unexpected"), "{reason}");
    // With the log of the good boot.
    fs::copy(good.path("eventlog"), bad.path("eventlog"))?;
    let reason = refused(&policy, Arc::new(bad.attester()?)).await?;
    assert!(reason.starts_with("event-log-replay"), "{reason}");
    Ok(())
}

/// Evidence that a device once gave, on every connection.
struct Replaying(Vec<u8>);

impl Attester for Replaying {
    fn evidence(&self, _: &Demand, _: Nonce, _: Binding) -> EvidenceFuture {
        Box::pin(std::future::ready(Ok(self.0.clone())))
    }
}

#[tokio::test]
async fn evidence_that_a_device_gave_elsewhere_is_refused() -> Result<()> {
    let (issuer, device) = enrolled()?;
    let policy = device.policy("spiffe://demo.example/plant-7/*", &issuer)?;
    let demand = Arc::new(Devices::load(&policy)?).verifier().demand();
    let binding = Binding::Connection(Digest32::of(b"another connection"));
    let given = device
        .attester()?
        .evidence(&demand, Nonce::new([1; 32])?, binding)
        .await
        .map_err(|none| anyhow!("{none}"))?;
    let reason = refused(&policy, Arc::new(Replaying(given))).await?;
    assert!(reason.starts_with("nonce"), "{reason}");
    Ok(())
}
