//! What an application finds of a peer that is attested anew while data flow.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
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

/// Small messages go there and back all the time, on a connection whose service is attested anew, and in
/// turns with them on one whose service is not: how long they take beside a round of attestation.
///
/// The second connection tells what the round itself takes from the first one, and what is this machine's
/// at that moment: host, service and device share its processors.
pub(super) fn measure(
    report: &mut Report,
    runtime: &Runtime,
    arguments: &Arguments,
    service: &Service,
    often: &Connector,
    once: &Connector,
) -> Result<()> {
    let least = Duration::from_secs(2 * LIFETIME);
    let window = arguments.window().max(least);
    let seen = runtime.block_on(trips(service, often, once, window))?;
    let mut gaps = Samples::default();
    let (mut slowest, mut before) = (Samples::default(), Samples::default());
    let (mut beside, mut elsewhere) = (Samples::default(), Samples::default());
    for done in &seen.rounds {
        let of_the_round = Trip::overlapping(&seen.attested, *done);
        let at_that_time = slowest_of(Trip::overlapping(&seen.other, *done));
        let Some((of_the_round, at_that_time)) = slowest_of(of_the_round).zip(at_that_time) else {
            continue;
        };
        gaps.add_ms(of_the_round.saturating_sub(at_that_time));
        slowest.add_ms(of_the_round);
        let earlier = (done.checked_sub(2 * ROUND)).and_then(|end| {
            // As long a time, and no round in it.
            slowest_of(Trip::overlapping(&seen.attested, end))
        });
        if let Some(earlier) = earlier {
            before.add_ms(earlier);
        }
    }
    for trip in &seen.attested {
        let in_a_round = seen.rounds.iter().any(|done| trip.overlaps(*done));
        let samples = if in_a_round {
            &mut beside
        } else {
            &mut elsewhere
        };
        samples.add_ms(trip.took);
    }
    let gap = gaps.median().context("no round of attestation")?;
    report.alone("reattestation_gap_ms", gap, "ms", gaps.count());
    report.spread(&gaps)?;
    report.beside(
        "reattestation_slowest_ms",
        slowest.median()?,
        before.median()?,
        "ms",
        slowest.count(),
    );
    report.spread(&slowest)?;
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

/// One message, there and back.
struct Trip {
    begin: Instant,
    took: Duration,
}

impl Trip {
    async fn of(stream: &mut (impl AsyncRead + AsyncWrite + Unpin)) -> Result<Self> {
        let begin = Instant::now();
        stream.write_all(b"message").await?;
        stream.read_exact(&mut [0; 7]).await?;
        let took = begin.elapsed();
        Ok(Self { begin, took })
    }

    /// Whether it was under way within the time of a round that ends then.
    fn overlaps(&self, end: Instant) -> bool {
        self.begin <= end && self.begin + self.took + ROUND >= end
    }

    fn overlapping(trips: &[Self], end: Instant) -> impl Iterator<Item = &Self> {
        trips.iter().filter(move |trip| trip.overlaps(end))
    }
}

fn slowest_of<'t>(trips: impl Iterator<Item = &'t Trip>) -> Option<Duration> {
    trips.map(|trip| trip.took).max()
}

/// What was seen of both connections.
#[derive(Default)]
struct Seen {
    /// Messages on the one that is attested anew.
    attested: Vec<Trip>,
    /// On the other.
    other: Vec<Trip>,
    /// When rounds of attestation were over.
    rounds: Vec<Instant>,
}

async fn trips(
    service: &Service,
    often: &Connector,
    once: &Connector,
    window: Duration,
) -> Result<Seen> {
    let mut connected = often.connect(&service.attested).await?;
    let mut other = once.connect(&service.attested).await?;
    let mut seen = Seen::default();
    let start = Instant::now();
    while start.elapsed() < window {
        seen.attested.push(Trip::of(&mut connected.stream).await?);
        if connected.appraisals.has_changed()? {
            connected.appraisals.mark_unchanged();
            seen.rounds.push(Instant::now());
        }
        seen.other.push(Trip::of(&mut other.stream).await?);
        sleep(PAUSE).await;
    }
    connected.stream.give_up().await;
    other.stream.give_up().await;
    Ok(seen)
}
