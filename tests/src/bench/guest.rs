//! The part "guest": how long a program in a guest waits for one command, by the devices through
//! which guests reach their TPM.
//!
//! Linux asks a device how it stands at intervals of its own, which are longer than a short
//! command takes, and where QEMU emulates the processor that takes its time as well: both are the
//! same with every TPM.

use std::ffi::OsString;

use anyhow::{Context, Result};
use test_support::run_folder::RunFolder;

use super::host::BenchHost;
use super::launch::{remove_vm, start_over};
use super::peer::Peer;
use super::report::Report;
use super::samples::Samples;
use crate::guest::{Guest, GuestSpec, TpmDevice};
use crate::guest_image::I2cGuest;

/// One in so many commands of the part "commands" is timed in each guest, too.
const SHARE: u32 = 4;

/// Times `TPM2_GetRandom` in a guest for each device and TPM.
pub(super) fn measure(
    report: &mut Report,
    run: &RunFolder,
    host: &BenchHost,
    peer: &Peer<'_>,
    count: u32,
) {
    let guests = Guests {
        run,
        host,
        peer,
        count: count.div_ceil(SHARE),
    };
    for (name, device) in [("crb", TpmDevice::Crb), ("tis", TpmDevice::Tis)] {
        let outcome = guests.beside(report, name, device);
        report.part(&format!("guest_{name}_*"), outcome);
    }
    let outcome = guests.behind_i2c(report);
    report.part("guest_virtio_i2c_*", outcome);
}

struct Guests<'g> {
    run: &'g RunFolder,
    host: &'g BenchHost,
    peer: &'g Peer<'g>,
    count: u32,
}

impl Guests<'_> {
    /// A vRoT and swtpm, by one of QEMU's own devices.
    fn beside(&self, report: &mut Report, name: &str, device: TpmDevice) -> Result<()> {
        let guest = I2cGuest::with_timer()?;
        let spec = GuestSpec::new(&guest.image).seabios();
        let api = self.host.api();
        let ours = start_over(api, "emulator")?;
        let tpm = device.arguments(&ours.socket);
        let own = self.timed(&format!("guest-{name}"), spec.clone().tpm(tpm))?;
        remove_vm(api, ours.vm)?;

        let swtpm = format!("guest-{name}-swtpm");
        // It ends with its VMM.
        let (_process, connection) = self.peer.start_copy(&swtpm)?.into_parts();
        drop(connection);
        let tpm = device.arguments(&self.peer.socket(&swtpm));
        let others = self.timed(&swtpm, spec.tpm(tpm))?;
        for per_cent in [50, 99] {
            report.beside(
                format!("guest_{name}_p{per_cent}_us"),
                own.percentile(per_cent)?,
                others.percentile(per_cent)?,
                "µs",
                own.count(),
            );
        }
        Ok(())
    }

    /// A vRoT behind virtio-i2c, which swtpm does not have.
    fn behind_i2c(&self, report: &mut Report) -> Result<()> {
        let i2c = I2cGuest::with_timer()?;
        let api = self.host.api();
        let ours = start_over(api, "virtio-i2c")?;
        let mut socket = OsString::from("socket,id=tpm,path=");
        socket.push(&ours.socket);
        let device = "vhost-user-i2c-pci,chardev=tpm,addr=0x10";
        let tpm = ["-chardev".into(), socket, "-device".into(), device.into()];
        let spec = GuestSpec::new(&i2c.image).seabios();
        let spec = spec.tpm(tpm).more(i2c.surroundings());
        let own = self.timed("guest-virtio-i2c", spec)?;
        remove_vm(api, ours.vm)?;
        for per_cent in [50, 99] {
            let name = format!("guest_virtio_i2c_p{per_cent}_us");
            report.alone(name, own.percentile(per_cent)?, "µs", own.count());
        }
        Ok(())
    }

    fn timed(&self, name: &str, spec: GuestSpec) -> Result<Samples> {
        let guest = Guest::boot(self.run, name, &spec.with_shell())?;
        let times = guest.shell()?.text(&format!("tpm-timer {}", self.count));
        let times = times.context("timing commands in the guest")?;
        guest.power_off()?;
        let times = times.lines().map(str::parse);
        Ok(times.collect::<Result<Samples, _>>()?)
    }
}
