//! A VM that is run in the foreground.

use std::ffi::OsString;

use cert_chain::{Tenant, VmId};
use clap::Args;

use super::vrot::Device;

#[derive(Debug, Args)]
pub(crate) struct RunArguments {
    /// The VM's UUID; left out, that of QEMU's `-uuid`, and with `--delete` and neither, one that
    /// the manager chooses.
    #[arg(long, value_name = "UUID")]
    pub(crate) vm: Option<VmId>,
    /// Whose VM it is; needed for one that has no vRoT yet.
    #[arg(long)]
    pub(crate) tenant: Option<Tenant>,
    /// A name for people, for one that has no vRoT yet.
    #[arg(long)]
    pub(crate) name: Option<String>,
    /// The interface that the guest sees.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: Device,
    /// Delete the vRoT when the VM has ended. Refused for a VM that has one already.
    #[arg(long)]
    pub(crate) delete: bool,
    /// Do not measure what QEMU is launched with (firmware, kernel, initramfs, command line, machine,
    /// processors, memory): evidence says then that it was not.
    #[arg(long)]
    pub(crate) no_measure: bool,
    /// QEMU and its arguments, without a TPM among them.
    #[arg(last = true, required = true, value_name = "QEMU")]
    pub(crate) command: Vec<OsString>,
}
