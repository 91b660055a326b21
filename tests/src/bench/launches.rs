//! The part "launch": one after the other, ours and the peer in turn, and once more beside a full
//! host.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::Result;

use super::api::Api;
use super::host::BenchHost;
use super::launch::{
    Launched, launch, launch_own_vm, remove, wait_until_certified, wait_until_complete,
};
use super::load::number;
use super::peer::Peer;
use super::pool::Pool;
use super::progress::Progress;
use super::report::Report;
use super::samples::Samples;

/// A launch of the peer takes longer than a hundred of ours: it has its turn after so many.
const TURN: u32 = 3;

/// A manager that has just filled its pool looks once more, and would fill it again at once; after
/// this time it waits until a launch is over.
const SETTLING: Duration = Duration::from_millis(300);

/// Launches of one kind.
#[derive(Default)]
struct Kind {
    took: Samples,
    /// From the order to a certificate that the guest can read.
    certified: Samples,
    signatures: u64,
}

/// Times so many launches as the manager likes them best, and a third as many of VMs that come
/// with a number of their own, and of the peer.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    pool: &Pool,
    peer: &Peer<'_>,
    count: u32,
) -> Result<()> {
    let (mut any, mut own, mut peers) = (Kind::default(), Kind::default(), Samples::default());
    let mut progress = Progress::of("launches", count);
    for number in 0..count {
        any.add(host, pool, launch)?;
        if number % TURN == 0 {
            own.add(host, pool, launch_own_vm)?;
            pool.wait_until_full(host.api())?;
            let name = format!("launch-{number}");
            let launched = peer.launch(&name)?;
            peers.add_ms(launched.took);
            peer.remove(&name, launched)?;
        }
        progress.step();
    }
    for (name, kind) in [("launch", &any), ("launch_own_vm", &own)] {
        for per_cent in [50, 99] {
            report.beside(
                format!("{name}_p{per_cent}_ms"),
                kind.took.percentile(per_cent)?,
                peers.percentile(per_cent)?,
                "ms",
                kind.took.count(),
            );
            report.spread(&kind.took)?;
        }
        for per_cent in [50, 99] {
            report.alone(
                format!("{name}_certified_p{per_cent}_ms"),
                kind.certified.percentile(per_cent)?,
                "ms from the order until the guest can read its certificate",
                kind.certified.count(),
            );
            report.spread(&kind.certified)?;
        }
        report.alone(
            format!("{name}_signatures"),
            number(kind.signatures)? / number(kind.took.count())?,
            "signatures of the physical TPM in each",
            kind.took.count(),
        );
    }
    Ok(())
}

/// Times so many launches on a host where many vRoTs run already.
pub(super) fn measure_beside(
    report: &mut Report,
    host: &BenchHost,
    pool: &Pool,
    running: usize,
    count: u32,
) -> Result<()> {
    let mut beside = Kind::default();
    for _ in 0..count {
        beside.add(host, pool, launch)?;
    }
    for per_cent in [50, 99] {
        report.alone(
            format!("launch_beside_{running}_p{per_cent}_ms"),
            beside.took.percentile(per_cent)?,
            "ms",
            beside.took.count(),
        );
        report.spread(&beside.took)?;
    }
    Ok(())
}

impl Kind {
    /// One more. Nothing is made in the background while it is timed.
    fn add(
        &mut self,
        host: &BenchHost,
        pool: &Pool,
        launch: impl FnOnce(&Api) -> Result<Launched>,
    ) -> Result<()> {
        pool.wait_until_full(host.api())?;
        thread::sleep(SETTLING);
        let before = host.tpm().traffic().signatures;
        let begin = Instant::now();
        let launched = launch(host.api())?;
        self.took.add_ms(launched.took);
        wait_until_certified(host.api(), launched.vm)?;
        self.certified.add_ms(begin.elapsed());
        wait_until_complete(host.api(), launched.vm)?;
        self.signatures += host.tpm().traffic().signatures - before;
        remove(host.api(), launched)
    }
}
