//! The part "launch": one after the other, ours and the peer in turn.

use anyhow::Result;

use super::host::BenchHost;
use super::launch::{launch, must_be_complete, remove};
use super::peer::Peer;
use super::pool::Pool;
use super::progress::Progress;
use super::report::Report;
use super::samples::Samples;

/// Times so many launches of each kind.
pub(super) fn measure(
    report: &mut Report,
    host: &BenchHost,
    pool: &Pool,
    peer: &Peer<'_>,
    count: u32,
) -> Result<()> {
    let (mut ours, mut peers) = (Samples::default(), Samples::default());
    let mut progress = Progress::of("launches", count);
    for number in 0..count {
        // Nothing is made in the background while either side is timed.
        pool.wait_until_full(host.api())?;
        let launched = launch(host.api())?;
        ours.add_ms(launched.took);
        must_be_complete(host.api(), launched.vm)?;
        remove(host.api(), launched)?;

        pool.wait_until_full(host.api())?;
        let name = format!("launch-{number}");
        let launched = peer.launch(&name)?;
        peers.add_ms(launched.took);
        peer.remove(&name, launched)?;
        progress.step();
    }
    for (name, per_cent) in [("launch_p50_ms", 50), ("launch_p99_ms", 99)] {
        report.beside(
            name,
            ours.percentile(per_cent)?,
            peers.percentile(per_cent)?,
            "ms",
            ours.count(),
        );
    }
    Ok(())
}
