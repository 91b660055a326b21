//! The part "boot": what a TPM adds to the boot of a guest whose firmware and kernel measure into
//! it, until its first process runs.

use std::ffi::OsString;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Result;
use test_support::run_folder::RunFolder;

use super::host::BenchHost;
use super::launch::{remove_vm, start_over};
use super::peer::Peer;
use super::report::Report;
use super::samples::Samples;
use crate::accelerator::Accelerator;
use crate::guest::{Guest, GuestSpec, TpmDevice};
use crate::guest_image::{Contents, GuestImage};

/// What `/init` says first.
const FIRST: &str = "vrot-guest: kernel";
const PATIENCE: Duration = Duration::from_secs(180);

/// Boots a guest without a TPM, with a vRoT and with swtpm, in turns.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &BenchHost,
    peer: &Peer<'_>,
    rounds: u32,
) -> Result<()> {
    let image = GuestImage::build(Contents::Bare)?;
    let ours = start_over(host.api(), "emulator")?;

    let mut boots = Boots {
        run,
        image: &image,
        accelerator: Accelerator::choose()?,
        count: 0,
    };
    let (mut without, mut own, mut others) =
        (Samples::default(), Samples::default(), Samples::default());
    for _ in 0..rounds {
        let bare = boots.one(None)?;
        without.add_ms(bare);
        own.add_ms(boots.one(Some(&ours.socket))?);
        // It ends with its VMM.
        let name = format!("boot-{}", boots.count);
        let (_process, connection) = peer.start_copy(&name)?.into_parts();
        drop(connection);
        others.add_ms(boots.one(Some(&peer.socket(&name)))?);
    }
    let bare = without.median()?;
    // On a busy machine the boot without one may well be the slowest.
    let beyond = |boots: &Samples| anyhow::Ok((boots.median()? - bare).max(0.0));
    let (own_overhead, other) = (beyond(&own)?, beyond(&others)?);
    match other > 0.0 {
        true => report.beside("boot_overhead_ms", own_overhead, other, "ms", own.count()),
        false => report.alone("boot_overhead_ms", own_overhead, "ms", own.count()),
    }
    report.beside(
        "boot_ms",
        own.median()?,
        others.median()?,
        "ms",
        own.count(),
    );
    report.spread(&own)?;
    report.alone("boot_without_tpm_ms", bare, "ms", without.count());
    report.spread(&without)?;
    remove_vm(host.api(), ours.vm)
}

struct Boots<'a> {
    run: &'a RunFolder,
    image: &'a GuestImage,
    accelerator: Accelerator,
    count: u32,
}

impl Boots<'_> {
    /// From QEMU's start until the guest's first process has said something.
    fn one(&mut self, control: Option<&Path>) -> Result<Duration> {
        self.count += 1;
        let tpm: Vec<OsString> =
            control.map_or(Vec::new(), |control| TpmDevice::Crb.arguments(control));
        let spec = GuestSpec::new(self.image).seabios().tpm(tpm);
        let name = format!("boot-{}", self.count);
        let begin = Instant::now();
        let mut guest = Guest::start_with(self.run, &name, &spec, self.accelerator)?;
        guest.wait_for_line(FIRST, PATIENCE)?;
        let took = begin.elapsed();
        guest.power_off()?;
        Ok(took)
    }
}
