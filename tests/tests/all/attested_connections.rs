//! `vrot-service proxy` with a real vRoT below it: stock TLS clients on the one hand, the device's library
//! on the other.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use attestation::BOOT_PCRS;
use attested_tls::tls::KeyExchange;
use attested_tls::{Attested, NoDemand};
use cert_chain::PcrSelection;
use connection_proxy::{Limits, Stop, serve};
use rustls::server::WebPkiClientVerifier;
use tempfile::TempDir;
use test_support::deadline::wait_for;
use test_support::programs::program;
use test_support::software_tpm::MadeTpm;
use test_support::tool::Tool;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use vrot_device::connection::{Appraised, DeviceIdentity};
use vrot_device::{Connector, policy_files};
use vrot_service::attester::TpmAddress;
use vrot_service::attester::batches::Batches;
use vrot_service::attester::esys::{EsysTpm, HostThroughTpm};
use vrot_service::devices::Told;
use vrot_service::tls_identity::TlsIdentity;
use vrot_service::tls_key::TpmTlsKey;
use vrot_service::vm_attester::VmAttester;
use vrot_tests::proxied_vm::{ProxiedVm, Proxy};
use vrot_tests::scene::{DOMAIN, Scene};

use crate::devices::{Device, Issuer};

/// A host, a VM on it, and a proxy before an echo; most tests need no other.
pub(crate) struct Stage {
    scene: Scene,
    pub(crate) vm: ProxiedVm,
    proxy: Proxy,
    device: Connector,
}

static STAGE: LazyLock<Result<Stage>> = LazyLock::new(Stage::set);

impl Stage {
    fn set() -> Result<Self> {
        let scene = Scene::set("connections")?;
        let vm = ProxiedVm::boot(&scene.host, &scene.run.join("vm"))?;
        let proxy = vm.proxy("proxy", echo()?, &["--any-device"])?;
        let policy = policy_files::load(&vm.policy(&scene, &proxy)?)?;
        let device = Connector::new(Arc::new(policy), DeviceIdentity::none(), None)?;
        Ok(Self {
            scene,
            vm,
            proxy,
            device,
        })
    }

    pub(crate) fn get() -> Result<&'static Self> {
        STAGE.as_ref().map_err(|error| anyhow!("{error:#}"))
    }

    pub(crate) async fn connect(&self, proxy: &Proxy) -> Result<Attested<Appraised>> {
        Ok(self
            .device
            .connect(&proxy.attested.to_string().parse()?)
            .await?)
    }
}

/// A service that knows nothing of attestation: it sends everything back, and ends when its client does.
/// It lives as long as the process.
fn echo() -> Result<SocketAddr> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut from = stream.try_clone()?;
                std::io::copy(&mut from, &mut &stream)?;
                stream.shutdown(std::net::Shutdown::Write)
            });
        }
    });
    Ok(address)
}

fn pattern(length: usize) -> Vec<u8> {
    (0..length).map(|at| (at % 251) as u8).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_reaches_a_service_that_knows_nothing_through_a_connection_bound_to_the_vm()
-> Result<()> {
    let stage = Stage::get()?;
    let connected = stage.connect(&stage.proxy).await?;
    assert_eq!(connected.peer.parameters.group, 0x11ec, "X25519MLKEM768");
    // More than all buffers on the way hold, in both directions at once.
    let data = pattern(40_000_000);
    let (mut read, mut write) = tokio::io::split(connected.stream);
    let sent = data.clone();
    let writing = tokio::spawn(async move {
        write.write_all(&sent).await?;
        write.shutdown().await?;
        anyhow::Ok(write)
    });
    // Nobody reads yet: the echo, the proxies and the writer have to wait.
    sleep(Duration::from_millis(500)).await;
    assert!(
        !writing.is_finished(),
        "everything was taken, and nobody read"
    );
    let mut received = Vec::new();
    read.read_to_end(&mut received).await?;
    assert!(received == data, "{} bytes came back", received.len());
    read.unsplit(writing.await??).ended().await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_connections_at_once_are_attested_each_for_itself() -> Result<()> {
    let stage = Stage::get()?;
    let connecting: Vec<_> = (0..24)
        .map(|number: u8| async move {
            let mut connected = stage.connect(&stage.proxy).await?;
            connected.stream.write_all(&[number; 1000]).await?;
            connected.stream.shutdown().await?;
            let mut back = Vec::new();
            connected.stream.read_to_end(&mut back).await?;
            ensure!(back == [number; 1000]);
            anyhow::Ok(())
        })
        .collect();
    join_all(connecting).await.into_iter().collect()
}

async fn join_all<T: Send + 'static>(
    futures: Vec<impl Future<Output = T> + Send + 'static>,
) -> Vec<T> {
    let mut tasks = tokio::task::JoinSet::new();
    for future in futures {
        tasks.spawn(future);
    }
    tasks.join_all().await
}

#[test]
fn stock_tls_clients_accept_the_service_below_the_issuer_and_its_key_is_the_tpm_s() -> Result<()> {
    let stage = Stage::get()?;
    let root = stage.scene.issuer.root();
    let service = stage.proxy.attested.to_string();
    let shown = Tool::new("openssl")
        .args(["s_client", "-connect", &service, "-verify_return_error"])
        .args(["-purpose", "sslserver", "-showcerts", "-CAfile"])
        .arg(&root)
        .run()?;
    // What the service says in its own protocol is no text.
    let shown = String::from_utf8_lossy(&shown);
    assert!(shown.contains("Verify return code: 0 (ok)"), "{shown}");
    assert!(shown.contains("TLSv1.3"), "{shown}");
    let pem = shown
        .split_once("-----BEGIN CERTIFICATE-----")
        .and_then(|(_, rest)| rest.split_once("-----END CERTIFICATE-----"))
        .map(|(body, _)| format!("-----BEGIN CERTIFICATE-----{body}-----END CERTIFICATE-----\n"))
        .context("a certificate")?;
    let folder = tempfile::tempdir()?;
    let certificate = folder.path().join("certificate.pem");
    std::fs::write(&certificate, pem)?;
    let certified = Tool::new("openssl")
        .args(["x509", "-noout", "-pubkey", "-in"])
        .arg(&certificate)
        .text()?;
    let key = folder.path().join("key.pem");
    Tool::new("tpm2_readpublic")
        .env("TPM2TOOLS_TCTI", stage.vm.bare.tpm())
        .args(["-Q", "-c", "0x81000004", "-f", "pem", "-o"])
        .arg(&key)
        .run()?;
    assert_eq!(certified.trim(), std::fs::read_to_string(&key)?.trim());

    // curl asks for a name, which the certificate has; what follows is not HTTP.
    let names = Tool::new("openssl")
        .args(["x509", "-noout", "-ext", "subjectAltName", "-in"])
        .arg(&certificate)
        .text()?;
    let name = names
        .split([',', '\n'])
        .find_map(|name| name.trim().strip_prefix("DNS:"))
        .context("a DNS name")?;
    let port = stage.proxy.attested.port();
    let curl = Tool::new("curl")
        .args(["--silent", "--verbose", "--max-time", "20", "--cacert"])
        .arg(&root)
        .args(["--resolve", &format!("{name}:{port}:127.0.0.1")])
        .arg(format!("https://{name}:{port}/"))
        .outcome()?;
    let said = String::from_utf8_lossy(&curl.stderr).into_owned();
    assert!(said.contains("SSL certificate verify ok"), "{said}");

    // And nobody who does not trust the issuer.
    let stranger = Tool::new("openssl")
        .args(["s_client", "-connect", &service, "-verify_return_error"])
        .outcome()?;
    assert!(!stranger.status.success());
    Ok(())
}

/// Clearing evicts the identity key and the key for TLS, which the host put there and the proxy uses.
#[tokio::test(flavor = "multi_thread")]
async fn a_guest_that_clears_its_tpm_is_attested_as_before_and_its_proxy_runs_on() -> Result<()> {
    let scene = &Stage::get()?.scene;
    let vm = ProxiedVm::boot(&scene.host, &scene.run.join("cleared"))?;
    let proxy = vm.proxy("proxy", echo()?, &["--any-device"])?;
    let policy = policy_files::load(&vm.policy(scene, &proxy)?)?;
    let device = Connector::new(Arc::new(policy), DeviceIdentity::none(), None)?;
    let service = proxy.attested.to_string().parse()?;
    let mut before = device.connect(&service).await?;
    let guest = |tool: &str| Tool::new(tool).env("TPM2TOOLS_TCTI", vm.bare.tpm());
    guest("tpm2_clear").run()?;
    let left = guest("tpm2_getcap").args(["handles-persistent"]).text()?;
    assert_eq!(left.trim(), "");
    for _ in 0..2 {
        device.connect(&service).await?;
    }
    // Connections that lived on have lost nothing.
    before.stream.write_all(b"here").await?;
    let mut back = [0; 4];
    before.stream.read_exact(&mut back).await?;
    assert_eq!(&back, b"here");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stop_lets_connections_end_and_takes_no_new_ones() -> Result<()> {
    let stage = Stage::get()?;
    let options = ["--any-device", "--drain-seconds", "3600"];
    let mut proxy = stage.vm.proxy("stopped", echo()?, &options)?;
    let mut connected = stage.connect(&proxy).await?;
    // SIGTERM, and nobody waits for the end.
    let id = nix::unistd::Pid::from_raw(i32::try_from(proxy.process.id())?);
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGTERM)?;
    let refused = async {
        while TcpStream::connect(proxy.attested).await.is_ok() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(Duration::from_secs(20), refused).await?;
    connected.stream.write_all(b"still served").await?;
    connected.stream.shutdown().await?;
    let mut back = String::new();
    connected.stream.read_to_string(&mut back).await?;
    assert_eq!(back, "still served");
    connected.stream.ended().await?;
    let status = proxy.process.wait(Duration::from_secs(20))?;
    assert!(status.success(), "{}", proxy.process.last_words());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn connections_that_outlive_a_stop_are_closed_with_a_reason() -> Result<()> {
    let stage = Stage::get()?;
    let options = ["--any-device", "--drain-seconds", "1"];
    let mut proxy = stage.vm.proxy("cut-off", echo()?, &options)?;
    let mut connected = stage.connect(&proxy).await?;
    let begin = Instant::now();
    proxy.process.stop()?;
    assert!(begin.elapsed() >= Duration::from_secs(1));
    let error = connected
        .stream
        .read(&mut [0])
        .await
        .err()
        .context("an end was read")?;
    assert!(error.to_string().contains("is being stopped"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_without_a_file_to_spare_serves_again_when_it_has_one() -> Result<()> {
    let stage = Stage::get()?;
    let mut command = Command::new("prlimit");
    command.arg("--nofile=40").arg(program("vrot-service")?);
    let mut proxy = stage
        .vm
        .proxy_by(command, "few-files", echo()?, &["--any-device"])?;
    // More than it can accept, and silent.
    let mut silent = Vec::new();
    for _ in 0..60 {
        silent.push(TcpStream::connect(proxy.attested).await?);
    }
    let said = async {
        while !proxy.said("no connections can be taken at the moment")? {
            sleep(Duration::from_millis(20)).await;
        }
        anyhow::Ok(())
    };
    timeout(Duration::from_secs(20), said).await??;
    drop(silent);
    let mut connected = stage.connect(&proxy).await?;
    connected.stream.write_all(b"served").await?;
    connected.stream.shutdown().await?;
    let mut back = String::new();
    connected.stream.read_to_string(&mut back).await?;
    assert_eq!(back, "served");
    proxy.process.must_run()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_breaks_off_does_not_look_as_if_it_had_ended() -> Result<()> {
    let stage = Stage::get()?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let proxy = stage
        .vm
        .proxy("breaks-off", listener.local_addr()?, &["--any-device"])?;
    let (connected, accepted) = tokio::join!(stage.connect(&proxy), listener.accept());
    let (mut connected, (service, _)) = (connected?, accepted?);
    service.set_zero_linger()?;
    drop(service);
    let read = timeout(Duration::from_secs(20), connected.stream.read(&mut [0])).await?;
    assert!(read.is_err(), "{read:?}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_renewed_certificate_is_used_by_new_connections_and_living_ones_go_on() -> Result<()> {
    let stage = Stage::get()?;
    let tpm: TpmAddress = stage.vm.bare.tpm().parse()?;
    let mut quoting = EsysTpm::open(&tpm, PcrSelection::new(BOOT_PCRS)?, None)?;
    let statement = TpmTlsKey::certified_by(&mut quoting)?;
    let host = Arc::new(HostThroughTpm::new(tpm.clone()));
    let batches = Batches::start(quoting, host, stage.vm.bare.event_log().to_owned())?;
    let identity = TlsIdentity::wait_for(
        TpmTlsKey::open(&tpm)?,
        WebPkiClientVerifier::no_client_auth(),
        KeyExchange::HybridFirst,
    )
    .await?;
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?.to_string().parse()?;
    let proxy = vrot_service::proxy::Proxy {
        identity: Arc::clone(&identity),
        attester: Arc::new(VmAttester::new(Arc::new(batches), statement)),
        demands: Box::new(|| NoDemand),
        told: |()| Told::any(),
        forward: echo()?.to_string().parse()?,
        tells_who: false,
    };
    let limits = Limits {
        connections: 100,
        of_a_peer: 100,
    };
    let stop = Stop::after(Duration::ZERO);
    let serving = stop.clone();
    tokio::spawn(async move { serve(listener, limits, &serving, Arc::new(proxy)).await });
    tokio::spawn(async move { identity.keep_renewed(Duration::from_millis(50)).await });

    let mut living = stage.device.connect(&address).await?;
    let shown = |connected: &Attested<Appraised>| connected.peer.certificates.first().cloned();
    let before = shown(&living).context("a certificate")?;
    let vm = stage.vm.vm.to_string();
    stage
        .scene
        .host
        .vtpmctl(["identity", &vm, "--renew"])?
        .run()?;
    let begin = Instant::now();
    loop {
        let connected = stage.device.connect(&address).await?;
        if shown(&connected).as_ref() != Some(&before) {
            break;
        }
        ensure!(
            begin.elapsed() < Duration::from_secs(30),
            "no new certificate"
        );
        sleep(Duration::from_millis(20)).await;
    }
    living.stream.write_all(b"still here").await?;
    living.stream.shutdown().await?;
    let mut back = String::new();
    living.stream.read_to_string(&mut back).await?;
    assert_eq!(back, "still here");
    stop.close();
    Ok(())
}

#[test]
fn nothing_is_demanded_of_devices_only_where_that_was_said() -> Result<()> {
    let neither = Tool::new(program("vrot-service")?)
        .args(["proxy", "--forward", "127.0.0.1:80"])
        .outcome()?;
    assert_eq!(neither.status.code(), Some(2));
    let said = String::from_utf8_lossy(&neither.stderr).into_owned();
    assert!(said.contains("--policy"), "{said}");
    Ok(())
}

#[test]
fn the_service_s_policy_lets_in_a_device_that_attests_itself_and_no_other() -> Result<()> {
    let stage = Stage::get()?;
    let issuer = Issuer::of(&stage.scene.issuer);
    let device = Device::boot(&MadeTpm::second(&["sha256"])?, "6.12.48")?;
    device.enrol_as("plant-7/meter-12", &issuer)?;
    let name = format!("spiffe://{DOMAIN}/plant-7/meter-12");
    let devices = device.policy(&name, &issuer)?;
    let devices = devices.to_str().context("a path")?;
    let proxy = stage
        .vm
        .proxy("for-devices", echo()?, &["--policy", devices])?;
    let connect = |root_of_trust: &[PathBuf]| {
        Tool::new(program("vrot-device")?)
            .args([
                "connect",
                &proxy.attested.to_string(),
                "--verdict-only",
                "--policy",
            ])
            .arg(stage.scene.run.join("vm/policy.toml"))
            .args(root_of_trust)
            .outcome()
    };
    let let_in = connect(&device.root_of_trust())?;
    let said = String::from_utf8_lossy(&let_in.stderr).into_owned();
    assert!(let_in.status.success(), "{said}");
    wait_for("the proxy's word", Duration::from_secs(20), || {
        Ok(proxy.said(&format!("{name} (affirming)"))?.then_some(()))
    })?;
    let unknown = connect(&[])?;
    assert_eq!(unknown.status.code(), Some(2));
    let said = String::from_utf8_lossy(&unknown.stderr).into_owned();
    assert!(said.contains("demands evidence, and got none"), "{said}");
    Ok(())
}

/// The name of a device without a TPM.
const METER: &str = "meter-3.example.org";

/// A folder with the certificate `meter.pem` and the key `meter.key` of a device without a TPM, and with
/// `devices.toml`, which lets it in.
fn meter() -> Result<TempDir> {
    let folder = tempfile::tempdir()?;
    let certify = |name: &str, subject: &str, options: &[&str]| {
        let (certificate, key) = (format!("{name}.pem"), format!("{name}.key"));
        Tool::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-nodes", "-days", "1"])
            .args(["-pkeyopt", "ec_paramgen_curve:P-256"])
            .args(["-subj", subject, "-out", &certificate, "-keyout", &key])
            .args(options)
            .folder(folder.path())
            .run()
    };
    certify("ca", "/CN=Meters", &[])?;
    let name = format!("subjectAltName=DNS:{METER}");
    let of_a_client = ["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", &name];
    let usage = ["-addext", "extendedKeyUsage=clientAuth"];
    let end = ["-addext", "basicConstraints=critical,CA:FALSE"];
    certify(
        "meter",
        "/CN=meter",
        &[&of_a_client[..], &usage, &end].concat(),
    )?;
    std::fs::write(folder.path().join("devices.toml"), exempting(METER))?;
    Ok(folder)
}

/// A policy that exempts this device.
fn exempting(device: &str) -> String {
    format!(
        "[freshness]\nresult_lifetime_s = 20\n[exempt_software_keys]\nroots = \"ca.pem\"\n\
         devices = [\"{device}\"]\nreason = \"series 3\"\n"
    )
}

/// What the meter of this folder connects with.
fn as_meter(stage: &Stage, folder: &Path) -> Result<Connector> {
    let policy = policy_files::load(&stage.scene.run.join("vm/policy.toml"))?;
    let (certificate, key) = (folder.join("meter.pem"), folder.join("meter.key"));
    let meter = DeviceIdentity::from_files(&certificate, &key)?;
    Ok(Connector::new(Arc::new(policy), meter, None)?)
}

#[test]
fn the_log_says_of_each_connection_of_an_exempted_device_why_it_was_let_in() -> Result<()> {
    let stage = Stage::get()?;
    let folder = meter()?;
    let policy = folder.path().join("devices.toml");
    let policy = policy.to_str().context("a path")?;
    let proxy = stage
        .vm
        .proxy("for-meters", echo()?, &["--policy", policy])?;
    Tool::new(program("vrot-device")?)
        .args(["connect", &proxy.attested.to_string(), "--verdict-only"])
        .args([
            "--certificate",
            "meter.pem",
            "--key",
            "meter.key",
            "--policy",
        ])
        .arg(stage.scene.run.join("vm/policy.toml"))
        .folder(folder.path())
        .run()?;
    wait_for("the proxy's word", Duration::from_secs(20), || {
        let said = proxy.said("software-key-exempted: ")? && proxy.said("series 3")?;
        Ok(said.then_some(()))
    })?;
    assert!(proxy.said(&format!("{METER} (warning)"))?);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_s_policy_that_is_read_anew_counts_for_devices_that_are_connected() -> Result<()>
{
    let stage = Stage::get()?;
    let folder = meter()?;
    let file = folder.path().join("devices.toml");
    let policy = file.to_str().context("a path")?;
    let proxy = stage
        .vm
        .proxy("read-anew", echo()?, &["--policy", policy])?;
    let address = proxy.attested.to_string().parse()?;
    let device = as_meter(stage, folder.path())?;
    let mut connected = device.connect(&address).await?;
    let give = |policy: &str| {
        std::fs::write(&file, policy)?;
        let id = nix::unistd::Pid::from_raw(i32::try_from(proxy.process.id())?);
        nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGHUP)?;
        anyhow::Ok(())
    };
    let says = |what: &'static str| {
        wait_for("the proxy's word", Duration::from_secs(60), || {
            Ok(proxy.said(what)?.then_some(()))
        })
    };
    give("[exempt_software_keys]")?;
    says("nothing is changed")?;
    connected.stream.write_all(b"still").await?;
    connected.stream.read_exact(&mut [0; 5]).await?;

    give(&exempting("meter-4.example.org"))?;
    says("the policy is read anew")?;
    let read = timeout(Duration::from_secs(60), connected.stream.read(&mut [0])).await?;
    assert!(read.is_err(), "{read:?}");
    says("the peer's evidence is refused")?;
    let refused = device.connect(&address).await;
    assert!(refused.is_err(), "a device that is not let in any more");

    // Devices with certificates of another authority are asked for theirs, too.
    std::fs::copy(folder.path().join("ca.pem"), folder.path().join("old.pem"))?;
    let another = meter()?;
    std::fs::copy(another.path().join("ca.pem"), folder.path().join("ca.pem"))?;
    give(&exempting(METER))?;
    let let_in = as_meter(stage, another.path())?;
    let begin = Instant::now();
    while let Err(error) = let_in.connect(&address).await {
        ensure!(begin.elapsed() < Duration::from_secs(60), "{error:#}");
        sleep(Duration::from_millis(50)).await;
    }
    assert!(device.connect(&address).await.is_err());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_asks_for_it_is_told_which_device_connects() -> Result<()> {
    let stage = Stage::get()?;
    let folder = meter()?;
    let policy = folder.path().join("devices.toml");
    let policy = policy.to_str().context("a path")?;
    let service = TcpListener::bind("127.0.0.1:0").await?;
    let options = ["--policy", policy, "--proxy-protocol"];
    let proxy = stage
        .vm
        .proxy("tells-who", service.local_addr()?, &options)?;
    let device = as_meter(stage, folder.path())?;
    let mut connected = device.connect(&proxy.attested.to_string().parse()?).await?;
    connected.stream.write_all(b"data").await?;
    connected.stream.shutdown().await?;
    let (mut plain, _) = service.accept().await?;
    let mut received = Vec::new();
    plain.read_to_end(&mut received).await?;

    let (begin, rest) = received.split_at(16);
    assert_eq!(begin.get(..14), Some(&b"\r\n\r\n\0\r\nQUIT\n\x21\x11"[..]));
    let length = begin.get(14..).context("a length")?;
    let length = usize::from(u16::from_be_bytes(length.try_into()?));
    let (told, data) = rest.split_at(length);
    assert_eq!(data, b"data");
    assert_eq!(told.get(..8), Some(&[127, 0, 0, 1, 127, 0, 0, 1][..]));
    let port = proxy.attested.port().to_be_bytes();
    assert_eq!(told.get(10..12), Some(&port[..]));
    let mut name = vec![0x22, 0, u8::try_from(METER.len())?];
    name.extend(METER.bytes());
    assert!(told.ends_with(&name), "{told:?}");
    Ok(())
}
