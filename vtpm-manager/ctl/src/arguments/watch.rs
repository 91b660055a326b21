//! Following what happens.

use api_types::VrotKey;
use cert_chain::Tenant;
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct WatchArguments {
    /// Only this VM, by its UUID or that of its vRoT. Can be repeated.
    #[arg(long, value_name = "UUID")]
    pub(crate) vm: Vec<VrotKey>,
    /// Only VMs of this tenant. Can be repeated.
    #[arg(long, value_name = "NAME")]
    pub(crate) tenant: Vec<Tenant>,
    /// Also what happened before, as far as the manager keeps it.
    #[arg(long)]
    pub(crate) earlier: bool,
}
