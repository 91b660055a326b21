//! How soon a guest has its TPM again that gives a key up which is being made.
//!
//! How long an RSA key takes to make is chance. A guest asks for one, waits until the TPM is at it, and has
//! its VMM order that it be given up (`CMD_CANCEL_TPM_CMD`): the guest is answered, and then sends a short
//! command, which waits until the TPM is done with what it was at.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use tpm_wire::{NO_SESSIONS, Response, ResponseCode, frame};

use super::kinds::{Kind, create_rsa_key};
use super::processors::pin_this_thread;
use super::subject::Subject;
use crate::bench::host::BenchHost;
use crate::bench::peer::Peer;
use crate::bench::report::Report;
use crate::bench::samples::Samples;

/// By then the TPM looks for primes.
const UNDER_WAY: Duration = Duration::from_millis(10);
/// A key takes a hundred times as long as another command.
const SHARE: u32 = 10;
/// Keys that are there before they are given up do not count; of so many in a row, one is not.
const TRIES: usize = 50;
const FLUSH_CONTEXT: u32 = 0x165;

/// What was measured of one TPM.
#[derive(Debug, Default)]
struct Measured {
    /// From the order until the guest is answered.
    answered: Samples,
    /// From the order until a short command after that is answered.
    ready: Samples,
}

/// Has keys given up in turns: ours, the peer.
pub(in crate::bench) fn measure(
    report: &mut Report,
    host: &BenchHost,
    peer: &Peer<'_>,
    count: u32,
) -> Result<()> {
    let mut ours = Subject::ours(host.api())?;
    let mut theirs = Subject::peer(peer)?;
    let mut measured: [Measured; 2] = Default::default();
    let pinned = pin_this_thread()?;
    let mut keys = 0u32..;
    for _ in 0..count.div_ceil(SHARE) {
        for (subject, measured) in [&mut ours, &mut theirs].into_iter().zip(&mut measured) {
            give_up(subject, &mut keys, measured)?;
        }
    }
    drop(pinned);
    let [of_ours, of_peer] = &measured;
    let n = of_ours.answered.count();
    for (name, ours, peer) in [
        ("cancel", &of_ours.answered, &of_peer.answered),
        ("cancel_ready", &of_ours.ready, &of_peer.ready),
    ] {
        for per_cent in [50, 99] {
            report.beside(
                format!("{name}_p{per_cent}_ms"),
                ours.percentile(per_cent)?,
                peer.percentile(per_cent)?,
                "ms",
                n,
            );
        }
    }
    ours.remove(host.api())
}

/// One key that is given up before it is there. swtpm hears of that when it is: then its guest waits as long
/// as for the key.
fn give_up(
    subject: &mut Subject,
    keys: &mut impl Iterator<Item = u32>,
    measured: &mut Measured,
) -> Result<()> {
    let short = subject.command(Kind::GetRandom);
    for key in keys.take(TRIES) {
        let vmm = subject.vmm().context("a VMM")?;
        vmm.send(&create_rsa_key(key))?;
        thread::sleep(UNDER_WAY);
        let is_late = vmm.has_response()?;
        let begin = Instant::now();
        if !is_late {
            vmm.cancel()?;
        }
        let response = vmm.receive()?;
        let answered = begin.elapsed();
        if !is_late {
            subject.execute(&short)?;
            measured.ready.add_ms(begin.elapsed());
            measured.answered.add_ms(answered);
        }
        let code = Response::parse(&response).context("a response")?.code();
        ensure!(
            code.is_success() || code == ResponseCode::CANCELED,
            "response code {code}"
        );
        if code.is_success() {
            let handle = response.get(10..14).context("a handle")?;
            subject.execute(&frame(NO_SESSIONS, FLUSH_CONTEXT, handle))?;
        }
        if !is_late {
            return Ok(());
        }
    }
    bail!("{TRIES} keys in a row were there before they could be given up")
}
