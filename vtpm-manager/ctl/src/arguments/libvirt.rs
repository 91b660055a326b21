//! Commands for hosts with libvirt.

use std::path::PathBuf;

use cert_chain::{Tenant, VmId};
use clap::{Args, Subcommand};

use super::vrot::Device;

/// Where the package puts it.
const DEFAULT_CONFIG: &str = "/etc/vtpm-manager/libvirt.toml";

#[derive(Debug, Subcommand)]
pub(crate) enum LibvirtCommand {
    /// Print a domain's `<tpm>` element, or with --domain the whole domain with it.
    #[command(name = "libvirt-xml")]
    Xml(XmlArguments),
    /// What libvirt calls before a domain starts and after it has ended
    /// (/etc/libvirt/hooks/qemu.d/vrot); the domain's XML comes from standard input.
    #[command(name = "libvirt-hook")]
    Hook(HookArguments),
    /// Delete the vRoTs of domains that libvirt does not know any more, as far as its hook made them.
    #[command(name = "libvirt-sync")]
    Sync(SyncArguments),
}

#[derive(Debug, Args)]
pub(crate) struct ConfigArgument {
    /// How domains are treated on this host.
    #[arg(long, value_name = "FILE", default_value = DEFAULT_CONFIG, env = "VTPM_LIBVIRT_CONFIG")]
    pub(crate) config: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct XmlArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// The domain's UUID.
    #[arg(
        value_name = "UUID",
        required_unless_present = "domain",
        conflicts_with = "domain"
    )]
    pub(crate) vm: Option<VmId>,
    /// A file with a domain's XML, which gets the element; `-` is standard input.
    #[arg(long, value_name = "FILE")]
    pub(crate) domain: Option<PathBuf>,
    /// Note in the domain whose VM it is, for its vRoT to be created when it starts first.
    #[arg(long, requires = "domain")]
    pub(crate) tenant: Option<Tenant>,
    /// Put the element in the place of another TPM, whose state the VM loses.
    #[arg(long, requires = "domain")]
    pub(crate) replace: bool,
    /// The interface that the guest sees.
    #[arg(long, value_enum, default_value_t)]
    pub(crate) device: Device,
}

#[derive(Debug, Args)]
pub(crate) struct HookArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// The domain's name.
    pub(crate) domain: String,
    /// What happens to it.
    pub(crate) operation: String,
    /// The part of it.
    pub(crate) part: Option<String>,
    /// What else libvirt says.
    #[arg(hide = true)]
    pub(crate) extra: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct SyncArguments {
    #[command(flatten)]
    pub(crate) config: ConfigArgument,
    /// Say what would be done.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Which libvirt.
    #[arg(long, value_name = "URI", default_value = "qemu:///system")]
    pub(crate) connect: String,
}
