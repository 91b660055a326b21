//! What an application finds of a peer that is attested anew while data flow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::runtime::Runtime;
use tokio::time::sleep;
use vrot_device::Connector;

use super::service::Service;
use crate::bench::arguments::Arguments;
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// Seconds for which a result holds here: a round begins after half of that.
pub(super) const LIFETIME: u64 = 6;
/// Between two small messages.
const PAUSE: Duration = Duration::from_millis(1);
/// A round is over with its result, and has begun not longer before: two signatures of the host, and
/// what goes with them.
const ROUND: Duration = Duration::from_millis(250);

/// Small messages go there and back all the time: how long the slowest takes beside a round of
/// attestation, and where there is none.
pub(super) fn measure(
    report: &mut Report,
    runtime: &Runtime,
    arguments: &Arguments,
    service: &Service,
    device: &Connector,
) -> Result<()> {
    let least = Duration::from_secs(2 * LIFETIME);
    let (trips, rounds) =
        runtime.block_on(trips(service, device, arguments.window().max(least)))?;
    let (mut beside, mut elsewhere) = (Samples::default(), Samples::default());
    for (begin, took) in trips {
        let end = begin + took;
        let in_a_round = rounds
            .iter()
            .any(|done| begin <= *done && end + ROUND >= *done);
        if in_a_round {
            beside.add_ms(took);
        } else {
            elsewhere.add_ms(took);
        }
    }
    let slowest = beside.percentile(100).context("no round of attestation")?;
    let peer = elsewhere.percentile(100)?;
    report.beside("reattestation_gap_ms", slowest, peer, "ms", rounds.len());
    let (usual, peer) = (beside.percentile(99)?, elsewhere.percentile(99)?);
    report.beside(
        "reattestation_trip_p99_ms",
        usual,
        peer,
        "ms",
        beside.count(),
    );
    Ok(())
}

/// When messages left and how long they took, and when rounds of attestation were over.
async fn trips(
    service: &Service,
    device: &Connector,
    window: Duration,
) -> Result<(Vec<(Instant, Duration)>, Vec<Instant>)> {
    let mut connected = device.connect(&service.attested).await?;
    let mut trips = Vec::new();
    let mut rounds = Vec::new();
    let start = Instant::now();
    while start.elapsed() < window {
        let begin = Instant::now();
        connected.stream.write_all(b"message").await?;
        connected.stream.read_exact(&mut [0; 7]).await?;
        trips.push((begin, begin.elapsed()));
        if connected.appraisals.has_changed()? {
            connected.appraisals.mark_unchanged();
            rounds.push(Instant::now());
        }
        sleep(PAUSE).await;
    }
    connected.stream.give_up().await;
    Ok((trips, rounds))
}
