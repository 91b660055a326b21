//! A virtual machine with a measured boot: QEMU, OVMF, a Debian kernel and our initramfs.

use std::ffi::OsString;
use std::fs;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use test_support::deadline::wait_for;
use test_support::process::{Process, tail};
use test_support::run_folder::RunFolder;

use crate::accelerator::Accelerator;
use crate::guest_image::GuestImage;
use crate::guest_shell::GuestShell;
use crate::monitor::Monitor;

/// What `/init` says when everything is started.
pub const READY: &str = "vrot-guest: ready";
/// A port of `vrot-service`, and what it logs once it listens there.
type Port = (u16, &'static str);
const CHALLENGES: Port = (7071, "answering challenges");
const ATTESTED: Port = (7072, "taking attested connections");

/// The interface by which the guest sees its TPM.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TpmDevice {
    /// Command response buffer.
    Crb,
    /// TPM interface specification (FIFO).
    Tis,
}

impl TpmDevice {
    /// QEMU's arguments that attach the TPM behind a "tpm emulator" control socket.
    pub fn arguments(self, control: &Path) -> Vec<OsString> {
        let mut socket = OsString::from("socket,id=chrtpm,path=");
        socket.push(control);
        let device = match self {
            Self::Crb => "tpm-crb,tpmdev=tpm0",
            Self::Tis => "tpm-tis,tpmdev=tpm0",
        };
        vec![
            "-chardev".into(),
            socket,
            "-tpmdev".into(),
            "emulator,id=tpm0,chardev=chrtpm".into(),
            "-device".into(),
            device.into(),
        ]
    }
}

/// What starts a guest's kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Firmware {
    /// UEFI: it hands an event log over.
    Ovmf,
    /// BIOS: it measures as well, and is up in a moment.
    SeaBios,
}

/// What a guest is made of.
#[derive(Clone, Debug)]
pub struct GuestSpec {
    /// What starts the kernel.
    pub firmware: Firmware,
    /// The kernel (measured into PCR 4).
    pub kernel: PathBuf,
    /// The initramfs (measured into PCR 9).
    pub initramfs: PathBuf,
    /// The kernel's command line (measured into PCR 9).
    pub command_line: String,
    /// QEMU's arguments that attach a TPM; empty for a guest without one.
    pub tpm: Vec<OsString>,
    /// Further arguments of QEMU.
    pub more: Vec<OsString>,
}

impl GuestSpec {
    /// An image as it is, without a TPM.
    pub fn new(image: &GuestImage) -> Self {
        Self {
            firmware: Firmware::Ovmf,
            kernel: image.kernel.clone(),
            initramfs: image.initramfs.clone(),
            command_line: "console=ttyS0 quiet".to_owned(),
            tpm: Vec::new(),
            more: Vec::new(),
        }
    }

    /// With a firmware that is up in a moment.
    #[must_use]
    pub fn seabios(mut self) -> Self {
        self.firmware = Firmware::SeaBios;
        self
    }

    /// With further arguments of QEMU.
    #[must_use]
    pub fn more<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.more.extend(arguments.into_iter().map(Into::into));
        self
    }

    /// With a TPM.
    #[must_use]
    pub fn tpm<A: Into<OsString>>(mut self, arguments: impl IntoIterator<Item = A>) -> Self {
        self.tpm = arguments.into_iter().map(Into::into).collect();
        self
    }

    /// With more words on the kernel's command line.
    #[must_use]
    pub fn command_line(mut self, words: &str) -> Self {
        self.command_line.push(' ');
        self.command_line.push_str(words);
        self
    }

    /// With an HTTP server that only the guest itself reaches, and `vrot-service proxy` before it.
    #[must_use]
    pub fn with_web_server(self) -> Self {
        self.command_line("vrot.web=yes")
    }

    /// With a shell for [`Guest::shell`].
    #[must_use]
    pub fn with_shell(self) -> Self {
        self.command_line("vrot.shell=ttyS1")
    }
}

/// A running virtual machine.
#[derive(Debug)]
pub struct Guest {
    process: Process,
    monitor: Monitor,
    console: PathBuf,
    shell: PathBuf,
}

impl Guest {
    /// Starts a guest and waits until its `/init` says that it is ready.
    pub fn boot(folder: &RunFolder, name: &str, spec: &GuestSpec) -> Result<Self> {
        let mut guest = Self::start_with(folder, name, spec, Accelerator::choose()?)?;
        guest.wait_for_line(READY, BOOT_PATIENCE)?;
        Ok(guest)
    }

    /// Starts a guest without waiting for it.
    pub fn start_with(
        folder: &RunFolder,
        name: &str,
        spec: &GuestSpec,
        accelerator: Accelerator,
    ) -> Result<Self> {
        let console = folder.log(&format!("{name}-console.log"));
        let shell = folder.join(format!("{name}.shell"));
        let monitor = folder.join(format!("{name}.monitor"));
        fs::write(&console, [])?;

        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-machine", "q35", "-m", "512", "-nodefaults", "-no-reboot"])
            .args(["-display", "none", "-name", name])
            .args(["-accel", accelerator.name()])
            .args(["-cpu", accelerator.processor()])
            .args(match spec.firmware {
                Firmware::Ovmf => ovmf(&folder.join(format!("{name}-variables.fd")))?,
                Firmware::SeaBios => Vec::new(),
            })
            .arg("-kernel")
            .arg(&spec.kernel)
            .arg("-initrd")
            .arg(&spec.initramfs)
            .args(["-append", &spec.command_line])
            .arg("-chardev")
            .arg(format!("file,id=console,path={}", console.display()))
            .args(["-serial", "chardev:console"])
            .arg("-chardev")
            .arg(format!(
                "socket,id=shell,path={},server=on,wait=off",
                shell.display()
            ))
            .args(["-serial", "chardev:shell"])
            // Port 0: the kernel finds a free one, and the monitor tells which.
            .args([
                "-netdev",
                "user,id=net0,restrict=on,hostfwd=tcp:127.0.0.1:0-:7071,\
                 hostfwd=tcp:127.0.0.1:0-:7072",
            ])
            .args(["-device", "virtio-net-pci,netdev=net0,romfile="])
            .arg("-qmp")
            .arg(format!("unix:{},server=on,wait=off", monitor.display()))
            .args(&spec.tpm)
            .args(&spec.more);
        let mut process = Process::start(name, command, &folder.log(&format!("{name}-qemu.log")))?;
        let monitor = process.wait_until("QEMU's monitor", START_PATIENCE, || {
            Monitor::connect(&monitor)
        })?;
        Ok(Self {
            process,
            monitor,
            console,
            shell,
        })
    }

    /// Waits until a text appears on the guest's console.
    pub fn wait_for_line(&mut self, text: &str, patience: Duration) -> Result<()> {
        let console = self.console.clone();
        let monitor = &mut self.monitor;
        self.process
            .wait_until(&format!("\"{text}\" on the console"), patience, || {
                if fs::read(&console)?
                    .windows(text.len())
                    .any(|window| window == text.as_bytes())
                {
                    return Ok(Some(()));
                }
                let status = monitor.status()?;
                if status != "running" {
                    bail!("the virtual machine stopped by itself: {status}");
                }
                Ok(None)
            })
            .with_context(|| format!("console {}:\n{}", console.display(), tail(&console)))
    }

    /// What the guest's console shows.
    pub fn console(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.console)?).into_owned())
    }

    /// Where a device outside reaches `vrot-service` in the guest, once something answers there.
    pub fn service(&mut self) -> Result<SocketAddr> {
        self.reach(CHALLENGES)
    }

    /// Where a device outside reaches `vrot-service proxy` in a guest made with
    /// [`GuestSpec::with_web_server`].
    pub fn attested(&mut self) -> Result<SocketAddr> {
        self.reach(ATTESTED)
    }

    fn reach(&mut self, (port, ready): Port) -> Result<SocketAddr> {
        // QEMU accepts connections for a guest that does not listen yet.
        self.wait_for_line(ready, START_PATIENCE)?;
        let port = self.monitor.forwarded_port(port)?;
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        wait_for("vrot-service's port", START_PATIENCE, || {
            self.process.must_run()?;
            Ok(TcpStream::connect_timeout(&address, START_PATIENCE).ok())
        })?;
        Ok(address)
    }

    /// The shell of a guest made with [`GuestSpec::with_shell`].
    pub fn shell(&self) -> Result<GuestShell> {
        GuestShell::connect(&self.shell)
    }

    /// Restarts the machine, as its reset button would, and waits until it is ready again.
    pub fn reset(&mut self) -> Result<()> {
        // QEMU ends on a reset because of `-no-reboot`, unless told otherwise.
        self.monitor.keep_on_reset()?;
        fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.console)?;
        self.monitor.reset()?;
        self.wait_for_line(READY, BOOT_PATIENCE)
    }

    /// Has a guest sleep (S3, suspend to RAM), and wakes it.
    pub fn sleep_and_wake_up(&mut self, shell: &mut GuestShell) -> Result<()> {
        // The kernel says on the console that it is back; what comes over a serial port before is lost.
        let sleep = "dmesg -n 8; (sleep 1; echo mem > /sys/power/state) > /dev/null 2>&1 &";
        shell.run(sleep)?;
        wait_for("the machine to sleep", START_PATIENCE, || {
            Ok((self.monitor.status()? == "suspended").then_some(()))
        })?;
        self.monitor.wake_up()?;
        self.wait_for_line("PM: suspend exit", START_PATIENCE)?;
        shell.run("dmesg -n 1")?;
        Ok(())
    }

    /// Has a guest that brings `linux-calls` start its kernel anew, without its firmware (kexec).
    pub fn start_another_kernel(&mut self, shell: &mut GuestShell) -> Result<()> {
        let words = "console=ttyS0 quiet vrot.shell=ttyS1";
        // What it was started with is not there any more: the same files are packed again.
        shell.run("cd / && find init bin usr lib lib64 sbin | cpio -o -H newc > /tmp/initramfs")?;
        fs::OpenOptions::new()
            .write(true)
            .truncate(true)
            .open(&self.console)?;
        let calls = format!("linux-calls kexec /boot/vmlinuz /tmp/initramfs '{words}'");
        shell.run(&format!(
            "(sleep 1; {calls} > /dev/console 2>&1) > /dev/null 2>&1 &"
        ))?;
        self.wait_for_line(READY, BOOT_PATIENCE)
    }

    /// Waits until a machine that was saved goes on.
    pub fn wait_until_running(&mut self) -> Result<()> {
        let monitor = &mut self.monitor;
        self.process
            .wait_until("the machine to go on", START_PATIENCE, || {
                Ok((monitor.status()? == "running").then_some(()))
            })
    }

    /// The machine's monitor.
    pub fn monitor(&mut self) -> &mut Monitor {
        &mut self.monitor
    }

    /// Switches the machine off.
    pub fn power_off(mut self) -> Result<()> {
        if let Err(error) = self.monitor.quit() {
            // More to the point, if it is there.
            self.process.must_run()?;
            return Err(error);
        }
        self.process.stop()?;
        Ok(())
    }
}

/// QEMU's arguments for OVMF, with variables of its own.
fn ovmf(variables: &Path) -> Result<Vec<String>> {
    fs::copy(firmware("OVMF_VARS_4M.fd")?, variables)
        .context("copying the firmware's variables")?;
    let code = firmware("OVMF_CODE_4M.fd")?;
    let code = format!(
        "if=pflash,format=raw,unit=0,readonly=on,file={}",
        code.display()
    );
    let variables = format!("if=pflash,format=raw,unit=1,file={}", variables.display());
    Ok(["-drive".to_owned(), code, "-drive".to_owned(), variables].into())
}

fn firmware(name: &str) -> Result<PathBuf> {
    let path = Path::new("/usr/share/OVMF").join(name);
    if !path.is_file() {
        bail!(
            "{} is missing: install the package ovmf (or run `make setup`)",
            path.display()
        );
    }
    Ok(path)
}

/// Without KVM, and with other work on the machine, a boot of 8 s can take several times that.
const BOOT_PATIENCE: Duration = Duration::from_secs(180);
const START_PATIENCE: Duration = Duration::from_secs(30);
