//! Commands about vRoTs.

use super::launch::LaunchArguments;
use api_types::VrotKey;
use api_types::wire::{TpmDeviceModel, TpmTransport};
use cert_chain::{Tenant, VmId};
use clap::{Args, Subcommand, ValueEnum};

#[derive(Debug, Subcommand)]
pub(crate) enum VrotCommand {
    /// Manufacture a vRoT for a VM: keys, certificates, state.
    Create {
        /// The VM's UUID; the manager chooses one if it is left out.
        #[arg(long, value_name = "UUID")]
        vm: Option<VmId>,
        /// Whose VM it is.
        #[arg(long)]
        tenant: Tenant,
        /// A name for people.
        #[arg(long)]
        name: Option<String>,
        /// Start it, too.
        #[arg(long)]
        start: bool,
        /// Never start it unless what the VM is launched with was measured.
        #[arg(long)]
        require_launch_measurement: bool,
        #[command(flatten)]
        launch: Box<LaunchArguments>,
        /// How the VM reaches it, for its whole life.
        #[arg(long, value_enum, default_value_t)]
        transport: Transport,
    },
    /// Start a vRoT, so that a VMM can attach.
    Start {
        #[command(flatten)]
        vrot: VrotArgument,
        #[command(flatten)]
        launch: Box<LaunchArguments>,
    },
    /// Measure what a VM is launched with, for the next start of its vRoT; show it, if nothing is named.
    ///
    /// Evidence tells digest and parts from that start on, until the vRoT is stopped or another VMM
    /// attaches to it. The vRoT must not run.
    Measure {
        #[command(flatten)]
        vrot: VrotArgument,
        #[command(flatten)]
        launch: Box<LaunchArguments>,
        /// Forget what was measured.
        #[arg(long)]
        forget: bool,
    },
    /// Stop a vRoT; its state is kept.
    Stop(VrotArgument),
    /// Stop the vRoT of a paused VM and keep its volatile state, PCRs among it.
    Suspend(VrotArgument),
    /// Start a suspended vRoT as it was.
    Resume(VrotArgument),
    /// Have the next folder with the right `vrot.json` be a vRoT's, where a launcher that knows swtpm
    /// keeps a folder for each VM: the folder was restored from a backup, and no other is left.
    AcceptFolder(VrotArgument),
    /// Reset the TPM of a running VM, with the VM: for vRoTs whose VMM cannot (virtio-tpm,
    /// virtio-i2c).
    Reset(VrotArgument),
    /// List all vRoTs of the host.
    List,
    /// Show one vRoT.
    Show(VrotArgument),
    /// Delete a vRoT for good: its key is destroyed, its state can never be opened again.
    Delete(VrotArgument),
    /// Show a vRoT's keys and certificates.
    Identity {
        #[command(flatten)]
        vrot: VrotArgument,
        /// Renew the certificates first, although they are not due: of a vRoT that runs now, of
        /// another one when it starts.
        #[arg(long)]
        renew: bool,
    },
    /// Print the arguments that attach a vRoT to QEMU.
    QemuArgs {
        #[command(flatten)]
        vrot: VrotArgument,
        /// The interface that the guest sees.
        #[arg(long, value_enum, default_value_t)]
        device: Device,
    },
}

/// How a VM reaches its TPM.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Transport {
    /// Through its VMM (TPM emulator protocol): QEMU, libvirt, cloud-hypervisor.
    #[default]
    Emulator,
    /// By a queue in the guest's memory (vhost-user, device 62): crosvm, cloud-hypervisor. No
    /// firmware measures into it.
    VirtioTpm,
    /// By a TPM behind virtio-i2c (vhost-user): QEMU. No firmware measures into it.
    VirtioI2c,
}

impl From<Transport> for TpmTransport {
    fn from(transport: Transport) -> Self {
        match transport {
            Transport::Emulator => Self::Emulator,
            Transport::VirtioTpm => Self::VirtioTpm,
            Transport::VirtioI2c => Self::VirtioI2c,
        }
    }
}

/// How the guest sees its TPM.
#[derive(Clone, Copy, Debug, Default, ValueEnum)]
pub(crate) enum Device {
    /// Command response buffer.
    #[default]
    TpmCrb,
    /// TPM interface specification (FIFO).
    TpmTis,
}

#[derive(Debug, Args)]
pub(crate) struct VrotArgument {
    /// UUID of the VM, or of the vRoT.
    #[arg(value_name = "VM")]
    pub(crate) vrot: VrotKey,
}

impl From<Device> for TpmDeviceModel {
    fn from(device: Device) -> Self {
        match device {
            Device::TpmCrb => Self::TpmCrb,
            Device::TpmTis => Self::TpmTis,
        }
    }
}
