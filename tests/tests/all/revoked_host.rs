//! A host that its issuer revokes while devices are connected to a service on it, through both proxies.

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use test_support::deadline::wait_for;
use vrot_tests::device;
use vrot_tests::device_proxy::DeviceProxy;
use vrot_tests::proxied_vm::ProxiedVm;
use vrot_tests::scene::Scene;

/// An appraisal's life; a connection is attested anew after half of it.
const LIFETIME: Duration = Duration::from_secs(8);
/// What the machine may add, when it has other work.
const PATIENCE: Duration = Duration::from_secs(60);

/// A service that knows nothing of attestation: it sends everything back.
fn echo() -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            std::thread::spawn(move || std::io::copy(&mut &stream, &mut &stream));
        }
    });
    Ok(address)
}

fn client(proxy: &DeviceProxy) -> Result<TcpStream> {
    let client = TcpStream::connect(proxy.listen)?;
    client.set_read_timeout(Some(PATIENCE))?;
    Ok(client)
}

fn is_answered(client: &mut TcpStream) -> Result<()> {
    client.write_all(b"hello")?;
    let mut answer = [0; 5];
    client.read_exact(&mut answer)?;
    ensure!(&answer == b"hello");
    Ok(())
}

#[test]
fn a_revoked_host_loses_its_connections_at_the_next_round_by_the_list_that_it_carries_itself()
-> Result<()> {
    let scene = Scene::set("revoked-host")?;
    let list = scene.run.join("issuer.crl");
    scene.issuer.crl_command(&list)?.run()?;
    let vm = ProxiedVm::boot(&scene.host, &scene.run.join("vm"))?;
    let crl = list.display().to_string();
    let service = vm.proxy("service", echo()?, &["--any-device", "--crl", &crl])?;
    let policy = vm.policy(&scene, &service)?;
    let text = fs::read_to_string(&policy)?;
    let lifetime = format!("result_lifetime_s = {}", LIFETIME.as_secs());
    let demand = "[revocation]\nmax_crl_age_s = 86400\n\n[freshness]";
    let text = text.replace("result_lifetime_s = 300", &lifetime);
    fs::write(&policy, text.replace("[freshness]", demand))?;
    // The device has no list but those that come with evidence.
    fs::create_dir_all(scene.run.join("device"))?;
    let device = DeviceProxy::start(
        &scene.run.join("device"),
        "device",
        service.attested,
        &policy,
    )?;
    let mut living = client(&device)?;
    is_answered(&mut living)?;

    // Rounds pass.
    let begin = Instant::now();
    while begin.elapsed() < LIFETIME {
        is_answered(&mut living)?;
        std::thread::sleep(Duration::from_millis(200));
    }
    scene.issuer.revoke_command("host-1", &list)?.run()?;
    let ended = living.read(&mut [0]);
    ensure!(
        ended
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "the connection was not reset: {ended:?}"
    );
    wait_for("the proxy's word", PATIENCE, || {
        Ok(device.said("revoked")?.then_some(()))
    })?;

    let ended = client(&device)?.read(&mut [0]);
    ensure!(
        ended
            .as_ref()
            .is_err_and(|error| error.kind() == ErrorKind::ConnectionReset),
        "a new connection was made: {ended:?}"
    );
    let attest = device::challenge_command(service.challenges, &policy)?;
    let (status, said) = device::judge(attest)?;
    assert_eq!((status, &said["refusal"]["code"]), (1, &"revoked".into()));
    Ok(())
}
