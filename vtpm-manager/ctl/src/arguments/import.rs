//! The options of `vtpmctl import`.

use std::path::PathBuf;

use cert_chain::{Tenant, VmId};
use clap::Args;
use swtpm_state::{KeyOptions, Location};

#[derive(Debug, Args)]
pub(crate) struct ImportArguments {
    /// Where swtpm keeps the TPM of a VM that is off: a folder, dir://FOLDER or file://FILE. The VM's UUID
    /// is the name of the folder or of the one that it is in, as libvirt lays them out.
    #[arg(value_name = "PLACE", required_unless_present = "all")]
    pub(crate) places: Vec<Location>,
    /// All of a folder's folders whose names are UUIDs, such as /var/lib/libvirt/swtpm.
    #[arg(long, value_name = "FOLDER", conflicts_with = "places")]
    pub(crate) all: Option<PathBuf>,
    /// Whose VMs they are.
    #[arg(long, required_unless_present = "undo")]
    pub(crate) tenant: Option<Tenant>,
    /// The VM's UUID, for one place.
    #[arg(long, value_name = "UUID", conflicts_with = "all")]
    pub(crate) vm: Option<VmId>,
    /// The key under which swtpm keeps the states: file=FILE or pwdfile=FILE, and mode=, format= or kdf= as
    /// swtpm's --key has them.
    #[arg(long, value_name = "OPTIONS", conflicts_with = "undo")]
    pub(crate) key: Option<KeyOptions>,
    /// Say what would be done, and change nothing.
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Give the places back to swtpm as they were, and delete the vRoTs that were made of them. What a
    /// vRoT's VM changed in it since is lost.
    #[arg(long)]
    pub(crate) undo: bool,
    /// With --undo: also where the vRoT has run since, where it is gone or cannot be told, and linear files. If
    /// the TPM is used anywhere else, there are two of it.
    #[arg(long, requires = "undo")]
    pub(crate) even_if_used: bool,
}
