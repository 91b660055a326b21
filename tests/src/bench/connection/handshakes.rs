//! Handshakes: from the first byte of TCP until both ends have what they demand.

use std::sync::Arc;
use std::sync::mpsc::channel;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow};
use attestation::evidence::Evidence;
use attestation::{Binding, Nonce, Purpose, appraise};
use attested_tls::tls::{ClientTls, KeyExchange};
use attested_tls::{Deadlines, NoDemand, Unattested, connect};
use rustls_pki_types::{ServerName, UnixTime};
use tokio::net::TcpStream;
use tokio::runtime::Runtime;
use tokio::task::JoinSet;
use vrot_device::Connector;
use vrot_device::connection::{BelowTheIssuer, ServiceAddress};
use vrot_service::attester::Host;
use vrot_service::attester::quoting::{EvidenceRequest, Quoter};

use super::service::{HostBelow, Service, open};
use crate::bench::arguments::Arguments;
use crate::bench::report::Report;
use crate::bench::samples::Samples;
use crate::bench::slow_tpm::SlowTpm;

/// Devices that connect to one VM at the same time, each again as soon as it was connected.
const DEVICES: usize = 96;
/// Handshakes one by one.
const ALONE: u32 = 50;
/// Between two of them, so that none waits for the one before.
const REST: Duration = Duration::from_millis(100);

/// One handshake after the other on a host that does nothing else, and what each step takes by itself.
pub(super) fn idle(
    report: &mut Report,
    runtime: &Runtime,
    arguments: &Arguments,
    tpm: &SlowTpm,
    service: &Service,
    device: &Connector,
) -> Result<()> {
    let count = arguments.writes.min(ALONE);
    let mut whole = Samples::default();
    let mut tls = Samples::default();
    let mut vik = Samples::default();
    let mut host = Samples::default();
    let mut signature = Samples::default();
    let mut verification = Samples::default();
    let mut quoter = Quoter::new(open(&service.vm)?, service.vm.event_log().to_owned().into());
    let below = HostBelow::of(&service.vm);
    for _ in 0..count {
        std::thread::sleep(REST);
        let begin = Instant::now();
        let connected = runtime.block_on(device.connect(&service.attested))?;
        whole.add_ms(begin.elapsed());
        drop(connected);

        std::thread::sleep(REST);
        let begin = Instant::now();
        runtime.block_on(unattested(device, &service.attested))?;
        tls.add_ms(begin.elapsed());

        let begin = Instant::now();
        let quoted = quoter.quote(vec![request()?])?;
        vik.add_ms(begin.elapsed());
        let begin = Instant::now();
        below.layer(&quoted.request)?;
        host.add_ms(begin.elapsed());
        signature.add_ms(tpm.last_signature());

        let (nonce, evidence) = evidence(service)?;
        let begin = Instant::now();
        let evidence = Evidence::from_cbor(&evidence)?;
        let policy = device.policy();
        let verified = evidence
            .verify(
                &nonce,
                &Purpose::Challenge,
                policy.anchors(),
                UnixTime::now(),
            )
            .map_err(|refusal| anyhow!(refusal.explanation().to_string()))?;
        appraise(verified, &policy);
        verification.add_ms(begin.elapsed());
    }
    for (name, samples) in [
        ("attested_handshake_p50_ms", whole),
        ("attested_handshake_tls_ms", tls),
        ("attested_handshake_vik_ms", vik),
        ("attested_handshake_host_ms", host),
        ("attested_handshake_signature_ms", signature),
        ("attested_handshake_verification_ms", verification),
    ] {
        report.alone(name, samples.median()?, "ms", samples.count());
    }
    Ok(())
}

/// Many devices connect to one VM.
pub(super) fn of_one(
    report: &mut Report,
    runtime: &Runtime,
    arguments: &Arguments,
    service: &Service,
    device: &Connector,
) -> Result<()> {
    let Loaded { per_s, took, .. } =
        load(runtime, &[service], device, DEVICES, arguments.window())?;
    report.alone(
        "attested_handshakes_per_s",
        per_s,
        "handshakes/s",
        took.count(),
    );
    for (name, percent) in [
        ("attested_handshake_busy_p50_ms", 50),
        ("attested_handshake_p99_ms", 99),
    ] {
        report.alone(name, took.percentile(percent)?, "ms", took.count());
    }
    Ok(())
}

/// What came of many devices that connected.
pub(super) struct Loaded {
    /// Handshakes a second.
    pub(super) per_s: f64,
    /// How long each took.
    pub(super) took: Samples,
    /// Handshakes in all, those before and after the window among them.
    pub(super) all: usize,
}

/// So many devices connect again and again, each time to another service; a handshake that fails is an
/// error.
pub(super) fn load(
    runtime: &Runtime,
    services: &[&Service],
    device: &Connector,
    devices: usize,
    window: Duration,
) -> Result<Loaded> {
    let addresses: Arc<[ServiceAddress]> = services
        .iter()
        .map(|service| service.attested.clone())
        .collect();
    // The first answers come before all devices ask.
    let warm = Instant::now() + window / 5;
    let end = warm + window;
    let outcomes = runtime.block_on(async {
        let mut tasks = JoinSet::new();
        for first in 0..devices {
            let (addresses, device) = (Arc::clone(&addresses), device.clone());
            tasks.spawn(async move {
                let mut took = Samples::default();
                let mut all = 0;
                let mut turn = first;
                while Instant::now() < end {
                    let service = addresses.get(turn % addresses.len()).context("a service")?;
                    turn += devices;
                    let begin = Instant::now();
                    let connected = device.connect(service).await?;
                    let now = Instant::now();
                    all += 1;
                    if now >= warm && now < end {
                        took.add_ms(now - begin);
                    }
                    connected.stream.give_up().await;
                }
                anyhow::Ok((took, all))
            });
        }
        tasks.join_all().await
    });
    let mut took = Samples::default();
    let mut all = 0;
    for outcome in outcomes {
        let (of_one, count) = outcome?;
        took.extend(of_one.into_values());
        all += count;
    }
    let count = u32::try_from(took.count())?;
    Ok(Loaded {
        per_s: f64::from(count) / window.as_secs_f64(),
        took,
        all,
    })
}

/// A connection on which neither end demands anything.
async fn unattested(device: &Connector, service: &ServiceAddress) -> Result<()> {
    let exchange = KeyExchange::HybridFirst;
    let servers = BelowTheIssuer::new(device.policy().anchors(), None, exchange);
    let tls = ClientTls::anonymous(Arc::new(servers), exchange)?;
    let stream = TcpStream::connect(service.host_and_port()).await?;
    stream.set_nodelay(true)?;
    let name = ServerName::try_from("service.invalid")?;
    let deadlines = Deadlines::default();
    connect(
        stream,
        &tls,
        name,
        Arc::new(Unattested),
        NoDemand,
        deadlines,
    )
    .await?;
    Ok(())
}

fn request() -> Result<EvidenceRequest> {
    let random = uuid::Uuid::new_v4().into_bytes();
    Ok(EvidenceRequest {
        nonce: Nonce::new(random).map_err(|error| anyhow!("{error}"))?,
        binding: Binding::None,
        tls_key: None,
    })
}

/// Evidence as a challenge gets it.
fn evidence(service: &Service) -> Result<(Nonce, Vec<u8>)> {
    let request = request()?;
    let nonce = request.nonce.clone();
    let (sender, receiver) = channel();
    // The receiver waits below.
    let reply = move |outcome| drop(sender.send(outcome));
    service.batches.request(request, reply)?;
    Ok((nonce, receiver.recv()??))
}
