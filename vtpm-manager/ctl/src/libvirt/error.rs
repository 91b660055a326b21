//! Why a domain of libvirt is refused.

use std::path::{Path, PathBuf};

use api_types::wire::TpmTransport;
use attestation::TomlError;
use cert_chain::identifiers::IdentifierError;
use cert_chain::{Tenant, VmId};

/// Why a domain is refused, or what it needs cannot be done.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LibvirtError {
    /// The configuration says what cannot be understood.
    #[error("`{}` is no configuration for domains of libvirt", path.display())]
    Config {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: TomlError,
    },
    /// A folder is not said in full.
    #[error("`{}`: `{entry}` is `{}`: give the whole path, from `/` on", path.display(), folder.display())]
    Relative {
        /// The file.
        path: PathBuf,
        /// The entry.
        entry: &'static str,
        /// What it says.
        folder: PathBuf,
    },
    /// A file or folder cannot be used.
    #[error("`{}` cannot be {action}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// Others could lead VMMs astray.
    #[error(
        "`{}` must be a folder of this user in which no other can write: remove it, it is made anew",
        path.display()
    )]
    Links {
        /// The folder.
        path: PathBuf,
    },
    /// The input is too long, or no text.
    #[error("the domain's XML cannot be read from {from}: it has to be a text of at most 1 MiB")]
    Input {
        /// Where it should have come from.
        from: String,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The input is no XML.
    #[error("what should be a domain is no XML")]
    Xml(#[source] roxmltree::Error),
    /// The input is something else.
    #[error("a `<domain>` with one `<name>` and one `<devices>` is needed; {0}")]
    NoDomain(&'static str),
    /// The domain has no number.
    #[error("the domain has no `<uuid>`, which names its vRoT: put one in (`uuidgen` makes one)")]
    NoUuid,
    /// What is to be a number or a name is none.
    #[error("the domain's {what} is `{value}`")]
    Identifier {
        /// Which.
        what: &'static str,
        /// Its value.
        value: String,
        /// Why that is none.
        #[source]
        source: IdentifierError,
    },
    /// Our metadata has something that is not known here.
    #[error("the domain's vRoT metadata has `{0}`, which this version does not know")]
    Metadata(String),
    /// It says that it has a vRoT, and has none.
    #[error(
        "domain {vm} says that it has a vRoT, and its TPM is another one: `virsh dumpxml --inactive {vm} \
         | vtpmctl libvirt-xml --domain - --replace` prints it with that TPM"
    )]
    OtherTpm {
        /// The domain.
        vm: VmId,
    },
    /// It names the vRoT of another VM.
    #[error(
        "the TPM of domain {vm} is `{}`, which is not its own: that is `{}`. \
         `virsh dumpxml --inactive {vm} | vtpmctl libvirt-xml --domain - --replace` prints it with that",
        found.display(), own.display()
    )]
    OfAnother {
        /// The domain.
        vm: VmId,
        /// What it names.
        found: PathBuf,
        /// What it should name.
        own: PathBuf,
    },
    /// It has a TPM already.
    #[error(
        "domain {vm} has another TPM: `--replace` puts the vRoT in its place, and the VM loses its state"
    )]
    HasTpm {
        /// The domain.
        vm: VmId,
    },
    /// It is somebody else's.
    #[error("domain {vm} says that it is {found}'s, not {wanted}'s")]
    HasTenant {
        /// The domain.
        vm: VmId,
        /// Whose it says it is.
        found: Tenant,
        /// Whose it is to be.
        wanted: Tenant,
    },
    /// It has no vRoT, and none is made.
    #[error(
        "domain {vm} has no vRoT on this host: `vtpmctl create --vm {vm} --tenant TENANT` makes one; \
         `create = true` in {} does so for every domain that starts first",
        config.display()
    )]
    NoVrot {
        /// The domain.
        vm: VmId,
        /// The configuration.
        config: PathBuf,
    },
    /// Nobody says whose it is.
    #[error(
        "domain {vm} has no vRoT yet, and nothing says whose it is to be: `vtpmctl libvirt-xml --domain FILE \
         --tenant TENANT` notes it in the domain, `tenant` in {} for all of the host",
        config.display()
    )]
    NoTenant {
        /// The domain.
        vm: VmId,
        /// The configuration.
        config: PathBuf,
    },
    /// libvirt cannot attach it.
    #[error(
        "the vRoT of domain {vm} is reached by {}, and libvirt attaches a TPM by the TPM emulator protocol \
         alone: launch the VM without libvirt (`vtpmctl start {vm}`), or make another vRoT in its place, \
         without what this one holds: `vtpmctl delete {vm}`, `vtpmctl create --vm {vm} --tenant TENANT`",
        transport.name()
    )]
    Transport {
        /// The domain.
        vm: VmId,
        /// How it is reached.
        transport: TpmTransport,
    },
    /// What was saved needs the vRoT that it was saved with.
    #[error(
        "domain {vm} was saved with a vRoT that this host does not have: it cannot go on. Start it \
         without what was saved: `virsh managedsave-remove {vm}`, or from its definition"
    )]
    NoVrotToRestore {
        /// The domain.
        vm: VmId,
    },
    /// Whether its TPM is a vRoT is not known.
    #[error("whether the TPM of domain {vm} is a vRoT cannot be found out")]
    Swtpm {
        /// The domain.
        vm: VmId,
        /// Why.
        #[source]
        source: vrot_handover::HandoverError,
    },
    /// A vRoT belongs to its host.
    #[error(
        "domain {vm} cannot be migrated to this host: its vRoT belongs to the host that it runs on. \
         Shut it down there, and start it here with a vRoT of its own"
    )]
    Migration {
        /// The domain.
        vm: VmId,
    },
    /// libvirt does not answer.
    #[error("libvirt does not say which domains it has (`{command}`): {said}; nothing was done")]
    Domains {
        /// What was asked.
        command: String,
        /// What was said.
        said: String,
    },
    /// A note cannot be understood.
    #[error("`{}` does not say what was made for a domain, or a newer version wrote it", path.display())]
    Note {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl LibvirtError {
    /// A file that cannot be used.
    pub(super) fn file(path: &Path, action: &'static str, source: std::io::Error) -> Self {
        Self::File {
            path: path.to_owned(),
            action,
            source,
        }
    }
}
